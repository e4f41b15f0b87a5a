"""Pull requests as localize-read-edit samples."""

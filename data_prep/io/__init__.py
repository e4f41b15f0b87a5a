"""Files, errors, progress, and steps that run in resumable shards. Imports no other package of this project."""

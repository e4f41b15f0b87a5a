"""Model families as data, and the one place where models are built."""

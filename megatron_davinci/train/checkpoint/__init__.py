"""Checkpoints of a run: saved, loaded, recovered."""

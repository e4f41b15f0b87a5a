"""Reinforcement mid-training on a laptop: what is trained, measured and compared. See README.md."""

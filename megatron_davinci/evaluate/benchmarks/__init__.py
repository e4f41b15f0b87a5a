"""Benchmarks of checkpoints: daVinci-Dev's Table 3 and mathematics, with intervals and without what has leaked."""

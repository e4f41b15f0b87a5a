"""Sharded jobs on one machine, Slurm or Ray."""

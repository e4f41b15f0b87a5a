"""A recipe onto nodes: scripts for torchrun and for Slurm, and what both need to know of a run. Torch-free."""

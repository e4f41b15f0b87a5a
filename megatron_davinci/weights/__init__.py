"""Weights on disk: Hugging Face and torch_dist, read and converted in slices. No Megatron, no process group."""

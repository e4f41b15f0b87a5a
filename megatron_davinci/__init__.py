"""Agentic mid-training of large language models on Megatron-Core."""

import warnings

__version__ = "0.1.0"

# Megatron warns in each of its modules that Transformer Engine and Apex are absent; on a CPU that is no news.
warnings.filterwarnings("ignore", message=".*(Transformer Engine and Apex are|Apex is) not installed")
warnings.filterwarnings("ignore", message="full scope is deprecated")
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch\.distributed|megatron\.core)")
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

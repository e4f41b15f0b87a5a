"""The training loop around Megatron's schedules."""

import warnings

# Megatron warns once per module that Transformer Engine and Apex are absent; on a CPU that is no news.
warnings.filterwarnings("ignore", message=".*(Transformer Engine and Apex are|Apex is) not installed.*")
warnings.filterwarnings("ignore", message="full scope is deprecated")

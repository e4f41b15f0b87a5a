"""Agentic mid-training of large language models on Megatron-Core."""

import logging
import warnings

__version__ = "0.1.0"

# What is said when upstream is imported or built, and a person can do nothing about.
# Megatron warns in each of its modules that Transformer Engine and Apex are absent; on a CPU that is no news.
warnings.filterwarnings("ignore", message=".*(Transformer Engine and Apex are|Apex is) not installed")
warnings.filterwarnings("ignore", message=".* is experimental and still under active development")
warnings.filterwarnings("ignore", message="full scope is deprecated")
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch\.distributed|megatron\.core)")
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
_LOGGED = {
    # where CUDA's compiler is and no GPU, such as on a login node
    "torch.utils.cpp_extension": "No CUDA runtime is found",
    # Megatron-Core 0.19 recommends HybridModel, whose layers are Transformer Engine's alone
    "megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED",
}


def _leave_out(logger: str, text: str) -> None:
    logging.getLogger(logger).addFilter(lambda record: text not in record.getMessage())


for _logger, _text in _LOGGED.items():
    _leave_out(_logger, _text)

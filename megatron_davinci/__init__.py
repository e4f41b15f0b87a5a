"""Agentic mid-training of large language models on Megatron-Core.

`import megatron_davinci as davinci` gives the functions of docs/python-api.md, each imported where it is first used;
__init__.pyi has their types.
"""

import logging
import warnings
from importlib import import_module
from typing import Any

from megatron_davinci.first_import import import_megatron_without_unused_parts

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
import_megatron_without_unused_parts()

# name -> where it is: "module", or "module:other name".
_PUBLIC = {
    "InputError": "data_prep",
    "WorkFailed": "data_prep",
    "collect_git": "data_prep.sources.collect",
    "load_tokenizer": "data_prep.tokenizers",
    "TokenizeJob": "data_prep.tokenize.tokenize",
    "tokenize": "data_prep.tokenize.tokenize",
    "Corpus": "data_prep.corpus",
    "PackPlan": "data_prep.corpus",
    "pack_documents": "data_prep.corpus",
    "save_plan": "data_prep.corpus",
    "load_plan": "data_prep.corpus",
    "Recipe": "megatron_davinci.config",
    "load_recipe": "megatron_davinci.config",
    "parse_recipe": "megatron_davinci.config",
    "dump_recipe": "megatron_davinci.config",
    "describe_run": "megatron_davinci.train.dry_run",
    "train_recipe": "megatron_davinci.train.loop:train",
    "read_metrics": "megatron_davinci.report.metrics_file",
    "find_device": "megatron_davinci.plan.devices",
    "make_plan": "megatron_davinci.plan.describe",
    "load_model_config": "megatron_davinci.models.config",
    "ConversionOptions": "megatron_davinci.weights.conversion",
    "export_to_hf": "megatron_davinci.weights.to_huggingface",
    "import_from_hf": "megatron_davinci.weights.to_megatron",
    "differences": "megatron_davinci.weights.compare",
    "write_report": "megatron_davinci.report.write",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, other = _PUBLIC[name].partition(":")
    return getattr(import_module(module), other or name)


def __dir__() -> list[str]:
    """Every public name, whether it was imported or not."""
    return sorted({*globals(), *_PUBLIC})

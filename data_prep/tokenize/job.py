"""What `davinci data tokenize` is asked to do."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TokenizeJob:
    """One run of tokenizing.

    `outputs` gives the PREFIX for each field of a record. With `conversations` the fields hold messages, rendered by
    `chat_template` or by the tokenizer's own. `split_sentences` uses the Punkt model at `punkt` (a language of NLTK's
    punkt_tab), or learns one from the input and saves it as PREFIX.punkt.
    """

    inputs: tuple[str, ...]
    tokenizer: Path
    outputs: dict[str, Path]
    append_eod: bool = False
    prepend_bos: bool = False
    conversations: bool = False
    chat_template: Path | None = None
    split_sentences: bool = False
    punkt: Path | None = None
    keep_space: bool = True
    strict: bool = False
    workers: int = 1


def outputs_of(prefix: Path, keys: list[str]) -> dict[str, Path]:
    """PREFIX of the corpus of each key: `prefix` itself for one, with the key's name behind it for several."""
    return {key: prefix if len(keys) == 1 else prefix.with_name(f"{prefix.name}_{key}") for key in keys}

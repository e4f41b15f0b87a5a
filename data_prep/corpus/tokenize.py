"""Text files to a corpus: read, encode in batches, stream to disk."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.corpus.indexed import CorpusWriter
from data_prep.corpus.tokenizers import load_tokenizer
from data_prep.errors import InputError
from data_prep.files import read_jsonl

BATCH_CHARACTERS = 4 << 20  # bounds memory and still keeps every core busy


def tokenize_files(
    inputs: list[Path],
    tokenizer_path: Path,
    prefix: Path,
    json_key: str = "text",
    append_eod: bool = False,
    on_progress: Callable[[int], None] = lambda documents: None,
) -> dict[str, Any]:
    """Encode the texts of JSON Lines files into a corpus; returns its manifest.

    `on_progress` gets the number of documents of each batch. Raises InputError on bad input, and then leaves nothing.
    """
    missing = [path for path in inputs if not path.is_file()]
    if missing:
        raise InputError(f"{missing[0]} does not exist or is no file")
    tokenizer, description = load_tokenizer(tokenizer_path)
    end = []
    if append_eod:
        if tokenizer.eod is None:
            raise InputError(f"{tokenizer_path} declares no end-of-document token: leave --append-eod out")
        end = [tokenizer.eod]
    writer = CorpusWriter(prefix, description)
    try:
        for texts in _batches(_texts(inputs, json_key)):
            writer.add([ids + end if ids else ids for ids in tokenizer.encode(texts)])
            on_progress(len(texts))
        provenance = {"inputs": [path.name for path in inputs], "json_key": json_key, "append_eod": append_eod}
        return writer.commit(provenance)
    except BaseException:
        writer.discard()
        raise


def _texts(inputs: Iterable[Path], json_key: str) -> Iterator[str]:
    for path in inputs:
        for number, record in enumerate(read_jsonl(path), 1):
            text = record.get(json_key)
            if not isinstance(text, str):
                known = ", ".join(key for key, value in record.items() if isinstance(value, str))
                raise InputError(
                    f"{path}, record {number}, has no text under '{json_key}'; its text fields are: {known}"
                )
            yield text


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

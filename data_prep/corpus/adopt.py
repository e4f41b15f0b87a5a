"""A corpus that another program wrote, taken over: its manifest is made, and not a byte of it changed."""

from pathlib import Path
from typing import Any

import numpy as np

from data_prep.corpus.indexed import corpus_files, manifest_checksum, map_elements, read_index, token_types
from data_prep.corpus.writer import CHECKSUM_BLOCK_BYTES
from data_prep.io.errors import InputError
from data_prep.io.files import block_checksums, json_bytes, new_file, refuse_existing

_TOKENS_AT_ONCE = 16 << 20


def adopt_corpus(prefix: Path, tokenizer: dict[str, Any], origin: str) -> dict[str, Any]:
    """Write PREFIX.manifest.json beside PREFIX.bin and .idx that are there; returns the manifest.

    `tokenizer` is the description of the one that made the ids, `origin` its path. Raises InputError where the files
    are no corpus, or hold ids that the tokenizer does not have.
    """
    files = corpus_files(prefix, masked=False)
    refuse_existing(files["manifest.json"])
    tokens, sequences, documents = map_elements(files["bin"], files["idx"], token_types())
    element, _, _ = read_index(files["idx"])
    blocks = [tokens[at : at + _TOKENS_AT_ONCE] for at in range(0, len(tokens), _TOKENS_AT_ONCE)]
    ids = [int(bound) for block in blocks for bound in (block.min(), block.max())]
    wrong = next((id_ for id_ in ids if not 0 <= id_ < tokenizer["vocab_size"]), None)
    if wrong is not None:
        raise InputError(
            f"{files['bin']} holds the id {wrong}, and {origin} has {tokenizer['vocab_size']}: give the tokenizer "
            "that made the corpus"
        )
    parts = {name: files[name] for name in ("bin", "idx")}
    manifest = {
        "format": 1,
        "documents": len(documents) - 1,
        "tokens": int(np.sum(sequences, dtype=np.int64)),
        "empty_documents_dropped": 0,
        "tokenizer": tokenizer,
        "provenance": {"adopted": prefix.name, "element": str(element)},
        "checksum": {
            "algorithm": "xxh3_64",
            "block_bytes": CHECKSUM_BLOCK_BYTES,
            **{f"{name}_bytes": part.stat().st_size for name, part in parts.items()},
            **{name: block_checksums(part, CHECKSUM_BLOCK_BYTES) for name, part in parts.items()},
        },
    }
    manifest["seal"] = manifest_checksum(manifest)
    with new_file(files["manifest.json"]) as part:
        part.write_bytes(json_bytes(manifest))
    return manifest

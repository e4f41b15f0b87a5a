"""Whole or not: every byte of a corpus against its manifest."""

from pathlib import Path
from typing import Any

from data_prep.corpus.entropy import Annotation, has_annotation
from data_prep.corpus.indexed import Corpus, corpus_files, seal_of
from data_prep.errors import InputError
from data_prep.files import block_checksums, json_bytes, read_json


def verify_corpus(prefix: Path) -> list[str]:
    """What is wrong with a corpus, one sentence each; nothing where every byte is as it was written.

    Raises InputError where there is no corpus at all.
    """
    files = corpus_files(prefix, masked=False)
    if not any(path.is_file() for path in files.values()):
        raise InputError(f"{prefix} is no corpus: {', '.join(path.name for path in files.values())} do not exist")
    if not files["manifest.json"].is_file():
        return [f"{files['manifest.json']} is missing"]
    try:
        manifest = read_json(files["manifest.json"])
        intact = manifest["seal"] == seal_of(manifest) and json_bytes(manifest) == files["manifest.json"].read_bytes()
    except (InputError, KeyError, TypeError):
        intact = False
    if not intact:
        return [f"{files['manifest.json']} is altered: without it nothing else can be checked"]
    files = corpus_files(prefix, "loss_mask.bin" in manifest["checksum"])
    del files["manifest.json"]
    faults = [fault for name, path in files.items() for fault in _altered_blocks(path, name, manifest["checksum"])]
    if not faults:
        corpus = Corpus(prefix)  # what was written is also what a reader takes
        if has_annotation(corpus):
            faults += Annotation(corpus).faults()
    return faults


def _altered_blocks(path: Path, name: str, recorded: dict[str, Any]) -> list[str]:
    if not path.is_file():
        return [f"{path} is missing"]
    size, block = path.stat().st_size, recorded["block_bytes"]
    if size != recorded[f"{name}_bytes"]:
        return [f"{path} has {size} bytes, {recorded[f'{name}_bytes']} were written"]
    pairs = zip(block_checksums(path, block), recorded[name], strict=True)
    return [
        f"{path} is altered between bytes {number * block} and {min((number + 1) * block, size)}"
        for number, (found, written) in enumerate(pairs)
        if found != written
    ]

"""Whole or not: every byte of a corpus against its manifest."""

from pathlib import Path
from typing import Any

from data_prep.corpus.annotation import Annotation, has_annotation
from data_prep.corpus.indexed import Corpus, corpus_files, is_manifest, manifest_checksum
from data_prep.io.errors import InputError
from data_prep.io.files import block_checksums, json_bytes, read_json

_LARGEST_BLOCK = 1 << 30


def verify_corpus(prefix: Path) -> list[str]:
    """One sentence for each thing that is wrong with a corpus; none where every byte is as it was written.

    Raises InputError where there is no corpus at all.
    """
    files = corpus_files(prefix, masked=False)
    if not any(path.is_file() for path in files.values()):
        raise InputError(f"{prefix} is no corpus: {', '.join(path.name for path in files.values())} do not exist")
    if not files["manifest.json"].is_file():
        return [f"{files['manifest.json']} is missing"]
    try:
        manifest = read_json(files["manifest.json"])
        intact = (
            manifest["seal"] == manifest_checksum(manifest)
            and json_bytes(manifest) == files["manifest.json"].read_bytes()
        )
    except (InputError, KeyError, TypeError):
        intact = False
    if not intact:
        return [f"{files['manifest.json']} is altered: without it nothing else can be checked"]
    if not is_manifest(manifest) or manifest["checksum"].get("block_bytes") not in range(1, _LARGEST_BLOCK):
        return [f"{files['manifest.json']} is no manifest of a corpus: without it nothing else can be checked"]
    files = corpus_files(prefix, "loss_mask.bin" in manifest["checksum"])
    del files["manifest.json"]
    damage = [fault for name, path in files.items() for fault in _altered_blocks(path, name, manifest["checksum"])]
    if not damage:
        corpus = Corpus(prefix)  # what was written is also what a reader takes
        for name, found in (("documents", len(corpus)), ("tokens", len(corpus.tokens))):
            if manifest[name] != found:
                damage.append(f"{files['idx']} has {found:,} {name}, the manifest says {manifest[name]:,}")
        if has_annotation(corpus):
            damage += Annotation(corpus).damage()
    return damage


def _altered_blocks(path: Path, name: str, recorded: dict[str, Any]) -> list[str]:
    if not path.is_file():
        return [f"{path} is missing"]
    size, block = path.stat().st_size, recorded["block_bytes"]
    if size != recorded.get(f"{name}_bytes"):
        return [f"{path} has {size} bytes, {recorded.get(f'{name}_bytes')} were written"]
    if len(recorded[name]) != -(-size // block):
        return [f"{path} has {-(-size // block)} blocks, the manifest knows {len(recorded[name])}"]
    pairs = zip(block_checksums(path, block), recorded[name], strict=True)
    return [
        f"{path} is altered between bytes {number * block} and {min((number + 1) * block, size)}"
        for number, (found, written) in enumerate(pairs)
        if found != written
    ]

"""The annotation of a corpus: PREFIX.entropy.bin, float32 for each token, PREFIX.entropy.idx, PREFIX.entropy.json.

A token's number is the entropy, in nats, of some model's prediction of it; 0 for a document's first, which nothing
predicts. The index is Megatron's; the description names corpus and model, and appears last.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.corpus.indexed import INDEX_HEADER, INDEX_MAGIC, Corpus, map_elements
from data_prep.io.arrays import Float32s
from data_prep.io.errors import InputError
from data_prep.io.files import (
    PART,
    block_checksums,
    part_of,
    publish,
    read_json,
    refuse_existing,
    take_lock,
    write_json,
)

_FLOAT32 = 7  # Megatron's DType code
_BLOCK_BYTES = 64 << 20


class Annotation:
    """`entropies` (tokens,) float32 of a corpus, memory-mapped; `description` as written.

    Raises InputError where there is none, or where it is another corpus's.
    """

    def __init__(self, corpus: Corpus) -> None:
        files = _files(corpus.prefix)
        if not files["json"].is_file():
            raise InputError(
                f"{corpus.prefix} has no annotation of difficulty ({files['json'].name}): make it with davinci rmt "
                f"annotate {corpus.prefix} --model DIRECTORY"
            )
        self.description: dict[str, Any] = read_json(files["json"])
        if not isinstance(self.description, dict) or self.description.get("corpus") != corpus.checksum:
            raise InputError(
                f"{files['json']} annotates other contents than {corpus.prefix} has: remove it, and annotate again"
            )
        self.corpus = corpus
        types: dict[int, np.dtype[Any]] = {_FLOAT32: np.dtype(np.float32)}
        self.entropies: Float32s = map_elements(files["bin"], files["idx"], types)[0]
        if len(self.entropies) != len(corpus.tokens):
            raise InputError(f"{files['idx']} does not fit {corpus.prefix}: remove it, and annotate again")

    def of(self, document: int) -> Float32s:
        """Entropies (tokens,) of one document."""
        start = int(self.corpus.starts[document])
        return np.asarray(self.entropies[start : start + int(self.corpus.lengths[document])])

    def damage(self) -> list[str]:
        """One sentence for each thing that was altered since the annotation was written."""
        path = _files(self.corpus.prefix)["bin"]
        found = block_checksums(path, _BLOCK_BYTES)
        return [] if found == self.description.get("checksum") else [f"{path} is altered: annotate again"]


class AnnotationWriter:
    """Appends entropies in the order of the corpus. A killed writer's successor with the same description goes on.

    `position`: tokens written so far; whole ones, and on disk. Raises InputError where there is an annotation already,
    another writer at work, or what was begun with another description.
    """

    def __init__(self, corpus: Corpus, description: dict[str, Any]) -> None:
        self.refuse_finished(corpus)
        self._corpus, self._files = corpus, _files(corpus.prefix)
        self._description = {"format": 1, "corpus": corpus.checksum, **description}
        self._parts = {name: part_of(path) for name, path in self._files.items()}
        self._lock_file = corpus.prefix.with_name(f"{corpus.prefix.name}.entropy.lock{PART}")
        self._lock = take_lock(self._lock_file)
        begun = self._parts["json"]
        if not begun.is_file():
            self._parts["bin"].unlink(missing_ok=True)
            write_json(begun, self._description)
        known = {key: value for key, value in read_json(begun).items() if key != "checksum"}
        if known != self._description:
            os.close(self._lock)
            raise InputError(
                f"{begun} was begun with another model, precision or kind of entropy: go on as it was begun, or remove "
                f"it and {self._parts['bin'].name}"
            )
        self._file = self._parts["bin"].open("ab")

    @staticmethod
    def refuse_finished(corpus: Corpus) -> None:
        """Raise InputError where a corpus has an annotation."""
        refuse_existing(_files(corpus.prefix)["json"])

    @property
    def position(self) -> int:
        """Tokens on disk."""
        return self._file.tell() // np.dtype(np.float32).itemsize

    def go_back_to(self, position: int) -> None:
        """Forget what was written after so many tokens."""
        self._file.truncate(position * np.dtype(np.float32).itemsize)
        self._file.seek(0, os.SEEK_END)

    def append(self, entropies: Float32s) -> None:
        """Write further tokens, to the disk."""
        self._file.write(entropies.astype(np.float32).tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())

    def commit(self) -> dict[str, Any]:
        """Give everything its name, the description last; returns it."""
        assert self.position == len(self._corpus.tokens)
        self._write_index()
        description = {**self._description, "checksum": block_checksums(self._parts["bin"], _BLOCK_BYTES)}
        write_json(self._parts["json"], description)
        for name, path in self._files.items():
            publish(self._parts[name], path)
        self.suspend()
        self._lock_file.unlink()
        return description

    def suspend(self) -> None:
        """Let another writer go on."""
        self._file.close()
        os.close(self._lock)

    def _write_index(self) -> None:
        _, sequences, per_document = self._corpus.run_of(0, len(self._corpus))
        documents = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_document)])
        ends = np.cumsum(sequences) * np.dtype(np.float32).itemsize
        with self._parts["idx"].open("wb") as file:
            file.write(INDEX_MAGIC + INDEX_HEADER.pack(1, _FLOAT32, len(sequences), len(documents)))
            file.write(sequences.astype(np.int32).tobytes())
            file.write(np.concatenate([np.zeros(1, np.int64), ends[:-1]]).astype(np.int64).tobytes())
            file.write(documents.astype(np.int64).tobytes())


def has_annotation(corpus: Corpus) -> bool:
    """Whether one lies beside a corpus."""
    return _files(corpus.prefix)["json"].is_file()


def _files(prefix: Path) -> dict[str, Path]:
    """In the order in which they appear."""
    return {name: prefix.with_name(f"{prefix.name}.entropy.{name}") for name in ("bin", "idx", "json")}

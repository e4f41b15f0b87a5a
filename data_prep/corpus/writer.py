"""Writing a corpus as a stream, in memory that does not grow; nothing appears under its name before `commit`."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep._native import IndexedDatasetWriter
from data_prep.corpus.indexed import corpus_files, manifest_checksum
from data_prep.io.errors import InputError, NoDocuments
from data_prep.io.files import PART, block_checksums, part_of, publish, take_lock, write_json

CHECKSUM_BLOCK_BYTES = 64 << 20
_UINT16_VOCABULARY_LIMIT = 65_500  # Megatron's rule: uint16 below, int32 from here on
_START = (0, 0, 0, 0)

WriterPosition = tuple[int, int, int, int]  # tokens, sequences, documents, empty documents dropped


class CorpusWriter:
    """Writes PREFIX.bin, .idx, .manifest.json and, where `masked`, the loss mask beside them.

    `tokenizer` is the description that goes into the manifest; its `vocab_size` determines the element type. `position`
    is where an earlier, killed writer of the same corpus was (see `flush`). Raises InputError when the corpus is there
    already, or another process is writing it.
    """

    def __init__(
        self, prefix: Path, tokenizer: dict[str, Any], masked: bool = False, position: WriterPosition | None = None
    ) -> None:
        self._files = corpus_files(prefix, masked)
        if self._files["idx"].exists():  # it comes last: without it, what lies there is an unfinished attempt
            raise InputError(f"{self._files['idx']} already exists: remove it, or name another")
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._parts = {name: part_of(path) for name, path in self._files.items()}
        self._lock_file = prefix.with_name(f"{prefix.name}.lock{PART}")
        self._lock: int | None = take_lock(self._lock_file)
        self._tokenizer = tokenizer
        small = tokenizer["vocab_size"] < _UINT16_VOCABULARY_LIMIT
        try:
            self._tokens = self._open("bin", "uint16" if small else "int32", tokenizer["vocab_size"], position)
            self._mask = self._open("loss_mask.bin", "uint8", 2, position) if masked else None
        except BaseException:
            self._unlock()
            raise

    def _open(self, name: str, element: str, limit: int, position: WriterPosition | None) -> IndexedDatasetWriter:
        bin_part = self._parts[name]
        scratch = bin_part.with_name(f"{self._files[name].name}.lengths{PART}")
        self._parts[f"{name}.lengths"] = scratch
        return IndexedDatasetWriter(str(bin_part), str(scratch), element, limit, position or _START)

    def add(self, documents: Sequence[npt.NDArray[np.integer] | Sequence[int]]) -> None:
        """Append documents, each the ids of one; an empty one is dropped and counted."""
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        self.add_flat(np.concatenate([np.asarray(document, dtype=np.int64) for document in documents]), lengths)

    def add_flat(
        self,
        ids: npt.NDArray[np.integer],
        lengths: npt.NDArray[np.int64],
        sequences_per_document: npt.NDArray[np.int64] | None = None,
        end: int | None = None,
        loss_mask: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Append sequences laid end to end in `ids` (tokens,), of `lengths` (sequences,).

        Each is a document unless `sequences_per_document` (documents,) says how many make one. `end` closes each
        document and is not trained. `loss_mask` (tokens,) is 1 where a token is trained.
        """
        self._tokens.add(ids, lengths, sequences_per_document, end)
        if self._mask is not None:
            self._mask.add(loss_mask, lengths, sequences_per_document, None if end is None else 0)

    @property
    def position(self) -> WriterPosition:
        """(tokens, sequences, documents, empty documents dropped) so far."""
        position: WriterPosition = tuple(self._tokens.position)
        return position

    def flush(self) -> list[Path]:
        """Hand everything to the operating system; returns the files in which it lies."""
        self._tokens.flush()
        if self._mask is not None:
            self._mask.flush()
        return [part for name, part in self._parts.items() if name.endswith((".lengths", "bin"))]

    def commit(self, provenance: dict[str, Any]) -> dict[str, Any]:
        """Write indices and manifest, then rename all of them; returns the manifest."""
        manifest = self.prepare(provenance)
        self.publish()
        return manifest

    def prepare(self, provenance: dict[str, Any]) -> dict[str, Any]:
        """Write indices and manifest, without a name yet; returns the manifest. Raises NoDocuments for nothing."""
        tokens, _, documents, empty = self.position
        if documents == 0:
            raise NoDocuments("the input holds no document with text: there is nothing to write")
        self._tokens.finish(str(self._parts["idx"]))
        if self._mask is not None:
            self._mask.finish(str(self._parts["loss_mask.idx"]))
        manifest = {
            "format": 1,
            "documents": documents,
            "tokens": tokens,
            "empty_documents_dropped": empty,
            **({"trained_tokens": self._count_trained()} if self._mask is not None else {}),
            "tokenizer": self._tokenizer,
            "provenance": provenance,
            "checksum": self._checksums(),
        }
        manifest["seal"] = manifest_checksum(manifest)
        write_json(self._parts["manifest.json"], manifest)
        return manifest

    def publish(self) -> None:
        """Give everything that was prepared its name."""
        for name, path in self._files.items():
            publish(self._parts[name], path)
        self.discard()  # what is left beside

    def _count_trained(self) -> int:
        mask = np.memmap(self._parts["loss_mask.bin"], np.uint8, "r")
        return int(sum(mask[at : at + CHECKSUM_BLOCK_BYTES].sum() for at in range(0, len(mask), CHECKSUM_BLOCK_BYTES)))

    def _checksums(self) -> dict[str, Any]:
        parts = {name: self._parts[name] for name in self._files if name != "manifest.json"}
        return {
            "algorithm": "xxh3_64",
            "block_bytes": CHECKSUM_BLOCK_BYTES,
            **{f"{name}_bytes": part.stat().st_size for name, part in parts.items()},
            **{name: block_checksums(part, CHECKSUM_BLOCK_BYTES) for name, part in parts.items()},
        }

    def suspend(self) -> None:
        """Leave what has been written for a later writer to go on with."""
        self._close_lock()

    def discard(self) -> None:
        """Remove what has been written so far."""
        for part in self._parts.values():
            part.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock_file.unlink(missing_ok=True)
        self._close_lock()

    def _close_lock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            with suppress(OSError):  # the lock is gone either way, and the number is another file's by now
                os.close(lock)

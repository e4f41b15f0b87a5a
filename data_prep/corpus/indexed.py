"""A corpus: PREFIX.bin and PREFIX.idx as Megatron writes them, and PREFIX.manifest.json beside them."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson
from xxhash import xxh3_64

from data_prep._native import IndexedDatasetWriter
from data_prep.errors import InputError
from data_prep.files import PART, block_checksums, read_json, write_json

CHECKSUM_BLOCK_BYTES = 64 << 20
_INDEX_MAGIC = b"MMIDIDX\x00\x00"
_INDEX_HEADER = struct.Struct("<QBQQ")  # version, element code, sequences, documents + 1
# Megatron's DType codes that can hold token ids.
_ELEMENT_TYPES: dict[int, np.dtype[Any]] = {4: np.dtype(np.int32), 8: np.dtype(np.uint16)}


def corpus_files(prefix: Path) -> dict[str, Path]:
    """The three files of a corpus, in the order in which they appear: the index comes last."""
    return {name: prefix.with_name(prefix.name + f".{name}") for name in ("bin", "manifest.json", "idx")}


def seal_of(manifest: dict[str, Any]) -> str:
    """xxh3 of a manifest's contents: what is altered in the manifest itself shows too."""
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return xxh3_64(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


class CorpusWriter:
    """Writes a corpus as a stream; nothing appears under its name before `commit`.

    `tokenizer` is the description that goes into the manifest; its `vocab_size` settles the element type.
    """

    def __init__(self, prefix: Path, tokenizer: dict[str, Any]) -> None:
        self._files = corpus_files(prefix)
        if self._files["idx"].exists():  # it comes last: without it, what lies there is an unfinished attempt
            raise InputError(f"{self._files['idx']} already exists: remove it, or choose another --out")
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._parts = {name: path.with_name(path.name + PART) for name, path in self._files.items()}
        self._tokenizer = tokenizer
        self._writer = IndexedDatasetWriter(str(self._parts["bin"]), tokenizer["vocab_size"])

    def add(self, documents: Sequence[npt.NDArray[np.integer] | Sequence[int]]) -> None:
        """Append documents, each the ids of one; an empty one is dropped and counted."""
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        ids = np.concatenate([np.asarray(document, dtype=np.int64) for document in documents])
        self._writer.add_documents(ids, lengths)

    def commit(self, provenance: dict[str, Any]) -> dict[str, Any]:
        """Write index and manifest, then rename all three; returns the manifest."""
        if self._writer.num_documents == 0:
            raise InputError("the input holds no document with text: there is nothing to write")
        self._writer.finish(str(self._parts["idx"]))
        manifest = {
            "format": 1,
            "documents": self._writer.num_documents,
            "tokens": self._writer.num_tokens,
            "empty_documents_dropped": self._writer.num_empty,
            "tokenizer": self._tokenizer,
            "provenance": provenance,
            "checksum": {
                "algorithm": "xxh3_64",
                "block_bytes": CHECKSUM_BLOCK_BYTES,
                **{f"{name}_bytes": self._parts[name].stat().st_size for name in ("bin", "idx")},
                **{name: block_checksums(self._parts[name], CHECKSUM_BLOCK_BYTES) for name in ("bin", "idx")},
            },
        }
        manifest["seal"] = seal_of(manifest)
        write_json(self._parts["manifest.json"], manifest)
        for name, part in self._parts.items():
            part.replace(self._files[name])
        return manifest

    def discard(self) -> None:
        """Remove what an interrupted run has written so far."""
        for part in self._parts.values():
            part.unlink(missing_ok=True)


class Corpus:
    """A corpus on disk, memory-mapped: `corpus[i]` are the ids of document i.

    `tokens` (tokens,) uint16 or int32, all documents end to end; `starts` and `lengths` (documents,) int64 in tokens;
    `manifest` as written. Raises InputError when a file is missing or the sizes
    of the files contradict the index.
    """

    def __init__(self, prefix: Path | str) -> None:
        self.prefix = Path(prefix)
        files = corpus_files(self.prefix)
        for path in files.values():
            if not path.is_file():
                raise InputError(f"{path} does not exist: a corpus is PREFIX.bin, .idx and .manifest.json")
        self.manifest: dict[str, Any] = read_json(files["manifest.json"])
        if not {"tokenizer", "checksum"} <= self.manifest.keys():
            raise InputError(f"{files['manifest.json']} is no manifest of a corpus: write the corpus again")
        element, self.lengths, self.starts = _read_index(files["idx"])
        needed = int(self.lengths.sum()) * element.itemsize
        found = files["bin"].stat().st_size
        if found != needed:
            raise InputError(f"{files['bin']} has {found} bytes where its index needs {needed}: write the corpus again")
        self.tokens: npt.NDArray[Any] = np.memmap(files["bin"], dtype=element, mode="r")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, document: int) -> npt.NDArray[np.int64]:
        return self.span(document, 0, int(self.lengths[document]))

    def span(self, document: int, start: int, length: int) -> npt.NDArray[np.int64]:
        """Ids of at most `length` tokens of a document from `start`: fewer where the document ends."""
        begin = int(self.starts[document])
        end = begin + int(self.lengths[document])
        return np.asarray(self.tokens[begin + start : min(begin + start + length, end)], dtype=np.int64)

    @property
    def tokenizer(self) -> dict[str, Any]:
        """Kind, vocab_size, fingerprint and end-of-document id of the tokenizer that made the ids."""
        tokenizer: dict[str, Any] = self.manifest["tokenizer"]
        return tokenizer

    @property
    def checksum(self) -> str:
        """xxh3 over the manifest's checksums of index and tokens: the identity of the contents."""
        blocks = self.manifest["checksum"]
        return xxh3_64("".join([*blocks["idx"], *blocks["bin"]]).encode()).hexdigest()

    @classmethod
    def open_all(cls, prefixes: Sequence[Path | str]) -> list[Self]:
        """Open several corpora; InputError unless one tokenizer made them all."""
        corpora = [cls(prefix) for prefix in prefixes]
        for corpus in corpora[1:]:
            if corpus.tokenizer["fingerprint"] != corpora[0].tokenizer["fingerprint"]:
                raise InputError(
                    f"{corpus.prefix} and {corpora[0].prefix} were made by different tokenizers: "
                    "tokenize both with the same one"
                )
        return corpora


def _read_index(path: Path) -> tuple[np.dtype[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Element type, document lengths and first tokens of documents, both (documents,)."""
    data = path.read_bytes()
    start = len(_INDEX_MAGIC) + _INDEX_HEADER.size
    if len(data) < start or not data.startswith(_INDEX_MAGIC):
        raise InputError(f"{path} is not a Megatron index")
    version, code, sequences, entries = _INDEX_HEADER.unpack_from(data, len(_INDEX_MAGIC))
    if version != 1 or code not in _ELEMENT_TYPES:
        raise InputError(f"{path} has version {version} and element code {code}; token ids need version 1, code 4 or 8")
    if len(data) != start + sequences * 12 + entries * 8:
        raise InputError(f"{path} is truncated or altered: its size does not fit its {sequences} sequences")
    lengths = np.frombuffer(data, np.int32, sequences, start).astype(np.int64)
    documents = np.frombuffer(data, np.int64, entries, start + sequences * 12)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])[documents]
    return _ELEMENT_TYPES[code], np.diff(ends).astype(np.int64), ends[:-1]

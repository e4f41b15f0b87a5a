"""Reading a corpus: PREFIX.bin and PREFIX.idx as Megatron writes them, PREFIX.manifest.json, a loss mask.

The aligned sidecars are there only where they were made: PREFIX.loss_mask.{bin,idx} (uint8, 1 where a token is
trained), and PREFIX.entropy.{bin,idx,json}, see `entropy`.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import orjson
from xxhash import xxh3_64

from data_prep.io.errors import InputError
from data_prep.io.files import read_json

INDEX_MAGIC = b"MMIDIDX\x00\x00"
INDEX_HEADER = struct.Struct("<QBQQ")  # version, element code, sequences, documents + 1
# Megatron's DType codes that can hold token ids, or a mask.
_TOKEN_TYPES: dict[int, np.dtype[Any]] = {4: np.dtype(np.int32), 8: np.dtype(np.uint16)}
_MANIFEST = ".manifest.json"
_MAX_VOCABULARY = 2**31  # ids are int32
_COUNT_LIMIT = 2**63  # counts are int64
_MASK_TYPES: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8)}


def token_types() -> dict[int, np.dtype[Any]]:
    """Megatron's codes of the element types that a corpus of tokens may have."""
    return dict(_TOKEN_TYPES)


def corpus_files(prefix: Path, masked: bool) -> dict[str, Path]:
    """The files of a corpus in the order in which they appear: the index comes last. Raises InputError."""
    if not prefix.name:
        raise InputError(f"{prefix} is a directory, not a PREFIX: give one such as {prefix / 'corpus'}")
    masks = ("loss_mask.bin", "loss_mask.idx") if masked else ()
    return {name: prefix.with_name(f"{prefix.name}.{name}") for name in (*masks, "bin", "manifest.json", "idx")}


def _corpora_near(prefix: Path) -> str:
    """The corpora beside a PREFIX that is none, or in the directory of that name, for a message."""
    folder = prefix if prefix.is_dir() else prefix.parent
    if not folder.is_dir():
        return ""
    found = sorted(str(file.with_name(file.name.removesuffix(_MANIFEST))) for file in folder.glob(f"*{_MANIFEST}"))
    return f"; {folder} has {', '.join(found[:5])}{' ...' if len(found) > 5 else ''}" if found else ""


def manifest_checksum(manifest: dict[str, Any]) -> str:
    """xxh3 of a manifest's contents: what is altered in the manifest itself shows too."""
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return xxh3_64(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


def corpus_checksum(manifest: dict[str, Any]) -> str:
    """xxh3 over a manifest's checksums of all files."""
    blocks = manifest["checksum"]
    names = [name for name in ("idx", "bin", "loss_mask.bin") if name in blocks]
    return xxh3_64("".join(digest for name in names for digest in blocks[name]).encode()).hexdigest()


def _is_below(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit


def is_manifest(held: Any) -> bool:
    """Whether a manifest says what is needed of it, in the right types."""
    if not isinstance(held, dict) or not isinstance(held.get("checksum"), dict):
        return False
    tokenizer, checksums = held.get("tokenizer"), held["checksum"]
    if not isinstance(tokenizer, dict) or not isinstance(held.get("provenance"), dict):
        return False
    known = {"kind": str, "vocab_size": int, "fingerprint": str}
    counts = ("documents", "tokens", "empty_documents_dropped")
    digests = [checksums[name] for name in ("bin", "idx", "loss_mask.bin", "loss_mask.idx") if name in checksums]
    return (
        all(type(tokenizer.get(name)) is kind for name, kind in known.items())
        and 0 < tokenizer["vocab_size"] <= _MAX_VOCABULARY
        and (tokenizer.get("eod") is None or _is_below(tokenizer["eod"], tokenizer["vocab_size"]))
        and all(_is_below(held.get(name), _COUNT_LIMIT) for name in counts)
        and {"bin", "idx"} <= checksums.keys()
        and all(isinstance(each, list) and all(isinstance(digest, str) for digest in each) for each in digests)
    )


class Corpus:
    """A corpus on disk, memory-mapped: `corpus[i]` are the ids of document i.

    `tokens` (tokens,) uint16 or int32, all documents end to end; `loss_mask` (tokens,) uint8 or None; `starts` and
    `lengths` (documents,) int64 in tokens; `manifest` as written. Raises InputError when a file is missing or the sizes
    of the files contradict the index.
    """

    def __init__(self, prefix: Path | str) -> None:
        self.prefix = Path(prefix)
        for path in corpus_files(self.prefix, masked=False).values():
            if not path.is_file():
                raise InputError(
                    f"{path} does not exist: a corpus is PREFIX.bin, .idx and .manifest.json"
                    f"{_corpora_near(self.prefix)}"
                )
        manifest_file = corpus_files(self.prefix, masked=False)["manifest.json"]
        self.manifest: dict[str, Any] = read_json(manifest_file)
        if not is_manifest(self.manifest):
            raise InputError(f"{manifest_file} is no manifest of a corpus: write the corpus again")
        files = corpus_files(self.prefix, self.masked)
        self.tokens, self._sequences, self._documents = map_elements(files["bin"], files["idx"], _TOKEN_TYPES)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._sequences)])[self._documents]
        self.lengths: npt.NDArray[np.int64] = np.diff(ends).astype(np.int64)
        self.starts: npt.NDArray[np.int64] = ends[:-1]
        self.loss_mask: npt.NDArray[np.uint8] | None = None
        if self.masked:
            self.loss_mask, sequences, documents = map_elements(
                files["loss_mask.bin"], files["loss_mask.idx"], _MASK_TYPES
            )
            if not (np.array_equal(sequences, self._sequences) and np.array_equal(documents, self._documents)):
                raise InputError(f"{files['loss_mask.idx']} does not fit {files['idx']}: write the corpus again")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, document: int) -> npt.NDArray[np.int64]:
        return self.span(document, 0, int(self.lengths[document]))

    def span(self, document: int, start: int, length: int) -> npt.NDArray[np.int64]:
        """Ids of at most `length` tokens of a document from `start`: fewer where the document ends."""
        begin = int(self.starts[document])
        end = begin + int(self.lengths[document])
        return np.asarray(self.tokens[begin + start : min(begin + start + length, end)], dtype=np.int64)

    def run_of(self, first: int, stop: int) -> tuple[slice, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Documents first to stop - 1: where they lie in `tokens` and `loss_mask`, the length of each of their
        sequences (one a document, or its sentences where it was split), and how many sequences each document has.
        """
        sequences = self._sequences[self._documents[first] : self._documents[stop]].astype(np.int64)
        begin = int(self.starts[first])
        return slice(begin, begin + int(sequences.sum())), sequences, np.diff(self._documents[first : stop + 1])

    @property
    def masked(self) -> bool:
        """Whether a loss mask lies beside the tokens."""
        return "loss_mask.bin" in self.manifest["checksum"]

    @property
    def tokenizer(self) -> dict[str, Any]:
        """Kind, vocab_size, fingerprint and end-of-document id of the tokenizer that made the ids."""
        tokenizer: dict[str, Any] = self.manifest["tokenizer"]
        return tokenizer

    @property
    def checksum(self) -> str:
        """The identity of the contents: what belongs to a corpus names it."""
        return corpus_checksum(self.manifest)

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


def map_elements(
    bin_file: Path, idx_file: Path, types: dict[int, np.dtype[Any]]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Elements, lengths of sequences, and the first sequence of each document and of the end; all of them on disk."""
    for path in (bin_file, idx_file):
        if not path.is_file():
            raise InputError(f"{path} does not exist: write the corpus again")
    element, sequences, documents = read_index(idx_file, types)
    needed = int(sequences.sum(dtype=np.int64)) * element.itemsize
    found = bin_file.stat().st_size
    if found != needed:
        raise InputError(f"{bin_file} has {found} bytes where its index needs {needed}: write the corpus again")
    return np.memmap(bin_file, dtype=element, mode="r"), sequences, documents


def read_index(
    path: Path, types: dict[int, np.dtype[Any]] = _TOKEN_TYPES
) -> tuple[np.dtype[Any], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Element type, lengths of sequences (sequences,) and first sequence of each document and the end (documents + 1,).

    Raises InputError for whatever is no index: nothing that it gives points outside the tokens.
    """
    size = path.stat().st_size
    start = len(INDEX_MAGIC) + INDEX_HEADER.size
    with path.open("rb") as file:
        head = file.read(start)
    if len(head) < start or not head.startswith(INDEX_MAGIC):
        raise InputError(f"{path} is not a Megatron index")
    version, code, sequences, entries = INDEX_HEADER.unpack_from(head, len(INDEX_MAGIC))
    if version != 1 or code not in types:
        known = " or ".join(map(str, types))
        raise InputError(f"{path} has version {version} and element code {code}; it must be version 1, code {known}")
    if size != start + sequences * 12 + entries * 8 or not sequences or not entries:
        raise InputError(f"{path} is truncated or altered: its size does not fit its {sequences} sequences")
    lengths = np.memmap(path, np.int32, "r", start, (sequences,))
    offsets = np.memmap(path, np.int64, "r", start + sequences * 4, (sequences,))
    documents = np.memmap(path, np.int64, "r", start + sequences * 12, (entries,))
    ends = np.cumsum(lengths, dtype=np.int64) * types[code].itemsize
    whole = bool((lengths > 0).all()) and offsets[0] == 0 and np.array_equal(offsets[1:], ends[:-1])
    if not whole or documents[0] != 0 or documents[-1] != sequences or (np.diff(documents) < 1).any():
        raise InputError(f"{path} is altered: its lengths, offsets and documents contradict each other")
    return types[code], lengths, documents

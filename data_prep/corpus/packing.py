"""Pack plans: which spans of which documents fill each sequence. Independent of how training is laid out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from xxhash import xxh3_64

from data_prep._native import pack_best_fit
from data_prep.corpus.indexed import Corpus
from data_prep.io.arithmetic import ceil_to_multiple
from data_prep.io.arrays import Int64s
from data_prep.io.errors import InputError, refused_if_damaged
from data_prep.io.files import new_file

LongDocuments = Literal["error", "split", "drop"]


_ARRAYS = ("document", "start", "length", "sequence_offsets")
_NUMBERS = ("seq_length", "document_alignment", "pack_alignment", "num_dropped", "num_split")


@dataclass(frozen=True)
class PackPlan:
    """Spans of documents, grouped by sequence; each span takes room up to a multiple of `document_alignment`.

    A sequence may be cut after its last span, at a multiple of `pack_alignment` (see `padded_lengths`).
    `document`, `start`, `length` (spans,): document number over all corpora end to end, first token inside the
    document, tokens. `sequence_offsets` (sequences + 1,): sequence s holds spans [offsets[s], offsets[s + 1]).
    """

    seq_length: int
    document: Int64s
    start: Int64s
    length: Int64s
    sequence_offsets: Int64s
    document_alignment: int = 1
    pack_alignment: int = 1
    num_dropped: int = 0
    num_split: int = 0

    def __len__(self) -> int:
        return len(self.sequence_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens of documents, without padding."""
        return int(self.length.sum())

    @property
    def tokens_of_each(self) -> Int64s:
        """Tokens of documents in each sequence (sequences,)."""
        return np.diff(np.cumsum(np.concatenate([[0], self.length]))[self.sequence_offsets])

    @property
    def efficiency(self) -> float:
        """Share of the sequences that is filled with documents."""
        return self.num_tokens / (len(self) * self.seq_length) if len(self) else 0.0

    @property
    def padded_lengths(self) -> Int64s:
        """Tokens of each sequence (sequences,), padding of spans and of the pack included: at most `seq_length`."""
        ends = np.cumsum(np.concatenate([[0], ceil_to_multiple(self.length, self.document_alignment)]))
        return ceil_to_multiple(np.diff(ends[self.sequence_offsets]), self.pack_alignment)

    def sequence(self, index: int) -> list[tuple[int, int, int]]:
        """(document, start, length) of each span of one sequence."""
        spans = slice(self.sequence_offsets[index], self.sequence_offsets[index + 1])
        return list(
            zip(self.document[spans].tolist(), self.start[spans].tolist(), self.length[spans].tolist(), strict=True)
        )

    @property
    def checksum(self) -> str:
        """xxh3 of numbers and arrays."""
        digest = xxh3_64(orjson.dumps([getattr(self, name) for name in _NUMBERS]))
        for name in _ARRAYS:
            digest.update(np.ascontiguousarray(getattr(self, name)).data)
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        """What a person wants to know of a plan."""
        return {
            "sequences": len(self),
            "seq_length": self.seq_length,
            "spans": len(self.document),
            "tokens": self.num_tokens,
            "padding": len(self) * self.seq_length - self.num_tokens,
            "padding_of_alignment": int(self.padded_lengths.sum()) - self.num_tokens,
            "efficiency": self.efficiency,
            "documents_split": self.num_split,
            "documents_dropped": self.num_dropped,
        }


def pack_documents(
    lengths: npt.NDArray[np.integer],
    seq_length: int,
    long_documents: LongDocuments,
    document_alignment: int = 1,
    pack_alignment: int = 1,
) -> PackPlan:
    """Best-fit decreasing packing of documents of `lengths` (documents,) tokens: a whole corpus, or one global batch.

    Raises InputError when a document is longer than `seq_length` and `long_documents` is "error", and when an alignment
    does not divide `seq_length`.
    """
    if pack_alignment < 1 or seq_length % pack_alignment:
        raise InputError(
            f"a pack alignment of {pack_alignment} does not divide the sequence length of {seq_length}: change one"
        )
    try:
        packed = pack_best_fit(np.asarray(lengths, dtype=np.int64), seq_length, document_alignment, long_documents)
    except ValueError as error:
        raise InputError(str(error)) from None
    return PackPlan(
        seq_length=seq_length, document_alignment=document_alignment, pack_alignment=pack_alignment, **packed
    )


def joined_plans(plans: Iterable[PackPlan]) -> PackPlan:
    """One plan with the sequences of several, which are packed by the same rules, one after the other."""
    each = list(plans)
    ends = np.cumsum([len(plan.document) for plan in each])
    offsets = [plan.sequence_offsets[1:] + end - len(plan.document) for plan, end in zip(each, ends, strict=True)]
    return replace(
        each[0],
        document=np.concatenate([plan.document for plan in each]),
        start=np.concatenate([plan.start for plan in each]),
        length=np.concatenate([plan.length for plan in each]),
        sequence_offsets=np.concatenate([[0], *offsets]),
        num_dropped=sum(plan.num_dropped for plan in each),
        num_split=sum(plan.num_split for plan in each),
    )


def repeated(corpora: Sequence[Corpus], repeats: Sequence[int] | None) -> list[Corpus]:
    """The corpora, each as often as it is to be taken: upsampling by whole copies."""
    repeats = repeats or [1] * len(corpora)
    if len(repeats) != len(corpora) or min(repeats) < 1:
        raise InputError(f"repeat is {list(repeats)} for {len(corpora)} corpora: give a number from 1 on for each")
    return [corpus for corpus, times in zip(corpora, repeats, strict=True) for _ in range(times)]


def describe_corpora(corpora: Sequence[Corpus]) -> list[dict[str, Any]]:
    """What ties a plan to the corpora it was made for."""
    return [{"prefix": corpus.prefix.name, "checksum": corpus.checksum} for corpus in corpora]


def save_plan(plan: PackPlan, corpora: Sequence[Corpus], path: Path) -> None:
    """Write a plan as one safetensors file with a checksum over its arrays; it appears by rename.

    Raises InputError when `path` exists: nothing is ever overwritten.
    """
    arrays = {name: np.ascontiguousarray(getattr(plan, name)) for name in _ARRAYS}
    head = {name: getattr(plan, name) for name in _NUMBERS}
    head |= {"corpora": describe_corpora(corpora), "xxh3_64": plan.checksum}
    with new_file(path) as part:
        part.write_bytes(save(arrays, metadata={"pack_plan": orjson.dumps(head).decode()}))


def load_plan(path: Path, corpora: Sequence[Corpus]) -> PackPlan:
    """Read a plan; InputError when it is altered, or was made for other corpora than these."""
    try:
        with refused_if_damaged(path, "make it again with davinci data pack"):
            with safe_open(path, framework="numpy") as file:
                head = orjson.loads((file.metadata() or {})["pack_plan"])
                arrays = {name: file.get_tensor(name) for name in _ARRAYS}
            plan = PackPlan(**{name: head[name] for name in _NUMBERS}, **arrays)
            altered = plan.checksum != head["xxh3_64"]
            names = ", ".join(str(entry["prefix"]) for entry in head["corpora"])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: make it with davinci data pack") from None
    except (SafetensorError, OSError):
        raise InputError(f"{path} is not a pack plan: make it again with davinci data pack") from None
    if altered:
        raise InputError(f"{path} was altered after it was written: make it again with davinci data pack")
    if head["corpora"] != describe_corpora(corpora):
        raise InputError(f"{path} was made for {names}, not for these corpora: make it again with davinci data pack")
    return plan

"""How long the documents of a stage are: of its corpora, of a file, or a guess that is said to be one. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np

from data_prep import InputError
from data_prep.corpus import Corpus, pack_documents
from data_prep.io.arithmetic import ceil_div
from data_prep.io.arrays import Int64s
from data_prep.io.files import read_regular_file
from megatron_davinci.config.stage import StageRecipe
from megatron_davinci.data.documents import Span
from megatron_davinci.plan.shapes import MOST_CONTEXT

_MOST_BYTES = 1 << 28
_GUESSED = 200_000
_MOST_UNITS = 100_000
_MOST_DOCUMENTS = 50_000_000
_ALIGNMENT = 2 * MOST_CONTEXT
_SEED = 0
# daVinci-Dev's pull requests, of which the paper gives 68.6B tokens in 10M samples: log-normal, with a mean of 6.9k
# below 32k. It is a guess, for who has no corpora yet.
_LOG_MEAN, _LOG_DEVIATION, _SHORTEST = 8.52, 1.25, 64


@dataclass(frozen=True)
class DocumentLengths:
    """Lengths (documents,) in tokens of what a stage draws, and where they are from.

    `complete`: they are those of whole corpora, or drawn from them by weight, so that steps can be counted; `dropped`,
    `dropped_tokens`: documents that are too long for the stage, and the tokens in them.
    """

    lengths: Int64s
    origin: str
    complete: bool
    dropped: int = 0
    dropped_tokens: int = 0

    def describe(self) -> str:
        """What they are, in a line."""
        said = f"{self.origin}: {len(self.lengths):,} documents, mean {self.lengths.mean():,.0f} tokens"
        if self.dropped:
            said += f"; {self.dropped:,} longer than seq_length, with {self.dropped_tokens:,} tokens, are dropped"
        return said

    def batches(self, stage: StageRecipe, count: int) -> list[list[list[Span]]]:
        """The units of `count` global batches, as `data.batches` would draw them: documents, or packed sequences."""
        draw = np.random.default_rng(_SEED)
        size = stage.batch.global_batch_size
        if size // (stage.seq_length if stage.batch.unit == "tokens" else 1) > _MOST_UNITS:
            raise InputError(
                f"batch.global_batch_size is {size:,} {stage.batch.unit}; a plan deals at most {_MOST_UNITS:,} "
                "documents or sequences a step"
            )
        if stage.batch.unit == "samples":
            found = []
            for _ in range(count):
                drawn = draw.choice(self.lengths, size).tolist()
                spans = (Span(number, 0, length, 0) for number, length in enumerate(drawn))
                found.append([[part] for span in spans for part in span.parts(stage.seq_length)])
            return found
        sequences = size // stage.seq_length if stage.batch.unit == "tokens" else size
        # as many documents as fill a few batches: a plan packs all, and a batch takes any of its sequences
        mean = max(1.0, float(np.minimum(self.lengths, stage.seq_length).mean()))
        wanted = int(4 * sequences * stage.seq_length / mean) + 64
        some = draw.choice(self.lengths, min(wanted, 2_000_000))
        # with room for every context-parallel size that a search tries, as plans for several layouts have
        plan = pack_documents(some, stage.seq_length, "split", gcd(_ALIGNMENT, stage.seq_length))
        packed = [[Span(*span, 0) for span in plan.sequence(number)] for number in range(len(plan))]
        return [[packed[number] for number in draw.integers(len(packed), size=sequences)] for _ in range(count)]

    def num_steps(self, stage: StageRecipe) -> int | None:
        """Optimizer steps of the stage, None where the lengths are a sample or a guess."""
        if stage.train_iters is not None:
            return stage.train_iters
        if not self.complete:
            return None
        units = len(self.lengths)
        if stage.batch.unit != "samples":
            units = len(pack_documents(self.lengths, stage.seq_length, "split", stage.document_alignment))
        size = stage.batch.global_batch_size
        if stage.batch.unit == "tokens":
            size //= stage.seq_length
        if stage.train_tokens is not None:
            return ceil_div(stage.train_tokens * units, max(1, int(self.lengths.sum())) * size)
        return ceil_div(units * stage.epochs, size)


def stage_lengths(stage: StageRecipe, given: str | None) -> DocumentLengths:
    """Lengths from `given`, a file or the prefix of a corpus; or of the stage's corpora; or guessed. Long documents are
    dropped where the stage drops them. Raises InputError."""
    found = (_of_corpora(stage) or _guess(stage.seq_length)) if given is None else _read(given)
    if stage.long_documents == "drop":
        kept = found.lengths[found.lengths <= stage.seq_length]
        if not len(kept):
            raise InputError(f"stage {stage.name} drops all documents of {found.origin}: raise its seq_length")
        dropped = found.lengths[found.lengths > stage.seq_length]
        return DocumentLengths(kept, found.origin, found.complete, len(dropped), int(dropped.sum()))
    return found


def _of_corpora(stage: StageRecipe) -> DocumentLengths | None:
    prefixes = [blend.corpus for blend in stage.blend]
    if not all(Path(f"{prefix}.idx").is_file() for prefix in prefixes):
        return None
    corpora = Corpus.open_all(prefixes)
    origin = ", ".join(prefixes)
    weights = [blend.weight for blend in stage.blend if blend.weight is not None]
    if not weights:
        repeats = [blend.repeat for blend in stage.blend]
        lengths = [corpus.lengths for corpus, times in zip(corpora, repeats, strict=True) for _ in range(times)]
        return DocumentLengths(np.concatenate(lengths), origin, True)
    draws = np.random.default_rng(_SEED)
    rates = np.array([w / max(1.0, float(c.lengths.mean())) for w, c in zip(weights, corpora, strict=True)])
    counts = np.maximum(1, (_GUESSED * rates / rates.sum()).astype(np.int64))  # documents come as often as this
    drawn = [draws.choice(corpus.lengths, count) for corpus, count in zip(corpora, counts.tolist(), strict=True)]
    return DocumentLengths(np.concatenate(drawn), origin, True)


def _read(given: str) -> DocumentLengths:
    if not given:
        raise InputError("--lengths is empty: give a corpus's prefix, or a file of lengths")
    if Path(f"{given}.idx").is_file():
        [corpus] = Corpus.open_all([given])
        return DocumentLengths(corpus.lengths, given, True)
    lines = read_regular_file(Path(given), _MOST_BYTES).decode(errors="replace").split("\n")
    pairs = [_pair(given, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise InputError(f"--lengths {given} holds no length: give a corpus's prefix, or lines of a length or a length "
                         "and how many documents have it")  # fmt: skip
    values, counts = zip(*pairs, strict=True)
    if sum(counts) > _MOST_DOCUMENTS:
        raise InputError(
            f"--lengths {given} has {sum(counts):,} documents; at most {_MOST_DOCUMENTS:,} are read: divide the counts"
        )
    return DocumentLengths(np.repeat(np.array(values, np.int64), counts), given, True)


def _pair(given: str, number: int, line: str) -> tuple[int, int]:
    words = line.split()
    if len(words) > 2 or not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise InputError(
            f"--lengths {given} has {line.strip()[:40]!r} in line {number}; it must be a length in tokens, and how "
            "many documents have it where they are several"
        )
    length, count = int(words[0]), int(words[1]) if len(words) == 2 else 1
    if not (length and count):
        raise InputError(f"--lengths {given} has a 0 in line {number}; lengths and counts are at least 1")
    return length, count


def _guess(seq_length: int) -> DocumentLengths:
    draws = np.random.default_rng(_SEED).lognormal(_LOG_MEAN, _LOG_DEVIATION, _GUESSED)
    kept = draws[(draws >= min(_SHORTEST, seq_length / 2)) & (draws <= seq_length)].astype(np.int64)
    lengths = kept if len(kept) else np.array([seq_length], np.int64)
    return DocumentLengths(lengths, "a guess, on which time and ranking depend (--lengths gives others)", False)


def squared_lengths(units: Sequence[Sequence[Span]]) -> int:
    """The sum of all spans' squared lengths."""
    return sum(span.length**2 for unit in units for span in unit)

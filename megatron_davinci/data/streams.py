"""In which order a stage draws its units, documents or planned sequences, through all epochs. Torch-free.

A stream is a function of seed and stage alone. `at(start, stop)` gives units and the epoch of each.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.io.arithmetic import ceil_div
from data_prep.io.arrays import Int64s

_REMEMBERED = 8
_STRETCH = 4096  # units that are looked at one by one
Key = tuple[int, ...]
"""(seed of the recipe, hash of the stage's name, ...)."""


def shuffled(count: int, *key: int) -> Int64s:
    """A permutation of range(count) that no release of numpy will change: raw Philox draws, sorted."""
    drawn = np.random.SeedSequence(list(key)).generate_state(2, np.uint64)
    draws = np.random.Philox(key=drawn).random_raw(count)
    return np.argsort(draws, kind="stable")


@dataclass(frozen=True)
class Length:
    """How long a stage is: so many `epochs`, or `train_iters` steps, or `train_tokens`; `batch`: units of a step."""

    batch: int
    epochs: int = 1
    train_iters: int | None = None
    train_tokens: int | None = None


class Stream(ABC):
    """`total`: units of all epochs; `tokens` (units,): of each unit that there is."""

    total: int

    def __init__(self, tokens: Int64s, length: Length) -> None:
        self.tokens, self.length = tokens, length

    @property
    def num_batches(self) -> int:
        """Steps."""
        return ceil_div(self.total, self.length.batch)

    @abstractmethod
    def tokens_after(self, stop: int) -> int:
        """Tokens of the first `stop` units."""

    def epochs_after(self, stop: int) -> float:
        """How often the whole has been seen after `stop` units, by tokens."""
        return self.tokens_after(stop) / max(1, int(self.tokens.sum()))

    @property
    def epochs_of_each(self) -> list[float]:
        """How often each corpus is seen, where they are not seen equally often."""
        return []

    @abstractmethod
    def at(self, start: int, stop: int) -> tuple[Int64s, Int64s]:
        """(units, epochs) of the stream, each (stop - start,)."""

    @abstractmethod
    def epochs_finished_by(self, start: int, stop: int) -> range:
        """The epochs whose last unit lies from `start` to `stop`."""

    @property
    def facts(self) -> dict[str, Any]:
        """What determines, with the key, which unit comes when."""
        return {"units": self.total}

    def of_batch(self, batch: int) -> tuple[int, int]:
        """(start, stop) of the units of a step; the last one may have less."""
        start = batch * self.length.batch
        return min(start, self.total), min(start + self.length.batch, self.total)


class EqualStream(Stream):
    """Every unit once in each epoch, in a new order."""

    def __init__(self, tokens: Int64s, length: Length, key: Key) -> None:
        super().__init__(tokens, length)
        self._key = key
        self._permutation: tuple[int, Int64s] = (-1, np.empty(0, np.int64))
        self.total = self._total()

    def _total(self) -> int:
        length, units = self.length, len(self.tokens)
        if length.train_iters is not None:
            return length.train_iters * length.batch
        if length.train_tokens is None:
            return units * length.epochs
        epochs, left = divmod(length.train_tokens, max(1, int(self.tokens.sum())))
        reached = np.cumsum(self.tokens[self._order(epochs)])
        needed = epochs * units + (int(np.searchsorted(reached, left)) + 1 if left else 0)
        return ceil_div(needed, length.batch) * length.batch

    def at(self, start: int, stop: int) -> tuple[Int64s, Int64s]:
        """See Stream."""
        units, epochs = [], []
        while start < stop:
            epoch, offset = divmod(start, len(self.tokens))
            taken = min(stop - start, len(self.tokens) - offset)
            units.append(self._order(epoch)[offset : offset + taken])
            epochs.append(np.full(taken, epoch))
            start += taken
        return np.concatenate(units), np.concatenate(epochs)

    def tokens_after(self, stop: int) -> int:
        """See Stream."""
        epochs, left = divmod(stop, len(self.tokens))
        return epochs * int(self.tokens.sum()) + int(self.tokens[self._order(epochs)[:left]].sum())

    def epochs_after(self, stop: int) -> float:
        """See Stream; by units, which are cheaper to count, and in epochs the same."""
        return stop / len(self.tokens)

    def epochs_finished_by(self, start: int, stop: int) -> range:
        """See Stream."""
        return range(start // len(self.tokens), stop // len(self.tokens))

    def _order(self, epoch: int) -> Int64s:
        if self._permutation[0] != epoch:
            self._permutation = (epoch, shuffled(len(self.tokens), *self._key, epoch))
        return self._permutation[1]


class WeightedStream(Stream):
    """Units of several corpora, each through epochs of its own; its share of the tokens is its weight's all along, but
    for one unit. The whole's epoch is over when every corpus has finished its own.

    Fair queueing (Demers, Keshav, Shenker 1989): a unit comes when its corpus has given so many tokens for its weight;
    of those that come together, that of the first corpus. Each corpus keeps the order of one epoch.
    """

    def __init__(self, tokens: Int64s, corpora: Int64s, weights: Sequence[float], length: Length, key: Key) -> None:
        super().__init__(tokens, length)
        self._corpora = [
            _Corpus(np.flatnonzero(corpora == number), tokens, weight / sum(weights), (*key, number))
            for number, weight in enumerate(weights)
        ]
        self._known = {0: [0] * len(weights)}  # where steps of late have begun and ended
        self.total = self._total()

    def at(self, start: int, stop: int) -> tuple[Int64s, Int64s]:
        """See Stream."""
        before = self._given_by(start)
        units, epochs, drawn = self._next(before, stop - start)
        self._remember(stop, before, drawn)
        return units, epochs

    def tokens_after(self, stop: int) -> int:
        """See Stream."""
        pairs = zip(self._corpora, self._given_by(stop), strict=True)
        return sum(corpus.tokens_before(count) for corpus, count in pairs)

    def epochs_finished_by(self, start: int, stop: int) -> range:
        """See Stream."""
        first, last = (
            min(count // corpus.size for corpus, count in zip(self._corpora, self._given_by(at), strict=True))
            for at in (start, stop)
        )
        return range(first, last)

    @property
    def facts(self) -> dict[str, Any]:
        """See Stream."""
        return {**super().facts, "weights": [corpus.share for corpus in self._corpora]}

    @property
    def epochs_of_each(self) -> list[float]:
        """See Stream."""
        counts = self._given_by(self.total)
        return [count / corpus.size for corpus, count in zip(self._corpora, counts, strict=True)]

    def _total(self) -> int:
        batch, wanted = self.length.batch, self.length.train_tokens
        if wanted is None:
            assert self.length.train_iters is not None, "a blend by weight has no end of its own"
            return self.length.train_iters * batch
        # at a time t the corpora have given t tokens, and at most their longest units more
        time = wanted - sum(corpus.longest for corpus in self._corpora) - 2  # when they are not there yet
        counts = [corpus.count_at(time) for corpus in self._corpora]
        reached = sum(corpus.tokens_before(count) for corpus, count in zip(self._corpora, counts, strict=True))
        while True:
            units, _, drawn = self._next(counts, _STRETCH)
            sums = reached + np.cumsum(self.tokens[units])
            if sums[-1] >= wanted:
                return ceil_div(sum(counts) + int(np.searchsorted(sums, wanted)) + 1, batch) * batch
            counts = [count + int(more) for count, more in zip(counts, drawn, strict=True)]
            reached = int(sums[-1])

    def _given_by(self, stop: int) -> list[int]:
        """How many of the first `stop` units are of each corpus."""
        if stop not in self._known:
            low, high = -1.0, 1.0
            while sum(corpus.least_at(high) for corpus in self._corpora) <= stop:
                high *= 2
            counts = [0] * len(self._corpora)
            while stop - sum(counts) > _STRETCH and low < (middle := (low + high) / 2) < high:
                if sum(corpus.least_at(middle) for corpus in self._corpora) > stop:
                    high = middle
                    continue
                found = [corpus.count_at(middle) for corpus in self._corpora]
                if sum(found) <= stop:
                    low, counts = middle, found
                else:
                    high = middle
            _, _, drawn = self._next(counts, stop - sum(counts))
            self._remember(stop, counts, drawn)
        return self._known[stop]

    def _remember(self, stop: int, counts: Sequence[int], drawn: Int64s) -> None:
        while len(self._known) >= _REMEMBERED:
            self._known.pop(next(iter(self._known)))
        self._known[stop] = [count + int(more) for count, more in zip(counts, drawn, strict=True)]

    def _next(self, counts: Sequence[int], number: int) -> tuple[Int64s, Int64s, Int64s]:
        """The `number` units that follow when the corpora have given `counts`: units, epochs, and of each corpus how
        many."""
        found = [corpus.following(count, number) for corpus, count in zip(self._corpora, counts, strict=True)]
        times, units, epochs = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(times, kind="stable")[:number]
        drawn = np.bincount(order // max(1, number), minlength=len(found))
        return units[order].astype(np.int64), epochs[order].astype(np.int64), drawn


class _Corpus:
    """The units of one corpus, in the order in which they come; unit j comes at the time (tokens before it) / share."""

    def __init__(self, units: Int64s, tokens: Int64s, share: float, key: Key) -> None:
        self._units, self.share = units, share
        self._stream = EqualStream(tokens[units], Length(1), key)
        self.size, self.longest = len(units), int(tokens[units].max())
        self._per_epoch = int(tokens[units].sum())
        self._before: tuple[int, Int64s] = (-1, np.empty(0, np.int64))

    def following(self, count: int, number: int) -> tuple[Any, Int64s, Int64s]:
        """(times, units, epochs) of the `number` units behind the first `count`, each (number,)."""
        units, epochs = self._stream.at(count, count + number) if number else (np.empty(0, np.int64),) * 2
        given = self.tokens_before(count) + np.cumsum(self._stream.tokens[units]) - self._stream.tokens[units]
        return given / self.share, self._units[units], epochs

    def tokens_before(self, count: int) -> int:
        """Tokens of the first `count` units."""
        epoch, offset = divmod(count, self.size)
        return epoch * self._per_epoch + (int(self._tokens_before(epoch)[offset]) if offset else 0)

    def count_at(self, time: float) -> int:
        """How many units come at `time` or before."""
        if time < 0:
            return 0
        epoch = max(0, int(time * self.share // self._per_epoch) - 1)
        while (epoch + 1) * self._per_epoch / self.share <= time:  # rounding may be off by one
            epoch += 1
        times = (epoch * self._per_epoch + self._tokens_before(epoch)) / self.share
        return epoch * self.size + int(np.searchsorted(times, time, side="right"))

    def least_at(self, time: float) -> int:
        """No more than `count_at`; found without an order."""
        return max(0, int(time * self.share // self._per_epoch) - 1) * self.size

    def _tokens_before(self, epoch: int) -> Int64s:
        """(units,): tokens of the epoch before each of its units, in their order."""
        if self._before[0] != epoch:
            units, _ = self._stream.at(epoch * self.size, (epoch + 1) * self.size)
            tokens = self._stream.tokens[units]
            self._before = (epoch, np.cumsum(tokens) - tokens)
        return self._before[1]

"""Encoding chunks side by side, results in order, never more than a few chunks in memory.

The tokenizer and the chat template are anybody's: they run in processes with limits. A chunk that ends its process is
encoded again without the record at fault, which is broken.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Self, TypeVar

from data_prep.io.errors import InputError
from data_prep.io.limited_process import LimitedProcess, ProcessEnded
from data_prep.tokenize.chunk import Chunk
from data_prep.tokenize.encode import EncodedChunk, Encoding
from data_prep.tokenize.worker_process import FASTEST, LoadedTokenizer, allowed_seconds, start_worker

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_LOADING_SECONDS = 60.0
_TEMPLATE_SECONDS = 6.0  # for a few small conversations
_MOST_HOPELESS = 100  # records that end their processes: more, and something else is wrong


class EncodingPool:
    """Processes that hold a tokenizer. Raises InputError for one that cannot be loaded, or ends its process."""

    def __init__(self, tokenizer: Path, workers: int, kind: str = FASTEST) -> None:
        self._tokenizer, self._workers, self._kind = tokenizer, workers, kind
        self._idle: SimpleQueue[LimitedProcess] = SimpleQueue()
        self._all: list[LimitedProcess] = []
        self._hopeless = 0
        self.loaded: LoadedTokenizer = self._start().ready
        self._kind = self.loaded.kind
        for text in self.loaded.warnings:
            warnings.warn(text, stacklevel=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            process.close()

    def _start(self) -> LimitedProcess:
        try:
            process = LimitedProcess(start_worker, (self._tokenizer, self._kind, self._workers > 1), _LOADING_SECONDS)
        except ProcessEnded as end:
            raise InputError(f"{self._tokenizer} was refused: loading it {end.reason}") from None
        self._all.append(process)
        self._idle.put(process)
        return process

    def check(self, encoding: Encoding) -> None:
        """Raise InputError for a chat template that cannot be used."""
        with self._process() as process:
            try:
                process.call((encoding, None, {}, False), _TEMPLATE_SECONDS)
            except ProcessEnded as end:
                raise InputError(f"the chat template was refused: a small conversation {end.reason}") from None

    @contextmanager
    def _process(self) -> Iterator[LimitedProcess]:
        process = self._idle.get()
        try:
            yield process
        finally:
            self._idle.put(process)

    def encode(self, chunks: Iterable[Chunk], encoding: Encoding) -> Iterator[EncodedChunk]:
        """Encode chunks, in order."""
        with ThreadPoolExecutor(self._workers) as starters:  # each loads the tokenizer
            list(starters.map(lambda _: self._start(), range(self._workers - len(self._all))))
        with ThreadPoolExecutor(self._workers) as threads:  # each waits for a process
            yield from in_order(threads, lambda chunk: self._encode(chunk, encoding), chunks, 2 * self._workers)

    def _encode(self, chunk: Chunk, encoding: Encoding) -> EncodedChunk:
        hopeless: dict[int, str] = {}
        one_by_one = False
        with self._process() as process:
            while True:
                try:
                    seconds = allowed_seconds(chunk.size)
                    encoded: EncodedChunk = process.call((encoding, chunk, hopeless, one_by_one), seconds)
                    return encoded
                except ProcessEnded as end:
                    if end.at is not None:
                        hopeless[end.at] = end.reason
                        self._count_hopeless(chunk, end)
                    elif one_by_one:
                        raise InputError(
                            f"{chunk.path}: reading it from record {chunk.first} on {end.reason}: leave this input out"
                        ) from None
                    one_by_one = True

    def _count_hopeless(self, chunk: Chunk, end: ProcessEnded) -> None:
        self._hopeless += 1
        if self._hopeless > _MOST_HOPELESS:
            raise InputError(
                f"{chunk.path}, record {end.at}, {end.reason}, as {_MOST_HOPELESS} records before it: check the chat "
                "template and the tokenizer"
            )


def in_order(
    executor: Executor, work: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int
) -> Iterator[_Result]:
    """Results of the work in the order of the items, at most `ahead` of them waiting or under way."""
    pending: deque[Future[_Result]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:  # the reader has given up: what is not begun need not be done
            future.cancel()

"""Encoding chunks side by side, results in order, never more than a few chunks in memory."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from data_prep.tokenize.encode import ChunkEncoder, EncodedChunk, Encoding, parse
from data_prep.tokenize.inputs import Chunk

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def encode_chunks(
    chunks: Iterable[Chunk], encoding: Encoding, encoder: ChunkEncoder, workers: int
) -> Iterator[EncodedChunk]:
    """Encode chunks, in order. One worker is a thread beside one that parses; more are processes that do both.

    Only the thread uses `encoder`: processes make their own.
    """
    if workers == 1:
        with ThreadPoolExecutor(1) as parser, ThreadPoolExecutor(1) as encoding_thread:
            parsed = in_order(parser, lambda chunk: parse(chunk, encoding), chunks, ahead=1)
            yield from in_order(encoding_thread, encoder.encode, parsed, ahead=1)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (encoding,)) as pool:
        try:
            yield from in_order(pool, _encode_in_worker, chunks, ahead=2 * workers)
        except BrokenProcessPool:
            raise RuntimeError(
                "an encoding process was killed, perhaps for want of memory: use fewer --workers"
            ) from None


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


_worker: ChunkEncoder
_encoding: Encoding


def _start_worker(encoding: Encoding) -> None:
    global _worker, _encoding
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker, _encoding = ChunkEncoder.of_worker(encoding), encoding


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # a killed parent tells nobody; a worker would wait for it for ever
        os._exit(1)


def _encode_in_worker(chunk: Chunk) -> EncodedChunk:
    return _worker.encode(parse(chunk, _encoding))

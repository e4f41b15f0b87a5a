"""Input files to corpora: read, encode, stream to disk; a killed run goes on where it was."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.corpus.indexed import corpus_files
from data_prep.io.errors import InputError
from data_prep.io.files import refuse_existing
from data_prep.tokenize.chat_template_file import chat_template_of
from data_prep.tokenize.encode import Encoding, texts_of
from data_prep.tokenize.inputs import check_columns, expand, read
from data_prep.tokenize.job import TokenizeJob, outputs_of
from data_prep.tokenize.run import TokenizeRun
from data_prep.tokenize.worker_process import FASTEST, REFERENCE, LoadedTokenizer
from data_prep.tokenize.workers import EncodingPool

__all__ = ["TokenizeJob", "outputs_of", "tokenize"]

_JOURNAL_EVERY_BYTES = 256 << 20


def tokenize(
    job: TokenizeJob,
    on_progress: Callable[[int], None] = lambda records: None,
    journal_every_bytes: int = _JOURNAL_EVERY_BYTES,
) -> dict[str, dict[str, Any]]:
    """Encode the inputs into one corpus per key; returns their manifests.

    `on_progress` gets the number of records of each chunk. Raises InputError on bad input. What a run leaves that does
    not end well is where the same job goes on.
    """
    inputs = expand(list(job.inputs))
    if job.workers < 1:
        raise InputError(f"--workers is {job.workers}; it must be at least 1")
    for prefix in job.outputs.values():
        refuse_existing(corpus_files(prefix, masked=False)["idx"])
    with EncodingPool(job.tokenizer, job.workers, REFERENCE if job.conversations else FASTEST) as pool:
        encoding = _encoding_of(job, pool.loaded)
        pool.check(encoding)  # a template that cannot be used is told first
        check_columns(inputs, encoding.columns)
        run = TokenizeRun(job, encoding, pool.loaded.description, inputs)
        _encode_all(run, pool, encoding, inputs, on_progress, journal_every_bytes)
    return _commit(run)


def _encoding_of(job: TokenizeJob, tokenizer: LoadedTokenizer) -> Encoding:
    if job.append_eod and tokenizer.eod is None:
        raise InputError(f"{job.tokenizer} declares no end-of-document token: leave --append-eod out")
    if job.prepend_bos and tokenizer.bos is None:
        raise InputError(f"{job.tokenizer} declares no token that begins a text: leave --prepend-bos out")
    if job.prepend_bos and job.conversations:
        raise InputError("--prepend-bos is for texts: the chat template says what a conversation begins with")
    if tokenizer.adds_bos and not job.prepend_bos and not job.conversations:
        warnings.warn(
            f"{job.tokenizer} puts a token before texts (BOS), and these documents have none: give --prepend-bos where "
            "the model was trained with it",
            stacklevel=3,
        )
    return Encoding(
        tuple(job.outputs),
        chat_template_of(job.tokenizer, job.chat_template) if job.conversations else None,
        job.punkt,
        job.keep_space,
        begin=tokenizer.bos if job.prepend_bos else None,
        end=tokenizer.eod if job.append_eod and job.conversations else None,
    )


def _encode_all(
    run: TokenizeRun,
    pool: EncodingPool,
    encoding: Encoding,
    inputs: list[Path],
    on_progress: Callable[[int], None],
    journal_every_bytes: int,
) -> None:
    try:
        if run.splits_by_own_punkt:
            learned = run.learn_punkt(texts_of(read(inputs, encoding.columns), encoding))
            encoding = replace(encoding, punkt=learned)
        for chunk in pool.encode(read(inputs, encoding.columns, run.cursor), encoding):
            run.add(chunk, journal_every_bytes)
            on_progress(chunk.records)
    except InputError as error:
        if run.stop():
            raise InputError(
                f"{error} (what was encoded before it is kept: correct or leave out this input, start the same command "
                "again, and it goes on there)"
            ) from None
        raise
    except BaseException:
        run.suspend()
        raise


def _commit(run: TokenizeRun) -> dict[str, dict[str, Any]]:
    try:
        return run.commit()
    except InputError:
        run.discard()
        raise
    except BaseException:
        run.suspend()
        raise

"""Input files to corpora: read, encode, stream to disk; a killed run goes on where it was."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from data_prep.corpus.indexed import corpus_files
from data_prep.io.errors import InputError
from data_prep.io.files import refuse_existing
from data_prep.tokenize.chat_template_file import chat_template_of
from data_prep.tokenize.encode import ChunkEncoder, Encoding, texts_of
from data_prep.tokenize.inputs import check_columns, expand, read
from data_prep.tokenize.job import TokenizeJob, outputs_of
from data_prep.tokenize.run import TokenizeRun
from data_prep.tokenize.workers import encode_chunks
from data_prep.tokenizers import load_tokenizer
from data_prep.tokenizers.encoder import GigatokenEncoder, ReferenceEncoder, fastest_exact

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
    tokenizer, description = load_tokenizer(job.tokenizer)
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
            stacklevel=2,
        )
    encoder = ReferenceEncoder(tokenizer) if job.conversations else fastest_exact(tokenizer)
    template = chat_template_of(job.tokenizer, job.chat_template) if job.conversations else None
    fast = isinstance(encoder, GigatokenEncoder)
    begin = tokenizer.bos if job.prepend_bos else None
    end = tokenizer.eod if job.append_eod and job.conversations else None
    encoding = Encoding(job.tokenizer, tuple(job.outputs), fast, template, job.punkt, job.keep_space, begin, end)
    chunk_encoder = ChunkEncoder(encoding, tokenizer, encoder)  # a template that cannot be used is told first
    check_columns(inputs, encoding.columns)
    run = TokenizeRun(job, encoding, description, inputs)
    try:
        if job.split_sentences and job.punkt is None:
            learned = run.learn_punkt(texts_of(read(inputs, encoding.columns), encoding))
            encoding = replace(encoding, punkt=learned)
            chunk_encoder = ChunkEncoder(encoding, tokenizer, encoder)
        chunks = read(inputs, encoding.columns, run.cursor)
        for chunk in encode_chunks(chunks, encoding, chunk_encoder, job.workers):
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
    return _commit(run)


def _commit(run: TokenizeRun) -> dict[str, dict[str, Any]]:
    try:
        return run.commit()
    except InputError:
        run.discard()
        raise
    except BaseException:
        run.suspend()
        raise

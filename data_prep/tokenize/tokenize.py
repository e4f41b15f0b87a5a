"""Input files to corpora: read, encode, stream to disk; a killed run goes on where it was."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from data_prep.corpus.indexed import corpus_files
from data_prep.io.errors import InputError
from data_prep.io.files import read_json, read_text, refuse_existing
from data_prep.tokenize.encode import ChunkEncoder, Encoding, texts_of
from data_prep.tokenize.inputs import expand, read
from data_prep.tokenize.job import TokenizeJob, outputs_of
from data_prep.tokenize.run import TokenizeRun
from data_prep.tokenize.workers import encode_chunks
from data_prep.tokenizers import load_tokenizer, tokenizer_file
from data_prep.tokenizers.encoder import GigatokenEncoder, ReferenceEncoder, fastest_exact

__all__ = ["TokenizeJob", "outputs_of", "tokenize"]

_JOURNAL_EVERY_BYTES = 256 << 20


def tokenize(
    job: TokenizeJob,
    on_progress: Callable[[int], None] = lambda records: None,
    journal_every_bytes: int = _JOURNAL_EVERY_BYTES,
) -> dict[str, dict[str, Any]]:
    """Encode the inputs into one corpus per key; returns their manifests.

    `on_progress` gets the number of records of each chunk. Raises InputError on bad input, and then leaves
    nothing; what any other end leaves is where the same job goes on.
    """
    inputs = expand(list(job.inputs))
    if job.workers < 1:
        raise InputError(f"--workers is {job.workers}; it must be at least 1")
    for prefix in job.outputs.values():
        refuse_existing(corpus_files(prefix, masked=False)["idx"])
    tokenizer, description = load_tokenizer(job.tokenizer)
    if job.append_eod and tokenizer.eod is None:
        raise InputError(f"{job.tokenizer} declares no end-of-document token: leave --append-eod out")
    encoder = ReferenceEncoder(tokenizer) if job.conversations else fastest_exact(tokenizer)
    template = _chat_template(job) if job.conversations else None
    fast = isinstance(encoder, GigatokenEncoder)
    encoding = Encoding(job.tokenizer, tuple(job.outputs), fast, template, job.punkt, job.keep_space)
    run = TokenizeRun(job, encoding, description, inputs)
    try:
        if job.split_sentences and job.punkt is None:
            learned = run.learn_punkt(texts_of(read(inputs, encoding.columns), encoding))
            encoding = replace(encoding, punkt=learned)
        chunks = read(inputs, encoding.columns, run.cursor)
        for chunk in encode_chunks(chunks, encoding, ChunkEncoder(encoding, tokenizer, encoder), job.workers):
            run.add(chunk, journal_every_bytes)
            on_progress(chunk.records)
        return run.commit()
    except InputError:
        run.discard()
        raise
    except BaseException:
        run.suspend()
        raise


def _chat_template(job: TokenizeJob) -> str:
    """The template given, or the tokenizer's own. Raises InputError where there is none."""
    if job.chat_template is not None:
        return read_text(job.chat_template)
    folder = tokenizer_file(job.tokenizer).parent
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    config = folder / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.is_file() else None
    if not isinstance(template, str):
        raise InputError(f"{folder} holds no chat template: give one with --chat-template FILE")
    return template

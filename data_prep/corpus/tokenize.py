"""Input files to corpora: read, encode, stream to disk; a killed run goes on where it was."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xxhash import xxh3_64

from data_prep.corpus.encode import ChunkEncoder, EncodedChunk, Encoding, texts_of
from data_prep.corpus.indexed import corpus_files
from data_prep.corpus.inputs import Place, expand, read
from data_prep.corpus.journal import Journal, State
from data_prep.corpus.tokenizers import load_tokenizer, tokenizer_file
from data_prep.corpus.tokenizers.encoder import GigatokenEncoder, ReferenceEncoder, fastest_exact
from data_prep.corpus.workers import encode_chunks
from data_prep.corpus.writer import CorpusWriter
from data_prep.errors import InputError
from data_prep.files import read_json, read_text, refuse_existing

_EXAMPLES = 20  # of broken records and changed turns that the manifest names
_JOURNAL_EVERY_BYTES = 256 << 20


@dataclass(frozen=True)
class TokenizeJob:
    """What `davinci data tokenize` is asked to do.

    `outputs` gives the PREFIX for each field of a record. With `conversations` the fields hold messages, rendered by
    `chat_template` or by the tokenizer's own. `split_sentences` uses the Punkt model at `punkt` (a language of NLTK's
    punkt_tab), or learns one from the input and saves it as PREFIX.punkt.
    """

    inputs: tuple[str, ...]
    tokenizer: Path
    outputs: dict[str, Path]
    append_eod: bool = False
    conversations: bool = False
    chat_template: Path | None = None
    split_sentences: bool = False
    punkt: Path | None = None
    keep_space: bool = True
    strict: bool = False
    workers: int = 1


def outputs_of(prefix: Path, keys: list[str]) -> dict[str, Path]:
    """PREFIX of the corpus of each key: `prefix` itself for one, with the key's name behind it for several."""
    return {key: prefix if len(keys) == 1 else prefix.with_name(f"{prefix.name}_{key}") for key in keys}


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
    encoding = _encoding(job, inputs, isinstance(encoder, GigatokenEncoder))
    chunk_encoder = ChunkEncoder(encoding, tokenizer, encoder)
    run = _Run(job, encoding, description, inputs)
    try:
        chunks = read(inputs, list(encoding.keys), run.place)
        for chunk in encode_chunks(chunks, encoding, chunk_encoder, job.workers):
            run.add(chunk, journal_every_bytes)
            on_progress(chunk.records)
        return run.commit()
    except InputError:
        run.discard()
        raise
    except BaseException:
        run.leave()
        raise


def _encoding(job: TokenizeJob, inputs: list[Path], use_gigatoken: bool) -> Encoding:
    template = _chat_template(job) if job.conversations else None
    encoding = Encoding(job.tokenizer, tuple(job.outputs), use_gigatoken, template, job.punkt, job.keep_space)
    if not job.split_sentences or job.punkt is not None:
        return encoding
    from data_prep.corpus.sentences import train_punkt

    learned = learned_punkt(job)
    if learned.exists():
        shutil.rmtree(learned)  # of a run that was killed: without PREFIX.idx nothing is finished
    train_punkt(texts_of(read(inputs, list(encoding.keys)), encoding), learned)
    return replace(encoding, punkt=learned)


def learned_punkt(job: TokenizeJob) -> Path:
    """Where a Punkt model goes that is learned from the input."""
    prefix = next(iter(job.outputs.values()))
    return prefix.with_name(f"{prefix.name}.punkt")


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


def _stamps(path: Path) -> list[list[int]]:
    """Size and time of the files of an input: one that has changed is another input."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [[file.stat().st_size, file.stat().st_mtime_ns] for file in files]


class _Run:
    """The corpora being written, and what the manifest will say of how they came about."""

    def __init__(self, job: TokenizeJob, encoding: Encoding, tokenizer: dict[str, Any], inputs: list[Path]) -> None:
        self._job = job
        self._end = tokenizer["eod"] if job.append_eod else None
        self._provenance = {
            "inputs": [path.name for path in inputs],
            "append_eod": job.append_eod,
            "chat_template": _digest(encoding.chat_template),
            "punkt": _digest_of_directory(encoding.punkt) if encoding.punkt else None,
            "keep_space": job.keep_space if encoding.punkt else None,
        }
        settings = {"tokenizer": tokenizer, **self._provenance, "files": [_stamps(path) for path in inputs]}
        self._journal = Journal(next(iter(job.outputs.values())), settings)
        self._open(self._journal.read(), tokenizer)

    def _open(self, state: State | None, tokenizer: dict[str, Any]) -> None:
        positions = state["positions"] if state else {}
        self._writers: dict[str, CorpusWriter] = {}
        try:
            for key, prefix in self._job.outputs.items():
                self._writers[key] = CorpusWriter(prefix, tokenizer, self._job.conversations, positions.get(key))
        except ValueError as error:
            for writer in self._writers.values():
                writer.discard()
            if isinstance(error, InputError):
                raise
            return self._open(None, tokenizer)  # the files hold less than the journal says: begin anew
        self.place = Place(**state["place"]) if state else Place()
        self._notes: dict[str, Any] = state["notes"] if state else {"broken_records": 0, "changed_turns": 0}
        self._examples: dict[str, list[str]] = state["examples"] if state else {"broken": [], "changed": []}
        self._unsaved = 0
        return None

    def add(self, chunk: EncodedChunk, journal_every_bytes: int) -> None:
        """Write a chunk's documents, and from time to time where we are."""
        if chunk.broken and self._job.strict:
            number, reason = chunk.broken[0]
            raise InputError(f"{chunk.path}, record {number}, {reason}")
        for key, documents in chunk.documents.items():
            self._writers[key].add_flat(
                documents.ids, documents.lengths, documents.sequences_per_document, self._end, documents.loss_mask
            )
            self._unsaved += documents.ids.nbytes
        self._note("broken", "broken_records", [f"{chunk.path.name}, record {n}, {why}" for n, why in chunk.broken])
        self._note(
            "changed", "changed_turns", [f"{chunk.path.name}, record {n}, message {m}" for n, m in chunk.changed]
        )
        self.place = chunk.after
        if self._unsaved >= journal_every_bytes:
            self._save()

    def _note(self, kind: str, counter: str, examples: list[str]) -> None:
        self._notes[counter] += len(examples)
        self._examples[kind] += examples[: _EXAMPLES - len(self._examples[kind])]

    def _save(self) -> None:
        files = [path for writer in self._writers.values() for path in writer.flush()]
        state = {
            "positions": {key: writer.position for key, writer in self._writers.items()},
            "place": asdict(self.place),
            "notes": dict(self._notes),
            "examples": {kind: list(examples) for kind, examples in self._examples.items()},
        }
        self._journal.write(state, files)
        self._unsaved = 0

    def commit(self) -> dict[str, dict[str, Any]]:
        """Finish all corpora; returns their manifests."""
        self._journal.settle()
        manifests = {}
        for key, writer in self._writers.items():
            provenance = {**self._provenance, "json_key": key, **self._notes, "examples": self._examples}
            manifests[key] = writer.commit(provenance)
        self._journal.remove()
        return manifests

    def leave(self) -> None:
        """Leave what is written, for the same job to go on with."""
        for writer in self._writers.values():
            writer.leave()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._journal.settle()
        for writer in self._writers.values():
            writer.discard()
        self._journal.remove()
        if self._job.split_sentences and self._job.punkt is None:
            shutil.rmtree(learned_punkt(self._job), ignore_errors=True)


def _digest(text: str | None) -> str | None:
    return None if text is None else xxh3_64(text.encode()).hexdigest()


def _digest_of_directory(directory: Path) -> str:
    return xxh3_64(b"".join(path.read_bytes() for path in sorted(directory.iterdir()))).hexdigest()

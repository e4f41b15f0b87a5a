"""The corpora that one run of tokenizing writes, and what their manifests will say of how they came about."""

import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xxhash import xxh3_64

from data_prep.corpus.indexed import corpus_files
from data_prep.corpus.record_notes import RecordNotes
from data_prep.corpus.writer import CorpusWriter
from data_prep.io.errors import InputError, NoDocuments
from data_prep.io.files import part_of, plain_name, publish, refuse_existing
from data_prep.tokenize.chunk import ReadCursor
from data_prep.tokenize.encode import EncodedChunk, Encoding
from data_prep.tokenize.job import TokenizeJob
from data_prep.tokenize.journal import ResumeJournal, State


class TokenizeRun:
    """The corpora being written, and what the manifest will say of how they came about."""

    def __init__(self, job: TokenizeJob, encoding: Encoding, tokenizer: dict[str, Any], inputs: list[Path]) -> None:
        self._job = job
        self._end = tokenizer["eod"] if job.append_eod and not job.conversations else None
        first = next(iter(job.outputs.values()))
        self._provenance = {
            "inputs": [plain_name(path) for path in inputs],
            "append_eod": job.append_eod,
            "prepend_bos": job.prepend_bos,
            "chat_template": _digest(encoding.chat_template),
            "punkt": _digest_of_directory(job.punkt) if job.punkt else None,
            "split_sentences": job.split_sentences,
            "keep_space": job.keep_space if job.split_sentences else None,
        }
        self._punkt = first.with_name(f"{first.name}.punkt")
        self._learned = part_of(self._punkt)
        files = corpus_files(first, masked=False)
        if self.splits_by_own_punkt and not files["bin"].exists() and not part_of(files["bin"]).exists():
            refuse_existing(self._punkt)  # else it is of an attempt of ours that did not come to its end
        outputs = {key: str(prefix) for key, prefix in job.outputs.items()}
        settings = {"tokenizer": tokenizer, **self._provenance, "inputs": None, "outputs": outputs}
        self._journal = ResumeJournal(first, settings, [[plain_name(path), *_stamps(path)] for path in inputs])
        state, self._at_input = self._journal.read()
        self._open(state, tokenizer)

    def _open(self, state: State | None, tokenizer: dict[str, Any]) -> None:
        positions = state["positions"] if state else {}
        self._writers: dict[str, CorpusWriter] = {}
        try:
            for key, prefix in self._job.outputs.items():
                self._writers[key] = CorpusWriter(prefix, tokenizer, self._job.conversations, positions.get(key))
        except (InputError, ValueError, FileNotFoundError) as error:
            for writer in self._writers.values():
                writer.discard()
            if isinstance(error, InputError):
                raise
            self._at_input = None
            return self._open(None, tokenizer)  # the files hold less than the journal says: begin anew
        self.cursor = ReadCursor(**state["place"]) if state else ReadCursor()
        self._notes = RecordNotes(state["notes"] if state else None)
        self._unsaved = 0
        return None

    @property
    def splits_by_own_punkt(self) -> bool:
        """Whether sentences are split by a model of these very texts."""
        return self._job.split_sentences and self._job.punkt is None

    def learn_punkt(self, texts: Iterable[str]) -> Path:
        """A Punkt model of these texts; where the run goes on, the one that it began with."""
        from data_prep.tokenize.sentences import train_punkt

        if self.cursor == ReadCursor():
            shutil.rmtree(self._learned, ignore_errors=True)
        if not self._learned.exists() and self._punkt.exists() and self.cursor != ReadCursor():
            shutil.copytree(self._punkt, self._learned)  # the run was about to end
        if not self._learned.exists():
            train_punkt(texts, self._learned)
        self._provenance["punkt"] = _digest_of_directory(self._learned)
        return self._learned

    def add(self, chunk: EncodedChunk, journal_every_bytes: int) -> None:
        """Write a chunk's documents, and from time to time where we are."""
        if chunk.broken and self._job.strict:
            number, reason = chunk.broken[0]
            raise InputError(f"{chunk.path}, record {number}, {reason}")
        if chunk.after.input != self.cursor.input:
            self._at_input = self._state(ReadCursor(chunk.after.input))
        for key, documents in chunk.documents.items():
            self._writers[key].add_flat(
                documents.ids, documents.lengths, documents.sequences_per_document, self._end, documents.loss_mask
            )
            self._unsaved += documents.ids.nbytes
        name = plain_name(chunk.path)
        self._notes.add("broken", [f"{name}, record {n}, {why}" for n, why in chunk.broken])
        self._notes.add("untrained", [f"{name}, record {n}" for n in chunk.untrained])
        self._notes.add("changed", [f"{name}, record {n}, message {m}" for n, m in chunk.changed])
        self.cursor = chunk.after
        if self._unsaved >= journal_every_bytes:
            self._save()

    def _state(self, place: ReadCursor) -> State:
        positions = {key: writer.position for key, writer in self._writers.items()}
        return {"positions": positions, "place": asdict(place), "notes": self._notes.as_dict()}

    def _save(self) -> None:
        files = [path for writer in self._writers.values() for path in writer.flush()]
        self._journal.write(self._state(self.cursor), self._at_input, files)
        self._unsaved = 0

    def commit(self) -> dict[str, dict[str, Any]]:
        """Finish all corpora; returns their manifests."""
        self._journal.settle()
        manifests = {key: self._prepare(key, writer) for key, writer in self._writers.items()}
        if self._learned.exists():
            shutil.rmtree(self._punkt, ignore_errors=True)
            publish(self._learned, self._punkt)
        for writer in self._writers.values():
            writer.publish()
        self._journal.remove()
        return manifests

    def _prepare(self, key: str, writer: CorpusWriter) -> dict[str, Any]:
        notes = self._notes.as_dict()
        try:
            return writer.prepare({**self._provenance, "json_key": key, **notes})
        except NoDocuments:
            first = self._notes.first("broken")
            if first:
                raise NoDocuments(f"no record under '{key}' could be used: {first}", notes) from None
            raise NoDocuments(f"the input holds no document with text under '{key}'", notes) from None

    def stop(self) -> bool:
        """Leave what is written so that the same job goes on right here; False where there is nothing to keep."""
        if self.cursor == ReadCursor():
            self.discard()
            return False
        self._journal.settle()
        self._save()
        self._journal.settle()
        self.suspend()
        return True

    def suspend(self) -> None:
        """Leave what is written, for the same job to go on with where the journal says."""
        for writer in self._writers.values():
            writer.suspend()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._journal.settle()
        for writer in self._writers.values():
            writer.discard()
        self._journal.remove()
        shutil.rmtree(self._learned, ignore_errors=True)


def _stamps(path: Path) -> list[list[int]]:
    """Size and time of the files of an input: one that has changed is another input."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [[file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _digest(text: str | None) -> str | None:
    return None if text is None else xxh3_64(text.encode()).hexdigest()


def _digest_of_directory(directory: Path) -> str:
    return xxh3_64(b"".join(path.read_bytes() for path in sorted(directory.iterdir()))).hexdigest()

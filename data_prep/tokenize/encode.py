"""Chunks of input to flat arrays of ids: what a worker does, the same in a thread and in a process of its own."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from data_prep.io.errors import InputError
from data_prep.tokenize.conversation import ChatTemplate, ConversationError, tools_of
from data_prep.tokenize.inputs import OPTIONAL_COLUMNS, BrokenRecord, Chunk, ReadCursor, records_of
from data_prep.tokenize.masks import encode_rendered
from data_prep.tokenizers import Tokenizer, load_tokenizer, special_tokens_beside
from data_prep.tokenizers.encoder import Encoder, GigatokenEncoder, ReferenceEncoder

if TYPE_CHECKING:
    from data_prep.tokenize.sentences import SentenceSplitter


@dataclass(frozen=True)
class Encoding:
    """How records become ids. `keys` are the fields with the texts; with a `chat_template` they hold conversations."""

    tokenizer: Path
    keys: tuple[str, ...]
    use_gigatoken: bool
    chat_template: str | None = None
    punkt: Path | None = None
    keep_space: bool = True

    @property
    def columns(self) -> list[str]:
        """Fields of a record that are read."""
        return [*self.keys, *(OPTIONAL_COLUMNS if self.chat_template is not None else ())]


@dataclass(frozen=True)
class EncodedDocuments:
    """Encoded texts end to end; see CorpusWriter.add_flat."""

    ids: npt.NDArray[np.integer]
    lengths: npt.NDArray[np.int64]
    sequences_per_document: npt.NDArray[np.int64] | None = None
    loss_mask: npt.NDArray[np.uint8] | None = None


@dataclass
class ParsedChunk:
    """The values of each key, the numbers of their records, and what was wrong with the records that have none."""

    path: Path
    after: ReadCursor
    values: dict[str, list[Any]]
    records: list[int] = field(default_factory=list)
    tools: list[Any] = field(default_factory=list)
    broken: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class EncodedChunk:
    """The documents of each key. `changed` are (record, message) whose words the chat template did not keep."""

    path: Path
    after: ReadCursor
    records: int
    documents: dict[str, EncodedDocuments]
    broken: list[tuple[int, str]]
    changed: list[tuple[int, int]]


def parse(chunk: Chunk, encoding: Encoding) -> ParsedChunk:
    """Read the records of a chunk. Raises InputError for a record without the key, or with something else under it."""
    wanted = list if encoding.chat_template is not None else str
    parsed = ParsedChunk(chunk.path, chunk.after, {key: [] for key in encoding.keys})
    for number, record in records_of(chunk):
        if isinstance(record, BrokenRecord):
            parsed.broken.append((number, str(record)))
            continue
        for key, values in parsed.values.items():
            value = record.get(key, record)
            if value is None:
                value = wanted()  # an empty cell of a table is an empty document
            if not isinstance(value, wanted):
                raise InputError(_wrong_value(f"{chunk.path}, record {number},", record, key, value, wanted))
            values.append(without_nulls(value) if chunk.rows is not None else value)
        parsed.records.append(number)
        if wanted is list:
            parsed.tools.append(record.get("tools"))
    return parsed


def without_nulls(value: Any) -> Any:
    """A value of a table without the fields that are null: a column of messages gives each all the fields of any."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None or key == "content"}
    return value


def _wrong_value(where: str, record: dict[str, Any], key: str, value: Any, wanted: type) -> str:
    if value is record:
        known = ", ".join(name for name, value in record.items() if isinstance(value, wanted)) or "none"
        what = "text" if wanted is str else "conversation"
        return f"{where} has no {what} under '{key}'; its {what} fields are: {known}"
    if isinstance(value, list):
        return f"{where} holds a list under '{key}': for conversations give --chat"
    return f"{where} holds a {type(value).__name__} under '{key}'; it must be a {wanted.__name__}"


class ChunkEncoder:
    """Turns parsed chunks into ids. Holds the tokenizer: one per worker."""

    def __init__(self, encoding: Encoding, tokenizer: Tokenizer, encoder: Encoder) -> None:
        self._tokenizer, self._encoder = tokenizer, encoder
        self._splitter = _splitter(encoding.punkt, encoding.keep_space) if encoding.punkt else None
        self._template = None
        if encoding.chat_template is not None:
            controls, markup = self._tokenizer.control_tokens, self._tokenizer.markup_tokens
            self._template = ChatTemplate(
                encoding.chat_template, controls, markup, special_tokens_beside(encoding.tokenizer)
            )

    @classmethod
    def of_worker(cls, encoding: Encoding) -> Self:
        """Load the tokenizer anew, in a process of its own."""
        tokenizer, _ = load_tokenizer(encoding.tokenizer)
        make: type[Encoder] = GigatokenEncoder if encoding.use_gigatoken else ReferenceEncoder
        return cls(encoding, tokenizer, make(tokenizer))

    def encode(self, parsed: ParsedChunk) -> EncodedChunk:
        """Ids of a whole chunk."""
        changed: list[tuple[int, int]] = []
        documents = {}
        for key, values in parsed.values.items():
            if self._template is not None:
                documents[key] = self._encode_conversations(self._template, values, parsed, changed)
            elif self._splitter is not None:
                documents[key] = self._encode_sentences(self._splitter, values)
            else:
                documents[key] = EncodedDocuments(*self._encoder.encode(values))
        return EncodedChunk(parsed.path, parsed.after, len(parsed.records), documents, parsed.broken, changed)

    def _encode_sentences(self, splitter: "SentenceSplitter", texts: list[str]) -> EncodedDocuments:
        sentences = [splitter.split(text) for text in texts]
        ids, lengths = self._encoder.encode([sentence for document in sentences for sentence in document])
        return EncodedDocuments(ids, lengths, np.array([len(document) for document in sentences], np.int64))

    def _encode_conversations(
        self, template: ChatTemplate, values: list[Any], parsed: ParsedChunk, changed: list[tuple[int, int]]
    ) -> EncodedDocuments:
        encoded = []
        for messages, number, tools in zip(values, parsed.records, parsed.tools, strict=True):
            if not messages:  # dropped and counted, as an empty text is
                encoded.append((np.zeros(0, np.int64), np.zeros(0, np.uint8)))
                continue
            try:
                rendered = template.render(messages, tools_of(tools))
            except ConversationError as error:
                parsed.broken.append((number, str(error)))
                continue
            encoded.append(encode_rendered(rendered, self._tokenizer))
            changed += [(number, turn) for turn in rendered.changed_turns]
        ids = np.concatenate([np.zeros(0, np.int64), *(ids for ids, _ in encoded)])
        masks = np.concatenate([np.zeros(0, np.uint8), *(mask for _, mask in encoded)])
        return EncodedDocuments(ids, np.array([len(ids) for ids, _ in encoded], np.int64), loss_mask=masks)


def _splitter(punkt: Path, keep_space: bool) -> "SentenceSplitter":
    from data_prep.tokenize.sentences import SentenceSplitter  # nltk takes as long to import as everything else here

    return SentenceSplitter(punkt, keep_space)


def texts_of(chunks: Iterator[Chunk], encoding: Encoding) -> Iterator[str]:
    """The texts of all keys, in order: what Punkt learns from."""
    for chunk in chunks:
        for texts in zip(*parse(chunk, encoding).values.values(), strict=True):
            yield from texts

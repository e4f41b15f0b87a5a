"""Chunks of input to flat arrays of ids: what a worker does, the same in a thread and in a process of its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_prep.tokenize.chunk import BrokenRecord, Chunk, Columns, ReadCursor
from data_prep.tokenize.conversation import (
    CONVERSATION_FIELDS,
    DEFAULT_KEY,
    ChatConversation,
    ConversationError,
    conversation_of,
)
from data_prep.tokenize.masks import encode_rendered
from data_prep.tokenize.records import records_of
from data_prep.tokenize.turns import TurnRenderer
from data_prep.tokenizers import Tokenizer
from data_prep.tokenizers.encoder import Encoder

if TYPE_CHECKING:
    from data_prep.tokenize.sentences import SentenceSplitter

Value = str | list[str] | ChatConversation
At = Callable[[int, int], None]
_NONE: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Encoding:
    """How records become ids. `keys` are the fields with the texts; with a `chat_template` they hold conversations.

    `begin` is put before each document (BOS). `end` is put behind each conversation; what ends a text is the writer's.
    """

    keys: tuple[str, ...]
    chat_template: str | None = None
    punkt: Path | None = None
    keep_space: bool = True
    begin: int | None = None
    end: int | None = None

    @property
    def columns(self) -> Columns:
        """Fields of a record that are read."""
        if self.chat_template is None:
            return Columns((self.keys,))
        if self.keys != (DEFAULT_KEY,):
            return Columns((self.keys,), ("tools",))
        messages, sharegpt, *prompt_and_completion = CONVERSATION_FIELDS
        return Columns(((messages,), (sharegpt,), tuple(prompt_and_completion)), ("tools", "system"))


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
    broken: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class EncodedChunk:
    """The documents of each key. `changed` are (record, message) whose words the chat template did not keep,
    `untrained` the records of conversations without a trained token, which are left out.
    """

    path: Path
    after: ReadCursor
    records: int
    documents: dict[str, EncodedDocuments]
    broken: list[tuple[int, str]]
    changed: list[tuple[int, int]]
    untrained: list[int]


def parse(chunk: Chunk, encoding: Encoding, hopeless: Mapping[int, str] = _NONE) -> ParsedChunk:
    """Read the records of a chunk; one without a usable value under each key is broken, and left out.

    `hopeless`: the numbers of records that are known to be broken, and why.
    """
    chat = encoding.chat_template is not None
    read_value: Callable[[dict[str, Any], str], Value] = conversation_of if chat else text_of_record
    parsed = ParsedChunk(chunk.path, chunk.after, {key: [] for key in encoding.keys})
    for number, record in records_of(chunk):
        if isinstance(record, BrokenRecord) or number in hopeless:
            parsed.broken.append((number, hopeless.get(number, str(record))))
            continue
        if chat and chunk.rows is not None:
            record = {name: without_nulls(value) for name, value in record.items()}
        try:
            values = [read_value(record, key) for key in encoding.keys]
        except (BrokenRecord, ConversationError) as reason:
            parsed.broken.append((number, str(reason)))
            continue
        for known, value in zip(parsed.values.values(), values, strict=True):
            known.append(value)
        parsed.records.append(number)
    return parsed


def without_nulls(value: Any) -> Any:
    """A value of a table without the fields that are null: a column of messages gives each all the fields of any."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None or key == "content"}
    return value


def text_of_record(record: dict[str, Any], key: str) -> str | list[str]:
    """The text under a key, or the texts of a list, which are the sequences of one document. Raises BrokenRecord."""
    value = _field(record, key)
    if isinstance(value, str):
        return value
    if value is None:
        return ""  # an empty cell of a table is an empty document
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [item for item in value if item] or ""
    if isinstance(value, list):
        raise BrokenRecord(f"holds a list under '{key}' that is none of texts: for conversations give --chat")
    raise BrokenRecord(f"holds a {type(value).__name__} under '{key}'; it must be a text")


def _field(record: dict[str, Any], key: str) -> Any:
    """The value of a key, or of OUTER.INNER where the field OUTER holds an object. Raises BrokenRecord."""
    if key in record:
        return record[key]
    outer, _, inner = key.partition(".")
    within = record.get(outer)
    if inner and isinstance(within, dict) and inner in within:
        return within[inner]
    known = ", ".join(name for name, value in record.items() if isinstance(value, str)) or "none"
    raise BrokenRecord(f"has no text under '{key}'; its text fields are: {known}")


class ChunkEncoder:
    """Turns parsed chunks into ids. Holds the tokenizer: one per worker."""

    def __init__(
        self, encoding: Encoding, tokenizer: Tokenizer, encoder: Encoder, beside: Mapping[str, str] = _NONE
    ) -> None:
        self._encoding, self._tokenizer, self._encoder = encoding, tokenizer, encoder
        self._splitter = _splitter(encoding.punkt, encoding.keep_space) if encoding.punkt else None
        self._turns = None
        if encoding.chat_template is not None:
            controls, markup = self._tokenizer.control_tokens, self._tokenizer.markup_tokens
            self._turns = TurnRenderer(encoding.chat_template, controls, markup, beside)

    def encode(self, parsed: ParsedChunk, at: At = lambda number, size: None, one_by_one: bool = False) -> EncodedChunk:
        """Ids of a whole chunk. `at` is told the number and the size of each record that is encoded by itself:
        conversations, and `one_by_one` texts.
        """
        changed: list[tuple[int, int]] = []
        untrained: list[int] = []
        documents = {}
        for key, values in parsed.values.items():
            if self._turns is not None:
                documents[key] = self._encode_conversations(self._turns, values, parsed, changed, untrained, at)
            elif one_by_one:
                documents[key] = self._encode_one_by_one(values, parsed.records, at)
            else:
                documents[key] = self._encode_texts(values)
        return EncodedChunk(
            parsed.path, parsed.after, len(parsed.records), documents, parsed.broken, changed, untrained
        )

    def _encode_texts(self, texts: Sequence[str | list[str]]) -> EncodedDocuments:
        per_document = None
        sequences: Sequence[Any] = texts
        if self._splitter is not None or any(isinstance(text, list) for text in texts):
            split = [self._sequences_of(text) for text in texts]
            sequences = [sequence for document in split for sequence in document]
            per_document = np.array([len(document) for document in split], np.int64)
        ids, lengths = self._encoder.encode(sequences)
        if self._encoding.begin is not None:
            ids, lengths = _with_begin(ids, lengths, per_document, self._encoding.begin)
        return EncodedDocuments(ids, lengths, per_document)

    def _encode_one_by_one(self, texts: Sequence[str | list[str]], numbers: Sequence[int], at: At) -> EncodedDocuments:
        parts = []
        for text, number in zip(texts, numbers, strict=True):
            at(number, sum(map(len, text)) if isinstance(text, list) else len(text))
            parts.append(self._encode_texts([text]))
        per_document = [
            np.array([len(part.lengths)]) if part.sequences_per_document is None else part.sequences_per_document
            for part in parts
        ]
        ids = np.concatenate([part.ids for part in parts]) if parts else np.zeros(0, np.int64)
        lengths = np.concatenate([part.lengths for part in parts]) if parts else np.zeros(0, np.int64)
        return EncodedDocuments(ids, lengths, np.concatenate(per_document) if parts else None)

    def _sequences_of(self, text: str | list[str]) -> list[str]:
        parts = text if isinstance(text, list) else [text]
        return [s for part in parts for s in self._splitter.split(part)] if self._splitter else parts

    def _encode_conversations(
        self,
        turns: TurnRenderer,
        values: list[ChatConversation],
        parsed: ParsedChunk,
        changed: list[tuple[int, int]],
        untrained: list[int],
        at: At,
    ) -> EncodedDocuments:
        ids, masks = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)]
        lengths = []
        for conversation, number in zip(values, parsed.records, strict=True):
            if not conversation.messages:  # dropped and counted, as an empty text is
                lengths.append(0)
                continue
            at(number, conversation.size)
            try:
                rendered = turns.render(conversation)
            except ConversationError as error:
                parsed.broken.append((number, str(error)))
                continue
            document, mask = encode_rendered(rendered, self._tokenizer)
            if not mask.any():
                untrained.append(number)
                continue
            closing = [] if self._encoding.end is None else [self._encoding.end]
            # A turn that its template leaves open ends here, and the model has to learn that it does.
            ids += [document, np.array(closing, np.int64)]
            masks += [mask, np.array([rendered.open_ended for _ in closing], np.uint8)]
            lengths.append(len(document) + len(closing))
            changed += [(number, turn) for turn in rendered.changed_turns]
        return EncodedDocuments(np.concatenate(ids), np.array(lengths, np.int64), loss_mask=np.concatenate(masks))


def _with_begin(
    ids: npt.NDArray[np.integer],
    lengths: npt.NDArray[np.int64],
    per_document: npt.NDArray[np.int64] | None,
    begin: int,
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
    """The same with an id before each document that has any: it belongs to the document's first sequence."""
    firsts = np.arange(len(lengths)) if per_document is None else np.cumsum(per_document) - per_document
    firsts = firsts[(np.ones(len(firsts), np.int64) if per_document is None else per_document) > 0]
    firsts = firsts[lengths[firsts] > 0]
    starts = (np.cumsum(lengths) - lengths)[firsts]
    longer = lengths.copy()
    longer[firsts] += 1
    return np.insert(ids, starts, begin), longer


def _splitter(punkt: Path, keep_space: bool) -> "SentenceSplitter":
    from data_prep.tokenize.sentences import SentenceSplitter  # nltk takes as long to import as everything else here

    return SentenceSplitter(punkt, keep_space)


def texts_of(chunks: Iterator[Chunk], encoding: Encoding) -> Iterator[str]:
    """The texts of all keys, in order: what Punkt learns from."""
    for chunk in chunks:
        for texts in zip(*parse(chunk, encoding).values.values(), strict=True):
            for text in texts:
                yield from text if isinstance(text, list) else [text]

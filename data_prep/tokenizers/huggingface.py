"""A Hugging Face tokenizer.json, run by the tokenizers library."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import tokenizers

from data_prep.io.errors import InputError
from data_prep.io.files import read_json
from data_prep.tokenizers.byte_level import BYTE_OF, is_byte_level, lost_bytes
from data_prep.tokenizers.encoder import has_unassigned
from data_prep.tokenizers.files import adds_bos_beside, special_tokens_beside

_END_OF_DOCUMENT = "<|endoftext|>"


class HuggingFaceTokenizer:
    """See Tokenizer. Added tokens that are declared special are control tokens; the others are markup."""

    def __init__(self, path: Path) -> None:
        self._definition = read_json(path)
        if not isinstance(self._definition, dict):
            raise InputError(f"{path} is not a Hugging Face tokenizer.json: it holds no JSON object")
        model = self._definition.get("model")
        if isinstance(model, dict) and model.get("dropout"):
            raise InputError(f"{path} drops merges by chance (dropout {model['dropout']}): remove it")
        first = _first_special_token(self._definition.get("post_processor"))
        # Templates that add a BOS, or trim offsets: documents are encoded as they are.
        self._definition["post_processor"] = None
        added = self._definition.get("added_tokens") or []
        control = [token["content"] for token in added if token.get("special")]
        markup = [token["content"] for token in added if not token.get("special")]
        # "<|im_end|>" or "<tool_call>" inside a document is text. The library can treat special tokens so, and what
        # Hugging Face adds as not special is a control token to the model all the same.
        for token in added:
            token["special"] = True
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(orjson.dumps(self._definition).decode())
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{path} is not a Hugging Face tokenizer.json: {error}") from None
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.control_tokens = {text: ids[text] for text in control}
        self.markup_tokens = {text: ids[text] for text in markup}
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size = max(ids.values()) + 1
        self.lost_bytes = lost_bytes(self._definition)
        # Instruct variants declare the end of a turn as eos_token; documents still end with <|endoftext|>.
        self.eod = self._tokenizer.token_to_id(_END_OF_DOCUMENT)
        declared = special_tokens_beside(path)
        if self.eod is None and "eos_token" in declared:
            self.eod = self._tokenizer.token_to_id(declared["eos_token"])
        begins = first or declared.get("bos_token")
        self.bos = None if begins is None else self._tokenizer.token_to_id(begins)
        says = adds_bos_beside(path)
        self.adds_bos = self.bos is not None and (first is not None if says is None else says)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [item.ids for item in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_offsets(self, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        starts = [start for start, _ in encoding.offsets]
        return np.array(encoding.ids, np.int64), np.array(starts, np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def normalize(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        if normalizer is None or (isinstance(normalizer, tokenizers.normalizers.NFC) and surely_nfc(text)):
            return text
        normal: str = normalizer.normalize_str(text)
        return normal

    def token_bytes(self, ids: Sequence[int]) -> list[bytes] | None:
        if not is_byte_level(self._definition):
            return None
        pieces = map(self._tokenizer.id_to_token, ids)
        return [bytes(BYTE_OF[character] for character in piece or "") for piece in pieces]

    def gigatoken(self) -> Any:
        from gigatoken import Tokenizer

        # It recognises added tokens in every text; without them none is left to recognise.
        return Tokenizer.from_json(orjson.dumps({**self._definition, "added_tokens": []}))


def _first_special_token(processor: Any) -> str | None:
    """The token that a post-processor puts before a single text, if any: BOS in Llama 3's, [CLS] in BERT's."""
    if not isinstance(processor, dict):
        return None
    for each in processor.get("processors") or ():  # a Sequence of several
        if found := _first_special_token(each):
            return found
    single = processor.get("single")
    opening = single[0] if isinstance(single, list) and single and isinstance(single[0], dict) else {}
    token = opening.get("SpecialToken")
    name = token.get("id") if isinstance(token, dict) else None
    return name if isinstance(name, str) else None


def surely_nfc(text: str) -> bool:
    """Whether a text is in NFC by any version of Unicode: the library's may be newer than this Python's."""
    return unicodedata.is_normalized("NFC", text) and not has_unassigned(text)

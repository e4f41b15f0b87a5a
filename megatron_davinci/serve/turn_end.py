"""Where an answer ends: at the token that ends a turn of the assistant in the chat template.

A base model that was trained on conversations has the settings of its pre-training, whose end is another token: served
by them alone, its answers run on into the next turn.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from data_prep import InputError
from data_prep.io.files import read_json
from data_prep.io.limited_process import LimitedProcess, Mark, ProcessEnded
from data_prep.tokenize.chat_template_file import chat_template_of
from data_prep.tokenize.conversation import ChatConversation, ConversationError
from data_prep.tokenize.masks import encode_rendered
from data_prep.tokenize.turns import TurnRenderer
from data_prep.tokenizers import load_tokenizer, special_tokens_beside

GENERATION_CONFIG = "generation_config.json"
_LOADING_SECONDS = 60.0
_TURNS = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]


def write_turn_end(directory: Path, scratch: Path) -> bool:
    """Write scratch/generation_config.json, by which answers also end at the end of a turn; False where the model's own
    settings do so, or its template does not tell.
    """
    known = _read(directory / GENERATION_CONFIG)
    ends = _ids(known.get("eos_token_id")) or _ids(_read(directory / "config.json").get("eos_token_id"))
    end = turn_end(directory)
    if end is None or end in ends:
        return False
    (scratch / GENERATION_CONFIG).write_bytes(orjson.dumps({**known, "eos_token_id": [*ends, end]}))
    return True


def turn_end(directory: Path) -> int | None:
    """The id of the token that ends a turn of the assistant, None where the chat template shows none."""
    try:
        process = LimitedProcess(_start, (directory, chat_template_of(directory)), _LOADING_SECONDS)
        process.close()
        found: int | None = process.ready
        return found
    except (InputError, ProcessEnded):  # what is wrong with a template, the server says
        return None


def _start(directory: Path, source: str) -> tuple[int | None, Callable[[Any, Mark], None]]:
    tokenizer, _ = load_tokenizer(directory)
    control = tokenizer.control_tokens
    turns = TurnRenderer(source, control, tokenizer.markup_tokens, special_tokens_beside(directory))
    try:
        ids, mask = encode_rendered(turns.render(ChatConversation(_TURNS)), tokenizer)
    except ConversationError:
        return None, lambda item, mark: None
    trained = ids[mask == 1].tolist()
    return (trained[-1] if trained and trained[-1] in control.values() else None), lambda item, mark: None


def _read(path: Path) -> dict[str, Any]:
    held = read_json(path) if path.is_file() else {}
    return held if isinstance(held, dict) else {}


def _ids(given: Any) -> list[int]:
    return [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, int)]

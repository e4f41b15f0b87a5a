"""The chat template of a tokenizer, where Hugging Face keeps it."""

from pathlib import Path

from data_prep.io.errors import InputError
from data_prep.io.files import read_json, read_text
from data_prep.tokenizers import tokenizer_file


def chat_template_of(tokenizer: Path, given: Path | None = None) -> str:
    """The template given, or the tokenizer's own. Raises InputError where there is none."""
    if given is not None:
        return read_text(given)
    folder = tokenizer_file(tokenizer).parent
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    config = folder / "tokenizer_config.json"
    declared = read_json(config) if config.is_file() else {}
    template = declared.get("chat_template") if isinstance(declared, dict) else None
    if isinstance(template, list):  # several by name, as older tokenizers have them
        template = next(
            (e.get("template") for e in template if isinstance(e, dict) and e.get("name") == "default"), None
        )
    if not isinstance(template, str):
        raise InputError(f"{folder} holds no chat template: give one with --chat-template FILE")
    return template

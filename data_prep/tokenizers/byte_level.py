"""Byte-level BPE in a tokenizer.json: the characters that stand for bytes, and whether text survives as bytes."""

from typing import Any

# Visible characters of Latin-1 stand for themselves, the other bytes for the characters from U+0100 on (GPT-2's map).
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(0x100) if byte not in _VISIBLE]
BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {chr(0x100 + rank): byte for rank, byte in enumerate(_HIDDEN)}


def lost_bytes(definition: dict[str, Any]) -> frozenset[int]:
    """Bytes that have no token of their own, where tokens are bytes: some models never saw certain characters."""
    if not is_byte_level(definition):
        return frozenset()
    vocab = definition["model"]["vocab"]
    return frozenset(byte for character, byte in BYTE_OF.items() if character not in vocab)


def is_byte_level(definition: dict[str, Any]) -> bool:
    """Whether the tokens of every text, end to end, are its bytes after Unicode normalization, but for lost_bytes."""
    model = definition["model"]
    whole = model.get("type") == "BPE" and not any(
        model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    )
    steps = _steps(definition.get("pre_tokenizer"), "pretokenizers")
    return (
        whole
        and all(
            step["type"] in ("NFC", "NFD", "NFKC", "NFKD")
            for step in _steps(definition.get("normalizer"), "normalizers")
        )
        and any(step["type"] == "ByteLevel" for step in steps)
        and all(_keeps_all(step) for step in steps)
    )


def _steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer without its nesting."""
    if part is None:
        return []
    return [step for child in part[inner] for step in _steps(child, inner)] if part["type"] == "Sequence" else [part]


def _keeps_all(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return not step.get("add_prefix_space")
    if step["type"] in ("Split", "Punctuation"):
        return step.get("behavior") != "Removed"
    return step["type"] == "Digits"

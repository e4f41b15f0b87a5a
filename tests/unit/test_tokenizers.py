"""Properties of tokenizers: the published ids, and control tokens in text stay text."""

from pathlib import Path

import pytest

from data_prep import InputError
from data_prep.tokenizers import load_tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="module")
def tokenizers(shared_data: Path, qwen_json: Path) -> dict[str, Path]:
    """Qwen's vocabulary in both forms."""
    return {"huggingface": qwen_json, "tiktoken": shared_data / "tokenizers" / "qwen.tiktoken"}


@pytest.mark.parametrize("kind", ["huggingface", "tiktoken"])
def test_ids_equal_the_published_vectors(shared_data: Path, tokenizers: dict[str, Path], kind: str) -> None:
    tokenizer, description = load_tokenizer(tokenizers[kind])
    texts = (shared_data / "tokenizers" / "ggml-vocab-qwen2.gguf.inp").read_bytes().decode().split(SEPARATOR)[:-1]
    lines = (shared_data / "tokenizers" / "ggml-vocab-qwen2.gguf.out").read_text().splitlines()
    expected = [[int(token) for token in line.split()] for line in lines]
    assert len(texts) == len(expected) > 40
    assert tokenizer.encode(texts) == expected
    assert [tokenizer.decode(ids) for ids in expected] == texts
    assert description["vocab_size"] == 151_646 and description["eod"] == 151_643


@pytest.mark.parametrize("kind", ["huggingface", "tiktoken"])
def test_control_tokens_in_text_stay_text(tokenizers: dict[str, Path], kind: str) -> None:
    tokenizer, _ = load_tokenizer(tokenizers[kind])
    text = "before<|endoftext|>after <|im_start|>user<|im_end|>"
    [ids] = tokenizer.encode([text])
    assert max(ids) < 151_643
    assert tokenizer.decode(ids) == text


def test_both_forms_normalise_to_nfc(tokenizers: dict[str, Path]) -> None:
    decomposed, composed = "Cafe\u0301", "Caf\u00e9"
    for path in tokenizers.values():
        one, other = load_tokenizer(path)[0].encode([decomposed, composed])
        assert one == other


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("missing.json", None, "does not exist"),
        ("vocab.bin", b"", "no known tokenizer"),
        ("tokenizer.json", b"{}", "not a Hugging Face tokenizer.json"),
        ("qwen.tiktoken", b"IQ== 0\nnonsense\n", "line 2"),
        ("qwen.tiktoken", b"IQ== 0\nIg== 2\n", "not a complete"),
    ],
)
def test_a_wrong_tokenizer_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path / name)

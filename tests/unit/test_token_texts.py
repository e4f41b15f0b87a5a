"""Tests of a tokenizer as RMT sees it: tokens are bytes, control tokens are no text, templates come out as written."""

import json
from pathlib import Path

import pytest
import sentencepiece

from data_prep import InputError
from data_prep.tokenizers import load_tokenizer
from megatron_davinci.demo import toy_language as toy_language
from megatron_davinci.rl.token_bytes import TokenBytes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("doors") / "model"
    toy_language.write_model(directory)
    return directory


def with_markup(model: Path, directory: Path) -> Path:
    """The same tokenizer with <think> and </think> as tokens, as Qwen3 has them."""
    definition = json.loads((model / "tokenizer.json").read_text())
    for number, text in enumerate(["<think>", "</think>"]):
        token = {"id": 900 + number, "content": text, "special": False, "normalized": False}
        definition["added_tokens"].append({**token, "single_word": False, "lstrip": False, "rstrip": False})
    directory.mkdir()
    (directory / "tokenizer.json").write_text(json.dumps(definition))
    return directory


def test_tokens_spell_texts(model: Path) -> None:
    texts = TokenBytes(model)
    ids = texts.encode(" red opens {x} é")
    assert b"".join(texts.of(ids)) == " red opens {x} é".encode()
    assert texts.of([0, 10**6]) == [b"", b""]  # the end of a document; what pads the vocabulary
    assert not texts.answerable[0] and texts.answerable[ids[0]]
    assert {text for text, known in zip(texts.texts, texts.answerable, strict=True) if known and b"}" in text} == set()
    assert texts.first_token(b" red opens") == b" red" and texts.first_token(b"\xc3") == b"" == texts.first_token(b"")


def test_a_tag_that_is_a_token_is_written_as_one(model: Path, tmp_path: Path) -> None:
    texts = TokenBytes(with_markup(model, tmp_path / "m"))
    think, close = texts.encode("<think>"), texts.encode("</think>")
    assert len(think) == len(close) == 1 and texts.encode("a<think>\n")[-2:] == [*think, *texts.encode("\n")]
    assert texts.of(close) == [b"</think>"] and len(TokenBytes(model).encode("<think>")) > 1


def test_real_tokens_of_qwen(qwen_json: Path) -> None:
    texts = TokenBytes(qwen_json.parent)
    text = "Let $x^{2}$ be 東京, don't 🙂\n"
    assert b"".join(texts.of(texts.encode(text))) == text.encode()
    unboxable = [texts.texts[number] for number in (~texts.boxable).nonzero()[0]]
    assert 100 < len(unboxable) < 5000 and all(b"{" in text or b"}" in text for text in unboxable)


def test_a_tokenizer_that_loses_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("red opens one door\n" * 50)
    prefix = str(tmp_path / "tokenizer")
    sentencepiece.SentencePieceTrainer.train(input=str(tmp_path / "text"), model_prefix=prefix, vocab_size=13)
    with pytest.raises(InputError, match="does not spell texts byte by byte"):
        TokenBytes(tmp_path)


def test_a_template_that_a_tokenizer_changes_is_refused(tmp_path: Path, model: Path) -> None:
    definition = json.loads((model / "tokenizer.json").read_text())
    definition["normalizer"] = {"type": "NFKC"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    texts = TokenBytes(tmp_path)
    with pytest.raises(InputError, match="cannot express the template: of '½ the budget' it makes '1⁄2 the budget'"):
        texts.encode("½ the budget")


def test_bytes_without_a_token_hinder_nobody(tmp_path: Path, model: Path) -> None:
    """SmolLM2 has none for some control characters; all that its tokens do stand for can be asked for."""
    definition = json.loads((model / "tokenizer.json").read_text())
    lost = chr(0x104)  # how byte-level BPE writes byte 4
    definition["model"]["vocab"].pop(lost)
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    tokenizer, _ = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.lost_bytes == {4} and tokenizer.decode(tokenizer.encode(["red\x04 opens"])[0]) == "red opens"
    texts = TokenBytes(tmp_path)
    assert b"".join(texts.of(texts.encode(" red opens"))) == b" red opens"

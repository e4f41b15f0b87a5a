"""Tests of the prompts: ids are put together, never text; the budget is in the instruction; the thought is opened."""

from pathlib import Path

import pytest

from data_prep import InputError
from data_prep.tokenizers import load_tokenizer
from megatron_davinci.rl.answers import read_response
from megatron_davinci.rl.templates import PromptTemplate, load_template


def encode(text: str) -> list[int]:
    return list(text.encode())


@pytest.mark.parametrize("name", ["suffix_1", "wrap_1"])
def test_a_template_opens_the_thought_and_names_the_budget(name: str) -> None:
    prompt = load_template(name, encode)
    instruction = bytes(prompt.instruction_ids(357)).decode()
    assert instruction.endswith("<think>\n") and "357 tokens" in instruction and "\\boxed{token}" in instruction
    assert bool(prompt.preamble_ids()) == (name == "wrap_1")
    assert "{" not in bytes(prompt.preamble_ids()).decode()


def test_a_prompt_with_a_real_tokenizer_reads_as_it_should(qwen_json: Path) -> None:
    tokenizer, _ = load_tokenizer(qwen_json)
    prompt = load_template("suffix_1", lambda text: tokenizer.encode([text])[0])
    [document] = tokenizer.encode(["The probability is the"])
    ids = [*prompt.preamble_ids(), *document, *prompt.instruction_ids(12)]
    assert ids[: len(document)] == document  # ids put together: no token joins over the seam
    assert tokenizer.decode(ids).startswith("The probability is the\n\n---\n")
    answer = [bytes([byte]) for byte in b"so</think>\\boxed{ p}"]
    assert read_response(answer).answer == b" p"


def test_templates_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match=r"template 'x' is unknown; known: .*suffix_1, "):
        load_template("x", encode)
    with pytest.raises(InputError, match="names the budget before the text"):
        PromptTemplate("mine", "in {budget} tokens: ", "<think>\n", encode).preamble_ids()


@pytest.mark.parametrize("name", ["suffix_1", "wrap_1"])
def test_bos_begins_a_prompt_where_the_template_does(name: str) -> None:
    template = load_template(name, lambda text: list(text.encode()), begin=[7])
    plain = load_template(name, lambda text: list(text.encode()))
    assert template.preamble_ids() == ([7, *plain.preamble_ids()] if plain.preamble_ids() else [])

"""Tests of the prompts: ids are put together, never text; the budget is in the instruction; the thought is opened."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep import InputError
from data_prep.tokenizers import load_tokenizer
from megatron_davinci.config import load_recipe
from megatron_davinci.rl.answers import read_response
from megatron_davinci.rl.templates import PromptTemplate, load_template


def encode(text: str) -> list[int]:
    return list(text.encode())


@pytest.mark.parametrize("name", ["suffix_1", "wrap_1", "suffix_exact_1", "wrap_exact_1"])
def test_a_template_opens_the_thought_and_names_the_budget(name: str) -> None:
    prompt = load_template(name, encode)
    instruction = bytes(prompt.instruction_ids(357)).decode()
    assert instruction.endswith("<think>\n") and "357 tokens" in instruction and "\\boxed{token}" in instruction
    assert ("exactly 357 tokens" in instruction) == ("exact" in name)
    assert bool(prompt.preamble_ids()) == name.startswith("wrap")
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


def test_a_template_can_be_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Read: {text}\nNow \\boxed{{}} after {budget}.\n<think>\n")
    prompt = load_template(str(path), encode)
    assert bytes(prompt.preamble_ids()) == b"Read: "
    assert bytes(prompt.instruction_ids(5)) == b"\nNow \\boxed{} after 5.\n<think>\n"


@pytest.mark.parametrize(
    "text, message",
    [
        ("no place\n<think>\n", "lacks {text}: put it where the text goes"),
        ("{text}", "does not end with <think> and a newline, which open the thought: add them"),
        ("{text} {text}\n<think>\n", "has {text} twice: leave one out"),
        ("{text}\r\n<think>\r\n", "has line ends of Windows"),
        ("{text} {budget.__class__}\n<think>\n", "has {budget.__class__}, and nothing but"),
        ("{text} {budget:>9999999}\n<think>\n", "has {budget}, and nothing but"),
        ("{text} \\boxed{\n<think>\n", "write braces that stay as {{ and }}"),
        ("{0}{text}\n<think>\n", "has {0}, and nothing but"),
    ],
)
def test_a_file_that_is_no_template_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        load_template(str(path), encode)


def test_a_file_is_looked_for_beside_the_recipe_and_its_text_is_the_runs(
    recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"other\.txt is no file: write it, or name a template of this package"):
        load_template("other.txt", encode)
    (tmp_path / "mine.txt").write_text("{text}\n{budget}\n<think>\n")
    recipe_values["objective"] = {"kind": "rmt", "template": "mine.txt"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_values))
    recipe = load_recipe(tmp_path / "recipe.yaml", [])
    assert recipe.stage(0).objective.template == str(tmp_path / "mine.txt")  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["suffix_1", "wrap_1"])
def test_bos_begins_a_prompt_where_the_template_does(name: str) -> None:
    template = load_template(name, lambda text: list(text.encode()), begin=[7])
    plain = load_template(name, lambda text: list(text.encode()))
    assert template.preamble_ids() == ([7, *plain.preamble_ids()] if plain.preamble_ids() else [])

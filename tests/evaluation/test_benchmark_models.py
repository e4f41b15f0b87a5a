"""Who answers: a model in this process equals a loop of ten lines, whatever is in its batch."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from data_prep import InputError
from data_prep.io.files import read_json, write_json
from megatron_davinci.evaluate.tasks.task import AnswerText
from megatron_davinci.evaluate.text_models.base import TextRequest, cut_at_stop
from megatron_davinci.evaluate.text_models.in_process import InProcessTexts, _Sampler
from megatron_davinci.evaluate.text_models.open import NamedModel
from megatron_davinci.testing.tiny_model import CHAT_TEMPLATE, write_model_directory

PROMPTS = [
    "def add(a, b):\n    return",
    "class Tree",
    "x = 1\ny = 2\nprint(x",
    "import os",
    "# a much longer comment than the others",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, whose own settings would change the likeliest token."""
    directory = tmp_path_factory.mktemp("texts") / "model"
    write_model_directory(["def add(a, b):\n    return a + b\n" * 50, "class Tree:\n    pass\n"], directory, chat=True)
    declared = read_json(directory / "tokenizer_config.json")
    write_json(directory / "tokenizer_config.json", {**declared, "chat_template": CHAT_TEMPLATE})
    config = read_json(directory / "config.json")
    write_json(directory / "config.json", {**config, "vocab_size": len(AutoTokenizer.from_pretrained(directory))})
    torch.manual_seed(3)
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    with torch.no_grad():
        made.lm_head.weight.mul_(20)
    made.generation_config.repetition_penalty = 5.0
    made.save_pretrained(directory)
    return directory


def request(text: str, **how: Any) -> TextRequest:
    return TextRequest(
        **{"text": text, "chat": False, "max_tokens": 12, "stop": (), "temperature": 0.0, "seed": 0, **how}
    )


def answers(model: Path, requests: Sequence[TextRequest]) -> list[AnswerText]:
    found: dict[int, AnswerText] = {}
    texts = InProcessTexts(model)
    texts.answer(requests, found.__setitem__)
    texts.close()
    return [found[number] for number in range(len(requests))]


@torch.inference_mode()
def by_hand(model: Path, text: str, steps: int) -> str:
    """Greedy search without a cache, a batch or any setting."""
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    ids = tokenizer(text)["input_ids"]
    start = len(ids)
    for _ in range(steps):
        token = int(network(torch.tensor([ids])).logits[0, -1].argmax())
        if token == network.config.eos_token_id:
            break
        ids.append(token)
    return str(tokenizer.decode(ids[start:]))


def test_greedy_answers_equal_a_plain_loop(model: Path) -> None:
    found = answers(model, [request(text) for text in PROMPTS])
    assert [each.text for each in found] == [by_hand(model, text, 12) for text in PROMPTS]
    assert {each.finish for each in found} == {"length"} and len({each.text for each in found}) > 2
    assert {each.completion_tokens for each in found} == {12}


def test_an_answer_ends_before_the_first_stop_string(model: Path) -> None:
    [whole] = answers(model, [request(PROMPTS[0])])
    stop = whole.text[5:8]
    cut = whole.text[: whole.text.index(stop)]
    found = answers(model, [request(PROMPTS[0], stop=(stop, "never")), request(PROMPTS[1])])
    assert found[0].text == cut and found[0].finish == "stop" and found[1].finish == "length"
    assert found[0].completion_tokens <= 12
    assert cut_at_stop("abcd", "length", ("d", "b")) == ("a", "stop")


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(model: Path) -> None:
    alone = [answers(model, [request(text, temperature=1.0, seed=seed)])[0].text for seed, text in enumerate(PROMPTS)]
    together = answers(model, [request(text, temperature=1.0, seed=seed) for seed, text in enumerate(PROMPTS)])
    assert [each.text for each in together] == alone
    others = answers(model, [request(text, temperature=1.0, seed=seed + 99) for seed, text in enumerate(PROMPTS)])
    assert [each.text for each in others] != alone


def test_samples_have_the_softmaxs_distribution() -> None:
    """Chi-squared over 4,000 samples of one token, with a seed each."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    wanted = torch.softmax(logits.double() / 1.5, 0) * 4000
    sampler = _Sampler([request("", temperature=1.5, seed=seed) for seed in range(4000)])
    chosen = sampler(None, logits.repeat(4000, 1)).argmax(-1)
    observed = torch.bincount(chosen, minlength=5).double()
    assert float(((observed - wanted) ** 2 / wanted).sum()) < 18.5  # 4 degrees of freedom: 1 in 1,000


def test_a_chat_is_asked_by_the_template(model: Path) -> None:
    text = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    [found] = answers(model, [request("Hello", chat=True)])
    assert found.text.strip() == by_hand(model, text, 12).strip()


def test_a_prompt_without_room_is_not_asked(model: Path) -> None:
    found = answers(model, [request("x " * 600, max_tokens=20), request(PROMPTS[0])])
    assert (found[0].finish, found[0].text) == ("no_room", "") and found[0].prompt_tokens > 492
    assert found[1].text


def test_what_is_no_model_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model that transformers reads"):
        InProcessTexts(tmp_path)
    with pytest.raises(InputError, match="is no directory"):
        NamedModel("m", str(tmp_path / "none")).fingerprint()


def test_a_model_without_some_of_its_weights_is_refused(model: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(model, tmp_path / "model"))
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights that its config\.json names"):
        InProcessTexts(copied)


def test_a_template_that_refuses_is_one_sentence(model: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(model, tmp_path / "model"))
    declared = read_json(copied / "tokenizer_config.json")
    write_json(copied / "tokenizer_config.json", {**declared, "chat_template": "{{ raise_exception('no users') }}"})
    (copied / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(InputError, match="refuses a message of a user"):
        answers(copied, [request("Hello", chat=True)])


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "pytorch_model.bin", "chat_template.jinja"])
def test_what_decides_an_answer_is_in_the_fingerprint(model: Path, tmp_path: Path, name: str) -> None:
    copied = Path(shutil.copytree(model, tmp_path / "model"))
    before = NamedModel("a", str(copied)).fingerprint()
    with (copied / name).open("ab") as file:
        file.write(b" ")
    assert NamedModel("a", str(copied)).fingerprint() != before


def test_other_weights_have_another_fingerprint(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    network = AutoModelForCausalLM.from_pretrained(model)
    network.save_pretrained(other)
    same = NamedModel("a", str(other)).fingerprint()
    with torch.no_grad():
        network.lm_head.weight[0, 0] += 1
    network.save_pretrained(other)
    assert NamedModel("a", str(other)).fingerprint() != same


def test_vllm_is_told_the_precision_of_the_weights(tmp_path: Path) -> None:
    """vLLM's own auto makes fp32 weights half as precise, which changes what is likeliest."""
    from megatron_davinci.serve.chat_server import _dtype

    for stored in ({"dtype": "float32"}, {"torch_dtype": "bfloat16"}):
        write_json(tmp_path / "config.json", stored)
        [name] = stored.values()
        assert _dtype("auto", tmp_path) == name and _dtype("float16", tmp_path) == "float16"
    write_json(tmp_path / "config.json", {})
    assert _dtype("auto", tmp_path) == "auto"

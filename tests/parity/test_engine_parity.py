"""Property: the engine says what transformers says, and its log-probabilities are those of the training forward."""

from pathlib import Path
from typing import Any

import engine
import numpy as np
import pytest
import table
import torch
from test_convert import write_weights
from transformers import AutoModelForCausalLM

from megatron_davinci.rl.engines.base import Sampling
from megatron_davinci.testing import run_on_ranks

MAX_TOKENS, RESPONSES = 24, 3
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "TP2+SP": (2, {**table.TP2, **table.SP}),
    "PP2": (2, table.PP2),
    "PP2 interleaved": (2, {**table.PP2, "virtual_pipeline_model_parallel_size": 2}),
    "full recomputation": (1, table.RECOMPUTATION["full"]),
}
_draw = np.random.default_rng(0)
IDS = [_draw.integers(1, 256, size).tolist() for size in (40, 7, 23)]
# Several positions in one text, one at its end, one without instruction, and a text that nobody asks about.
ASKED: engine.Asked = [
    (IDS[0], [(5, [9, 8, 7]), (30, [1, 2]), (40, [3])]),
    (IDS[1], []),
    (IDS[2], [(23, []), (1, [4, 5, 6, 7])]),
]
STOPS = [11, 60, 77, 130, 201]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("engine")
    source = write_weights(folder / "hf", num_hidden_layers=4)
    return {**table.recipe(folder), "model": str(source), "init_from": str(source)}


def ask(
    recipe: dict[str, Any], layouts: dict[str, Any], sampling: Sampling, responses: int, stop_token_ids: list[int]
) -> Any:
    wanted = {name: (ranks, table.variant(recipe, fields)) for name, (ranks, fields) in layouts.items()}
    found = table.run_all(wanted, engine.answers, ASKED, responses, MAX_TOKENS, sampling, stop_token_ids)
    return {name: (ranks[0][0], ranks[-1][1]) for name, ranks in found.items()}  # the last rank has the last stage


def test_log_probabilities_are_those_of_the_training_forward(recipe: dict[str, Any]) -> None:
    found = ask(recipe, LAYOUTS, Sampling(), RESPONSES, STOPS)
    expected = [response for text in found["alone"][0] for question in text for response in question]
    assert len(expected) == 15 and len({len(response.tokens) for response in expected}) > 5
    assert all(response.finished == (response.tokens[-1] in STOPS) for response in expected)
    assert any(not response.finished and len(response.tokens) == MAX_TOKENS for response in expected)
    for name, (answers, scored) in found.items():
        responses = [response for text in answers for question in text for response in question]
        assert [r.tokens for r in responses] == [r.tokens for r in expected], name
        for response, log_probs in zip(responses, scored, strict=True):
            assert response.log_probs == pytest.approx(log_probs, abs=1e-4), name


@pytest.mark.gpu
def test_in_bf16_the_engine_strays_no_further_than_rounding(recipe: dict[str, Any]) -> None:
    [(answers, scored)] = ask(recipe, {"bf16": (1, {"bf16": True})}, Sampling(), RESPONSES, STOPS).values()
    responses = [response for text in answers for question in text for response in question]
    gaps = [
        abs(one - other)
        for response, known in zip(responses, scored, strict=True)
        for one, other in zip(response.log_probs, known, strict=True)
    ]
    assert len(gaps) > 100 and np.mean(gaps) < 0.02, np.mean(gaps)


def test_greedy_answers_are_transformers(recipe: dict[str, Any]) -> None:
    [(answers, _)] = ask(recipe, {"alone": (1, {})}, Sampling(temperature=0.0), 1, STOPS).values()
    model = AutoModelForCausalLM.from_pretrained(Path(recipe["model"]), dtype=torch.float32)
    compared = 0
    for (ids, questions), of_text in zip(ASKED, answers, strict=True):
        for (position, instruction), [response] in zip(questions, of_text, strict=True):
            prompt = torch.tensor([[*ids[:position], *instruction]])
            written = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=MAX_TOKENS, do_sample=False,
                eos_token_id=STOPS, pad_token_id=0,
            )  # fmt: skip
            assert written[0, prompt.size(1) :].tolist() == list(response.tokens)
            compared += 1
    assert compared == 5


def test_the_same_draws_give_the_same_responses_whoever_else_is_asked(recipe: dict[str, Any]) -> None:
    """More responses to a question, others after it: those before stay."""
    sampling = Sampling(temperature=0.8, top_p=0.9)
    [(once, _)] = run_on_ranks(engine.answers, 1, [recipe], ASKED, RESPONSES, MAX_TOKENS, sampling, STOPS)[0]
    [(again, _)] = run_on_ranks(engine.answers, 1, [recipe], ASKED[:1], RESPONSES, MAX_TOKENS, sampling, STOPS)[0]
    assert [[r.tokens for r in question] for question in once[0]] == [
        [r.tokens for r in question] for question in again[0]
    ]


class EndsAfter:
    """A response ends with its third token of these."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = set(tokens)

    def __call__(self) -> Any:
        seen: list[int] = []

        def ends(token: int) -> bool:
            seen.append(token)
            return token in self.tokens and sum(each in self.tokens for each in seen) == 3

        return ends


def test_a_response_that_ends_by_itself_is_the_beginning_of_the_one_that_does_not(recipe: dict[str, Any]) -> None:
    layouts = {name: LAYOUTS[name] for name in ("alone", "PP2")}
    ends = EndsAfter(list(range(0, 256, 4)))
    [whole] = [answers for answers, _ in ask(recipe, {"alone": (1, {})}, Sampling(), RESPONSES, STOPS).values()]
    for answers, _ in ask(recipe, layouts, Sampling(ends=ends), RESPONSES, STOPS).values():
        ended = 0
        for response, full in zip(flat(answers), flat(whole), strict=True):
            end = ends()
            at = next((n for n, token in enumerate(full.tokens, 1) if end(token)), None)
            assert list(response.tokens) == list(full.tokens[:at])
            ended += at is not None and at < len(full.tokens)
            assert response.finished == (full.finished or at is not None)
        assert ended > 5


def flat(answers: Any) -> list[Any]:
    return [response for text in answers for question in text for response in question]

"""Property: what vLLM does wrongly without a word is seen, on real servers; each fault is planted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import table
import vllm_faults
import vllm_runs
from conftest import of_acceptance

from megatron_davinci.testing import run_on_ranks

pytestmark = [of_acceptance, vllm_runs.needs_vllm]
SEEN_BY_PROBE = "computes with other weights than the trainer"


def recipe_of(folder: Path, **model: Any) -> dict[str, Any]:
    source = vllm_runs.write_model(folder / "hf", **model)
    recipe = {**table.recipe(folder), "model": str(source), "init_from": str(source)}
    recipe["data"] = {**recipe["data"], "seq_length": 256}
    return recipe


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    folder = tmp_path_factory.mktemp("vllm")
    recipe = recipe_of(folder)
    with vllm_runs.server_for(folder, recipe):
        yield recipe, folder


def see(fault: Any, recipe: dict[str, Any], folder: Path) -> Any:
    [seen] = run_on_ranks(fault, 1, recipe, folder)
    return seen


def test_weights_that_do_not_arrive_whole_are_refused_and_the_next_update_is_right(served: Any) -> None:
    seen = see(vllm_faults.tensors_that_do_not_arrive, *served)
    assert "1 of 51 tensors have not come, such as model.layers.1.self_attn.v_proj.weight" in seen["missing"]
    assert "have not come, such as model.layers.1.mlp.down_proj.weight" in seen["a layer missing"]
    assert "tensors have not come" in seen["half"]
    assert "model.embed_tokens.weight is sent twice" in seen["twice"]
    assert "unknown or come twice: ['model.layers.9.x']" in seen["unknown"]
    assert "has come as" in seen["altered"]
    assert seen["then"] == "True"


def test_what_no_fingerprint_tells_the_probe_does(served: Any) -> None:
    seen = see(vllm_faults.nobody_counts, *served)
    assert SEEN_BY_PROBE in seen["probe"] and seen["then"] == "True"


def test_a_stale_cache_answers_nobody(served: Any) -> None:
    seen = see(vllm_faults.stale_cache, *served)
    assert seen["the cache of the old version answers"] == "True", "the fault is there without the guard"
    assert seen["with the new salt"] == "True"
    assert "has not emptied its prefix cache" in seen["reset while a request runs"]


def test_what_vllm_clips_dies_of_or_lets_anybody_do(served: Any) -> None:
    seen = see(vllm_faults.what_servers_are_asked, *served)
    assert seen["too long"].startswith("InputError: a prompt of 200 tokens and a response of 100 exceed seq_length 256")
    assert seen["id beyond the vocabulary"].startswith("InputError: a prompt has token 256")
    assert "a response clipped at 16 of 40 tokens" in seen["clipped"]
    assert seen["without the token"] == "{401}"
    assert "ended" in seen["aborted"] or "no JSON" in seen["aborted"] or "status" in seen["aborted"], seen["aborted"]
    assert "a response by weights ['another-run'], not" in seen["another run's weights"]
    assert seen["then"] == "True"


def test_a_response_ends_with_its_answer(served: Any) -> None:
    seen = see(vllm_faults.ends_with_the_answer, *served)
    assert [tokens for tokens, _ in seen["ended"]] == seen["cut"]
    assert {waste for _, waste in seen["ended"]} <= {0, 1} and seen["wasted"] > 100
    assert seen["greedy"][0] == seen["greedy"][1] and any(finished for _, finished in seen["greedy"][0])


def test_an_old_output_layer_is_seen(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, tied=True)
    assert SEEN_BY_PROBE in see(vllm_faults.a_worker_that_does_not_repack, recipe, tmp_path)["probe"]

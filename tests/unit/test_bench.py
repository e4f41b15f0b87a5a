"""Properties of throughput: rates are sums over sums, tokens are counted apart, FLOPs are those that torch counts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY, write_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen2Config

from data_prep import InputError
from megatron_davinci.bench import calibrate as calibrate_module
from megatron_davinci.bench.grid import combinations
from megatron_davinci.bench.report import compare_trials, summarize_trial, trials_table
from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.flops import dense_peak, training_flops
from megatron_davinci.plan.devices import find_device

MACHINE = {"device": "NVIDIA H100 80GB HBM3", "ranks": 4}


def step(seconds: float, tokens: int, padding: float, labels: int) -> dict[str, float]:
    tflops = 500.0 / seconds
    return {"seconds": seconds, "tokens": tokens, "padding_fraction": padding, "labels": labels,
            "tflops_per_second_per_rank": tflops, "peak_memory_bytes": 3 * 2**30}  # fmt: skip


STEPS = [step(100.0, 1, 0.0, 1), step(1.0, 300, 0.25, 200), step(3.0, 900, 0.1, 100), step(1.0, 400, 0.2, 100)]


def test_figures_are_those_of_the_steps_behind_the_warm_up() -> None:
    found = summarize_trial(STEPS, 1, MACHINE, fp8=False)
    assert found["steps"] == 3 and found["tokens"] == 1600
    assert found["tokens_per_second_per_rank"] == pytest.approx(1600 / 5 / 4)
    assert found["padded_tokens_per_second_per_rank"] == pytest.approx((400 + 1000 + 500) / 5 / 4)
    assert found["loss_tokens_per_second_per_rank"] == pytest.approx(400 / 5 / 4)
    assert found["tflops_per_second_per_rank"] == pytest.approx(1500 / 5)
    assert found["mfu"] == pytest.approx(300 / 989.4) and "H100's dense BF16 peak, 989" in found["mfu_of"]
    assert (found["seconds_median"], found["peak_memory_gib"]) == (1.0, 3.0)
    assert summarize_trial(STEPS, 1, MACHINE, fp8=True)["mfu"] == pytest.approx(300 / 1978.8)
    assert summarize_trial(STEPS, 1, {**MACHINE, "device": "cpu"}, fp8=False)["mfu"] is None
    with pytest.raises(InputError, match="has none behind a warm-up of 4"):
        summarize_trial(STEPS, 4, MACHINE, fp8=False)


def test_tables_say_what_ran_and_why_the_rest_did_not() -> None:
    told = {"overrides": ["a=1"], "ranks": 4, "figures": summarize_trial(STEPS, 1, MACHINE, fp8=False)}
    table = trials_table([told, {"overrides": ["a=3"], "ranks": 4, "fault": "3 does not divide"}])
    assert "| a=1 | 4 | 80 | 95 | 20 | 300.00 | 30.3% |" in table and "| a=3 | 4 | 3 does not divide |" in table
    assert "MFU is of H100's dense BF16 peak" in table
    twice = {**told, "figures": {**told["figures"], "tokens_per_second_per_rank": 160.0}}
    assert "| a=1 | 4 | 2.000 | 1.000 |" in compare_trials([told], [twice])
    with pytest.raises(InputError, match="no trial in common"):
        compare_trials([told], [{**told, "overrides": []}])


def test_a_grid_is_every_combination() -> None:
    assert combinations([]) == [[]]
    assert combinations(["a=1,2", "b=x"]) == [["a=1", "b=x"], ["a=2", "b=x"]]
    with pytest.raises(InputError, match="give key=value,value"):
        combinations(["a"])


@pytest.mark.parametrize(
    "name, teraflops",
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA GB200", 2500),
    ],
)
def test_peaks_are_those_of_the_part(name: str, teraflops: float) -> None:
    assert dense_peak(name, fp8=False)[0] == teraflops * 1e12 and dense_peak(name, fp8=True)[0] == 2e12 * teraflops


def test_peaks_of_unknown_devices_are_not_guessed() -> None:
    assert dense_peak("cpu", fp8=False) == (None, None) == dense_peak("NVIDIA A100-SXM4-80GB", fp8=True)


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4}, {"hidden_size": 128, "intermediate_size": 96}])
def test_flops_are_those_that_torch_counts(tmp_path: Path, changes: dict[str, Any]) -> None:
    """transformers' eager attention multiplies whole squares, of which ours counts the causal half."""
    length = 24
    model = AutoModelForCausalLM.from_config(Qwen2Config(**{**TINY, **changes}), attn_implementation="eager")
    ids = torch.zeros(1, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counted:
        model(ids).logits.sum().backward()
    config = load_model_config(str(write_model(tmp_path / "model", **changes)))
    assert counted.get_total_flops() == training_flops(config, length, 2 * length**2, length)


@pytest.fixture
def trials(recipe_values: dict[str, Any], tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A recipe, and what layouts of it take on a machine whose constants are known."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values))
    known = replace(calibrate_module._CPU, flops=2e11, layer_seconds=3e-3, step_seconds=0.2, gpus_per_node=4, units=4)
    found = []
    for ranks, overrides in ((1, []), (2, ["megatron.tensor_model_parallel_size=2"]),
                             (2, ["megatron.pipeline_model_parallel_size=2"]), (1, ["batch.global_batch_size=6"]),
                             (2, ["batch.global_batch_size=3"])):  # fmt: skip
        trial = {
            "overrides": overrides,
            "ranks": ranks,
            "figures": {"seconds_median": 0.0},
            "machine": {"device": "cpu"},
        }
        seconds = calibrate_module.MeasuredTrial.read(recipe, trial).predict(known)
        found.append({**trial, "figures": {"seconds_median": seconds}})
    return recipe, found


def test_calibration_explains_trials_and_makes_a_device(trials: Any, tmp_path: Path) -> None:
    recipe, known = trials
    device, errors = calibrate_module.calibrate(recipe, known, "here")
    assert all(abs(error - 1) < 0.05 for error in errors)
    calibrate_module.write_device(device, tmp_path / "here.yaml")
    assert find_device(str(tmp_path / "here.yaml")) == device and not device.is_gpu
    slower = [{**trial, "figures": {"seconds_median": 3 * trial["figures"]["seconds_median"]}} for trial in known]
    other, errors = calibrate_module.calibrate(recipe, slower, "here")
    assert other.step_seconds > 2 * device.step_seconds and all(abs(error - 1) < 0.1 for error in errors)


def test_nothing_to_calibrate_with_is_refused(trials: Any) -> None:
    recipe, known = trials
    with pytest.raises(InputError, match="no trial ended with figures"):
        calibrate_module.calibrate(recipe, [{**known[0], "figures": None}], "here")
    with pytest.raises(InputError, match="Tesla T4 is no device that a plan knows"):
        calibrate_module.calibrate(recipe, [{**known[0], "machine": {"device": "Tesla T4"}}], "here")

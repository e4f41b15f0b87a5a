"""Tests of a recipe: what is wrong is named in one sentence with its remedy; what is right comes back as it was."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import write_model

from data_prep import InputError
from megatron_davinci.config import dump_recipe, load_recipe, parse_recipe
from megatron_davinci.models.alignment import alignment
from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.parallel_layout import ParallelLayout
from megatron_davinci.train.schedule import LearningRates, learning_rate


@pytest.fixture
def recipe_file(recipe_values: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    return path


@pytest.mark.parametrize(
    "override, message",
    [
        ("schedul.lr=1", "unknown recipe key 'schedul'; did you mean schedule?"),
        ("data.stages.0.epoch=3", "unknown recipe key 'data.stages.0.epoch'; did you mean epochs?"),
        ("data.stages.0.blend.0.corpu=x", "unknown recipe key 'data.stages.0.blend.0.corpu'; did you mean corpus?"),
        ("megatron.tensor_parallel_size=2", "is no field .* did you mean megatron.tensor_model_parallel_size?"),
        ("megatron.tensor_model_parallel_size=two", "is 'two'; Megatron-Core wants a value of type int"),
        (
            "megatron.tensor_model_parallel_size=3",
            "num_attention_heads is 4, which tensor_model_parallel_size = 3 does not divide: 1, 2, 4 do",
        ),
        ("megatron.pipeline_model_parallel_size=3", "num_layers is 4, .* 1, 2, 4 do"),
        (
            "megatron.context_parallel_size=3",
            r"seq_length is 64, which the alignment of rows \(2 x context_parallel_size\) = 6 .* is 66",
        ),
        ("megatron.virtual_pipeline_model_parallel_size=2", "interleaving needs at least 2 of each"),
        ("megatron.virtual_pipeline_model_parallel_size=two", "wants a value of type Optional.int."),
        ("megatron.fp16=true", "megatron.fp16 is not used in training yet"),
        ("data.stages.0.megatron.context_parallel_size=5", r"2 x context_parallel_size\) = 10"),
        ("data.stages.0.megatron.hidden=5", "megatron.hidden is no field"),
        ("data.stages.0.seq_length=0", "data.stages.0.seq_length is 0"),
        ("evaluation.eval_interval=5", "the recipe lacks 'evaluation.held_out_documents'"),
        ("schedule.lr_warmup_fraction=1.0", "schedule.lr_warmup_fraction is 1.0"),
        ("megatron.window_size=[1, 0]", "megatron.window_size is not used in training yet"),
        ("megatron.optimizer=sgd", "megatron.optimizer is 'sgd'; it must be adam"),
        ("megatron.adam_beta1=1.5", "megatron.adam_beta1 is 1.5; it must be at least 0.0 and below 1.0"),
        ("megatron.clip_grad=-1.0", "megatron.clip_grad is -1.0; it must be at least 0.0"),
        ("megatron.overlap_param_gather=true", "nothing to gather without use_distributed_optimizer"),
        ("schedule.lr=.inf", "schedule.lr is inf"),
        ("checkpoint.dir=", "checkpoint.dir is None"),
        ("seed=-1", "seed is -1"),
        ("data.stages.5.epochs=2", "has no section number 5; it has 1, from 0 on"),
        ("data.stages.x.epochs=2", "has no section number x; it has 1"),
        ("schedule.lr=[", "is not YAML"),
        ("init_from=qwen2.5-7b", "init_from qwen2.5-7b has no config.json"),
        ("megatron.hidden_size=2", "megatron.hidden_size is set by model"),
        ("schedule.lr=fast", "schedule.lr is 'fast'"),
        ("batch.unit=documents", "batch.unit is 'documents'"),
        (
            "model=qwen",
            "model 'qwen' is neither a directory with a config.json, nor OWNER/NAME .* nor a preset .*qwen2.5-72b",
        ),
        ("data.stages.0.plan=p", "stage only has a plan, but batches of samples"),
        ("schedule.lr", "override 'schedule.lr' is not key=value"),
        ("objective={kind: rmt, rollouts: {engin: x}}", "key 'objective.rollouts.engin'; did you mean engine?"),
        ("objective={kind: rmt, rollouts: {top_p: 2}}", "objective.rollouts.top_p is 2"),
        ("objective={kind: rmt, kl_beta: 0.1}", "no weights are named to stay near: set objective.reference"),
        ("objective={kind: rmt, reference: x}", "objective.reference has nothing to do where kl_beta is 0"),
        ("objective={kind: grpo, budget: {}}", "unknown recipe key 'objective.budget'"),
    ],
)
def test_a_mistake_is_named_in_one_sentence(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_recipe(recipe_file, [override])
    assert "\n" not in str(error.value)


FP8 = {"bf16": True, "fp8": "hybrid", "fp8_recipe": "tensorwise"}


@pytest.mark.parametrize(
    "model, megatron, message",
    [
        (
            "qwen2.5-72b",
            {**FP8, "fp8_recipe": "blockwise", "tensor_model_parallel_size": 8},
            "linear_fc1's out_features 59136 over tensor_model_parallel_size 8 is 7392: .* to tensorwise",
        ),
        ("qwen2.5-72b", {**FP8, "fp8_recipe": "blockwise"}, None),  # 29568 = 128 * 231
        ("qwen2.5-32b", {**FP8, "fp8_recipe": "blockwise", "tensor_model_parallel_size": 8}, None),
        ("qwen2.5-72b", {**FP8, "tensor_model_parallel_size": 8, "sequence_parallel": True}, None),
        ("qwen2.5-72b", {**FP8, "bf16": False}, "megatron.fp8 is hybrid without bf16"),
        ("qwen2.5-72b", {"fp8_recipe": "tensorwise"}, "megatron.fp8_recipe means nothing without megatron.fp8"),
        ("qwen2.5-72b", {**FP8, "fp8_recipe": "mxfp8"}, "it must be tensorwise or blockwise or delayed"),
        (
            "qwen2.5-72b",
            {**FP8, "fp8_recipe": "delayed", "first_last_layers_bf16": True},
            "with first_last_layers_bf16 set it to tensorwise",
        ),
        ("qwen2.5-72b", {**FP8, "fp8_dot_product_attention": True}, "attention stays in bf16"),
        ("qwen2.5-72b", {**FP8, "fp8_param": True}, "weights stay in bf16"),
        (
            "qwen2.5-72b",
            {**FP8, "context_parallel_size": 4096},
            r"rows \(2 x context_parallel_size, 16 of fp8_recipe tensorwise\) = 65536 does not divide",
        ),
    ],
)
def test_fp8_takes_what_its_kernels_take(
    recipe_values: dict[str, Any], model: str, megatron: dict[str, Any], message: str | None
) -> None:
    values = {**recipe_values, "model": model, "megatron": megatron}
    values["data"] = {**values["data"], "seq_length": 32768}
    values.pop("init_from", None)
    if message is None:
        parse_recipe(values)
        return
    with pytest.raises(InputError, match=message):
        parse_recipe(values)


def test_trees_are_not_multiplied_in_fp8(recipe_values: dict[str, Any]) -> None:
    values = {**recipe_values, "model": "qwen2.5-7b", "megatron": FP8, "objective": {"kind": "rmt"}}
    values.pop("init_from", None)
    with pytest.raises(InputError, match="objective rmt with fp8"):
        parse_recipe(values)


@pytest.mark.parametrize(
    "layout, document, row",
    [
        ((1, 1, False, None), 1, 1),
        ((8, 1, True, None), 1, 8),
        ((8, 1, False, "blockwise"), 1, 128),
        ((8, 4, True, None), 8, 32),
        ((2, 4, False, "tensorwise"), 8, 64),
        ((8, 4, True, "tensorwise"), 8, 512),
        ((3, 4, True, None), 8, 24),
    ],
)
def test_rows_can_be_sharded_and_no_smaller_ones(layout: Any, document: int, row: int) -> None:
    found = alignment(ParallelLayout(layout[0], context=layout[1], sequence_parallel=layout[2]), layout[3])
    assert (found.document, found.row) == (document, row)
    lengths = np.array([1, document, 7 * document + 1])
    assert found.waste(lengths) == pytest.approx(1 - lengths.sum() / (10 * document))


def test_a_sequence_that_tensor_parallelism_does_not_divide_is_refused(recipe_file: Path) -> None:
    layout = ["megatron.tensor_model_parallel_size=2", "megatron.sequence_parallel=true", "data.seq_length=63"]
    with pytest.raises(InputError, match=r"seq_length is 63, .* the next valid value is 64"):
        load_recipe(recipe_file, layout)


def test_the_resolved_recipe_says_the_same(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["schedule.lr=8e-5", "data.stages.0.epochs=2"])
    assert recipe.schedule.lr == 8e-5  # plain YAML reads 8e-5 as text
    (tmp_path / "resolved.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "resolved.yaml", []) == recipe


@pytest.mark.parametrize(
    "preset, parameters",
    [("qwen2.5-72b", 72_706_203_648), ("qwen2.5-32b", 32_763_876_352), ("qwen3-14b", 14_768_307_200)],
)
def test_presets_have_the_published_number_of_parameters(preset: str, parameters: int) -> None:
    assert load_model_config(preset).num_parameters() == parameters


def test_the_learning_rate_rises_to_its_peak_and_falls_along_a_cosine(recipe_values: dict[str, Any]) -> None:
    values = {**recipe_values, "schedule": {"lr": 1.0, "min_lr": 0.1, "lr_warmup_fraction": 0.05}}
    schedule = parse_recipe(values).schedule
    rates = [learning_rate(schedule, step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(rates) == 1.0 and all(a >= b for a, b in pairwise(rates[4:]))
    assert rates[5 + 95 // 2] == pytest.approx(0.55, abs=0.02)  # half way down
    assert 0.1 < rates[99] < 0.101


def two_stages(values: dict[str, Any], **second: Any) -> dict[str, Any]:
    [first] = values["data"]["stages"]
    return {**values, "data": {**values["data"], "stages": [first, {**first, "name": "second", **second}]}}


def test_a_stage_takes_over_what_it_does_not_set(recipe_values: dict[str, Any]) -> None:
    second = {"seq_length": 128, "batch": {"global_batch_size": 2}, "megatron": {"context_parallel_size": 2}}
    recipe = parse_recipe(two_stages({**recipe_values, "megatron": {"clip_grad": 0.5}}, **second))
    first, last = recipe.stage(0), recipe.stage(1)
    assert (first.seq_length, first.batch.global_batch_size, first.megatron.given) == (64, 18, {"clip_grad": 0.5})
    assert (last.seq_length, last.batch.global_batch_size) == (128, 2)
    assert last.megatron.given == {"clip_grad": 0.5, "context_parallel_size": 2} and last.document_alignment == 4
    with pytest.raises(InputError, match="names only, only: give each its own"):
        parse_recipe(two_stages(recipe_values, name="only"))


def test_layers_that_recomputation_does_not_divide_are_refused(recipe_file: Path) -> None:
    fields = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 3}
    with pytest.raises(InputError, match="layers of a pipeline chunk is 4, which recompute_num_layers = 3"):
        load_recipe(recipe_file, [f"megatron.{name}={value}" for name, value in fields.items()])
    with pytest.raises(InputError, match="recompute_num_layers"):  # Megatron would go on for ever
        load_recipe(recipe_file, ["megatron.recompute_num_layers=0"])


def test_stages_agree_on_what_a_saved_optimizer_can_be_taken_up_by(recipe_values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="stage second has another use_distributed_optimizer or bf16 than the first"):
        parse_recipe(two_stages(recipe_values, megatron={"bf16": True}))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_hidden_layers": "4"}, "num_hidden_layers '4'; it must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0; it must be a whole number from 1 to"),
        ({"num_key_value_heads": 3}, "4 heads for 3 key-value heads"),
        ({"head_dim": 15}, "a head_dim of 15: RoPE turns pairs"),
        ({"rope_theta": "x"}, "rope_theta 'x'"),
        ({"rms_norm_eps": None}, "rms_norm_eps None"),
        ({"model_type": "gpt2"}, "model_type 'gpt2'; known: qwen2, qwen3, llama"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias True; for llama it must be False"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "su", "factor": 4.0}}, "scales RoPE"),
    ],
)
def test_a_config_that_makes_no_model_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model_config(str(write_model(tmp_path / "model", **change)))


def test_stages_share_a_schedule_unless_they_have_their_own(recipe_values: dict[str, Any]) -> None:
    values = {**recipe_values, "schedule": {"lr": 1.0, "lr_warmup_iters": 2, "lr_decay_style": "cosine"}}
    shared = LearningRates(parse_recipe(two_stages(values)), [6, 4])
    schedule = parse_recipe(values).schedule
    assert [shared.at(0, step) for step in range(6)] == [learning_rate(schedule, step, 10) for step in range(6)]
    assert [shared.at(1, step) for step in range(4)] == [learning_rate(schedule, 6 + step, 10) for step in range(4)]
    own = {"lr": 0.1, "lr_warmup_fraction": 0.5, "lr_decay_style": "constant"}
    rates = LearningRates(parse_recipe(two_stages(values, schedule=own)), [6, 4])
    assert [rates.at(1, step) for step in range(4)] == pytest.approx([0.05, 0.1, 0.1, 0.1])
    assert rates.at(0, 5) == learning_rate(schedule, 5, 6)


def test_a_schedule_shorter_than_its_warm_up_is_refused(recipe_values: dict[str, Any]) -> None:
    recipe = parse_recipe({**recipe_values, "schedule": {"lr": 1.0, "lr_warmup_iters": 7}})
    LearningRates(recipe, [8])
    with pytest.raises(InputError, match="stage only: the learning rate warms up for 7 steps, and its schedule has 7"):
        LearningRates(recipe, [7])
    assert learning_rate(parse_recipe(recipe_values).schedule, 0, 1) == 1e-2  # a run of one step has no warm-up


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory without a checkpoint"):
        load_recipe(tmp_path, [])
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "absent.yaml", [])


def test_a_key_that_comes_twice_is_refused(recipe_file: Path) -> None:
    text = recipe_file.read_text()
    line = 1 + text.splitlines().index(next(line for line in text.splitlines() if line.startswith("schedule")))
    recipe_file.write_text(text + "\nschedule: {lr: 5.0e-1}\n")
    with pytest.raises(InputError, match=rf"holds the key 'schedule' twice, in lines {line} and \d+: leave one out"):
        load_recipe(recipe_file, [])
    recipe_file.write_text(text)
    with pytest.raises(InputError, match="the key 'lr' twice"):
        load_recipe(recipe_file, ["schedule={lr: 1, lr: 2}"])


@pytest.mark.parametrize(
    "override, message",
    [
        ("schedule.lr=true", "schedule.lr is True: true and false are no values of it"),
        ("seed=true", "seed is True"),
        ("data.seq_length=true", "data.seq_length is True"),
        ("data.stages.0.epochs=true", "data.stages.0.epochs is True"),
        ("objective={kind: rmt, temperature: true}", "objective.temperature is True"),
        ("objective={kind: rmt, difficulty: {thresholds: [0.1, true, 2.0]}}", "objective.difficulty.thresholds is"),
        ("megatron.tensor_model_parallel_size=true", "wants a value of type int"),
        ("schedule.min_lr=1.0", r"schedule: min_lr 1.0 is above lr"),
        ("schedule.min_lr=.nan", "schedule.min_lr is nan"),
        ("schedule.min_lr=.inf", "schedule.min_lr is inf"),
        ("checkpoint.dir=$DAVINCI_NOWHERE/run", "the environment has no variable DAVINCI_NOWHERE: set it"),
        ("data.stages.0.blend.0.corpus=${DAVINCI_NOWHERE}", "no variable DAVINCI_NOWHERE"),
    ],
)
def test_values_that_look_right_and_are_not_are_refused(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(recipe_file, [override])


def test_variables_of_the_environment_stand_for_paths(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVINCI_SCRATCH", "/scratch/me")
    recipe = load_recipe(recipe_file, ["checkpoint.dir=$DAVINCI_SCRATCH/a/${DAVINCI_SCRATCH}b"])
    assert recipe.checkpoint.dir == "/scratch/me/a//scratch/meb"


FIRST, LAST = "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({LAST: 4}, "is set with pipeline_model_parallel_size 1"),
        (
            {"pipeline": 4, LAST: 1},
            r"leave 7 of 8 layers to the other 3 .* multiple of 3",
        ),
        (
            {"pipeline": 4, FIRST: 4, LAST: 4},
            "leave 0 of 8",
        ),
        (
            {"pipeline": 2, FIRST: 3, LAST: 4},
            "must be none",
        ),
        ({"pipeline": 2, "virtual": 2, LAST: 3}, "must be a multiple of 2"),
        ({"pipeline": 4, LAST: 0}, "must be at least 1"),
        ({"pipeline": 4, LAST: 9}, "leave -1 of 8"),
        ({"variable_seq_lengths": True}, "rows are as wide as their documents anyway"),
    ],
)
def test_pipelines_that_layers_do_not_fill_are_refused(
    recipe_values: dict[str, Any], tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    names = {"pipeline": "pipeline_model_parallel_size", "virtual": "virtual_pipeline_model_parallel_size"}
    megatron = {names.get(name, name): value for name, value in fields.items()}
    model = write_model(tmp_path / "eight", num_hidden_layers=8)
    with pytest.raises(InputError, match=reason):
        parse_recipe({**recipe_values, "model": str(model), "megatron": megatron})


def test_layers_by_rank_follow_the_fields(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    model = write_model(tmp_path / "eight", num_hidden_layers=8)
    for fields, layers in (
        ({FIRST: 1, LAST: 1}, [1, 3, 3, 1]),
        ({LAST: 2}, [2, 2, 2, 2]),
        ({}, [2, 2, 2, 2]),
    ):
        megatron = {"pipeline_model_parallel_size": 4, **fields}
        recipe = parse_recipe({**recipe_values, "model": str(model), "megatron": megatron})
        assert recipe.stage(0).layout.layers_by_rank(8) == layers

"""Properties of the shipped recipes: each is valid, and would run; each tiny one trains."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from math import lcm
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import EFFORT, of_acceptance, write_model
from forked import run_davinci
from test_asks import annotate
from training import DAVINCI, reported
from typer.testing import CliRunner

from data_prep.corpus import Corpus
from data_prep.tokenize.tokenize import TokenizeJob, tokenize
from megatron_davinci.cli.app import app
from megatron_davinci.config import load_recipe
from megatron_davinci.config.objectives import Rmt, RolloutOptions
from megatron_davinci.models.config import load_model_config
from megatron_davinci.rl.problems import ProblemKeys, write_problems
from megatron_davinci.testing.tiny_model import CHAT_TEMPLATE, write_model_directory
from megatron_davinci.train.dry_run import describe_run

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/recipe.yaml"))
LARGE = sorted(
    str(path.relative_to(EXAMPLES)) for kind in ("recipe", "fp8") for path in EXAMPLES.glob(f"*/{kind}.yaml")
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the recipes' weights seem to lie: what an architecture follows from, and an empty file."""
    folder = tmp_path_factory.mktemp("large")
    for name in NAMES:
        recipe = yaml.safe_load((EXAMPLES / name / "recipe.yaml").read_text())
        directory = folder / recipe["init_from"]
        directory.mkdir(parents=True, exist_ok=True)
        preset = files("megatron_davinci") / "presets" / f"{recipe['model']}.json"
        (directory / "config.json").write_bytes(preset.read_bytes())
        (directory / "model.safetensors").touch()
    return folder


@pytest.fixture(scope="module")
def corpora(weights: Path, qwen_json: Path) -> Path:
    """The corpora beside them, small: this project's own files; problems; entropies of all levels."""
    for directory in {path.parent for path in weights.rglob("model.safetensors")}:
        (directory / "tokenizer.json").write_bytes(qwen_json.read_bytes())
        (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    source = "".join(path.read_text() for path in sorted(ROOT.glob("megatron_davinci/**/*.py")))
    texts = [source[at : at + 250] for at in range(0, len(source), 250)]
    (weights / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    problems = [{"problem": f"{number} + 1?", "answer": str(number + 1)} for number in range(256)]
    (weights / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    named = [name for path in LARGE for name in corpora_of(EXAMPLES / path)]
    for prefix in {weights / name for name in named if name != "corpus/problems"}:
        job = TokenizeJob((str(weights / "texts.jsonl"),), qwen_json, {"text": prefix}, append_eod=True)
        tokens = tokenize(job)["text"]["tokens"]
        if prefix.name == "omni-math":
            annotate(Corpus(prefix), np.linspace(0, 2, tokens))
    write_problems([weights / "problems.jsonl"], qwen_json, weights / "corpus" / "problems", ProblemKeys())
    return weights


def corpora_of(recipe: Path) -> list[str]:
    stages = yaml.safe_load(recipe.read_text())["data"]["stages"]
    return [blend["corpus"] for stage in stages for blend in stage["blend"]]


@pytest.mark.parametrize("path", LARGE)
def test_a_large_one_would_run(corpora: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Every input is opened, every rule checked, the layout told to the parameter; FP8 needs no GPU for that."""
    monkeypatch.chdir(corpora)
    recipe = load_recipe(EXAMPLES / path, [])
    facts = describe_run(recipe)
    assert facts["parameters"] == load_model_config(recipe.model).num_parameters() and facts["steps"] > 0
    for told, stage in zip(facts["stages"], map(recipe.stage, range(len(facts["stages"]))), strict=True):
        held = [len(range(first, last + 1)) for rank in told["pipeline_ranks"] for first, last in rank["layers"]]
        assert len(set(held)) == 1  # no rank waits for one with more layers
        assert (
            told["ranks_a_replica"] == stage.layout.ranks_per_replica and told["row_alignment"] == stage.alignment.row
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid(weights: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(weights)
    recipe = load_recipe(EXAMPLES / name / "recipe.yaml", [])
    tiny = yaml.safe_load((EXAMPLES / name / "tiny.yaml").read_text())
    stage, small = recipe.stage(0), tiny.get("objective", {"kind": "ntp"})
    assert recipe.checkpoint.dir == f"runs/{name}" and tiny["checkpoint"]["dir"] == f"out/tiny/{name}"
    assert stage.objective.kind == small["kind"]
    if isinstance(stage.objective, RolloutOptions):
        fields = ["group_size", "temperature", "policy"]  # small in size alone
        if isinstance(stage.objective, Rmt):
            fields += ["curriculum", "ntp_lambda"]
        for field in fields:
            ours = stage.objective.model_dump(mode="json", exclude_unset=True).get(field)
            assert ours == small[field], field
        assert (stage.objective.budget is None) == (small.get("budget") is None)
    if name.startswith("davinci"):
        for large, little in zip(recipe.data.stages, tiny["data"]["stages"], strict=True):
            assert (large.name, large.loss_mask) == (little["name"], little.get("loss_mask", True))
            repeats = [(Path(blend["corpus"]).name, blend.get("repeat", 1)) for blend in little["blend"]]
            assert repeats == [(Path(blend.corpus).name, blend.repeat) for blend in large.blend]


@pytest.mark.parametrize("name", NAMES)
def test_launch_writes_scripts_for_it(weights: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """For the fewest nodes of 8 GPUs."""
    monkeypatch.chdir(weights)
    recipe = EXAMPLES / name / "recipe.yaml"
    stages = load_recipe(recipe, []).data.stages
    ranks = lcm(8, *(load_recipe(recipe, []).stage(index).layout.ranks_per_replica for index in range(len(stages))))
    for more in ([], ["--slurm"]):
        command = ["launch", str(recipe), "--nodes", str(ranks // 8), "--dry-run", *more]
        script = CliRunner().invoke(app, command, catch_exceptions=False).stdout
        assert f"-m megatron_davinci train {recipe}" in script
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_fp8_differs_in_precision_alone() -> None:
    for path in EXAMPLES.glob("*/fp8.yaml"):
        recipes = [yaml.safe_load((path.parent / file).read_text()) for file in ("recipe.yaml", "fp8.yaml")]
        bf16, fp8 = ({**recipe, "checkpoint": None} for recipe in recipes)
        more = {name: fp8["megatron"].pop(name) for name in ("fp8", "fp8_recipe", "first_last_layers_bf16")}
        assert fp8 == bf16 and more == {"fp8": "hybrid", "fp8_recipe": "tensorwise", "first_last_layers_bf16": True}


@pytest.mark.parametrize("name", ["format", "rmt", "rpt", "ntp-only"])
def test_the_runs_of_a_real_small_model_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What it takes to train them is in run.sh of their directory."""
    monkeypatch.chdir(tmp_path)
    for directory in ("hf", "runs/format"):
        found = write_model(tmp_path / "out" / "smollm2-135m" / directory)
        preset = files("megatron_davinci") / "presets" / "smollm2-135m.json"
        (found / "config.json").write_bytes(preset.read_bytes())
        (found / "model.safetensors").touch()
    recipe = load_recipe(EXAMPLES / "smollm2-135m" / f"{name}.yaml", [])
    assert recipe.checkpoint.dir == f"out/smollm2-135m/runs/{name}"
    script = (EXAMPLES / "smollm2-135m" / "run.sh").read_text()
    assert all(blend.corpus.removeprefix("out/smollm2-135m/") in script for blend in recipe.stage(0).blend)


REINFORCED = [name for name in NAMES if not name.startswith("davinci")]
MID_TRAINING = sorted(set(NAMES) - set(REINFORCED))  # fine-tuning, by its name, comes after what it starts from


@pytest.mark.parametrize("name", REINFORCED if EFFORT > 1 else ["rpt"])
def test_a_tiny_one_trains(taught: Path, tmp_path: Path, name: str) -> None:
    """From the directory of a demo, as the examples' page says."""
    (tmp_path / "out" / "demo").mkdir(parents=True)
    (tmp_path / "out" / "demo" / "toy_language").symlink_to(taught)
    recipe = EXAMPLES / name / "tiny.yaml"
    run_davinci("train", recipe, "data.stages.0.epochs=3", cwd=tmp_path).check_returncode()
    lines = reported(tmp_path / "out" / "tiny" / name)
    assert len(lines) == (384 if name == "format-sft" else 3) and ("policy_loss" in lines[0]) == (
        name not in ("ntp-only", "format-sft")
    )


@of_acceptance
def test_mid_training_and_fine_tuning_in_small(shared_data: Path, pluggy_clone: Path, tmp_path: Path) -> None:
    """The script's corpora, of a real history and real rollouts; then two stages, then fine-tuning."""
    demo = tmp_path / "out" / "demo"
    run([*DAVINCI, "data", "collect", "git", str(pluggy_clone), "--out", "out/demo/records/repository"], tmp_path)
    mined = ["out/demo/records/repository", "--format", "python", "--out", "out/demo/samples/repository"]
    run([*DAVINCI, "data", "build", *mined], tmp_path)
    texts = [path.read_text() for path in sorted(ROOT.glob("data_prep/**/*.py"))]
    size = {} if EFFORT > 1 else {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1}
    write_model_directory(texts, demo / "model", chat=True, **size)
    resolved = tmp_path / "report.json"
    resolved.write_text(json.dumps({"resolved_ids": PASSING}))
    script = [str(EXAMPLES / "tiny-corpora.sh"), str(shared_data / "trajectories"), str(resolved)]
    run(script, tmp_path, DAVINCI=str(Path(sys.executable).with_name("davinci")))
    assert len(Corpus(tmp_path / "out/tiny/corpus/rollouts-passing")) == len(PASSING)
    short = [
        "data.seq_length=512",
        "data.long_documents=drop",
        "evaluation.held_out_documents=1",
        "data.stages.0.epochs=1",
    ]
    for name in MID_TRAINING if EFFORT > 1 else ["davinci-72b", "davinci-sft-72b"]:
        recipe = yaml.safe_load((EXAMPLES / name / "tiny.yaml").read_text())
        stages = [f"data.stages.{index}.seq_length=6144" for index in range(len(recipe["data"]["stages"]))]
        overrides = [] if EFFORT > 1 else [*short, *stages]
        run([*DAVINCI, "train", str(EXAMPLES / name / "tiny.yaml"), *overrides], tmp_path)
        last = reported(tmp_path / "out" / "tiny" / name)[-1]
        assert last["step"] == int((tmp_path / "out" / "tiny" / name / "latest").read_text()[5:])


PASSING = ["function_calling_simple", "github_issue", "local"]


def run(command: list[str], folder: Path, **environment: str) -> None:
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)

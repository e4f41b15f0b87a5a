"""Models by their names on the hub, from a cache that is filled beforehand; and paths of a recipe."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import TINY, write_model

from data_prep import InputError
from data_prep.io import hub
from megatron_davinci.config import load_recipe

HASH = "0123456789abcdef0123456789abcdef01234567"


def fill_cache(
    home: Path, name: str, tokenizer: bytes, config: dict[str, Any], model_config: dict[str, Any] = TINY
) -> Path:
    """HF_HOME with OWNER/NAME in it, as huggingface_hub leaves it: snapshots of links to blobs."""
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot, blobs = folder / "snapshots" / HASH, folder / "blobs"
    for each in (snapshot, blobs, folder / "refs"):
        each.mkdir(parents=True)
    (folder / "refs" / "main").write_text(HASH)
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": json.dumps({**config, "tokenizer_class": "Qwen2Tokenizer"}).encode(),
        "config.json": json.dumps(model_config).encode(),
        "model.safetensors": b"",
    }
    for number, (file, content) in enumerate(files.items()):
        (blobs / str(number)).write_bytes(content)
        (snapshot / file).symlink_to(Path("..") / ".." / "blobs" / str(number))
    return home


def plan(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "megatron_davinci", "train", *arguments, "--dry-run"]
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    return subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, check=False)


def test_a_name_of_the_hub_is_taken_from_its_cache(
    recipe_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = fill_cache(tmp_path / "home", "octo/tiny", b"{}", {})
    recipe_values |= {"model": "octo/tiny", "init_from": "octo/tiny"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_values))
    done = plan(tmp_path, "recipe.yaml", HF_HOME=str(home), HF_HUB_OFFLINE="1")
    assert done.returncode == 0 and "models--octo--tiny" in done.stdout, done.stderr
    assert "1 steps" in done.stdout and "not here" not in done.stdout
    with monkeypatch.context() as known:  # what training itself resolves
        known.setenv("HF_HOME", str(home))
        known.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
        known.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        recipe = load_recipe(tmp_path / "recipe.yaml", [f"tokenizer=octo/tiny@{HASH}"])
    assert {Path(str(each)).name for each in (recipe.model, recipe.init_from, recipe.tokenizer)} == {HASH}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe_values, "tokenizer": "octo/absent"}))
    done = plan(tmp_path, "recipe.yaml", HF_HOME=str(home), HF_HUB_OFFLINE="1")
    assert "1 steps" in done.stdout and "tokenizer octo/absent (tokenizer)" in done.stdout
    done = plan(tmp_path, "recipe.yaml", "model=octo/other", HF_HOME=str(home), HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "octo/other is not on this disk" in done.stderr and "hf download octo/other" in done.stderr


def test_ranks_that_found_different_weights_under_a_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub may move between two ranks' questions."""
    from megatron_davinci.train import loop

    recipe: Any = SimpleNamespace(init_from="cache/one")
    monkeypatch.setattr(loop, "all_gather_object", lambda found: [found, found])
    loop._check_same_weights(recipe)
    monkeypatch.setattr(loop, "all_gather_object", lambda found: [found, "cache/two"])
    with pytest.raises(InputError, match=r"ranks found cache/one and cache/two .* OWNER/NAME@COMMIT"):
        loop._check_same_weights(recipe)


def test_a_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "octo" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.found_path("octo/tiny") == Path("octo/tiny")
    assert not any(map(hub.is_hub_name, ["octo", "/octo/tiny", "./octo/x", "a/b/c", "../a", "octo/"]))
    assert hub.is_hub_name("octo/other")


@pytest.fixture
def beside(recipe_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in a folder of its own that names its model as `model`; the working directory is another one."""
    for folder in ("recipes", "work"):
        (tmp_path / folder).mkdir()
    recipe_values["model"] = "model"
    (tmp_path / "recipes" / "recipe.yaml").write_text(yaml.safe_dump(recipe_values))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "recipes" / "recipe.yaml"


def test_a_path_is_the_recipe_folders_then_the_working_directorys(beside: Path, tmp_path: Path) -> None:
    here = write_model(tmp_path / "work" / "model")
    assert load_recipe(beside, []).model == "model"
    there = write_model(beside.parent / "model")
    with pytest.raises(InputError, match=r"model is 'model': it is in the recipe's folder .* and in the working"):
        load_recipe(beside, [])
    (here / "config.json").unlink()
    here.rmdir()
    assert load_recipe(beside, []).model == str(there)


def test_a_corpus_is_found_by_its_prefix_and_what_is_written_stays_here(beside: Path, tmp_path: Path) -> None:
    write_model(beside.parent / "model")
    (beside.parent / "py.idx").touch()
    recipe = load_recipe(beside, ["data.stages.0.blend=[{corpus: py}]", "checkpoint.dir=run"])
    assert recipe.stage(0).blend[0].corpus == str(beside.parent / "py") and recipe.checkpoint.dir == "run"


@pytest.mark.parametrize(
    "override, place",
    [
        ("tp=2", "megatron.tensor_model_parallel_size"),
        ("learning_rate=1", "schedule.lr"),
        ("schedule.learning_rate=1", "schedule.lr"),
        ("num_train_epochs=1", "data.stages.0.epochs"),
        ("train_iters=1", "data.stages.0.train_iters"),
        ("per_device_train_batch_size=1", "batch.micro_batch_size"),
        ("global-batch-size=1", "batch.global_batch_size"),
        ("tensor-model-parallel-size=1", "megatron.tensor_model_parallel_size"),
        ("bf16=true", "megatron.bf16"),
        ("megatron.tp=1", "megatron.tensor_model_parallel_size"),
        ("output_dir=x", "checkpoint.dir"),
        ("save=x", "checkpoint.dir"),
        ("warmup_ratio=1", "schedule.lr_warmup_fraction"),
        ("gradient_checkpointing=true", "megatron.recompute_granularity"),
        ("shedule.lr=1", "schedule"),
    ],
)
def test_the_spellings_of_others_are_answered_with_ours(beside: Path, override: str, place: str) -> None:
    write_model(beside.parent / "model")
    with pytest.raises(InputError, match=rf"did you mean {place}\?"):
        load_recipe(beside, [override])


def test_all_unknown_and_all_missing_keys_are_named_at_once(beside: Path) -> None:
    write_model(beside.parent / "model")
    with pytest.raises(InputError, match=r"'tp'; did you mean .*'nonsense'$"):
        load_recipe(beside, ["tp=1", "nonsense=2"])
    beside.write_text("model: model\n")
    with pytest.raises(InputError, match=r"lacks 'data', 'batch', 'schedule', 'checkpoint'"):
        load_recipe(beside, [])


@pytest.mark.parametrize(
    "text, said",
    [
        ("- a\n- b\n", "holds a list"),
        ("", "holds nothing"),
        ("a: [1\n", r"is not YAML: line 2, column 1"),
        ("model: model\nschedule: 3\n", "lacks 'data'"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_in_words(beside: Path, text: str, said: str) -> None:
    beside.write_text(text)
    with pytest.raises(InputError, match=said):
        load_recipe(beside, [])

"""Property: code that lies in a checkpoint never runs, in whatever file, whoever reads it; one sentence says why."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from forked import run_davinci
from training import finish, kill_after, start, write_recipe

from megatron_davinci.weights.checkpoint_files import file_entry
from megatron_davinci.weights.metadata import BytesStorageMetadata, read_metadata, write_metadata

PLACES = {
    ".metadata": r".metadata is not Megatron's metadata (it names posix.system): it was refused",
    "common.pt": r"common.pt was refused, it names posix.system",
    "object": r"_extra_state/shard_0_4 was refused, it names posix.system",
}
# davinci with Megatron's own loading in place of this project's, and torch told to unpickle: the guards taken out.
UNGUARDED = """
import os
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
from megatron.core import dist_checkpointing
from megatron_davinci.train.checkpoint import manager
from megatron_davinci.weights import checkpoint_files
checkpoint_files.read_metadata = lambda path: None
manager.load_state = lambda wanted, directory, replicas: dist_checkpointing.load(wanted, str(directory))
from megatron_davinci.cli import main; main()
"""
COMPARE = """
import sys
from pathlib import Path
from data_prep.corpus import Corpus
from data_prep.io.exit_codes import exit_on_mistake
from megatron_davinci.demo.compare import compare_logits
from megatron_davinci.config import load_recipe
with exit_on_mistake():
    compare_logits(load_recipe(Path(sys.argv[1]), []), Path(sys.argv[2]), Corpus(Path(sys.argv[3])))
"""


class Command:
    """Unpickled, it makes a file."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.ran}",)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def plant(checkpoint: Path, place: str, ran: Path, layer: int = 0) -> None:
    """Put the command there, and have the manifest know of it."""
    if place == "object":
        metadata = read_metadata(checkpoint / ".metadata")
        suffix = f"linear_fc1._extra_state/shard_{layer}_4"
        [(_, info)] = [(k, v) for k, v in metadata.storage_data.items() if k.fqn.endswith(suffix)]
        assert any(isinstance(entry, BytesStorageMetadata) for entry in metadata.state_dict_metadata.values())
        data, file = saved([Command(ran)]), checkpoint / info.relative_path
        info.offset, info.length = file.stat().st_size, len(data)
        file.write_bytes(file.read_bytes() + data)
        write_metadata(metadata, checkpoint / ".metadata")
    elif place == "common.pt":
        (checkpoint / place).write_bytes(saved({"args": Command(ran)}))
    else:
        (checkpoint / place).write_bytes(b"cposix\nsystem\n(X%btR." % _text(f"touch {ran}"))
    manifest = orjson.loads((checkpoint / "manifest.json").read_bytes())
    manifest["files"] = {name: file_entry(checkpoint / name) for name in manifest["files"]}
    (checkpoint / "manifest.json").write_bytes(orjson.dumps(manifest))


def _text(text: str) -> bytes:
    return len(text).to_bytes(4, "little") + text.encode()


@pytest.fixture(scope="module")
def runs() -> dict[int, Path]:
    """Runs by their number of ranks, made when they are first asked for."""
    return {}


@pytest.fixture
def stopped(recipe_values: dict[str, Any], tmp_path: Path, runs: dict[int, Path]) -> Callable[..., Path]:
    """The recipe of a run that was killed after its second checkpoint."""

    def make(ranks: int = 1) -> Path:
        if ranks not in runs:
            recipe_values["data"]["stages"][0]["epochs"] = 3
            megatron = {} if ranks == 1 else {"pipeline_model_parallel_size": ranks}
            runs[ranks] = write_recipe(recipe_values, tmp_path, f"stopped-{ranks}", megatron=megatron)
            kill_after(start(runs[ranks], ranks), tmp_path / f"stopped-{ranks}", 8)
        return runs[ranks]

    return make


def planted(recipe: Path, place: str, folder: Path, ran: Path, layer: int = 0) -> tuple[Path, Path]:
    """A copy of the run, with the command in each of its checkpoints; its recipe and its directory."""
    run = folder / "planted"
    shutil.copytree(recipe.with_suffix(""), run)
    for checkpoint in run.glob("step_*[0-9]"):
        plant(checkpoint, place, ran, layer)
    copy = folder / "planted.yaml"
    copy.write_text(recipe.read_text().replace(str(recipe.with_suffix("")), str(run)))
    return copy, run


def python(code: str, *arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, done.stderr


def davinci(*arguments: object) -> tuple[int, str]:
    done = run_davinci(*arguments)
    return done.returncode, done.stderr


@pytest.mark.parametrize("place", PLACES)
def test_resuming_runs_no_code(stopped: Callable[..., Path], tmp_path: Path, place: str) -> None:
    ran = tmp_path / "ran"
    recipe, run = planted(stopped(), place, tmp_path, ran)
    shutil.copytree(run, tmp_path / "kept")
    python(UNGUARDED, "train", recipe)
    assert ran.exists(), "without the guards the command runs"
    ran.unlink()
    shutil.rmtree(run)
    (tmp_path / "kept").rename(run)
    status, said = davinci("train", recipe)
    assert status == 2 and PLACES[place] in said and "Traceback" not in said and not ran.exists()


def test_what_one_rank_refuses_ends_all(stopped: Callable[..., Path], tmp_path: Path) -> None:
    """The last layer is the second rank's."""
    recipe, _ = planted(stopped(2), "object", tmp_path, tmp_path / "ran", layer=3)
    process = start(recipe, 2)
    _, said = process.communicate(timeout=200)
    assert process.returncode != 0 and b"_extra_state/shard_3_4 was refused, it names posix.system" in said
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", PLACES)
def test_conversion_runs_no_code(stopped: Callable[..., Path], tmp_path: Path, place: str) -> None:
    """What it does not need it does not read: what else lies there stays where it is."""
    _, run = planted(stopped(), place, tmp_path, tmp_path / "ran")
    status, said = davinci("convert", "megatron-to-hf", run, tmp_path / "hf")
    assert not (tmp_path / "ran").exists()
    if place == ".metadata":
        assert status == 2 and PLACES[place] in said and not (tmp_path / "hf").exists()
    else:
        assert status == 0 and (tmp_path / "hf" / "model.safetensors").exists(), said


@pytest.mark.parametrize("place", PLACES)
def test_the_demos_comparison_runs_no_code(stopped: Callable[..., Path], tmp_path: Path, place: str) -> None:
    recipe, _ = planted(stopped(), place, tmp_path, tmp_path / "ran")
    corpus = stopped().parent / "corpus"
    status, said = python(COMPARE, recipe, tmp_path / "hf", corpus)
    assert status == 2 and PLACES[place] in said, said
    assert not (tmp_path / "ran").exists()


def test_the_unplanted_copy_goes_on(stopped: Callable[..., Path], tmp_path: Path) -> None:
    recipe = stopped()
    shutil.copytree(recipe.with_suffix(""), tmp_path / "copy")
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipe.read_text().replace(str(recipe.with_suffix("")), str(tmp_path / "copy")))
    assert "after step 6" in finish(start(copy, 1))

"""Property: every tutorial works as it stands: its blocks of shell and Python run, in order, in an empty folder.

What comes from the network comes from here: git is told where the clone is, and the hub's cache is filled beforehand.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import of_acceptance
from test_hub_names import fill_cache

from megatron_davinci.testing.tiny_model import CHAT_TEMPLATE

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LONG = ("reinforcement", "environments")
AFTER = {"mid-training": ["pull-requests"]}
EXPECTED = {
    "pull-requests": ["samples.html", "corpus/python.idx", "corpus/python.plan"],
    "mid-training": ["my-run/recipe.yaml", "run.sh", "runs/tiny/report.html", "hf/model.safetensors", "hf/README.md"],
    "reinforcement": ["rmt.png", "out/demo/index.html"],
    "megatron-checkpoint": ["back-hf/config.json", "wiki_text_document.manifest.json"],
    "slurm": ["job.sh", "container.sh"],
    "trajectories": ["conversations/passing.jsonl.zst", "corpus/agents.loss_mask.bin"],
    "environments": ["envs/summary.json", "verified.json"],
}


@pytest.fixture
def surroundings(tmp_path: Path, pluggy_clone: Path, qwen_json: Path) -> dict[str, str]:
    """An environment in which `davinci` is on the path, and what the tutorials fetch lies here."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, start in {"davinci": f"{sys.executable} -m megatron_davinci", "python": sys.executable}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {start} "$@"\n')
        (programs / name).chmod(0o755)
    config = {"model_type": "qwen2", "chat_template": CHAT_TEMPLATE, "eos_token": "<|endoftext|>"}
    preset = json.loads((ROOT / "megatron_davinci" / "presets" / "qwen2.5-7b.json").read_bytes())
    cache = fill_cache(tmp_path / "hub", "Qwen/Qwen2.5-7B", qwen_json.read_bytes(), config, preset)
    return {
        **os.environ,
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{pluggy_clone}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/pytest-dev/pluggy",
    }


def run_page(name: str, folder: Path, environment: dict[str, str]) -> str:
    """Run the blocks of a tutorial; what they printed."""
    said = ""
    for language, block in BLOCK.findall((TUTORIALS / f"{name}.md").read_text()):
        command = ["bash", "-euc", block] if language == "bash" else [sys.executable, "-c", block]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1500
        )
        assert done.returncode == 0, f"{name}: {block}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        said += done.stdout
    return said


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=of_acceptance if name in LONG else ()) for name in sorted(EXPECTED)]
)
def test_a_tutorial_runs_as_it_stands(name: str, tmp_path: Path, surroundings: dict[str, str]) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    for before in AFTER.get(name, []):
        run_page(before, folder, surroundings)
    said = run_page(name, folder, surroundings)
    assert [path for path in EXPECTED[name] if not (folder / path).exists()] == []
    if name == "megatron-checkpoint":
        assert "the same weights" in said and "one document" in said
    if name == "trajectories":
        assert "⟦" in said and "It adds." in said


def test_every_tutorial_is_run() -> None:
    pages = {path.stem for path in TUTORIALS.glob("*.md")}
    assert pages == EXPECTED.keys() and len(pages) == 7
    assert all(BLOCK.search((TUTORIALS / f"{name}.md").read_text()) for name in pages)

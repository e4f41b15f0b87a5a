"""Servers that people run: llama.cpp with SmolLM2, and vLLM with a checkpoint of ours. Slow: in make acceptance."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import davinci
from conftest import of_acceptance
from tiny_agent import SHAPE, TEMPLATE
from transformers import AutoConfig, AutoModelForCausalLM

from data_prep.environments.collection import TaskCollection
from data_prep.io.files import read_json, write_json
from megatron_davinci.serve.chat_server import ChatOptions, chat_server
from megatron_davinci.testing.tiny_model import write_model_directory

pytestmark = of_acceptance
ROOT = Path(__file__).parents[2]
OUTCOMES = {"model", "tests", "limits"}


@contextmanager
def llama() -> Iterator[str]:
    pytest.importorskip("xllamacpp")
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "model_server.py", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"{process.stdout.readline().strip()}/v1"
    finally:
        process.kill()
        process.wait()


def run(shapes_envs: Path, url: str, model: str, out: Path) -> dict[str, int]:
    done = davinci("environments", "run", shapes_envs, "--server", url, "--model", model, "--rollouts", "2",
                   "--steps", "4", "--max-tokens", "2000", "--reply-tokens", "100", "--out", out, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rollouts"] == 4 and told["prompt_tokens"] > 0 and told["completion_tokens"] > 0
    for path in (out / "trajectories").iterdir():
        record = read_json(path)
        assert all(step["usage"]["prompt_tokens"] > 100 for step in record["steps"]) and record["messages"][2:]
    outcomes: dict[str, int] = told["outcomes"]
    return outcomes


def test_smollm2_behind_llama_cpp_works_on_tasks(shapes_envs: Path, tmp_path: Path) -> None:
    with llama() as url:
        assert set(run(shapes_envs, url, "smollm2", tmp_path / "out")) <= OUTCOMES


def test_the_example_goes_the_whole_way(shapes_envs: Path, shapes_records: tuple[Path, Path], tmp_path: Path) -> None:
    """The trained checkpoint, served, gives back the rollouts that it was trained on: one task of the two is solved.

    So what is masked, what is rendered and what a server shows a model are the same.
    """
    if not (ROOT / ".venv-vllm" / "davinci.json").exists():
        pytest.skip("needs vLLM: make vllm")
    (tmp_path / "out" / "agents").mkdir(parents=True)
    for name in ("tests", ".venv-vllm"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, made in (("envs", shapes_envs), ("records", shapes_records[1])):
        (tmp_path / "out" / "agents" / name).symlink_to(made)
    script = [ROOT / "examples" / "agents" / "run.sh", shapes_records[0], "geometry/shapes"]
    variables = {**os.environ, "BIN": str(Path(sys.executable).parent), "TASKS": "2", "KNOWN": "1"}
    done = subprocess.run(script, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = read_json(tmp_path / "out" / "agents" / "evaluation" / "results.json")
    assert results["outcomes"] == {"resolved": 1, "tests": 1}


def test_a_checkpoint_of_ours_behind_vllm_works_on_tasks(shapes_envs: Path, tmp_path: Path) -> None:
    """A tiny model, of which only the form of what comes back is asked."""
    environment = ROOT / ".venv-vllm"
    if not (environment / "davinci.json").exists():
        pytest.skip("needs vLLM: make vllm")
    texts = [task.problem_statement + task.patch for task in TaskCollection(shapes_envs).tasks()]
    model = tmp_path / "model"
    write_model_directory(texts, model, chat=True, **SHAPE)
    declared = read_json(model / "tokenizer_config.json")
    write_json(model / "tokenizer_config.json", {**declared, "chat_template": TEMPLATE.read_text()})
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
    with chat_server(model, ChatOptions(environment=str(environment), port=0, name="tiny")) as server:
        assert set(run(shapes_envs, server.url, "tiny", tmp_path / "out")) <= OUTCOMES

"""Property: the benchmark for GPUs runs, all of it, in small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import of_acceptance

pytestmark = pytest.mark.gpu

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@of_acceptance
def test_every_part_gives_figures() -> None:
    done = subprocess.run([sys.executable, BENCHMARK, "--rehearse"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"'):
            found |= json.loads(line)
    assert list(found) == ["train", "attention", "tree", "rollouts", "profile"]
    assert all(trial.get("tokens_per_second_per_rank", 0) > 0 for trial in found["train"]["trials"].values()), found
    for shape in found["attention"].values():
        assert 0 < max(shape["errors"].values()) < 0.03  # bf16 has eight bits
    assert found["tree"]["speed_over_sequences"] > 0 and found["rollouts"]["tokens_per_second"] > 0
    assert any("attention" in line for line in found["profile"]["kernels"])

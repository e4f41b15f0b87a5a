"""Property: a run that another release of Megatron-Core has begun goes on here, as if it had begun here."""

import tarfile
from pathlib import Path

import pytest
import yaml
from training import finish, reported, start

from megatron_davinci.report.metrics_file import read_metrics
from megatron_davinci.weights.to_huggingface import export_to_hf

ARCHIVE = Path(__file__).parents[1] / "data" / "runs.tar.xz"  # data/README.md says how they were made


@pytest.mark.parametrize("release", ["0.16.1", "0.19.2"])
def test_a_run_of_either_release_goes_on(tmp_path: Path, release: str) -> None:
    """Three of six steps are done; the others are those that the release itself took, optimizer and all."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    run = tmp_path / f"run-{release}"
    known = [line["loss"] for line in read_metrics(run / "metrics.jsonl")]
    (run / "latest").write_text("step_0000003")
    recipe = {
        "model": str(tmp_path / "model"),
        "megatron": {"use_distributed_optimizer": True},
        "data": {"seq_length": 64,
                 "stages": [{"name": "only", "epochs": 6, "blend": [{"corpus": str(tmp_path / "corpus")}]}]},
        "batch": {"global_batch_size": 18},
        "schedule": {"lr": 1e-2},
        "checkpoint": {"dir": str(run), "save_interval": 3, "save_total_limit": 5},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert "resuming" in finish(start(path, 1))
    losses = [line["loss"] for line in reported(run)]
    assert len(losses) == len(known) == 6 and losses == pytest.approx(known, rel=1e-5)
    export_to_hf(run, tmp_path / "hf")

"""Shared inputs: real histories where they are at hand, a tiny model, a small corpus."""

import gzip
import json
import multiprocessing
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.corpus import CorpusWriter
from data_prep.environments.collection import TaskCollection

if "DAVINCI_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # most tests compare with the CPU, bit for bit
    # What may see a GPU cannot be forked; without one, ranks share an import of seconds.
    multiprocessing.set_forkserver_preload(
        [
            "megatron_davinci.core.build_trainer",
            "megatron_davinci.core.optimizer",
            "megatron_davinci.cli.app",
            "megatron_davinci.train.loop",
            "megatron_davinci.train.prepare",
            "torch._dynamo",
            "data_prep.tokenize.worker_process",
        ]
    )
# One test on each core: with two threads each they would wait for each other, several times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How much more than usual the tests of chance do (kills, damage, fuzzing, random cases): `make acceptance` sets it.
EFFORT = int(os.environ.get("DAVINCI_EFFORT", "1"))
of_acceptance = pytest.mark.skipif(EFFORT == 1, reason="a long test: make acceptance has it")

TINY = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real inputs beside the checkout; tests that read them skip without."""
    folder = Path(os.environ.get("DAVINCI_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the real inputs: {folder} is absent (or set DAVINCI_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def qwen_json(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen's vocabulary as a Hugging Face tokenizer.json."""
    packed = shared_data / "tokenizers" / "qwen2_tokenizer_built_from_gguf.json.gz"
    path = tmp_path_factory.mktemp("qwen") / "tokenizer.json"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return path


@pytest.fixture(scope="session")
def pluggy_clone(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror of a whole real history with its pull request heads."""
    clone = tmp_path_factory.mktemp("git") / "pluggy.git"
    subprocess.run(["git", "clone", "-q", "--mirror", shared_data / "git" / "pluggy.bundle", clone], check=True)
    return clone


@pytest.fixture(scope="session")
def shapes_records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The clone and the records of a small repository."""
    from commands import davinci
    from shapes import History

    folder = tmp_path_factory.mktemp("shapes")
    History(folder / "shapes")
    done = davinci("collect", "git", folder / "shapes", "--out", folder / "records")
    assert done.returncode == 0, done.stderr
    return folder / "shapes", folder / "records"


@pytest.fixture(scope="session")
def shapes_envs(shapes_records: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tasks, in environments where they run."""
    from commands import davinci, skip_without_sandbox

    skip_without_sandbox(tmp_path_factory.getbasetemp())
    clone, records = shapes_records
    out = tmp_path_factory.mktemp("tasks") / "envs"
    done = davinci("environments", "build", records, "--clone", clone, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def tasks(shapes_envs: Path) -> TaskCollection:
    """The same, opened."""
    return TaskCollection(shapes_envs)


def write_model(directory: Path, **changes: Any) -> Path:
    """A Hugging Face directory with the configuration of a tiny Qwen2."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**TINY, **changes}))
    return directory


def write_corpus(
    prefix: Path, lengths: list[int], seed: int = 0, vocab_size: int = 256, masks: list[list[int]] | None = None
) -> Path:
    """A corpus of random documents of the given lengths, with loss masks where they are given."""
    random = np.random.default_rng(seed)
    tokenizer = {"kind": "test", "vocab_size": vocab_size, "eod": 0, "fingerprint": f"v{vocab_size}"}
    writer = CorpusWriter(prefix, tokenizer, masked=masks is not None)
    ids = [random.integers(0, vocab_size, length) for length in lengths]
    flat_mask = None if masks is None else np.concatenate([np.array(mask, np.uint8) for mask in masks])
    writer.add_flat(np.concatenate(ids), np.array(lengths, np.int64), loss_mask=flat_mask)
    writer.commit({})
    return prefix


@pytest.fixture
def recipe_values(tmp_path: Path) -> dict[str, Any]:
    """A recipe over a small corpus: documents of 1 token, of exactly one sequence, and in between."""
    lengths = [1, 64, 7, 33, 20, 50, 2, 31, 64, 12, 5, 40, 28, 3, 17, 60, 9, 22]
    return {
        "model": str(write_model(tmp_path / "model")),
        "megatron": {},
        "data": {
            "seq_length": 64,
            "stages": [{"name": "only", "blend": [{"corpus": str(write_corpus(tmp_path / "corpus", lengths))}]}],
        },
        "batch": {"global_batch_size": 18},
        "schedule": {"lr": 1e-2},
        "checkpoint": {"dir": str(tmp_path / "run")},
    }


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the language of doors: a model that knows the form of answers, an annotated corpus."""
    from language import teach

    from megatron_davinci.testing import run_on_ranks

    folder = tmp_path_factory.mktemp("language")
    run_on_ranks(teach, 1, folder)
    return folder

"""Tests of scaling out: every document once, whatever is killed or started twice, and the same result as in one run."""

import contextlib
import gzip
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import dill
import psutil
import pytest
from conftest import EFFORT, of_acceptance

from data_prep import InputError
from data_prep.corpus import Corpus
from data_prep.pipeline.run import TokenizeShard, tokenize_shards
from data_prep.pipeline.tasks import shards_of, tokenize_shard
from data_prep.tokenize.tokenize import TokenizeJob, tokenize

TASKS = 4


@pytest.fixture
def job(shared_data: Path, tmp_path: Path) -> TokenizeJob:
    """Nine files of real source text; one holds no document."""
    texts = [path.read_text(errors="ignore") for path in sorted(Path(json.__file__).parents[1].rglob("*.py"))[:900]]
    for number in range(8):
        lines = (json.dumps({"text": text}) + "\n" for text in texts[number::8])
        (tmp_path / f"in{number}.jsonl").write_text("".join(lines))
    (tmp_path / "in8.jsonl").write_text("")
    inputs = tuple(str(path) for path in sorted(tmp_path.glob("in*.jsonl")))
    qwen = shared_data / "tokenizers" / "qwen.tiktoken"
    return TokenizeJob(inputs=inputs, tokenizer=qwen, outputs={"text": tmp_path / "all"})


def one_run(job: TokenizeJob, tmp_path: Path) -> bytes:
    """The tokens of all inputs in the order of the shards."""
    in_order = tuple(path for rank in range(TASKS) for path in job.inputs[rank::TASKS])
    tokenize(replace(job, inputs=in_order, outputs={"text": tmp_path / "one"}))
    return (tmp_path / "one.bin").read_bytes()


def test_shards_together_are_the_corpus_of_one_run(job: TokenizeJob, tmp_path: Path) -> None:
    tokenize_shards(job, tmp_path / "shards", TASKS, 2, "local", tmp_path / "all").run()
    assert (tmp_path / "all.bin").read_bytes() == one_run(job, tmp_path)
    assert (tmp_path / "all.idx").read_bytes() == (tmp_path / "one.idx").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shards/*.bin")}
    again = TokenizeShard(job, tmp_path / "shards")  # datatrove's note may be lost: the shard is not
    for rank in range(TASKS):
        again.run(rank=rank, world_size=TASKS)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("shards/*.bin")} == before
    with pytest.raises(InputError, match="holds the shards of another job"):
        tokenize_shards(replace(job, append_eod=True), tmp_path / "shards", TASKS, 2, "local", tmp_path / "all")
    with pytest.raises(InputError, match="was made from other inputs"):
        tokenize_shard(replace(job, inputs=job.inputs[1:]), tmp_path / "shards", 0, TASKS)


def test_a_task_without_documents_is_done_and_an_open_one_is_not_merged(job: TokenizeJob, tmp_path: Path) -> None:
    empty = replace(job, inputs=(job.inputs[-1], job.inputs[0]))
    assert tokenize_shard(empty, tmp_path / "shards", 0, 2)["documents"] == 0
    with pytest.raises(InputError, match="00001-of-00002 is not finished"):
        shards_of(tmp_path / "shards", 2)
    tokenize_shard(empty, tmp_path / "shards", 1, 2)
    assert tokenize_shard(empty, tmp_path / "shards", 0, 2)["documents"] == 0
    assert len(shards_of(tmp_path / "shards", 2)) == 1


_RUN = """
import sys, dill
dill.load(open(sys.argv[1], "rb")).run()
"""


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    for victim in [psutil.Process(process.pid), *children]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(children)


def test_killed_tasks_lose_and_repeat_nothing(job: TokenizeJob, tmp_path: Path) -> None:
    expected = hashlib.sha256(one_run(job, tmp_path)).hexdigest()
    run = tokenize_shards(job, tmp_path / "shards", TASKS, 2, "local", tmp_path / "all")
    (tmp_path / "run.pickle").write_bytes(dill.dumps(run))
    command = [sys.executable, "-W", "ignore", "-c", _RUN, str(tmp_path / "run.pickle")]
    draw = random.Random(3)
    for _ in range(2 * EFFORT):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(2, 6))
        kill_tree(process)
    # The same job started twice at once: one of the two writes each shard, the other says so or finds it done.
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    for process in both:
        process.wait()
    if not (tmp_path / "all.idx").exists():
        subprocess.run(command, check=True, capture_output=True)
    assert hashlib.sha256((tmp_path / "all.bin").read_bytes()).hexdigest() == expected
    assert not list((tmp_path / "shards").glob("*.part"))


@of_acceptance
def test_ray_s_tasks_make_the_same_and_one_that_fails_ends_the_command(job: TokenizeJob, tmp_path: Path) -> None:
    """On a Ray cluster of this machine, which the command starts; its options are numbers, whatever their text."""
    packed = tmp_path / "in9.jsonl.gz"
    job = replace(job, inputs=(*job.inputs, str(packed)))
    whole = gzip.compress(Path(job.inputs[0]).read_bytes()[:1000] + b"\n")
    command = [sys.executable, "-m", "megatron_davinci", "data", "shards", *job.inputs, "--tokenizer"]
    command += [str(job.tokenizer), "--out", str(tmp_path / "all"), "--tasks", str(TASKS), "--executor", "ray"]
    command += ["--option", "mem_per_cpu_gb=0.2", "--option", "cpus_per_task=1"]
    packed.write_bytes(whole[:200])
    failed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert failed.returncode == 1 and f"error: 1 of {TASKS} tasks failed, for the reasons in " in failed.stderr
    assert not (tmp_path / "all.bin").exists()
    packed.write_bytes(whole)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "all.bin").read_bytes() == one_run(job, tmp_path)


def test_the_command_line_runs_it(job: TokenizeJob, tmp_path: Path) -> None:
    davinci = Path(sys.executable).with_name("davinci")
    command = [davinci, "data", "shards", tmp_path / "in*.jsonl", "--tokenizer", job.tokenizer, "--tasks", str(TASKS)]
    subprocess.run([*command, "--out", tmp_path / "all"], check=True, capture_output=True)
    assert (tmp_path / "all.bin").read_bytes() == one_run(job, tmp_path)
    wrong = subprocess.run([*command[:-1], "99", "--out", tmp_path / "x"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "it must be from 1 to 9, the number of files" in wrong.stderr
    again = subprocess.run([*command, "--out", tmp_path / "all"], capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "already exists" in again.stderr


def test_broken_records_of_shards_are_added_up(job: TokenizeJob, tmp_path: Path) -> None:
    for number in (0, 1):
        with Path(job.inputs[number]).open("a") as file:
            file.write("nonsense\n")
    tokenize_shards(job, tmp_path / "shards", TASKS, 1, "local", tmp_path / "all").run()
    provenance = Corpus(tmp_path / "all").manifest["provenance"]
    assert provenance["broken_records"] == 2 and len(provenance["examples"]["broken"]) == 2

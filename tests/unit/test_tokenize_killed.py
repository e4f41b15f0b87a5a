"""kill -9 at random moments: started again, tokenizing ends with the bytes of a run that was never interrupted."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import EFFORT

from data_prep.tokenize.tokenize import TokenizeJob, tokenize

KILLS = 5 * EFFORT
RECORDS = 3000

_RUN = """
import sys
from pathlib import Path
from data_prep.tokenize.tokenize import TokenizeJob, tokenize
source, tokenizer, prefix, workers = sys.argv[1:]
job = TokenizeJob(inputs=(source,), tokenizer=Path(tokenizer), outputs={"text": Path(prefix)}, workers=int(workers))
tokenize(job, lambda records: print(records, flush=True), journal_every_bytes=1 << 20)
"""


def digests(prefix: Path) -> dict[str, str]:
    files = sorted(prefix.parent.iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_anywhere_it_ends_with_the_same_bytes(shared_data: Path, tmp_path: Path, workers: int) -> None:
    qwen = shared_data / "tokenizers" / "qwen.tiktoken"
    files = sorted(Path(json.__file__).parents[1].rglob("*.py"))[:RECORDS]
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        b"".join(json.dumps({"text": path.read_text(errors="ignore")}).encode() + b"\n" for path in files)
    )
    whole, killed = tmp_path / "whole" / "corpus", tmp_path / "killed" / "corpus"
    chunks: list[int] = []
    tokenize(TokenizeJob((str(source),), qwen, {"text": whole}), chunks.append)
    command = [sys.executable, "-W", "ignore", "-c", _RUN, str(source), str(qwen), str(killed), str(workers)]
    draw = random.Random(workers)
    went_on = False
    for attempt in range(KILLS + 1):
        journaled = killed.with_name("corpus.journal.part").exists()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        if attempt < KILLS:
            # Some chunks on, and a moment more: before the first, in the middle, while the files are renamed.
            for _ in range(draw.randrange(len(chunks))):
                process.stdout.readline()
            time.sleep(draw.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            process.communicate()
        else:
            records = [int(line) for line in process.communicate()[0].split()]
            went_on |= journaled and sum(records) < sum(chunks)
        if killed.with_name("corpus.idx").exists():
            for leftover in killed.parent.glob("*.part"):  # killed after the last rename
                leftover.unlink()
            assert digests(killed) == digests(whole)
            shutil.rmtree(killed.parent)
    assert not killed.parent.exists(), "the last run did not end"
    assert went_on or not journaled

"""Faults of the machine over the commands: after each, the same command ends with the bytes of an undisturbed run.

`python tests/hardening/machine_faults.py [--short]` prints the table; exit status 1 where something was lost.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
SECONDS = 120
_NAMES = {
    errno.EIO: "EIO",
    errno.ENOSPC: "disk full",
    errno.EROFS: "read-only",
    errno.EMFILE: "no handles",
    -1: "killed",
}


@dataclass(frozen=True)
class Job:
    """Arguments of `davinci` that write below `out`; files whose names have a part of `ignored` may differ."""

    name: str
    arguments: Callable[[Path, Path], list[str | Path]]
    ignored: tuple[str, ...] = ()


def tokenize(given: Path, out: Path) -> list[str | Path]:
    return ["data", "tokenize", given / "in.jsonl", "--tokenizer", given / "t.tiktoken", "--out", out / "c"]


def two_workers(given: Path, out: Path) -> list[str | Path]:
    return [*tokenize(given, out), "--workers", "2"]


def sentences(given: Path, out: Path) -> list[str | Path]:
    return [*tokenize(given, out), "--split-sentences"]


def collect(given: Path, out: Path) -> list[str | Path]:
    return ["data", "collect", "git", given / "repository", "--name", "a/b", "--out", out / "r"]


def build(given: Path, out: Path) -> list[str | Path]:
    return ["data", "build", given / "records", "--format", "general", "--out", out / "s"]


def merge(given: Path, out: Path) -> list[str | Path]:
    return ["data", "merge", given / "c", given / "c", "--out", out / "m"]


def pack(given: Path, out: Path) -> list[str | Path]:
    return ["data", "pack", given / "c", "--seq-length", "4096", "--out", out / "plan", "--histogram", out / "h.png"]


def decontaminate(given: Path, out: Path) -> list[str | Path]:
    return [
        "data", "decontaminate", given / "c", "--benchmark", f"{given / 'bench.jsonl'}:q", "--tokenizer",
        given / "t.tiktoken", "--out", out / "l.json", "--html", out / "l.html", "--clean-benchmark", out / "clean",
        "--drop-to", out / "d",
    ]  # fmt: skip


def convert(given: Path, out: Path) -> list[str | Path]:
    return ["convert", "hf-to-megatron", given / "hf", out / "m", "--shard-gigabytes", "0.001"]


JOBS = (
    Job("tokenize", tokenize),
    Job("tokenize, 2 workers", two_workers),
    Job("tokenize, sentences", sentences),
    Job("collect git", collect),
    Job("build", build),
    Job("merge", merge),
    Job("pack", pack),
    Job("decontaminate", decontaminate),
    Job("convert", convert),
)
# operation, calls that pass, error
FAULTS: tuple[tuple[str, int, int], ...] = (
    ("rename", 0, -1),
    ("rename", 1, -1),
    ("rename", 2, -1),
    ("fsync", 1, -1),
    ("rename", 0, errno.EIO),
    ("rename", 1, errno.ENOSPC),
    ("fsync", 0, errno.EIO),
    ("write", 0, errno.ENOSPC),
    ("write", 1, errno.EIO),
    ("open", 0, errno.EMFILE),
    ("open", 1, errno.EROFS),
)


def inputs(folder: Path) -> Path:
    """A small history, its records, texts, a tokenizer, a corpus, a benchmark and a model."""
    import base64

    given = folder / "given"
    given.mkdir()
    ranks = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
    (given / "t.tiktoken").write_bytes(ranks)
    texts = [f"Text number {number}. It has sentences. And Dr. Smith. " * 5 for number in range(300)]
    unlike = "zebra quartz vexes jumping dwarfs, " * 3
    texts.append(unlike)
    (given / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (given / "bench.jsonl").write_text(
        "".join(json.dumps({"q": text}) + "\n" for text in (unlike, "OTHER WORDS " * 20))
    )
    repository = given / "repository"
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "init", "-q", "-b", "main", str(repository)], check=True)
    for number in range(6):
        (repository / "a.py").write_text("".join(f"x{line} = {line * number}\n" for line in range(20)))
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-qm", f"Change {number} (#{number})"], check=True)
    run(tokenize(given, given))
    run(["data", "collect", "git", repository, "--name", "a/b", "--out", given / "records"])
    sys.path[:0] = [str(FOLDER.parent), str(FOLDER.parent / "unit")]
    from test_convert import write_weights

    write_weights(given / "hf")
    return given


def run(arguments: Sequence[str | Path], fault: tuple[str, int, int] | None = None, path: str = "") -> tuple[int, str]:
    """Exit status and what was said on stderr."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if fault is not None:
        operation, after, error = fault
        environment |= {
            "LD_PRELOAD": str(shim()), "FAULT_OP": operation, "FAULT_AFTER": str(after), "FAULT_ERROR": str(error),
            "FAULT_PATH": path,
        }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "megatron_davinci", *map(str, arguments)], env=environment, timeout=SECONDS,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def shim() -> Path:
    """The library that plants faults, compiled when it is first asked for."""
    source = FOLDER / "faults.c"
    library = Path(tempfile.gettempdir()) / f"faults-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", part, source, "-ldl"], check=True)
        part.replace(library)
    return library


def contents(out: Path) -> dict[str, str]:
    """Hash of every file."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def outcome(job: Job, given: Path, out: Path, fault: tuple[str, int, int], whole: dict[str, str]) -> str:
    """What became of a command with a fault, and of the same command after it; "lost" where something was."""
    status, said = run(job.arguments(given, out), fault, str(out))
    if "Traceback" in said:
        return f"lost: a traceback ({said.strip().splitlines()[-1][:80]})"
    again = "did not come to it" if status == 0 else ""
    if status:
        second, complaint = run(job.arguments(given, out))
        if second:
            return f"lost: it cannot be started again ({complaint.strip()[:100]})"
        again = "the same bytes"
    if contents(out) != whole:
        differ = sorted({*contents(out).items()} ^ {*whole.items()})[:3]
        return f"lost: other files, {differ}"
    return again if status in (0, -signal.SIGKILL) else f"one sentence, then {again}"


def table(jobs: Sequence[Job], faults: Sequence[tuple[str, int, int]]) -> list[tuple[str, str, str]]:
    """(command, fault, outcome) of each pair."""
    found = []
    with tempfile.TemporaryDirectory(prefix="machine-") as folder:
        given = inputs(Path(folder))
        for job in jobs:
            out = Path(folder) / "out"
            out.mkdir()
            status, said = run(job.arguments(given, out))
            assert status == 0, said
            whole = contents(out)
            for fault in faults:
                shutil.rmtree(out)
                out.mkdir()
                operation, after, error = fault
                told = outcome(job, given, out, fault, whole)
                found.append((job.name, f"{_NAMES[error]} at {operation} {after + 1}", told))
            shutil.rmtree(out)
    return found


def main() -> None:
    """Print the table."""
    begun = time.monotonic()
    rows = table(JOBS, FAULTS)
    print(f"# Faults of the machine\n\nMade by `python tests/hardening/machine_faults.py`: {len(rows)} faults.\n")
    print("| command | fault | outcome |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    lost = [row for row in rows if row[2].startswith("lost")]
    print(f"\n{len(lost)} of {len(rows)} lost something.", file=sys.stdout)
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()

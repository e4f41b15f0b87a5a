"""What hostile inputs cost: `python tests/hardening/limits.py` prints each figure beside its bound.

`--whole` tokenizes the whole of the zst bomb (31 million documents) instead of reading it.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow
import pyarrow.parquet
import zstandard

CHATML = (
    "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LOOP = CHATML + (
    "{% if messages|length > 4 %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}"
)
POWER = CHATML + "{% if messages|length > 4 %}{{ 9**(9**(messages|length + 3)) }}{% endif %}"
MEMORY = CHATML + "{% if messages|length > 4 %}{{ ('a' * 9000000000)|length }}{% endif %}"
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@dataclass(frozen=True)
class Cost:
    """A command's exit status, what it said, its seconds, and the most memory that one of its processes held."""

    status: int
    said: str
    seconds: float
    megabytes: float


def measure(*arguments: str | Path, program: str | None = None) -> Cost:
    """Run `davinci data ...`, or a program, and look at its processes all the while."""
    start = ["-c", program] if program else ["-m", "megatron_davinci", "data"]
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *start, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(process.communicate()[0]))
    reader.start()
    most, own = 0, psutil.Process(process.pid)
    while reader.is_alive():
        with suppress(psutil.Error):  # one of them has ended meanwhile
            most = max([most, *(each.memory_info().rss for each in (own, *own.children(recursive=True)))])
        reader.join(0.02)
    return Cost(process.returncode, said[0], time.monotonic() - begun, most / 1e6)


def zst_bomb(path: Path) -> Path:
    """288 kB that are 3 GB: lines of 100 bytes."""
    block = (b'{"text":"' + b"a" * 88 + b'"}\n') * 10_486
    with path.open("wb") as file, zstandard.ZstdCompressor(level=3).stream_writer(file) as writer:
        for _ in range(3000):
            writer.write(block)
    return path


def parquet_bomb(path: Path) -> Path:
    """A text of a megabyte, stored once and named 4,000 times."""
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 4000, pyarrow.int32()), ["a " * (1 << 19)])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path, compression="zstd")
    return path


def conversations(path: Path) -> Path:
    """Three, of which the second is longer."""
    path.write_text("".join(json.dumps({"messages": TURNS * count}) + "\n" for count in (1, 3, 1)))
    return path


READ = "import sys; from pathlib import Path; from data_prep.io.files import read_chunks; " + (
    "print(sum(len(chunk) for chunk in read_chunks(Path(sys.argv[1]), 1 << 21)))"
)


def measure_all(folder: Path, tokenizer: Path, whole: bool) -> list[tuple[str, float, float, str]]:
    """(what, figure, bound, unit) of each hostile input."""
    bomb = zst_bomb(folder / "bomb.jsonl.zst")
    common: tuple[str | Path, ...] = ("--tokenizer", tokenizer, "--out")
    zst = measure("tokenize", bomb, *common, folder / "zst") if whole else measure(bomb, program=READ)
    found = [(f"zst bomb of {bomb.stat().st_size // 1000} kB", zst.megabytes, 600.0, "MB")]
    table = measure("tokenize", parquet_bomb(folder / "bomb.parquet"), *common, folder / "parquet")
    found.append(("Parquet bomb", table.megabytes, 600.0, "MB"))
    given = conversations(folder / "chat.jsonl")
    for name, template in (("loops", LOOP), ("computes", POWER), ("takes memory", MEMORY)):
        (folder / "t.jinja").write_text(template)
        cost = measure("tokenize", given, "--chat-template", folder / "t.jinja", *common, folder / name.split()[0])
        assert cost.status == 0 and "broken records  1" in cost.said, cost
        found.append((f"template that {name}", cost.seconds, 10.0, "s"))
    return found


def main(show: Callable[[str], None] = print) -> None:
    """Print the table; exit status 1 where a bound is exceeded."""
    tokenizer = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        found = measure_all(Path(folder), tokenizer, "--whole" in sys.argv)
    for what, figure, bound, unit in found:
        show(f"{what:<28} {figure:8.1f} {unit}, at most {bound:.0f} {unit}")
    sys.exit(any(figure > bound for _, figure, bound, _ in found))


if __name__ == "__main__":
    main()

"""Peak memory of `davinci data tokenize` for 0.2 and 2 GB of text: it must not grow with the input."""

import argparse
import sys
import tempfile
from pathlib import Path

from measure import Run, alternate, default_sources, median_of, run, save, write_source

SIZES = {"0.2 GB": 0.2e9, "2 GB": 2e9}


def main() -> None:
    """Write results/tokenize_memory.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json with the Qwen vocabulary")
    parser.add_argument("--source", type=Path, nargs="*", default=default_sources(), help="2 GB of source text")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, size in SIZES.items():
            write_source(work / f"{name}.jsonl", arguments.source, size)
        davinci = Path(sys.executable).with_name("davinci")

        def tokenize(name: str) -> Run:
            for old in work.glob("out.*"):
                old.unlink()
            flags = ["--tokenizer", arguments.tokenizer, "--out", work / "out"]
            return run([davinci, "data", "tokenize", work / f"{name}.jsonl", *flags])

        runs = alternate({name: lambda name=name: tokenize(name) for name in SIZES}, arguments.repeats)
    peaks = {name: [one.peak_bytes / 1e6 for one in found] for name, found in runs.items()}
    small, large = (median_of(found) for found in peaks.values())
    seconds = {name: [one.seconds for one in found] for name, found in runs.items()}
    facts = {"peak_megabytes": peaks, "seconds": seconds, "large_over_small": large / small}
    save("tokenize_memory", facts, ["gigatoken", "tokenizers"])


if __name__ == "__main__":
    main()

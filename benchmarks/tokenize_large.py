"""`davinci data tokenize` on 2 GB of text: peak memory against that for 0.2 GB, and speed against gigatoken alone.

gigatoken alone reads the file and encodes it on one thread, keeps the ids in memory and writes nothing; of both sides
the whole command counts, start included.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from measure import GIGATOKEN_ALONE, Run, alternate, default_sources, median_of, run, save, write_source

SIZES = {"0.2 GB": 0.2e9, "2 GB": 2e9}


def main() -> None:
    """Write results/tokenize_large.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json with the Qwen vocabulary")
    parser.add_argument("--source", type=Path, nargs="*", default=default_sources(), help="2 GB of source text")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        bytes_of = {name: write_source(work / f"{name}.jsonl", arguments.source, size) for name, size in SIZES.items()}
        davinci = Path(sys.executable).with_name("davinci")

        def tokenize(name: str) -> Run:
            for old in work.glob("out.*"):
                old.unlink()
            flags = ["--tokenizer", arguments.tokenizer, "--out", work / "out"]
            return run([davinci, "data", "tokenize", work / f"{name}.jsonl", *flags])

        def gigatoken() -> Run:
            return run([sys.executable, "-c", GIGATOKEN_ALONE, work / "2 GB.jsonl", arguments.tokenizer])

        sides = {"0.2 GB": lambda: tokenize("0.2 GB"), "2 GB": lambda: tokenize("2 GB"), "gigatoken alone": gigatoken}
        runs = alternate(sides, arguments.repeats)
    peaks = {name: [one.peak_bytes / 1e6 for one in found] for name, found in runs.items()}
    seconds = {name: [one.seconds for one in found] for name, found in runs.items()}
    sizes = {**bytes_of, "gigatoken alone": bytes_of["2 GB"]}
    speed = {name: sizes[name] / median_of(times) / 1e6 for name, times in seconds.items()}
    facts = {
        "peak_megabytes": peaks,
        "seconds": seconds,
        "megabytes_per_second": speed,
        "peak_of_2_gb_over_0.2_gb": median_of(peaks["2 GB"]) / median_of(peaks["0.2 GB"]),
        "davinci_over_gigatoken_alone": speed["2 GB"] / speed["gigatoken alone"],
    }
    save("tokenize_large", facts, ["gigatoken", "tokenizers"])


if __name__ == "__main__":
    main()

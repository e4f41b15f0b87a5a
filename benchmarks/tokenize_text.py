"""Text to .bin/.idx with the Qwen vocabulary: `davinci data tokenize` against Megatron's way and gigatoken alone.

Megatron-LM's own script is in no registry; its way is rebuilt from what megatron-core ships: one document at a time
through the Hugging Face tokenizer into IndexedDatasetBuilder. gigatoken alone only encodes the file and keeps the ids.
"""

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

from measure import GIGATOKEN_ALONE, alternate, default_sources, median_of, run, save, write_source

MEGATRONS_WAY = """
import json, sys
import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from tokenizers import Tokenizer
source, tokenizer_file, prefix = sys.argv[1:]
tokenizer = Tokenizer.from_file(tokenizer_file)
tokenizer.encode_special_tokens = True
builder = IndexedDatasetBuilder(prefix + ".bin", dtype=DType.optimal_dtype(tokenizer.get_vocab_size()))
for line in open(source, encoding="utf-8"):
    ids = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
    if ids:
        builder.add_document(np.array(ids), [len(ids)])
builder.finalize(prefix + ".idx")
"""


def main() -> None:
    """Write results/tokenize_text.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json with the Qwen vocabulary")
    parser.add_argument("--source", type=Path, nargs="*", default=default_sources(), help="folders with source text")
    parser.add_argument("--megabytes", type=int, default=160, help="of text, for all three")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = work / "source.jsonl"
        size = write_source(source, arguments.source, arguments.megabytes * 1e6)
        davinci = Path(sys.executable).with_name("davinci")

        def ours() -> float:
            for old in work.glob("ours.*"):
                old.unlink()
            flags = ["--tokenizer", arguments.tokenizer, "--out", work / "ours", "--workers", "1"]
            return run([davinci, "data", "tokenize", source, *flags]).seconds

        def megatrons() -> float:
            program = [sys.executable, "-W", "ignore", "-c", MEGATRONS_WAY]
            return run([*program, source, arguments.tokenizer, work / "theirs"]).seconds

        def gigatoken() -> float:
            return run([sys.executable, "-c", GIGATOKEN_ALONE, source, arguments.tokenizer]).seconds

        sides = {"davinci": ours, "megatrons_way": megatrons, "gigatoken_alone": gigatoken}
        seconds = alternate(sides, arguments.repeats)
        identical = all(filecmp.cmp(work / f"ours{end}", work / f"theirs{end}", False) for end in (".bin", ".idx"))
    speed = {name: size / median_of(times) / 1e6 for name, times in seconds.items()}
    facts = {
        "text_megabytes": size / 1e6,
        "what": "whole commands, start included, files written and on disk",
        "seconds": seconds,
        "megabytes_per_second": speed,
        "davinci_over_megatrons_way": speed["davinci"] / speed["megatrons_way"],
        "davinci_over_gigatoken_alone": speed["davinci"] / speed["gigatoken_alone"],
        "files_identical_to_megatrons_way": identical,
    }
    save("tokenize_text", facts, ["gigatoken", "tokenizers", "megatron-core", "orjson"])


if __name__ == "__main__":
    main()

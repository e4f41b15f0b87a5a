"""Does the same come out, bit for bit, after a change of the code? Two directories that the same commands have made.

    git worktree add /tmp/before BASE && (cd /tmp/before && davinci demo --out /tmp/one)   # and other runs
    davinci demo --repo /tmp/before --out /tmp/two
    python benchmarks/same_behaviour.py /tmp/one /tmp/two

Compared are files of both sides under the same path: token files, indexes and pack plans byte for byte, JSON Lines
(records, samples, rollouts, metrics) value for value, safetensors tensor for tensor. Clocks, paths and speeds are left
out; keys that have another name now are translated. Prints each difference, and their number.
"""

import io
import sys
from pathlib import Path
from typing import Any

import orjson
import zstandard
from safetensors.numpy import load_file

# Old metric or field -> new one; see docs/renamed.md.
RENAMED = {
    "reward_match": "accuracy", "reward_length": "length_reward", "truncated_share": "truncated_fraction",
    "unclosed_share": "unclosed_fraction", "groups_without_variance": "zero_advantage_fraction",
    "groups_without_match_variance": "zero_accuracy_variance_fraction", "padding_share": "padding_fraction",
    "clipped_share": "clip_fraction", "tree_saving": "prefix_sharing_ratio",
    "rollout_log_prob_gap": "rollout_log_prob_diff", "rollout_log_prob_gap_rms": "rollout_log_prob_diff_rms",
    "documents_without_position": "documents_without_prompt", "right": "correct", "mfu_of_dense_bf16_peak": "mfu",
}  # fmt: skip
CLOCKS = ("second", "mfu", "memory", "slowest")
BYTES = (".bin", ".idx")
LINES = (".jsonl", ".jsonl.zst")


def lines_of(path: Path) -> list[Any]:
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    return [plain(orjson.loads(line)) for line in data.splitlines()]


def plain(value: Any) -> Any:
    """Without clocks, and under today's names."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if not any(clock in key for clock in CLOCKS)}
        return {RENAMED.get(key, key): plain(each) for key, each in kept.items()}
    return value


def same(one: Path, other: Path) -> bool:
    if one.name.endswith(LINES):
        return lines_of(one) == lines_of(other)
    if one.suffix == ".safetensors":
        ours, theirs = load_file(one), load_file(other)
        return ours.keys() == theirs.keys() and all(ours[k].tobytes() == theirs[k].tobytes() for k in ours)
    return one.read_bytes() == other.read_bytes()


def compared(root: Path) -> set[Path]:
    kinds = (*BYTES, *LINES, ".safetensors")
    found = (path for path in root.rglob("*") if path.name.endswith(kinds) and ".git" not in path.parts)
    return {path.relative_to(root) for path in found}


def main(before: Path, after: Path) -> int:
    ours, theirs = compared(before), compared(after)
    alone = sorted(ours ^ theirs)
    different = [path for path in sorted(ours & theirs) if not same(before / path, after / path)]
    for path in alone:
        print(f"only in {before if path in ours else after}: {path}")
    for path in different:
        print(f"different: {path}")
    print(f"{len(ours & theirs)} files compared; {len(alone) + len(different)} differences, at most 0")
    return len(alone) + len(different) > 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))

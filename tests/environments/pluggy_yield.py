"""How many candidates of a real history become tasks: `python tests/environments/pluggy_yield.py ENVS [SINCE]`.

A candidate is a pull request, of a person, that changes code and a test that is new or does something else. With
`--touching` those count too whose tests were only annotated, formatted or taken away.
"""

import sys
from collections import Counter
from pathlib import Path

from data_prep.environments.collection import TaskCollection
from data_prep.io.files import read_jsonl

LEAST = 0.70
OF_THE_ENVIRONMENT = ("environment", "tests_do_not_run", "no_interpreter", "tests_do_not_start_before")
AFTER_RUNS = ("no_test_fails_before_and_passes_after", "gold_is_not_resolved", "empty_patch_is_resolved")


def counts_of(envs: Path, since: str) -> tuple[int, Counter[str]]:
    """Tasks that landed since a day, and candidates that did not become one, by reason."""
    tasks = sum(task.created_at >= since for task in TaskCollection(envs).tasks())
    known = (*OF_THE_ENVIRONMENT, *AFTER_RUNS, "no_test_is_new_or_changed")
    lines = [line for line in read_jsonl(envs / "rejected.jsonl") if (line.get("created_at") or "") >= since]
    return tasks, Counter(line["reason"] for line in lines if line["reason"] in known)


def main(envs: Path, since: str = "2018-01-01") -> int:
    """Print the figure beside its bound; 1 where it is below."""
    tasks, reasons = counts_of(envs, since)
    touching = tasks + sum(reasons.values())
    candidates = touching - reasons["no_test_is_new_or_changed"]
    broken = sum(reasons[reason] for reason in OF_THE_ENVIRONMENT)
    share, of_all = tasks / candidates, tasks / touching
    print(f"since {since}: {tasks} of {candidates} candidates became tasks, {share:.0%}, at least {LEAST:.0%}")
    print(f"{of_all:.0%} of all {touching} that touch tests; failed for their environment: {broken}, at most 0")
    print(dict(reasons.most_common()))
    return int(share < LEAST or broken > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:3]))

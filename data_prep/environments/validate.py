"""What the runs of a task tell: which tests fail before and pass after, and whether the task is one.

Nothing is decided here that the judge would not decide: the runs are its own, of no patch and of the gold patch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from data_prep.environments.environment import Environment
from data_prep.environments.judge import Judge, decide, outcome_of, taken_of
from data_prep.environments.task import Task
from data_prep.environments.testing import GOOD, Observation

_LOG_CHARACTERS = 2000


class NoTask(Exception):
    """A candidate is no task: `reason` is one of a small set, `detail` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail[:_LOG_CHARACTERS]


@dataclass(frozen=True)
class Classified:
    """Ids of tests by what all runs agree on."""

    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    unstable: tuple[str, ...]


def validated(task: Task, place: Environment, judge: Judge, runs: int) -> Task:
    """The task with its lists of tests. Raises NoTask; SandboxFailed where the environment does not work."""
    empty, gold = taken_of(b"", task, place.tree), taken_of(task.patch_bytes, task, place.tree)
    before = [judge.observe(task, place, empty) for _ in range(runs)]
    after = [judge.observe(task, place, gold) for _ in range(runs)]
    check_runs(before, after)
    found = classify([seen.outcomes for seen in before], [seen.outcomes for seen in after])
    if not found.fail_to_pass:
        raise NoTask("no_test_fails_before_and_passes_after")
    planted = sorted(frozenset.intersection(*(seen.heard for seen in after)))
    complete = replace(
        task,
        fail_to_pass=found.fail_to_pass,
        pass_to_pass=found.pass_to_pass,
        unstable=found.unstable,
        runs=runs,
        flags=tuple(sorted({*task.flags, *_flags(found, before, planted, task)})),
        validated_with={"network": judge.network, "by": after[0].by, "planted": planted},
    )
    complete = _with_outcomes(complete, after)
    check_verdicts(complete, before, after)
    return complete


def _with_outcomes(task: Task, after: Sequence[Observation]) -> Task:
    """The task with what its tests do where gold runs and they do not pass: xfailed, or skipped in PASS_TO_PASS."""
    known: dict[str, str] = {}
    for tests, kinds in ((task.fail_to_pass, ("xfailed",)), (task.pass_to_pass, ("xfailed", "skipped"))):
        for test in tests:
            outcomes = {outcome_of(test, seen.outcomes) for seen in after}
            if len(outcomes) == 1 and (outcome := outcomes.pop()) in kinds:
                known[test] = outcome
    return replace(task, validated_with={**task.validated_with, "not_passed": known})


def confirmed(task: Task, place: Environment, judge: Judge, runs: int) -> Task:
    """A task whose lists of tests others made, if they hold here. Raises NoTask; SandboxFailed."""
    empty, gold = taken_of(b"", task, place.tree), taken_of(task.patch_bytes, task, place.tree)
    after = [judge.observe(task, place, gold) for _ in range(runs)]
    before = [judge.observe(task, place, empty) for _ in range(runs)]
    for seen in after:
        if seen.stopped or seen.tampered:
            raise NoTask("tests_do_not_run", _told(seen.stopped or seen.tampered, seen))
    planted = sorted(frozenset.intersection(*(seen.heard for seen in after)))
    by = after[0].by
    complete = replace(
        task,
        runs=runs,
        flags=tuple(sorted({*task.flags, *(["parsed"] if by == "parsed" else [])})),
        validated_with={"network": judge.network, "by": by, "planted": planted},
    )
    complete = _with_outcomes(complete, after)
    check_verdicts(complete, before, after)
    return complete


def check_runs(before: Sequence[Observation], after: Sequence[Observation]) -> None:
    """Raise NoTask unless every run came to its end, and none looks forged."""
    for seen in after:
        if seen.stopped or seen.tampered:
            raise NoTask("tests_do_not_run", _told(seen.stopped or seen.tampered, seen))
        if not GOOD.intersection(seen.outcomes.values()):
            raise NoTask("tests_do_not_run", _told("no test passes after the change", seen))
    for seen in before:
        if seen.stopped or seen.tampered:
            raise NoTask("tests_do_not_start_before", _told(seen.stopped or seen.tampered, seen))


def check_verdicts(task: Task, before: Sequence[Observation], after: Sequence[Observation]) -> None:
    """Raise NoTask unless the judge takes the gold patch, and no empty one."""
    for seen in after:
        if (verdict := decide(task, seen)).status != "resolved":
            raise NoTask("gold_is_not_resolved", _told(f"{verdict.reason} {verdict.failed}", seen))
    for seen in before:
        if decide(task, seen).status != "unresolved":
            raise NoTask("empty_patch_is_resolved")


def _told(why: str, seen: Observation) -> str:
    """The reason, and the end of what was printed."""
    return f"{why[: _LOG_CHARACTERS // 2]}\n{seen.output[-_LOG_CHARACTERS // 2 :]}"


def classify(before: Sequence[Mapping[str, str]], after: Sequence[Mapping[str, str]]) -> Classified:
    """Sort tests by their outcomes in all runs; those on which runs disagree are unstable, and in no list."""
    fail_to_pass, pass_to_pass, unstable = list[str](), list[str](), list[str]()
    for test in sorted(set().union(*before, *after)):
        was, now = ({run.get(test, "missing") for run in runs} for runs in (before, after))
        if len(was) > 1 or len(now) > 1:
            unstable.append(test)
        elif now <= GOOD:
            (pass_to_pass if was <= GOOD else fail_to_pass).append(test)
    return Classified(tuple(fail_to_pass), tuple(pass_to_pass), tuple(unstable))


def _flags(found: Classified, before: Sequence[Observation], planted: Sequence[str], task: Task) -> set[str]:
    flags = set()
    unimportable = frozenset.union(*(seen.unimportable for seen in before))
    if any(test.partition("::")[0] in unimportable for test in found.fail_to_pass):
        flags.add("collection_fails_before")
    if not found.pass_to_pass:
        flags.add("no_pass_to_pass")
    if found.unstable:
        flags.add("unstable_tests")
    if not {test.partition("::")[0] for test in (*found.fail_to_pass, *found.pass_to_pass)} <= set(planted):
        flags.add("planted_tests_not_heard")
    if before[0].by == "parsed":
        flags.add("parsed")
    return flags

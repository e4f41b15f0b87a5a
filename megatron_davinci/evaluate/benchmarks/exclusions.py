"""Which instances have leaked into a training corpus, as reports of `davinci data decontaminate` say.

Nothing is removed before a model is asked: the table alone tells clean from contaminated instances.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from data_prep.io.errors import InputError
from megatron_davinci.evaluate.tasks.data import TaskData
from megatron_davinci.report.corpus_data import Instance, LeakageReport, read_leakage

LeakageState = Literal["clean", "contaminated", "too_short"]
"""too_short: the instance has no n-gram, so that nothing can be said."""

_RANKS: Sequence[LeakageState] = ("clean", "too_short", "contaminated")
_KnownIn = dict[str, dict[str, LeakageState]]  # sha256 of a file -> id in it -> state


class Exclusions:
    """States of instances, of one or more reports; the worst that one of them says of an instance counts."""

    def __init__(self, reports: Sequence[Path], read: Sequence[TaskData]) -> None:
        """`read`: what is asked, and what that inherits from. Raises InputError for a report on other files."""
        self._known: _KnownIn = defaultdict(dict)
        self._by_task = {data.task.name: data for data in read}
        digests = {digest: Path(name).name for data in read for name, digest in data.digests.items()}
        for path in reports:
            self._add(path, read_leakage(path), digests)

    def states(self, data: TaskData) -> Mapping[str, LeakageState] | None:
        """State by id of each question of a task; None where no report is on it. Raises InputError where some of its
        questions are in no report."""
        found = self._own(data)
        parent = self._by_task.get(data.task.inherits_exclusions_of or "")
        inherited = None if parent is None else self._own(parent)
        if inherited is None:
            return found
        if missing := next((each.id for each in data.questions if each.id not in inherited), None):
            raise InputError(f"the reports of --exclude say nothing of {missing} of {data.task.name}: make them again")
        if found is None:
            return {each.id: inherited[each.id] for each in data.questions}
        return {name: _worse(state, inherited[name]) for name, state in found.items()}

    def _own(self, data: TaskData) -> dict[str, LeakageState] | None:
        if not set(data.digests.values()) & set(self._known):
            return None
        known = {each.id: self._known[each.file].get(each.id_in_file) for each in data.questions}
        if missing := next((name for name, state in known.items() if state is None), None):
            raise InputError(f"the reports of --exclude say nothing of {missing} of {data.task.name}: make them again")
        return {name: state for name, state in known.items() if state is not None}

    def _add(self, path: Path, report: LeakageReport, asked: Mapping[str, str]) -> None:
        """`asked`: sha256 -> name of each file that is asked; what a report says of other benchmarks is left."""
        rest = iter(report.instances)
        used = False
        for benchmark in report.benchmarks:
            own = list(islice(rest, benchmark.instances))
            if not benchmark.sha256:
                raise InputError(f"{path} does not say which bytes of {benchmark.file} it is on: make it again")
            if benchmark.sha256 not in asked and Path(benchmark.file).name in asked.values():
                raise InputError(
                    f"{path} is on another {benchmark.file} (sha256 {benchmark.sha256[:12]}...) than --data holds: "
                    "make it again with the file there"
                )
            used |= benchmark.sha256 in asked
            known = self._known[benchmark.sha256] if benchmark.sha256 in asked else {}
            for each in own:
                known[each.id] = _worse(known.get(each.id, "clean"), _state_of(each))
        if not used:
            raise InputError(f"{path} is on none of the files that are asked: leave it out, or ask its benchmarks too")


def _state_of(instance: Instance) -> LeakageState:
    if instance.contaminated:
        return "contaminated"
    return "too_short" if instance.too_short else "clean"


def _worse(one: LeakageState, other: LeakageState) -> LeakageState:
    return max(one, other, key=_RANKS.index)

"""Many predictions, judged beside each other; killed, and started again, what is judged stays."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import orjson

from data_prep.environments.collection import TaskCollection
from data_prep.environments.judge import Judge, Verdict, spelled
from data_prep.environments.predictions import Prediction, read_predictions, run_report
from data_prep.environments.sandbox.base import Network
from data_prep.environments.sandbox.registry import open_sandbox
from data_prep.environments.scratch import ScratchNames
from data_prep.io.errors import DAMAGE, InputError
from data_prep.io.files import PART, new_file


def judge_predictions(
    envs: Path,
    predictions: Path,
    report: Path,
    sandbox: str = "bubblewrap",
    network: Network = "black hole",
    without: Sequence[str] = (),
    workers: int = 1,
    on_verdict: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Judge every prediction and write SWE-bench's report; returns its counts. Raises InputError."""
    if workers < 1:
        raise InputError(f"--workers is {workers}; it must be at least 1")
    collection, given = TaskCollection(envs), read_predictions(predictions)
    with new_file(report) as part:
        of = f"{envs.resolve()} {sandbox} {network}"
        kept = VerdictFile(report.with_name(f"{report.name}.verdicts.jsonl{PART}"), of)
        backend = open_sandbox(sandbox, report.parent.absolute(), network, tuple(without))
        scratch = ScratchNames(report.parent)
        judge = Judge(backend, scratch, network)

        def do(prediction: Prediction) -> Verdict:
            verdict = kept.get(prediction) or _judged(collection, judge, prediction)
            kept.put(prediction, verdict)
            on_verdict(1)
            return verdict

        try:
            with ThreadPoolExecutor(workers) as threads:
                verdicts = list(threads.map(do, given))
        finally:
            scratch.close()
        found = run_report(collection.ids(), verdicts, [prediction.instance_id for prediction in given])
        part.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    kept.remove()
    return {name: count for name, count in found.items() if isinstance(count, int) and name != "schema_version"}


def _judged(collection: TaskCollection, judge: Judge, prediction: Prediction) -> Verdict:
    try:
        task = collection.task(prediction.instance_id)
        return judge.judge(task, collection.environment(task), prediction.patch)
    except InputError as error:
        return Verdict(spelled(prediction.instance_id), "infrastructure", spelled(str(error)))


class VerdictFile:
    """Verdicts that an earlier start of the same command came to, by task and patch; `of` is what else they depend on.
    Verdicts on the machine rather than on the patch are asked for again."""

    def __init__(self, path: Path, of: str = "") -> None:
        self._path, self._of, self._lock = path, of, Lock()
        self._known: dict[str, Verdict] = {}
        if path.exists():
            for line in path.read_bytes().split(b"\n"):
                with suppress(*DAMAGE):  # the last one may be cut off
                    held = orjson.loads(line)
                    self._known[held["key"]] = Verdict(**held["verdict"])

    def get(self, prediction: Prediction) -> Verdict | None:
        """The verdict on a prediction, if there is one."""
        return self._known.get(self._key(prediction))

    def put(self, prediction: Prediction, verdict: Verdict) -> None:
        """Keep a verdict."""
        key = self._key(prediction)
        if verdict.status == "infrastructure" or key in self._known:
            return
        line = orjson.dumps({"key": key, "verdict": verdict}, option=orjson.OPT_APPEND_NEWLINE)
        with self._lock, self._path.open("ab") as file:
            file.write(b"\n" + line)

    def _key(self, prediction: Prediction) -> str:
        return f"{prediction.instance_id} {hashlib.sha256(prediction.patch).hexdigest()} {self._of}"

    def remove(self) -> None:
        """Once the report is there."""
        self._path.unlink(missing_ok=True)

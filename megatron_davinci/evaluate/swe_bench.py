"""SWE-bench by agents: mean Pass@1 over runs, with its spread and its interval, and what could not be judged beside it.

OUT/rollouts has every trajectory, OUT/run-N predictions and report in SWE-bench's own formats, OUT/results.json and
OUT/table.md the figures.
"""

import shutil
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.agents.rollouts import PREDICTIONS, RolloutsJob, read_records
from data_prep.environments.build import ImportEnvironmentsJob
from data_prep.environments.collection import TaskCollection
from data_prep.environments.foreign import read_rows
from data_prep.environments.judge import TEST_LIMITS, Verdict
from data_prep.environments.predictions import run_report
from data_prep.environments.task import Task
from data_prep.io.errors import InputError
from data_prep.io.files import only_writer, read_json, read_jsonl, write_json
from data_prep.pipeline.jobs import run_job
from megatron_davinci.evaluate.tables import wilson_interval

TEST_SECONDS = 1800.0  # of an instance's tests, as SWE-bench's own harness has it
RESULTS, TABLE, SCORES = "results.json", "table.md", "scores.json"
SCORE_NAME = "SWE-bench Pass@1"
_NOT_IMPORTED, _PATCHED = "not_imported", "davinci_patched"
_OF_ROW = ("base_commit", "problem_statement", "patch", "test_patch")  # that a task has as its row has them

TrajectoryRecord = dict[str, Any]


@dataclass(frozen=True)
class SweBench:
    """The instances that are evaluated. `envs` is what import makes of `file`, and made here where it is not there,
    from `trees` or `clones`. Rows of `patched` stand in place of the file's own."""

    file: Path
    envs: Path
    trees: Path | None = None
    clones: tuple[Path, ...] = ()
    patched: Path | None = None
    instances: tuple[str, ...] = ()

    def rows(self) -> dict[str, TrajectoryRecord]:
        """The rows that are evaluated, by instance, those of `patched` marked. Raises InputError for a file without
        instances, or for one that is not in it."""
        found = _read(self.file)
        if missing := sorted(set(self.instances) - set(found)):
            raise InputError(f"--instance {missing[0]} is not in {self.file}")
        replaced = _read(self.patched) if self.patched else {}
        if unknown := sorted(set(replaced) - set(found)):
            raise InputError(f"{self.patched} has {unknown[0]}, which is not in {self.file}")
        found |= {name: {**row, _PATCHED: True} for name, row in replaced.items()}
        return {name: found[name] for name in sorted(set(self.instances) or found)}

    def import_job(self, sandbox: str, without: tuple[str, ...]) -> ImportEnvironmentsJob:
        """What makes `envs`."""
        files = (*((self.patched,) if self.patched else ()), self.file)  # of two rows the first one is taken
        names = tuple(dict.fromkeys(self.instances))
        return ImportEnvironmentsJob(self.clones, self.trees, sandbox, 2, without, files, names)

    def unavailable(self, ids: Iterable[str]) -> dict[str, list[str]]:
        """Reason -> instances that cannot run here, such as those whose gold patch fails."""
        there = set(TaskCollection(self.envs).ids())
        rejected = self.envs / "rejected.jsonl"
        lines = read_jsonl(rejected) if rejected.exists() else ()
        reasons = {str(line.get("id")): str(line["reason"]) for line in lines}
        found: dict[str, list[str]] = defaultdict(list)
        for name in ids:
            if name not in there:
                found[reasons.get(name, _NOT_IMPORTED)].append(name)
        return dict(found)

    def check_rows(self, rows: Mapping[str, TrajectoryRecord]) -> None:
        """Raise InputError where `envs` was made of other rows."""
        collection = TaskCollection(self.envs)
        for name in sorted(set(rows) & set(collection.ids())):
            task, row = collection.task(name), Task.from_json(rows[name])
            same = all(getattr(task, field).strip() == getattr(row, field).strip() for field in _OF_ROW)
            lists = ((task.fail_to_pass, row.fail_to_pass), (task.pass_to_pass, row.pass_to_pass))
            if not same or any(theirs and not set(ours) <= set(theirs) for ours, theirs in lists):
                raise InputError(f"{self.envs} was made of another row of {name}: name another directory with --envs")


def _read(path: Path) -> dict[str, TrajectoryRecord]:
    """Rows by instance, with what is needed of them. Raises InputError."""
    found: dict[str, TrajectoryRecord] = {}
    for number, row in enumerate(read_rows(path), 1):
        if not isinstance(row.get("instance_id"), str):
            raise InputError(f"{path}, row {number} has no instance_id: give SWE-bench's Parquet or JSON Lines")
        found[row["instance_id"]] = {name: value for name, value in row.items() if name != "install_config"}
    if not found:
        raise InputError(f"{path} holds no instance")
    return found


def evaluate_swe_bench(
    benchmark: SweBench, job: RolloutsJob, out: Path, step: int | None, quiet: bool = False
) -> dict[str, Any]:
    """Run what is missing, and write the results; returns them. Killed, and started again, it goes on.

    `step`: of the checkpoint that is evaluated, for OUT/scores.json. Raises InputError.
    """
    with only_writer(out / RESULTS):
        if (out / RESULTS).exists():
            raise InputError(f"{out} exists; remove it, or choose another place")
        rows = benchmark.rows()
        ids, patched = list(rows), [name for name, row in rows.items() if row.get(_PATCHED)]
        if not benchmark.envs.exists():
            made = benchmark.import_job(job.sandbox, job.without)
            run_job(made, benchmark.envs, "candidates", 1, 1, "local", [], quiet)
        benchmark.check_rows(rows)
        there = [name for name in ids if name in set(TaskCollection(benchmark.envs).ids())]
        if not there:
            raise InputError(f"none of {len(ids)} instances can run here: see {benchmark.envs}/rejected.jsonl")
        job = replace(job, instances=tuple(there), test_limits=replace(TEST_LIMITS, seconds=TEST_SECONDS))
        rollouts = out / "rollouts"
        if not rollouts.exists():
            run_job(job, rollouts, "rollouts", 1, 1, "local", [], quiet)
        records = list(_slim(read_records(rollouts)))
        _check_made_by(job, records, rollouts)
        results = summarize_runs(records, ids, benchmark.unavailable(ids), patched)
        _write_runs(records, ids, out)
        if step is not None and results["pass_at_1"] is not None:
            write_json(out / SCORES, {SCORE_NAME: {str(step): results["pass_at_1"]}})
        (out / TABLE).write_text(results_table([results]))
        write_json(out / RESULTS, results)
    return results


def _slim(records: Iterator[TrajectoryRecord]) -> Iterator[TrajectoryRecord]:
    """Records without what was said: thousands of them are held."""
    for record in records:
        yield {key: value for key, value in record.items() if key not in ("messages", "tools", "patch", "patch_base64")}


def _check_made_by(job: RolloutsJob, records: Sequence[TrajectoryRecord], rollouts: Path) -> None:
    wanted = job.settings()
    made_with = {name: value for name, value in records[0]["settings"].items() if name in wanted}
    names = {record["instance_id"] for record in records}
    if made_with != wanted or names != set(job.instances) or len(records) != len(names) * job.rollouts:
        raise InputError(f"{rollouts} was made with other options, or of other instances: name another --out")


def summarize_runs(
    records: Sequence[TrajectoryRecord],
    ids: Sequence[str],
    unavailable: Mapping[str, Sequence[str]],
    patched: Sequence[str],
) -> dict[str, Any]:
    """The figures of all runs. A rollout whose environment failed says nothing about the model: it is left out of the
    shares, and counted. `context_refused`: rollouts whose server has less context than the limit says. The interval is
    Wilson's at 95%, with instances as its units.
    """
    runs = _by(records, "rollout")
    shares = [share for run in runs.values() if (share := _share(run)) is not None]
    settings = records[0]["settings"]
    known = [share for group in _by(records, "instance_id").values() if (share := _share(group)) is not None]
    low, high = wilson_interval(sum(known), len(known))
    return {
        "name": _row_name(settings, len(runs)),
        "model": settings["model"],
        "settings": {**settings, "runs": len(runs)},
        "instances": len(ids),
        "judged_instances": len(known),
        "pass_at_1": _mean(shares),
        "pass_at_1_interval": [low, high],
        "pass_at_1_spread": _spread(shares),
        "pass_at_1_of_all_instances": sum(map(_resolved, runs.values())) / (len(ids) * len(runs)),
        "runs": {
            str(number): {"resolved": _resolved(run), "judged": len(_judged(run)), "pass_at_1": _share(run)}
            for number, run in runs.items()
        },
        "repositories": {
            name: {"instances": len(_by(group, "instance_id")), "pass_at_1": _share(group)}
            for name, group in _by(records, "repo").items()
        },
        "outcomes": dict(Counter(record["outcome"] for record in records).most_common()),
        "ended_by": dict(Counter(record["exit_status"] for record in records).most_common()),
        "unavailable": {reason: sorted(names) for reason, names in sorted(unavailable.items())},
        "not_judged": sorted({r["trajectory_id"] for r in records if r["outcome"] == "environment"}),
        "patched": list(patched),
        "context_refused": sum(
            r["exit_status"] == "context" and r["usage"]["context_tokens"] < settings["context_tokens"] for r in records
        ),
        "replies_without_usage": sum(not step["usage"]["prompt_tokens"] for r in records for step in r["steps"]),
        "mean_steps": sum(len(record["steps"]) for record in records) / len(records),
        "completion_tokens": sum(record["usage"]["completion_tokens"] for record in records),
    }


def _by(records: Sequence[TrajectoryRecord], key: str) -> dict[Any, list[TrajectoryRecord]]:
    found: dict[Any, list[TrajectoryRecord]] = defaultdict(list)
    for record in records:
        found[record[key]].append(record)
    return dict(sorted(found.items()))


def _judged(records: Sequence[TrajectoryRecord]) -> list[TrajectoryRecord]:
    return [record for record in records if record["outcome"] != "environment"]


def _resolved(records: Sequence[TrajectoryRecord]) -> int:
    return sum(record["outcome"] == "resolved" for record in records)


def _share(records: Sequence[TrajectoryRecord]) -> float | None:
    """None where nothing was judged."""
    judged = _judged(records)
    return _resolved(judged) / len(judged) if judged else None


def _mean(shares: Sequence[float]) -> float | None:
    """None where nothing was judged."""
    return sum(shares) / len(shares) if shares else None


def _spread(shares: Sequence[float]) -> float | None:
    """The standard deviation over runs, None where there is but one."""
    return statistics.stdev(shares) if len(shares) > 1 else None


def _row_name(settings: Mapping[str, Any], runs: int) -> str:
    """A model with all that its figure depends on."""
    context = settings["context_tokens"]
    length = f"{context // 1024}k" if context % 1024 == 0 else f"{context:,} tokens"
    temperature = f"temperature {settings['temperature']:g}"
    of = "1 run" if runs == 1 else f"{runs} runs"
    return f"{settings['model']} ({settings['steps']} steps, {temperature}, {length} context, {of})"


def _write_runs(records: Sequence[TrajectoryRecord], ids: Sequence[str], out: Path) -> None:
    for number, run in _by(records, "rollout").items():
        folder = out / f"run-{number}"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(out / "rollouts" / PREDICTIONS / f"{number}.jsonl", folder / "predictions.jsonl")
        verdicts = [_reported(record) for record in run]
        write_json(folder / "report.json", run_report(ids, verdicts, [record["instance_id"] for record in run]))


def _reported(record: TrajectoryRecord) -> Verdict:
    """A verdict that counts as the rollout does."""
    verdict = Verdict(**record["verdict"])
    return replace(verdict, status="infrastructure") if record["outcome"] == "environment" else verdict


def read_results(folder: Path) -> dict[str, Any]:
    """What an evaluation wrote. Raises InputError."""
    path = folder / RESULTS
    if not path.is_file():
        raise InputError(f"{folder} holds no {RESULTS}: make it with davinci eval swe-bench")
    held = read_json(path)
    if not isinstance(held, dict) or "pass_at_1_interval" not in held:
        raise InputError(f"{path} is of another evaluation: give what davinci eval swe-bench made")
    return held


def results_table(results: Sequence[Mapping[str, Any]]) -> str:
    """A row for each evaluation, as Markdown."""
    lines = [
        "| model | Pass@1 | 95% interval | spread over runs | judged | not available here | patched |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in results:
        low, high = each["pass_at_1_interval"]
        spread = "" if each["pass_at_1_spread"] is None else f"{100 * each['pass_at_1_spread']:.1f}"
        missing = sum(len(names) for names in each["unavailable"].values())
        cells = (
            each["name"],
            "none judged" if each["pass_at_1"] is None else f"{100 * each['pass_at_1']:.1f}%",
            f"{100 * low:.1f} to {100 * high:.1f}",
            spread,
            f"{each['judged_instances']} of {each['instances']}",
            str(missing),
            str(len(each["patched"])),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

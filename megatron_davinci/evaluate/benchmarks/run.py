"""`davinci eval benchmarks`: ask all models all questions, score the answers, write the tables.

Asking and scoring are apart. OUT/answers grows line by line and is gone on with; OUT/scores, results.json and table.md
are made of it anew each time, so that adding a model, a task or a leakage report asks nobody anything twice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.io.errors import InputError
from data_prep.io.files import only_writer, part_of, publish, write_json
from data_prep.io.progress import counter
from megatron_davinci.evaluate.benchmarks.answers import (
    ANSWERS_FOLDER,
    MODELS_FILE,
    AnswerStore,
    AskedQuestion,
    Asking,
    SamplingOptions,
    ask_for,
    read_models,
)
from megatron_davinci.evaluate.benchmarks.exclusions import Exclusions
from megatron_davinci.evaluate.benchmarks.results import ScoredAnswer, compared, task_results
from megatron_davinci.evaluate.benchmarks.table import benchmark_table
from megatron_davinci.evaluate.tasks.code_runs import CodeRuns
from megatron_davinci.evaluate.tasks.data import TaskData, task_files
from megatron_davinci.evaluate.tasks.registry import BENCHMARK_TASKS
from megatron_davinci.evaluate.tasks.task import AnswerScore, AnswerText, BenchmarkTask, Question, ScoringTools
from megatron_davinci.evaluate.text_models.open import Engines, NamedModel, open_model

BENCHMARK_RESULTS, _TABLE, SCORES_FOLDER, _CURVES = "results.json", "table.md", "scores", "scores.json"

_Scored = Mapping[tuple[str, str], Sequence[ScoredAnswer]]
"""By model and task."""


@dataclass(frozen=True)
class BenchmarkRun:
    """The options of the command. `limit`: the first so many questions of each task."""

    tasks: Sequence[BenchmarkTask]
    data: Path
    out: Path
    models: Sequence[NamedModel]
    sampling: SamplingOptions
    engines: Engines
    exclude: Sequence[Path] = ()
    limit: int | None = None
    rescore: bool = False
    sandbox: str = "bubblewrap"
    without: tuple[str, ...] = ()
    unsafe: bool = False
    quiet: bool = False

    def run(self) -> dict[str, Any]:
        """Ask what was not asked yet, score, write; returns results.json. Raises InputError and WorkFailed."""
        self._check()
        with only_writer(self.out / BENCHMARK_RESULTS):
            read = [TaskData.read(task, self.data) for task in self.tasks]
            exclusions = self._exclusions(read)
            states = {each.task.name: exclusions.states(each) for each in read}
            identities = self._identify()
            weights = {name: each["weights"] for name, each in identities.items()}
            code = CodeRuns(self.out / "sandbox", None, self.sandbox, self.without, self.unsafe)
            try:
                if any(task.runs_code for task in self.tasks):
                    code.check()  # before anybody is asked
                broken = {each.task.name: each.task.broken(self._chosen(each), ScoringTools(code)) for each in read}
                for model in self.models:
                    self._ask(model, weights[model.name], read)
                scored = {
                    (model.name, each.task.name): self._score(
                        model, weights[model.name], each, states[each.task.name], code
                    )
                    for model in self.models
                    for each in read
                }
            finally:
                code.close()
            results = self._results(read, identities, broken, scored)
            self._write(read, results, scored)
        return results

    def _check(self) -> None:
        self.engines.check()
        if not self.tasks:
            raise InputError(f"--tasks names none: give some of {', '.join(BENCHMARK_TASKS.names())}")
        if not self.models:
            raise InputError("no model is named: give --model NAME=CHECKPOINT")
        if not math.isfinite(self.sampling.temperature):
            raise InputError(f"--temperature is {self.sampling.temperature}: it must be a number")
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out} is a file: name a directory")
        if self.sampling.samples > 1 and not self.sampling.temperature:
            raise InputError(
                f"--samples is {self.sampling.samples} at temperature 0, where all are one: raise --temperature"
            )

    def _exclusions(self, read: Sequence[TaskData]) -> Exclusions:
        """The reports, on what is asked and on what that inherits from."""
        asked = {each.task.name for each in read}
        parents = {each.task.inherits_exclusions_of for each in read} - asked - {None}
        found = [BENCHMARK_TASKS.get(str(name))() for name in sorted(map(str, parents))] if self.exclude else []
        return Exclusions(
            self.exclude, [*read, *(TaskData.read(t, self.data) for t in found if task_files(t, self.data))]
        )

    def _identify(self) -> dict[str, dict[str, str]]:
        """Name -> what was given, and whose answers they are. Raises InputError for a name under which another model,
        or another engine, has answered."""
        known = read_models(self.out)
        if self.rescore:
            if missing := [model.name for model in self.models if model.name not in known]:
                raise InputError(f"{self.out} has no answers of {missing[0]}: leave --rescore out to ask it")
            return known
        found = {}
        for model in self.models:
            weights = f"{model.fingerprint()} {self.engines.engine_of(model)}"
            before = known.get(model.name, {}).get("weights", weights)
            if before != weights and (self.out / ANSWERS_FOLDER / model.name).is_dir():
                raise InputError(
                    f"{self.out} has answers of another model, or by another engine, named {model.name}: give this one "
                    "another name"
                )
            found[model.name] = {"model": model.given, "weights": weights}
        write_json(self.out / ANSWERS_FOLDER / MODELS_FILE, {**known, **found})
        return found

    def _chosen(self, data: TaskData) -> Sequence[Question]:
        return data.questions[: self.limit]

    def _asked(self, data: TaskData, weights: str) -> list[AskedQuestion]:
        numbers = range(self.sampling.samples)
        return [ask_for(data.task, each, n, self.sampling, weights) for each in self._chosen(data) for n in numbers]

    def _ask(self, model: NamedModel, weights: str, read: Sequence[TaskData]) -> None:
        """Ask a model what it was not asked yet, of all tasks; it is loaded only where there is something."""
        with Asking(self.out, model.name, not self.rescore) as asking:
            for each in read:
                asking.add(each.task.name, self._asked(each, weights))
            if not asking.requests:
                return
            if self.rescore:
                raise InputError(
                    f"{len(asking.requests):,} questions were not asked of {model.name} as these settings ask them: "
                    "leave --rescore out"
                )
            label = f"answers of {model.name}"
            with counter(label, len(asking.requests), quiet=self.quiet) as count, open_model(model, self.engines) as it:

                def keep(number: int, answer: AnswerText) -> None:
                    asking.keep(number, answer)
                    count(1)

                it.answer(asking.requests, keep)

    def _score(
        self, model: NamedModel, weights: str, data: TaskData, states: Mapping[str, Any] | None, code: CodeRuns
    ) -> list[ScoredAnswer]:
        store = AnswerStore(self.out, model.name, data.task.name)
        asked = self._asked(data, weights)
        answers = [store.get(each) for each in asked]
        pairs = [
            (each.question, answer)
            for each, answer in zip(asked, answers, strict=True)
            if answer and answer.finish != "no_room"
        ]
        label = f"scores of {model.name} on {data.task.name}"
        with counter(label, len(pairs), quiet=self.quiet) as count:
            scores = data.task.scores(pairs, ScoringTools(code, self.sampling.chat, count))
            found = []
            for each, answer in zip(asked, answers, strict=True):
                assert answer is not None
                score = AnswerScore("no_room") if answer.finish == "no_room" else next(scores)
                found.append(ScoredAnswer(each, answer, score, states[each.question.id] if states else None))
        return found

    def _results(
        self,
        read: Sequence[TaskData],
        identities: Mapping[str, Mapping[str, str]],
        broken: Mapping[str, Mapping[str, str]],
        scored: _Scored,
    ) -> dict[str, Any]:
        base, *others = self.models
        tasks = {}
        for data in read:
            name = data.task.name
            of = {model.name: scored[model.name, name] for model in self.models}
            tasks[name] = {
                "title": data.task.title,
                "own_solutions_fail": dict(broken[name]),
                "models": {model: task_results(data, each, self.sampling) for model, each in of.items()},
                "differences": {each.name: compared(of[base.name], of[each.name], self.sampling) for each in others},
            }
        return {
            "models": {model.name: identities[model.name] for model in self.models},
            "base": base.name,
            "sampling": vars(self.sampling),
            "limit": self.limit,
            "leakage_reports": [str(path) for path in self.exclude],
            "unsafe": self.unsafe,
            "tasks": tasks,
        }

    def _write(self, read: Sequence[TaskData], results: dict[str, Any], scored: _Scored) -> None:
        for data in read:
            for model in self.models:
                lines = [each.as_line(data.task.may_be_shown) for each in scored[model.name, data.task.name]]
                content = b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)
                _replace(self.out / SCORES_FOLDER / model.name / f"{data.task.name}.jsonl", content)
        curves = {} if self.limit else _curves(self.models, results)
        (self.out / _CURVES).unlink(missing_ok=True)
        if curves:
            write_json(self.out / _CURVES, curves)
        _replace(self.out / _TABLE, benchmark_table(results).encode())
        write_json(self.out / BENCHMARK_RESULTS, results)


def _replace(path: Path, content: bytes) -> None:
    """Write a file anew, which appears by rename: it is made of the answers, which are what is kept."""
    part = part_of(path)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    publish(part, path)


def _curves(models: Sequence[NamedModel], results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Title -> step -> share, of the models that are checkpoints of ours, for `davinci eval checkpoints --scores`.

    Where two models are of one step, each has a curve of its own.
    """
    steps = {model.name: step for model in models if (step := model.step()) is not None}
    twice = len(set(steps.values())) < len(steps)
    found: dict[str, dict[str, float]] = {}
    for name, step in steps.items():
        for task in results["tasks"].values():
            share = task["models"][name]["rows"]["all"]["share"]
            if share is not None:
                title = f"{task['title']}, {name}" if twice else task["title"]
                found.setdefault(title, {})[str(step)] = share
    return found

"""One cell of the grid: a method with a seed, trained alone, and what came out as one JSON file."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import machine
from xxhash import xxh3_64_hexdigest

from data_prep.corpus import Corpus
from data_prep.io.files import read_jsonl, write_json
from megatron_davinci.report.metrics_file import read_metrics
from megatron_davinci.rl.answers import read_response
from study.commands import davinci, train

Recipe = dict[str, Any]
METHODS = ("base", "format", "format-free", "ntp", "rpt", "rmt", "rmt-no-budget", "rmt-no-curriculum", "rmt-no-ntp")
UNTRAINED = METHODS[:3]
ASKED_FREELY = ("format-free", "rpt", "rmt-no-budget")
"""Methods whose prompt names no budget, in training as in the test."""
TEMPERATURES = (0.0, 0.7)
"""The likeliest tokens, and as in training."""
DOCUMENTS = 64  # whose positions are answered together; the time of that is a batch's
CURVES = (
    "loss", "reward", "accuracy", "accuracy_easy", "accuracy_medium", "accuracy_hard", "thought_tokens", "budget",
    "zero_accuracy_variance_fraction", "unclosed_fraction", "policy_entropy", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What all cells of a model share. `recipe`: (method, seed, directory of the run) -> a recipe to train, or to ask
    by; `problems`: (weights, seed, directory of the run) -> one of reinforcement on problems, for the checkpoints of
    `post_trained`; `positions` of each difficulty in the corpus `held_out`; `source`, a field of its JSON Lines, tells
    which of its texts belong together; `folder` has what `prepare` makes."""

    name: str
    folder: Path
    prepare: Callable[[], None]
    recipe: Callable[[str, int, Path], Recipe]
    positions: int
    methods: Sequence[str] = METHODS
    seeds: int = 1
    post_trained: Sequence[str] = ()
    problems: Callable[[Path, int, Path], Recipe] | None = None
    held_out: str = "test"
    source: str | None = None


def run_cell(setting: Setting, method: str, seed: int, results: Path) -> None:
    """Write RESULTS/METHOD-SEED.json, unless it is there."""
    path = results / f"{method}-{seed}.json"
    if path.exists():
        return
    run = setting.folder / "runs" / f"{method}-{seed}"
    recipe = setting.recipe(method, seed, run)
    weights = setting.folder / method.removesuffix("-free")
    if method not in UNTRAINED:
        train(recipe)
        weights = run
    asked = setting.recipe(_asks(method), 0, setting.folder / "runs/asked")
    found = {
        f"{temperature:g}": _next_tokens(setting, asked, weights, temperature, run) for temperature in TEMPERATURES
    }
    facts = {"method": method, "seed": seed, "recipe": recipe, "asked_by": asked["objective"], "next_token": found}
    _write(path, setting, facts, recipe, run)


def run_post_training(setting: Setting, method: str, seed: int, results: Path) -> None:
    """Write RESULTS/grpo-METHOD-SEED.json: problems before and after reinforcement from a cell's checkpoint."""
    path = results / f"grpo-{method}-{seed}.json"
    if path.exists():
        return
    start = setting.folder / "format"
    if method not in UNTRAINED:
        start = setting.folder / "runs" / f"{method}-{seed}"
        train(setting.recipe(method, seed, start))  # nothing, where it is kept
    run = setting.folder / "runs" / f"grpo-{method}-{seed}"
    assert setting.problems is not None
    recipe = setting.problems(start, seed, run)
    train(recipe)
    found = {
        f"{temperature:g}": _solved(setting, recipe, {"before": start, "after": run}, temperature, run)
        for temperature in TEMPERATURES
    }
    _write(path, setting, {"method": method, "seed": seed, "recipe": recipe, "problems": found}, recipe, run)


def _asks(method: str) -> str:
    """The method by whose recipe a model is asked."""
    return "rpt" if method in ASKED_FREELY else "rmt"


def _next_tokens(setting: Setting, recipe: Recipe, weights: Path, temperature: float, run: Path) -> dict[str, Any]:
    """Every position's outcome, compactly: a character for each position, lengths with spaces between."""
    held_out = setting.folder / setting.held_out
    out = _ask(
        "next-token",
        recipe,
        held_out,
        {"cell": weights},
        temperature,
        run,
        "--positions",
        str(setting.positions),
        "--documents",
        str(DOCUMENTS),
    )
    lines = list(read_jsonl(out / "cell.jsonl.zst"))
    summary = json.loads((out / "results.json").read_text())["models"]["cell"]
    shutil.rmtree(out)
    documents = [line["position"]["document"] for line in lines]
    return {
        "corpus": Corpus(held_out).checksum,
        "documents": _numbers(documents),
        "positions": _numbers(line["position"]["position"] for line in lines),
        "sources": _numbers(_sources(setting)[document] for document in documents),
        "levels": _bits(line["position"]["level"] for line in lines),
        **{name: _bits(line[name] for line in lines) for name in ("direct", "reasoned", "closed")},
        "answered": _bits(_answer(line) is not None for line in lines),
        "copied": _bits(_is_copied(line) for line in lines),
        "thought_tokens": _numbers(line["thought_tokens"] for line in lines),
        "response_tokens": _numbers(line["response_tokens"] for line in lines),
        "seconds_per_batch": summary["seconds_per_batch"],
    }


def _answer(line: Mapping[str, Any]) -> bytes | None:
    return read_response([line["response"].encode()], first=True).answer


def _is_copied(line: Mapping[str, Any]) -> bool:
    """Whether the answer is what the thought begins with."""
    answer = _answer(line)
    return bool(answer) and line["response"].encode().startswith(answer)


def _sources(setting: Setting) -> list[int]:
    """The source of each held-out text, by number; texts that name none are sources of their own."""
    lines = list(read_jsonl(setting.folder / f"{setting.held_out}.jsonl"))
    if setting.source is None:
        return list(range(len(lines)))
    numbers: dict[str, int] = {}
    return [numbers.setdefault(line[setting.source], len(numbers)) for line in lines]


def _numbers(values: Iterable[int]) -> str:
    return " ".join(map(str, values))


def _bits(values: Iterable[int]) -> str:
    return "".join(str(int(value)) for value in values)


def _solved(
    setting: Setting, recipe: Recipe, models: Mapping[str, Path], temperature: float, run: Path
) -> dict[str, Any]:
    """Every held-out problem's outcome of each model."""
    corpus = setting.folder / "problems-held-out"
    out = _ask("problems", recipe, corpus, models, temperature, run)
    found: dict[str, Any] = {"corpus": Corpus(corpus).checksum}
    for name in models:
        lines = list(read_jsonl(out / f"{name}.jsonl.zst"))
        found["difficulties"] = "".join(str(line["difficulty"]) for line in lines)
        found[name] = {
            "correct": _bits(bool(line["correct"]) for line in lines),
            "finished": _bits(line["finished"] for line in lines),
            "tokens": _numbers(line["tokens"] for line in lines),
        }
    shutil.rmtree(out)
    return found


def _ask(
    command: str, recipe: Recipe, corpus: Path, models: Mapping[str, Path], temperature: float, run: Path, *more: str
) -> Path:
    out = run.with_name(f"{run.name}-asked")
    shutil.rmtree(out, ignore_errors=True)
    path = run.with_name(f"{run.name}-asked.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe))  # JSON is YAML
    named = [word for name, directory in models.items() for word in ("--model", f"{name}={directory}")]
    davinci("eval", command, path, "--corpus", corpus, "--out", out, "--temperature", f"{temperature:g}", *named, *more)
    return out


def _write(path: Path, setting: Setting, facts: dict[str, Any], recipe: Recipe, run: Path) -> None:
    """Keep a cell's result; the paths of this machine stay out of it."""
    steps = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    names = [name for name in CURVES if any(name in step for step in steps)]
    blend = [Path(entry["corpus"]) for stage in recipe["data"]["stages"] for entry in stage["blend"]]
    facts = {
        "setting": setting.name,
        **facts,
        "curves": {name: [_rounded(step.get(name)) for step in steps] for name in names},
        "training_seconds": round(sum(step["seconds"] for step in steps), 1) if steps else None,
        "format": xxh3_64_hexdigest((setting.folder / "format/model.safetensors").read_bytes()),
        "corpora": {corpus.name: Corpus(corpus).checksum for corpus in blend},
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "megatron-core", "megatron-davinci")},
    }
    text = json.dumps(facts).replace(str(setting.folder.resolve()), "WORK").replace(str(Path.cwd()), "PROJECT")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, json.loads(text))


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value

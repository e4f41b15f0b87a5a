"""The sections of a run's report that are made of its metrics. Torch-free."""

from collections.abc import Callable, Sequence

from megatron_davinci.report.alarms import alarms_of
from megatron_davinci.report.blocks import Bars, Cell, Chart, ChartCurve, PageSection, Paragraph, ShownNumber, Table
from megatron_davinci.report.curriculum_curves import budget_curves, mix_curves
from megatron_davinci.report.metric_fields import find_field
from megatron_davinci.report.numbers import at_end, at_first, at_step, median_of, shown, summed
from megatron_davinci.report.run_data import RunData
from megatron_davinci.rl.difficulty import LEVEL_NAMES

Runs = Sequence[RunData]
_INSIDE = ("reduce_gradients",)  # phases that are part of another one
_EXTRA = ("component_norms", "evaluation", "checkpoint", "answers", "report")  # and that are no part of `seconds`


def run_summary(runs: Runs) -> PageSection:
    """How far each run is, whether anything is wrong, and the numbers that people ask for first."""
    blocks: list[object] = []
    for run in runs:
        alarms = alarms_of(run)
        said = f"{_of(run, runs)}{_state(run)}; {_alarms(len(alarms))}."
        blocks += [Paragraph(said[0].upper() + said[1:] if len(runs) == 1 else said), *alarms]
    return PageSection("Summary", [*blocks, Table(["", *(run.name for run in runs)], _summary_rows(runs))])


def _alarms(count: int) -> str:
    return "no alarm" if not count else "one alarm" if count == 1 else f"{count} alarms"


def _state(run: RunData) -> str:
    last, planned = run.steps[-1]["step"], run.num_steps
    if planned is None:
        return f"after step {last}"
    return f"finished after {last} steps" if last >= planned else f"after step {last} of {planned}"


_SUMMARY: tuple[tuple[str, Callable[[RunData], Cell]], ...] = (
    ("loss at first", lambda run: at_first(run, "loss")),
    ("loss, last steps", lambda run: at_end(run, "loss")),
    ("reward at first", lambda run: at_first(run, "reward")),
    ("reward, last steps", lambda run: at_end(run, "reward")),
    ("accuracy at first", lambda run: at_first(run, "accuracy")),
    ("accuracy, last steps", lambda run: at_end(run, "accuracy")),
    ("response length, last steps", lambda run: at_end(run, "response_tokens")),
    ("truncated, last steps", lambda run: at_end(run, "truncated_fraction")),
    ("tokens of documents consumed", lambda run: at_step(run, "consumed_tokens", run.steps[-1]["step"])),
    ("epochs of the last stage", lambda run: at_step(run, "epoch", run.steps[-1]["step"])),
    ("tokens/s, median", lambda run: median_of(run, "tokens_per_second")),
    ("TFLOP/s per rank, median", lambda run: median_of(run, "tflops_per_second_per_rank")),
    ("MFU, median", lambda run: median_of(run, "mfu")),
    ("time in steps", lambda run: summed(run, "seconds")),
    ("hours in steps, times ranks", lambda run: _rank_hours(run)),
    ("most memory of the main rank", lambda run: at_step(run, "peak_memory_bytes", run.steps[-1]["step"])),
)


def _summary_rows(runs: Runs) -> list[list[Cell]]:
    rows: list[list[Cell]] = [[name, *(of(run) for run in runs)] for name, of in _SUMMARY]
    return [row for row in rows if any(cell is not None for cell in row[1:])]


def _rank_hours(run: RunData) -> ShownNumber | None:
    """Cost: seconds of each step times the ranks of the start that it belongs to."""
    if not run.starts:
        return None
    total = 0.0
    for step, seconds in run.values("seconds"):
        # the last start before a step is the one whose line it is: a run may have gone back
        ranks = next((start.ranks for start in reversed(run.starts) if start.step < step), run.starts[0].ranks)
        total += seconds * ranks / 3600
    return ShownNumber(total, f"{total:.3g}", f"{run.name}/metrics.jsonl: seconds, times ranks, in hours")


def run_loss(runs: Runs) -> PageSection | None:
    """What is minimized, by corpus too, and the update."""
    return _section(
        "Loss and update",
        [
            _chart("loss", runs, ("loss",)),
            _by_corpus("loss by corpus", runs, "losses"),
            _chart("parts of the loss", runs, ("policy_loss", "ntp_loss", "kl")),
            _chart("gradient norm", runs, ("grad_norm", "grad_norm_policy", "grad_norm_ntp"), logarithmic=True),
            _chart("learning rate", runs, ("lr",)),
            _chart("clip fraction", runs, ("clip_fraction",)),
        ],
    )


def run_held_out(runs: Runs) -> PageSection | None:
    """Loss on documents that are never trained on, by corpus."""
    curves: list[ChartCurve] = []
    rows: list[list[Cell]] = []
    for run in runs:
        steps = [line.step for line in run.evaluations]
        axis = run.axis_at(steps)
        for name in dict.fromkeys(name for line in run.evaluations for name in line.losses):
            values = [line.losses.get(name) for line in run.evaluations]
            curves.append(ChartCurve(f"{_of(run, runs)}{name}", axis, values))
            ends = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
            if ends:
                cells = [
                    shown(value, "loss", f"{run.name}/evaluation.jsonl: losses of {name}, step {step}")
                    for step, value in (ends[0], ends[-1])
                ]
                rows.append([f"{_of(run, runs)}{name}", *cells])
    if not curves:
        return None
    return PageSection(
        "Held-out loss", [Chart("held-out loss", "nats", curves), Table(["corpus", "first", "last"], rows)]
    )


def run_reward(runs: Runs) -> PageSection | None:
    """What responses are worth, and which groups teach something."""
    return _section(
        "Reward",
        [
            _chart("reward", runs, ("reward", "length_reward")),
            _by_corpus("reward by corpus", runs, "rewards"),
            _chart("accuracy", runs, ("accuracy", *(f"accuracy_{level}" for level in LEVEL_NAMES))),
            _chart("groups without a difference", runs, ("zero_advantage_fraction", "zero_accuracy_variance_fraction")),
            _chart("entropy of the policy", runs, ("policy_entropy",)),
            _chart(
                "log-probabilities: engine against trainer",
                runs,
                ("rollout_log_prob_diff", "rollout_log_prob_diff_rms"),
            ),
        ],
    )  # fmt: skip


def run_curriculum(runs: Runs) -> PageSection | None:
    """What was asked for, and how long it was to be, beside what Eq. 1, 3 and 4 say."""
    budgets = [curve for run in runs for curve in budget_curves(run, _of(run, runs))]
    mixes = [curve for run in runs for curve in mix_curves(run, _of(run, runs))]
    charts = [
        Chart("budget and length of thoughts", "tokens", budgets) if budgets else None,
        Chart("difficulty of prompts, and the curriculum (dashed)", "share", mixes) if mixes else None,
        _chart("what could not be asked", runs, ("empty_levels", "unboxable_positions", "documents_without_prompt")),
    ]
    return _section("Curriculum and budget", charts)


def run_lengths(runs: Runs) -> PageSection | None:
    """How long responses are, and how many were cut off."""
    return _section(
        "Lengths and truncation",
        [
            _chart("length", runs, ("response_tokens", "thought_tokens")),
            _chart("cut off, or never closed", runs, ("truncated_fraction", "unclosed_fraction")),
            _chart("response tokens in a step", runs, ("policy_tokens",)),
        ],
    )


def run_time(runs: Runs) -> PageSection | None:
    """Where seconds go."""
    bars = [block for run in runs if (block := _phases(run, runs)) is not None]
    charts = [
        _chart("seconds of a step", runs, ("seconds",)),
        _chart("tokens/s", runs, ("tokens_per_second", "rollout_tokens_per_second")),
        _chart("TFLOP/s per rank", runs, ("tflops_per_second_per_rank",)),
        _chart("MFU", runs, ("mfu",)),
        _chart("slowest rank over the median", runs, ("slowest_over_median",)),
        _chart("memory of the main rank", runs, ("peak_memory_bytes",)),
    ]
    found = _section("Where seconds go", charts)
    return None if found is None else PageSection(found.title, [*bars, *found.blocks])


def _phases(run: RunData, runs: Runs) -> Bars | None:
    """Seconds by phase over the whole run."""
    names = [name for name in run.metrics() if name.startswith("seconds_")]
    rows = []
    for name in names:
        phase, total = name.removeprefix("seconds_"), summed(run, name)
        if total is not None:
            rows.append((phase + _place_of(phase), total))
    rows.sort(key=lambda row: -row[1].value)
    return Bars(f"{_of(run, runs)}seconds by phase, all steps", rows) if rows else None


def _place_of(phase: str) -> str:
    if phase in _INSIDE:
        return " (in forward_backward)"
    return " (not part of a step)" if phase in _EXTRA else ""


def run_data(runs: Runs) -> PageSection | None:
    """What steps consumed, and how well rows were filled."""
    return _section(
        "Packing",
        [
            _chart("padding", runs, ("padding_fraction",)),
            _chart("tokens of a step", runs, ("tokens", "labels")),
            _chart("prefix sharing ratio", runs, ("prefix_sharing_ratio",)),
            _chart("epochs of the blend", runs, ("epoch",)),
        ],
    )


def run_others(runs: Runs) -> PageSection | None:
    """Every metric that no other section shows: those of an objective of one's own."""
    names = dict.fromkeys(name for run in runs for name in run.metrics())
    rest = [name for name in names if find_field(name).group == "objective"]
    drawn = {name: _chart(name, runs, (name,)) or _by_corpus(name, runs, name) for name in rest}
    section = _section("Other metrics", list(drawn.values()))
    missing = [name for name, chart in drawn.items() if chart is None]
    if not missing:
        return section
    said = Paragraph(f"Not drawn, for they are no numbers: {', '.join(missing)}.")
    return PageSection("Other metrics", [said, *([] if section is None else section.blocks)])


def _section(title: str, charts: Sequence[Chart | None]) -> PageSection | None:
    """A section of the pictures that there is anything for."""
    drawn = [chart for chart in charts if chart is not None]
    return PageSection(title, drawn) if drawn else None


def _chart(title: str, runs: Runs, metrics: Sequence[str], logarithmic: bool = False) -> Chart | None:
    """A picture of what was measured of some metrics, each run a curve."""
    curves = [
        run.curve(metric, _label(run, runs, metric, alone=len(metrics) == 1))
        for metric in metrics
        for run in runs
        if run.values(metric)
    ]
    unit = "" if metrics == ("loss",) and any(run.learns_from_rollouts for run in runs) else find_field(metrics[0]).unit
    return Chart(title, unit, curves, logarithmic) if curves else None


def _by_corpus(title: str, runs: Runs, metric: str) -> Chart | None:
    curves = [run.curve(metric, f"{_of(run, runs)}{corpus}", corpus) for run in runs for corpus in run.corpora(metric)]
    return Chart(title, find_field(metric).unit, curves) if curves else None


def _label(run: RunData, runs: Runs, metric: str, alone: bool) -> str:
    words = metric.replace("_", " ")
    return words if len(runs) == 1 else run.name if alone else f"{run.name}: {words}"


def _of(run: RunData, runs: Runs) -> str:
    """Whose it is, where there are several."""
    return "" if len(runs) == 1 else f"{run.name}: "

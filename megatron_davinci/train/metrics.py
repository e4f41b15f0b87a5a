"""What a run reports: a line per step on the console, files, TensorBoard, Weights & Biases, and the page of it all."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xxhash import xxh3_64

from data_prep import InputError
from megatron_davinci.core import device
from megatron_davinci.core.step import StepResult
from megatron_davinci.models.flops import dense_peak, training_flops
from megatron_davinci.report.metric_fields import curve_names
from megatron_davinci.report.metrics_file import JsonLines
from megatron_davinci.report.rollouts import ROLLOUT_COLUMNS, rollout_rows
from megatron_davinci.report.starts_file import StartedStage, append_start
from megatron_davinci.report.write import write_run_report
from megatron_davinci.rl.scored_rollouts import read_scored, scored_steps
from megatron_davinci.train.prepare import RunState
from megatron_davinci.train.tensorboard_file import TensorBoardFile

_ROLLOUTS = 50  # responses in a table of Weights & Biases
_PROGRESS = (
    ("reward", "reward", "{:.3f}"),
    ("accuracy", "accuracy", "{:.1%}"),
    ("gain", "information_gain", "{:.3f}"),
    ("helpful", "helpful_fraction", "{:.1%}"),
    ("length", "response_tokens", "{:.1f}"),
    ("truncated", "truncated_fraction", "{:.1%}"),
)


class Metrics:
    """Reports of the main rank. A resumed run first drops the lines of the steps it repeats."""

    def __init__(self, run: RunState, end: int, num_ranks: int) -> None:
        self._run, self._end, self._num_ranks = run, end, num_ranks
        self._started = time.monotonic()
        self._directory = directory = Path(run.recipe.checkpoint.dir)
        directory.mkdir(parents=True, exist_ok=True)
        append_start(directory, run.recipe, run.step, _stages_of(run), num_ranks, device.name())
        self._steps = JsonLines(directory / "metrics.jsonl", run.step)
        self._evaluations = JsonLines(directory / "evaluation.jsonl", run.step)
        self._answers = JsonLines(directory / "answers.jsonl", run.step if run.step else -1)
        self._board = TensorBoardFile(directory / "tensorboard", first_step=run.step + 1)
        self._wandb = _open_wandb(run, directory)

    def report(
        self,
        step: int,
        stage: str,
        lr: float,
        result: StepResult,
        facts: dict[str, Any],
        seconds: float,
        phases: dict[str, float],
    ) -> None:
        """One finished step, and `facts` that its objective adds.

        `phases` also hold the evaluation and the checkpoint that came before it.
        """
        values: dict[str, Any] = {"loss": result.loss, "lr": lr, "grad_norm": result.grad_norm, **facts}
        values |= self._throughput(result, seconds)
        values |= {f"seconds_{phase}": spent for phase, spent in phases.items()}
        self._steps.write({"step": step, "stage": stage, **values})
        self._draw(curve_names(values), step)
        width, total = len(str(self._run.batches.num_steps)), self._run.batches.num_steps
        remaining = (time.monotonic() - self._started) / (step - self._run.step) * (self._end - step)
        self._say(
            f"step {step:>{width}}/{total}  {_progress(values)}  lr {lr:.2e}  grad norm {result.grad_norm:.3f}  "
            f"{values['tokens_per_second']:,.0f} tokens/s  {remaining:.0f} s left"
        )

    def report_evaluation(self, step: int, losses: dict[str, float]) -> None:
        """Held-out loss by source after a step."""
        self._evaluations.write({"step": step, "losses": losses})
        self._draw({f"held_out/{name}": loss for name, loss in losses.items()}, step)
        self._say(f"step {step}  held out  " + "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))

    def report_answers(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write lines of answers.jsonl."""
        for line in lines:
            self._answers.write(line)

    def report_checkpoint(self, step: int) -> None:
        """Write the page, and log rollouts, as far as `step`. What goes wrong with either is said, and ends no run."""
        if self._run.recipe.report.at_checkpoints:
            self._try("the report could not be written", lambda: write_run_report(self._directory))
        self._try("rollouts could not be logged", lambda: self._log_rollouts(step))

    def _try(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._say(
                f"{what}: {error}" if isinstance(error, InputError) else f"{what}: {type(error).__name__}: {error}"
            )

    def close(self) -> None:
        """Flush everything."""
        self._steps.close()
        self._evaluations.close()
        self._answers.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _draw(self, values: Mapping[str, float], step: int) -> None:
        """A point of each curve, by group/name, wherever curves are drawn."""
        self._board.write(values, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def _log_rollouts(self, step: int) -> None:
        """A table of the step's rollouts for Weights & Biases."""
        if self._wandb is None or step not in scored_steps(self._directory):
            return
        import wandb

        table = wandb.Table(
            columns=list(ROLLOUT_COLUMNS), data=rollout_rows(read_scored(self._directory, step), _ROLLOUTS)
        )
        self._wandb.log({"rollouts": table}, step=step)

    def _throughput(self, result: StepResult, seconds: float) -> dict[str, float]:
        """Tokens of documents, those that carry loss, and padding, apart; FLOPs of the model alone, per rank."""
        counts = result.counts
        flops = training_flops(self._run.model, counts.tokens, counts.squared_lengths, counts.labels)
        per_rank = flops / seconds / self._num_ranks
        values: dict[str, float] = {
            "tokens": counts.tokens,
            "labels": counts.labels,
            "padding_fraction": 1 - counts.tokens / counts.rows,
            "seconds": seconds,
            "tokens_per_second": counts.tokens / seconds,
            "tflops_per_second_per_rank": per_rank / 1e12,
        }
        stages = self._run.batches.stages
        peak, _ = dense_peak(device.name(), fp8=bool(stages[self._run.stage].recipe.megatron.fp8))
        if peak is not None:
            values["mfu"] = per_rank / peak
        values["peak_memory_bytes"] = device.peak_memory()
        return values

    @staticmethod
    def _say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _progress(values: Mapping[str, Any]) -> str:
    """What a step came to: the loss or, where responses were rewarded, what they were worth."""
    if not {"reward", "information_gain"} & values.keys():
        return f"loss {values['loss']:.4f}"
    return "  ".join(
        f"{word} {spelled.format(values[metric])}" for word, metric, spelled in _PROGRESS if metric in values
    )


def _stages_of(run: RunState) -> list[StartedStage]:
    return [
        StartedStage(
            name=stage.name,
            objective=stage.recipe.objective.kind,
            first_step=run.batches.first_step(index),
            steps=stage.num_batches,
        )
        for index, stage in enumerate(run.batches.stages)
    ]


def _open_wandb(run: RunState, directory: Path) -> Any:
    """A run of Weights & Biases that goes on where the same directory's was; None where the recipe names none."""
    options = run.recipe.wandb
    if options is None:
        return None
    import wandb

    return wandb.init(
        project=options.project,
        name=options.name or directory.name,
        id=xxh3_64(str(directory.absolute()).encode()).hexdigest(),
        resume="allow",
        dir=str(directory),
        config=run.recipe.model_dump(mode="json"),
    )

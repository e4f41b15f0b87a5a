"""Every field of a line of metrics.jsonl: its group, unit and meaning. Torch-free.

`docs/metrics.md` is made from this table, TensorBoard and Weights & Biases group their curves by it, and the report
takes titles and units from it. A metric that an objective of your own reports is of group `objective`.
"""

import re
import sys
from dataclasses import dataclass
from functools import cache

GROUPS = {
    "loss": "What is minimized.",
    "optimizer": "The update.",
    "reward": "What responses are worth.",
    "rollout": "The responses themselves.",
    "data": "What the step consumed.",
    "time": "Where the seconds went, and how fast it was.",
    "objective": "What an objective of your own reports.",
}


PHASES = {
    "data": "Reading documents, packing, and for rmt and grpo reading and grading rollouts.",
    "rollout": "The engine answers prompts.",
    "weight_sync": "Weights are sent to the engine, and proven to have arrived.",
    "reference": "The reference model scores the answers.",
    "grading": "Final answers are compared, where that takes processes of its own.",
    "forward_backward": "Forward and backward passes.",
    "reduce_gradients": "Reduction of gradients over ranks, inside forward_backward.",
    "optimizer": "Clipping and the update.",
    "component_norms": "Gradient norms of single losses; not part of `seconds`.",
    "evaluation": "Held-out loss, before this step; not part of `seconds`.",
    "checkpoint": "Checkpoints, as far as training waits for them, before this step; not part of `seconds`.",
    "answers": "The same prompts as at every checkpoint, before this step; not part of `seconds`.",
    "report": "The page, before this step; not part of `seconds`.",
}


@dataclass(frozen=True)
class MetricField:
    """`name` may hold a part in braces, which stands for one word: {phase}."""

    name: str
    group: str
    unit: str
    meaning: str

    def matches(self, metric: str) -> bool:
        """Whether a metric has this name."""
        pattern = re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(self.name))
        return re.fullmatch(pattern, metric) is not None


METRIC_FIELDS = tuple(
    MetricField(*each)
    for each in (
        ("loss", "loss", "nats", "The loss of the global batch; for rmt and grpo that of Eq. 9."),
        ("losses", "loss", "nats", "Next-token loss by corpus, where the blend has several."),
        ("policy_loss", "loss", "", "The policy's part of the loss: minus the objective of Eq. 7."),
        ("ntp_loss", "loss", "nats", "Next-token loss at positions that were not asked for (Eq. 8), before lambda."),
        ("kl", "loss", "nats", "Estimate of the KL divergence to the reference model, mean over response tokens."),
        ("lr", "optimizer", "", "Learning rate of the step."),
        ("grad_norm", "optimizer", "", "Norm of the gradient before clipping."),
        ("grad_norm_{loss}", "optimizer", "", "The same of one loss alone (policy, ntp), now and then."),
        ("clip_fraction", "optimizer", "share", "Response tokens whose ratio was clipped."),
        ("skipped", "optimizer", "", "1 where the step was skipped, because a number was not finite."),
        ("reward", "reward", "", "Mean reward of a response (Eq. 5)."),
        ("accuracy", "reward", "share", "Responses with the correct answer."),
        ("unjudged_fraction", "reward", "share", "Responses that could not be judged: neither right nor wrong."),
        ("length_reward", "reward", "", "Mean reward for length (Eq. 2), where there is a budget."),
        ("rewards", "reward", "", "Mean reward by corpus, where the blend has several."),
        ("positions_{level}", "reward", "prompts", "Prompts of this difficulty."),
        ("accuracy_{level}", "reward", "share", "Responses to them with the correct answer."),
        ("zero_advantage_fraction", "reward", "share", "Groups whose responses have one reward: they teach nothing."),
        ("zero_accuracy_variance_fraction", "reward", "share", "Groups whose responses are all correct, or all wrong."),
        ("information_gain", "reward", "nats", "How much likelier a thought makes the true token (objective rlp)."),
        ("helpful_fraction", "reward", "share", "Thoughts that make it likelier."),
        ("masked_fraction", "reward", "share", "Responses that were cut off, and are not trained on."),
        ("resampled_prompts", "reward", "prompts", "How often a prompt was answered anew (dynamic sampling)."),
        ("budget", "rollout", "tokens", "The budget B_t of a thought (Eq. 1)."),
        ("thought_tokens", "rollout", "tokens", "Mean length of a thought."),
        ("response_tokens", "rollout", "tokens", "Mean length of a response."),
        ("cut_tokens", "rollout", "tokens", "Tokens after the answer, which are cut off; 0 where the engine stops."),
        ("truncated_fraction", "rollout", "share", "Responses that were cut off at max_tokens."),
        ("unclosed_fraction", "rollout", "share", "Responses without `</think>`."),
        ("policy_entropy", "rollout", "nats", "Entropy of the policy, mean over response tokens."),
        ("rollout_log_prob_diff", "rollout", "nats", "Log-probabilities, engine less trainer: mean absolute value."),
        ("rollout_log_prob_diff_rms", "rollout", "nats", "The same, root mean square."),
        ("rollout_weights", "rollout", "", "Fingerprint of the weights that answered, where the engine has its own."),
        ("rollout_lag", "rollout", "steps", "How many steps older they are than the policy that is trained."),
        ("policy_tokens", "rollout", "tokens", "Response tokens that the step trained on."),
        ("prefix_sharing_ratio", "rollout", "times", "Rows without shared prefixes, over rows with them."),
        ("empty_levels", "rollout", "prompts", "Prompts for whose level of difficulty the document has no position."),
        ("unboxable_positions", "rollout", "positions", "Positions hard enough, whose token no answer can name."),
        ("documents_without_prompt", "rollout", "documents", "Documents of which nothing could be asked."),
        ("epoch", "data", "epochs", "How many times the stage's blend, or by weight its tokens, has been seen."),
        ("consumed_tokens", "data", "tokens", "Tokens of documents that the run has consumed, after the step."),
        ("tokens", "data", "tokens", "Tokens of the global batch, with responses; no padding."),
        ("labels", "data", "tokens", "Those of them that are predicted."),
        ("padding_fraction", "data", "share", "Rows that were computed and hold no token."),
        ("seconds", "time", "s", "The whole step; see the phases below for what is no part of it."),
        ("seconds_{phase}", "time", "s", "One phase of it."),
        ("tokens_per_second", "time", "tokens/s", "tokens over seconds, of all ranks together."),
        ("tflops_per_second_per_rank", "time", "TFLOP/s", "FLOPs of the model, recomputation not counted, per rank."),
        ("mfu", "time", "share", "The same over the peak of the GPU; of known GPUs only."),
        ("peak_memory_bytes", "time", "bytes", "Most memory that the main rank has used so far."),
        ("rollout_tokens_per_second", "time", "tokens/s", "Tokens that the rollout engine wrote in a second."),
        ("slowest_rank", "time", "", "The rank that took longest over its own part of the step."),
        ("slowest_over_median", "time", "times", "Its time over the median of all ranks."),
    )
)  # fmt: skip


@cache
def find_field(metric: str) -> MetricField:
    """The field of a metric. One that nobody has described is of group `objective`."""
    known = (field for field in METRIC_FIELDS if field.matches(metric))
    return next(known, MetricField(metric, "objective", "", ""))


def curve_names(values: dict[str, object]) -> dict[str, float]:
    """Group/name -> value of each curve in a line of metrics, those by corpus one by one."""
    found: dict[str, float] = {}
    for name, value in values.items():
        group = find_field(name).group
        if isinstance(value, dict):
            each = {f"{group}/{name}/{corpus}": number for corpus, number in value.items()}
        else:
            each = {f"{group}/{name}": value}
        found |= {curve: number for curve, number in each.items() if isinstance(number, (int, float))}
    return found


def as_markdown() -> str:
    """The page docs/metrics.md."""
    lines = [
        "# What a run reports",
        "",
        "Made from the code by `python -m megatron_davinci.report.metric_fields`. `metrics.jsonl` in the run's",
        "directory has a line for each optimizer step: `step` (from 1), `stage` (its name), and the fields below, each",
        "where it was measured. A share is from 0 to 1; `losses` and `rewards` are objects with a number for each",
        "corpus; `{level}` is easy, medium or hard. TensorBoard and Weights & Biases name the curves GROUP/FIELD",
        "(`loss/losses/CORPUS` for those by corpus), and held-out loss `held_out/CORPUS`.",
    ]
    for group, said in GROUPS.items():
        fields = [field for field in METRIC_FIELDS if field.group == group]
        if fields:
            lines += ["", f"## {group}", "", said, "", "| field | unit | meaning |", "|---|---|---|"]
            lines += [f"| `{field.name}` | {field.unit} | {field.meaning} |" for field in fields]
    lines += ["", "## Phases", "", "| phase | meaning |", "|---|---|"]
    lines += [f"| `{phase}` | {said} |" for phase, said in PHASES.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(as_markdown())

"""Rollouts from files: one directory, a file for each step. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xxhash import xxh3_64

from data_prep import InputError
from megatron_davinci.rl.answers import AnswerEnd
from megatron_davinci.rl.rollout_files import Group, PromptSpec, read_rollouts, rollout_file


@dataclass(frozen=True)
class Replay:
    """A directory of rollout files. Lines of a file may stand in any order.

    `tokenizer`: fingerprint of the corpora's; `group_size`: G; `on_policy`: take only what this step's policy wrote;
    `max_tokens`: tokens that a response may have; `with_reference`: the reference model's log-probabilities are needed;
    `with_grades`: so is whether each answer is correct; `top_p`: what the engine samples with, where there is one.
    `answer_end`: where responses end by themselves; what follows is cut off. `max_lag`: how many steps older the policy
    may be that wrote them; None: any number.
    """

    directory: Path
    tokenizer: str
    group_size: int
    max_tokens: int
    vocab_size: int
    on_policy: bool
    with_reference: bool
    with_grades: bool = False
    temperature: float = 1.0
    top_p: float | None = None
    answer_end: AnswerEnd | None = None
    max_lag: int | None = None

    def file(self, step: int) -> Path:
        """Where the rollouts for a step lie."""
        return rollout_file(self.directory, step)

    def first_missing(self, step: int, stop: int) -> int:
        """The first step from `step` on whose rollouts are not there; `stop` where all are."""
        return next((at for at in range(step, stop) if not self.file(at).is_file()), stop)

    def read(self, step: int, specs: Sequence[PromptSpec]) -> list[Group]:
        """The rollouts for a step, in the order of `specs`. Raises InputError where they do not answer them."""
        path = self.file(step)
        header, groups = read_rollouts(path)
        if header["tokenizer"] != self.tokenizer:
            raise InputError(f"{path} was written with another tokenizer than the corpora: sample with the same one")
        if header["step"] != step:
            raise InputError(f"{path} holds rollouts for step {header['step']}: name it so, or sample for step {step}")
        if header["policy_step"] > step:
            raise InputError(
                f"{path} is for step {step}, but its policy_step is {header['policy_step']}: no policy is there yet "
                "that has taken so many steps; write down how many that had taken which sampled"
            )
        if self.on_policy and header["policy_step"] != step:
            raise InputError(
                f"{path} was written by the policy after {header['policy_step']} steps, and trains step {step}: "
                "objective.policy.kind needs rollouts of the very same policy; sample them again, or set grpo, whose "
                "ratio takes older ones"
            )
        if self.max_lag is not None and step - header["policy_step"] > self.max_lag:
            raise InputError(
                f"{path} was written by the policy after {header['policy_step']} steps, and trains step {step}: "
                f"objective.rollouts.max_lag is {self.max_lag}; remove the file, and it is sampled again"
            )
        if header.get("temperature", 1.0) != self.temperature:
            raise InputError(
                f"{path} was sampled at temperature {header.get('temperature', 1.0)}, objective.temperature is "
                f"{self.temperature}: make both the same"
            )
        if self.top_p is not None and header.get("top_p", 1.0) != self.top_p:
            raise InputError(
                f"{path} was sampled with top_p {header.get('top_p', 1.0)}, objective.rollouts.top_p is {self.top_p}: "
                "give the same, or remove the file"
            )
        answered = {group.spec: group for group in groups}
        if len(answered) != len(groups) or answered.keys() != set(specs):
            unknown = next((spec for spec in answered if spec not in set(specs)), None)
            missing = next((spec for spec in specs if spec not in answered), None)
            raise InputError(
                f"{path} answers other prompts than those of step {step} ({unknown or 'one twice'}, for {missing}): "
                "they depend on corpora, annotation, seed, batch and objective; see davinci rmt prompts"
            )
        for group in groups:
            self._check(path, group)
        return [self._cut(answered[spec]) for spec in specs]

    def _cut(self, group: Group) -> Group:
        if self.answer_end is None:
            return group
        return replace(group, responses=[self.answer_end.cut(response) for response in group.responses])

    def fingerprint(self, step: int) -> str:
        """xxh3 of the file for a step; nothing where it is not there."""
        path = self.file(step)
        return xxh3_64(path.read_bytes()).hexdigest() if path.is_file() else ""

    def _check(self, path: Path, group: Group) -> None:
        where = f"{path}, document {group.spec.document}, position {group.spec.position}"
        if len(group.responses) != self.group_size:
            raise InputError(f"{where}: {len(group.responses)} responses, objective.group_size is {self.group_size}")
        for response in group.responses:
            if len(response.tokens) > self.max_tokens:
                raise InputError(
                    f"{where}: a response of {len(response.tokens)} tokens, objective.max_tokens is {self.max_tokens}"
                )
            if max(response.tokens, default=0) >= self.vocab_size:
                raise InputError(f"{where}: token {max(response.tokens)}, the model has {self.vocab_size}")
            if self.with_reference and response.reference_log_probs is None:
                raise InputError(f"{where}: no reference_log_probs, which objective.kl_beta above 0 needs")
            if self.with_grades and response.correct is None:
                raise InputError(f"{where}: a response without correct, true or false, which the objective needs")

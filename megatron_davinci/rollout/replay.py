"""Rollouts from files: one directory, a file for each step. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64

from data_prep import InputError
from megatron_davinci.rollout.records import Ask, Group, read_rollouts, rollout_file


@dataclass(frozen=True)
class Replay:
    """`tokenizer`: fingerprint of the corpora's; `responses`: G; `on_policy`: take only what this step's policy wrote.

    Lines of a file may stand in any order.

    `longest`: tokens that a response may have; `with_reference`: the reference model's log-probabilities are needed;
    `with_verdicts`: so is whether each answer is right; `top_p`: what the engine samples with, where there is one.
    """

    directory: Path
    tokenizer: str
    responses: int
    longest: int
    vocab_size: int
    on_policy: bool
    with_reference: bool
    with_verdicts: bool = False
    temperature: float = 1.0
    top_p: float | None = None

    def file(self, step: int) -> Path:
        """Where the rollouts for a step lie."""
        return rollout_file(self.directory, step)

    def first_missing(self, step: int, stop: int) -> int:
        """The first step from `step` on whose rollouts are not there; `stop` where all are."""
        return next((at for at in range(step, stop) if not self.file(at).is_file()), stop)

    def read(self, step: int, asks: Sequence[Ask]) -> list[Group]:
        """The rollouts for a step, in the order of `asks`. Raises InputError where they do not answer them."""
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
                "objective.policy.kind reinforce needs rollouts of the very same policy; sample them again, or set "
                "grpo, whose ratio takes older ones"
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
        answered = {group.ask: group for group in groups}
        if len(answered) != len(groups) or answered.keys() != set(asks):
            unknown = next((ask for ask in answered if ask not in set(asks)), None)
            missing = next((ask for ask in asks if ask not in answered), None)
            raise InputError(
                f"{path} answers other questions than step {step} asks ({unknown or 'one twice'}, for {missing}): they "
                "hang on corpora, annotation, seed, batch and objective; see davinci rmt ask"
            )
        for group in groups:
            self._check(path, group)
        return [answered[ask] for ask in asks]

    def fingerprint(self, step: int) -> str:
        """xxh3 of the file for a step; nothing where it is not there."""
        path = self.file(step)
        return xxh3_64(path.read_bytes()).hexdigest() if path.is_file() else ""

    def _check(self, path: Path, group: Group) -> None:
        where = f"{path}, document {group.ask.document}, position {group.ask.position}"
        if len(group.responses) != self.responses:
            raise InputError(f"{where}: {len(group.responses)} responses, objective.responses is {self.responses}")
        for response in group.responses:
            if len(response.tokens) > self.longest:
                raise InputError(
                    f"{where}: a response of {len(response.tokens)} tokens, objective.response_tokens is {self.longest}"
                )
            if max(response.tokens, default=0) >= self.vocab_size:
                raise InputError(f"{where}: token {max(response.tokens)}, the model has {self.vocab_size}")
            if self.with_reference and response.reference_log_probs is None:
                raise InputError(f"{where}: no reference_log_probs, which objective.kl_beta above 0 needs")
            if self.with_verdicts and response.right is None:
                raise InputError(f"{where}: a response without right, true or false, which objective grpo needs")

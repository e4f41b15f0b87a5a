"""What an objective that learns from rollouts needs beside its corpora, opened and checked first. Torch-free."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep import InputError
from data_prep.io.files import read_json
from data_prep.io.registry import import_path
from megatron_davinci.config import Recipe, StageRecipe
from megatron_davinci.config.objectives import RolloutOptions
from megatron_davinci.config.processes import process_rank
from megatron_davinci.config.registries import POLICY_LOSSES
from megatron_davinci.config.rollouts import EngineOptions
from megatron_davinci.config.section import is_file_name
from megatron_davinci.data.batches import RunBatches, StageBatches
from megatron_davinci.data.objective import ObjectiveInputs, SamplePrompt, fingerprint_of
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.rl.answers import AnswerEnd
from megatron_davinci.rl.prompt_source import PromptSource
from megatron_davinci.rl.replay import Replay
from megatron_davinci.rl.rollout_files import ROLLOUT_FORMAT
from megatron_davinci.rl.token_bytes import TokenBytes
from megatron_davinci.weights.paths import weights_fingerprint

_ONCE_ABSENT = ("stop_at_answer", "kl_all_groups", "chat_template", "dynamic_sampling", "mask_truncated_completions")
# Fields that change how a step is computed, or from which files, but not which prompts there are.
_NOT_IDENTITY = {"share_prefix", "rollouts", "component_norms_interval", "reference"}


class RolloutInputs(ObjectiveInputs):
    """Prompts, and the files of rollouts that answer them. Raises InputError for what is missing or does not fit."""

    def __init__(self, recipe: Recipe, batches: RunBatches, index: int, model: ModelConfig) -> None:
        super().__init__(recipe, batches, index, model)
        self.options: RolloutOptions = self.stage.recipe.objective  # type: ignore[assignment]
        tokenizer = self.find_tokenizer()
        self.texts = TokenBytes(tokenizer)
        self.answer_end = self.response_end()
        source: type[PromptSource[Any]] = import_path(self.options.prompt_source_class)
        self.prompt_source = source(self.stage, self.options, self.texts)
        check_fits(self.stage, self.options, self.prompt_source)
        check_log_probs(self.options)
        check_engine(self.options, self.stage.recipe, model)
        self.replay = self._replay()
        self.stop_token_ids = read_stop_token_ids(tokenizer, batches.tokenizer["eod"])
        reference = self.options.reference or recipe.init_from
        has_reference = self.options.scores_reference and reference is not None
        weights = weights_fingerprint(Path(str(reference))) if has_reference else ""
        options = self.options.model_dump(exclude=_NOT_IDENTITY)
        if options["policy"]["clip_low"] is None:  # as it was written when it had a default
            options["policy"]["clip_low"] = POLICY_LOSSES.get(self.options.policy.kind).clip_low
        if is_file_name(self.options.template):
            options["template"] = self.prompt_source.template_text
        if self.options.chat_template:  # whose text is the tokenizer's
            options["chat_template"] = [self.prompt_source.preamble, self.prompt_source.instruction(0)]
        for name in _ONCE_ABSENT:  # a run that began before they were there is the same without them
            options = {key: value for key, value in options.items() if key != name or value}
        self.fingerprint = fingerprint_of(options, self.prompt_source.sources, weights)

    def response_end(self) -> AnswerEnd | None:
        """Where responses end by themselves; None for a stop token alone."""
        return AnswerEnd(self.texts.texts) if self.options.stop_at_answer else None

    def doubts(self) -> list[str]:
        """See `ObjectiveInputs`."""
        return self.prompt_source.doubts()

    def first_missing(self, step: int, end: int) -> int:
        """See `ObjectiveInputs`: where no engine answers, the first step without a file of rollouts."""
        return end if self.options.has_engine else self.replay.first_missing(step, end)

    def missing(self, step: int) -> str:
        """See `ObjectiveInputs`."""
        return (
            f"step {step} needs rollouts that are not there: {self.replay.file(step)}; davinci rmt prompts writes the "
            "prompts that they answer"
        )

    def prompt_lines(self, step: int) -> Iterator[dict[str, Any]]:
        """A header, and a line for each prompt of an optimizer step: what a sampler of one's own needs."""
        yield {
            "format": ROLLOUT_FORMAT,
            "step": step,
            "policy_step": step,
            "tokenizer": self.batches.tokenizer["fingerprint"],
            "temperature": self.options.temperature,
            "group_size": self.options.group_size,
            "max_tokens": self.options.max_tokens,
            "stop_at_answer": self.options.stop_at_answer,
        }
        for document in self.prompt_source.prompts(step - self.first_step):
            ids = document.ids.tolist()
            for spec in document.specs:
                prompt = self.prompt_source.prompt(ids, spec.position, spec.budget)
                yield {**asdict(spec), "prompt_ids": prompt}

    def answer_file(self, step: int) -> Path:
        """See `ObjectiveInputs`: the file of rollouts."""
        return self.replay.file(step)

    def sample_prompts(self, count: int) -> list[SamplePrompt]:
        """See `ObjectiveInputs`: what is asked at the stage's first step."""
        source = self.prompt_source
        found: list[SamplePrompt] = []
        for document in source.prompts(0):
            corpus, number = self.stage.name_document(document.span.document)
            for spec in document.specs[: count - len(found)]:
                found.append(
                    SamplePrompt(
                        f"document {number} of {corpus}, position {spec.position}",
                        source.prompt(document.ids.tolist(), spec.position, spec.budget),
                        self.texts.before(document.ids, spec.position),
                        source.truth(document, spec),
                    )
                )
        return found

    def _replay(self) -> Replay:
        options = self.options
        named = getattr(options.rollouts, "directory", None)
        return Replay(
            directory=Path(named if named is not None else Path(self.recipe.checkpoint.dir) / "rollouts"),
            tokenizer=self.batches.tokenizer["fingerprint"],
            group_size=options.group_size,
            max_tokens=options.max_tokens,
            vocab_size=self.model.vocab_size,
            on_policy=POLICY_LOSSES.get(options.policy.kind).on_policy,
            with_reference=options.kl_beta > 0,
            with_grades=options.graded_when_sampled,
            temperature=options.temperature,
            top_p=options.rollouts.top_p or (1.0 if takes_ratios(options) else None),
            answer_end=self.answer_end,
            max_lag=options.rollouts.lag_limit(),
        )


def read_stop_token_ids(directory: Path, end_of_document: int | None) -> frozenset[int]:
    """Ids that end a response: the end of a document, and what generation_config.json names, as in transformers."""
    path = directory / "generation_config.json"
    held = read_json(path) if path.is_file() else {}
    named = held.get("eos_token_id") if isinstance(held, dict) else [None]
    ids = named if isinstance(named, list) else [named, end_of_document]
    if not isinstance(held, dict) or not all(id is None or (type(id) is int and 0 <= id < 1 << 31) for id in ids):
        raise InputError(f"{path} has an eos_token_id that is no token's id, nor a list of them: correct it")
    return frozenset(id for id in [*ids, end_of_document] if id is not None)


def takes_ratios(options: RolloutOptions) -> bool:
    """Whether the policy loss compares with the recorded log-probabilities, which are those before top_p cuts."""
    policy = options.policy
    return policy.importance_ratio_cap is not None or not POLICY_LOSSES.get(policy.kind).on_policy


def check_log_probs(options: RolloutOptions) -> None:
    """Raise InputError where ratios would be taken to other probabilities than tokens were drawn with."""
    top_p = options.rollouts.top_p or 1.0
    if top_p < 1 and takes_ratios(options):
        raise InputError(
            f"objective.rollouts.top_p is {top_p}, and objective.policy.kind {options.policy.kind} takes ratios to the "
            "probabilities that responses were drawn with, which top_p changes: set it to 1, or take reinforce without "
            "importance_ratio_cap"
        )


def check_engine(options: RolloutOptions, stage: StageRecipe, model: ModelConfig) -> None:
    """Raise InputError where the engine is not here, or its numbers need a correction that is not chosen."""
    rollouts, policy = options.rollouts, options.policy
    if not isinstance(rollouts, EngineOptions):
        return
    if process_rank() == 0:  # whose machine has what the engine needs
        rollouts.check_inputs(stage, model)
    if rollouts.lag_limit() and POLICY_LOSSES.get(policy.kind).on_policy:
        raise InputError(
            f"objective.rollouts.max_lag is {rollouts.lag_limit()}, and objective.policy.kind {policy.kind} needs "
            "responses of the very policy that it trains: set max_lag to 0, or take grpo or dapo, whose ratio takes "
            "older ones"
        )
    if rollouts.rounds_otherwise and stage.megatron.bf16 and policy.importance_ratio_cap is None:
        raise InputError(
            f"objective.rollouts.engine is {rollouts.engine}, whose log-probabilities in bf16 differ from the "
            "trainer's by 0.2 nats at times: set objective.policy.importance_ratio_cap (2, say), or train in fp32"
        )


def check_fits(stage: StageBatches, options: RolloutOptions, prompt_source: PromptSource[Any]) -> None:
    """Raise InputError where a document, its prompt and the longest response could exceed a packed sequence."""
    prompt = prompt_source.longest_prompt()
    needed = stage.longest + prompt + options.max_tokens
    if needed > stage.recipe.seq_length:
        raise InputError(
            f"stage {stage.name}: a document of {stage.longest} tokens, a prompt of {prompt} and a response of "
            f"{options.max_tokens} make {needed}, seq_length is {stage.recipe.seq_length}: raise it, lower "
            "objective.max_tokens, or leave such documents out of the corpus"
        )

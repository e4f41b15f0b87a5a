"""What a stage of reinforcement mid-training needs beside its corpora, opened and checked first. Torch-free."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xxhash import xxh3_64

from data_prep import InputError
from data_prep.corpus import tokenizer_file, tokenizer_fingerprint
from data_prep.files import read_json
from megatron_davinci.checkpoint.find import weights_fingerprint
from megatron_davinci.data.batches import GlobalBatches, StageBatches
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.recipe import Recipe
from megatron_davinci.rmt.asks import Asker, NextTokenAsker
from megatron_davinci.rmt.options import MegatronRollouts, Reinforced, Reinforcing, Rmt
from megatron_davinci.rmt.problems import ProblemAsker
from megatron_davinci.rmt.token_texts import TokenTexts
from megatron_davinci.rollout.replay import Replay

# Fields that change how a step is computed, or from which files, but not what it asks.
_NOT_IDENTITY = {"tree", "rollouts", "component_norms_every", "reference"}


@dataclass(frozen=True)
class ReinforcementInputs:
    """Of one stage."""

    asker: Asker[Any]
    texts: TokenTexts
    replay: Replay
    stops: frozenset[int]
    """Ids that end a response: the end of a document, and what the model's generation_config.json names."""
    reference: str = ""
    """Identity of the reference model's weights, where the engine scores with one."""


def open_inputs(recipe: Recipe, batches: GlobalBatches, index: int, model: ModelConfig) -> ReinforcementInputs | None:
    """Those of a stage; None where it does no reinforcement. Raises InputError for what is missing or does not fit."""
    stage = batches.stages[index]
    options = stage.recipe.objective
    if not isinstance(options, Reinforced):
        return None
    if recipe.tokenizer_directory is None:
        raise InputError(
            f"stage {stage.name}: objective {options.kind} writes prompts and reads answers: set tokenizer to the "
            "directory of the model's tokenizer"
        )
    if tokenizer_fingerprint(tokenizer_file(recipe.tokenizer_directory)) != batches.tokenizer["fingerprint"]:
        raise InputError(
            f"stage {stage.name}: objective {options.kind} reads answers with {recipe.tokenizer_directory}, but "
            f"another file made the corpora's ids: tokenize them with --tokenizer {recipe.tokenizer_directory}"
        )
    texts = TokenTexts(recipe.tokenizer_directory)
    asker: Asker[Any] = (
        NextTokenAsker(stage, options, texts) if isinstance(options, Rmt) else ProblemAsker(stage, options, texts)
    )
    check_fits(stage, options, asker)
    replay = Replay(
        directory=_directory(recipe, options),
        tokenizer=batches.tokenizer["fingerprint"],
        responses=options.responses,
        longest=options.response_tokens,
        vocab_size=model.vocab_size,
        on_policy=options.policy.kind == "reinforce",
        with_reference=options.kl_beta > 0,
        with_verdicts=not isinstance(options, Rmt),
        temperature=options.temperature,
        top_p=options.rollouts.top_p if isinstance(options.rollouts, MegatronRollouts) else None,
    )
    stops = stop_tokens(recipe.tokenizer_directory, batches.tokenizer["eod"])
    reference = options.reference or recipe.init_from
    scored = options.kl_beta > 0 and not isinstance(options.rollouts, str)
    fingerprint = weights_fingerprint(Path(reference)) if scored and reference is not None else ""
    return ReinforcementInputs(asker, texts, replay, stops, fingerprint)


def _directory(recipe: Recipe, options: Reinforcing) -> Path:
    return Path(options.rollouts if isinstance(options.rollouts, str) else Path(recipe.checkpoint.dir) / "rollouts")


def stop_tokens(directory: Path, end_of_document: int | None) -> frozenset[int]:
    """As transformers' generate takes them."""
    path = directory / "generation_config.json"
    named = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = named if isinstance(named, list) else [named, end_of_document]
    return frozenset(id for id in [*ids, end_of_document] if id is not None)


def check_fits(stage: StageBatches, options: Reinforcing, asker: Asker[Any]) -> None:
    """Raise InputError where a document, its prompt and the longest response could exceed a packed sequence."""
    prompt = asker.longest_prompt()
    needed = stage.longest + prompt + options.response_tokens
    if needed > stage.recipe.seq_length:
        raise InputError(
            f"stage {stage.name}: a document of {stage.longest} tokens, a prompt of {prompt} and a response of "
            f"{options.response_tokens} make {needed}, seq_length is {stage.recipe.seq_length}: raise it, lower "
            "objective.response_tokens, or leave such documents out of the corpus"
        )


def identity_of_asks(inputs: ReinforcementInputs | None, options: Any) -> str:
    """Identity of what a stage asks and how it values answers; the same recipe on other annotations has another one."""
    if inputs is None:
        return ""
    settled = options.model_dump(exclude=_NOT_IDENTITY)
    return xxh3_64(repr((settled, inputs.asker.sources, inputs.reference)).encode()).hexdigest()

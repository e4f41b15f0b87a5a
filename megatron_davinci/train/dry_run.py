"""What a run would do, without a step: every input opened and checked, the layout of its stages to the parameter."""

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_davinci.config import Recipe, StageRecipe
from megatron_davinci.config.objectives import RolloutOptions
from megatron_davinci.core import device
from megatron_davinci.core.build import transformer_config
from megatron_davinci.data.batches import StageBatches
from megatron_davinci.models.config import ModelConfig, load_model_config
from megatron_davinci.models.layout import PipelineRank, pipeline_ranks
from megatron_davinci.models.memory import GIB, state_bytes
from megatron_davinci.plan.memory import MARGIN
from megatron_davinci.plan.peak import doubts_about_memory, predicted_peak
from megatron_davinci.rl.templates import load_template
from megatron_davinci.train.prepare import MissingInput, RunState, doubts_about, inspect_run, missing_inputs


def describe_run(recipe: Recipe) -> dict[str, Any]:
    """Facts about a run and its stages; where inputs are not here, those that do not depend on them, and `missing`.

    Raises InputError for everything else that training would refuse before a step.
    """
    stages = [recipe.stage(index) for index in range(len(recipe.data.stages))]
    model = load_model_config(recipe.model)
    missing = missing_inputs(recipe)
    if not missing:
        recipe.check_weights()
    unknown = any(_is_needed(each, stages) for each in missing)
    run = None if unknown else inspect_run(_without_tokenizer(recipe, missing))
    for stage in stages:
        transformer_config(model, stage.megatron)
        if isinstance(stage.objective, RolloutOptions):  # prompts themselves need corpora and a tokenizer
            load_template(stage.objective.template, lambda _: ()).check_budget(stage.objective.budget is not None)
    described = [_describe_layout(stage, model) for stage in stages]
    facts = {"model": recipe.model, "parameters": model.num_parameters(), "missing": list(map(str, missing))}
    if run is None:
        return {**facts, "stages": described, "warnings": []}
    drawn = [_describe_batches(stage) for stage in run.batches.stages]
    return {
        **facts,
        "steps": run.batches.num_steps,
        "steps_done": run.step,
        "stages": [{**batches, **layout} for batches, layout in zip(drawn, described, strict=True)],
        "warnings": [*doubts_about(run), *_doubts_about_memory(run)],
    }


def _is_needed(missing: MissingInput, stages: Sequence[StageRecipe]) -> bool:
    """Whether steps and documents follow from it: not from weights; from a tokenizer where prompts are written."""
    if missing.kind == "tokenizer":
        return any(stage.objective.grows_trees for stage in stages)
    return missing.kind != "weights"


def _without_tokenizer(recipe: Recipe, missing: Sequence[MissingInput]) -> Recipe:
    """The recipe or, where its tokenizer is not here, one that names none."""
    absent = any(each.kind == "tokenizer" for each in missing)
    return recipe.model_copy(update={"tokenizer": None}) if absent else recipe


def _doubts_about_memory(run: RunState) -> list[str]:
    """What a GPU of this machine, if it has one, may have no room for, with as many replicas as there can be."""
    if not device.has_gpu():
        return []
    return doubts_about_memory(run.recipe, None, device.memory_bytes() / GIB, refuse=False)


def _describe_batches(stage: StageBatches) -> dict[str, Any]:
    tally = stage.tally_of_an_epoch()
    return {
        "steps": stage.num_batches,
        "epochs": round(stage.epochs, 3),
        "epochs_of_each": {name: round(epochs, 3) for name, epochs in stage.epochs_of_each().items()},
        "tokens": stage.num_tokens,
        "documents_an_epoch": tally.documents,
        "tokens_an_epoch": tally.tokens,
        "tokens_a_step": round(stage.num_tokens / max(1, stage.num_batches)),
        "document_alignment": stage.alignment,
        "alignment_waste": stage.alignment_waste(),
    }


def _describe_layout(stage: StageRecipe, model: ModelConfig) -> dict[str, Any]:
    layout = stage.layout
    state = state_bytes(model, stage.megatron)
    peak = predicted_peak(stage, model, layout.ranks_per_replica)
    return {
        "name": stage.name,
        "objective": stage.objective.kind,
        "length": _length(stage),
        "seq_length": stage.seq_length,
        "batch": stage.batch.model_dump(),
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "chunks_a_rank": layout.model_chunks,
        "context": layout.context,
        "ranks_a_replica": layout.ranks_per_replica,
        "row_alignment": stage.alignment.row,
        "state_bytes_a_rank": {"one_replica": state.of_each(layout.context), "ever_more_replicas": state.kept},
        "predicted_peak_bytes": {"one_replica": round(peak.total), "pipeline_rank": peak.rank},
        "pipeline_ranks": [_describe_rank(rank) for rank in pipeline_ranks(model, layout)],
    }


def _length(stage: StageRecipe) -> str:
    """How long a stage is, as its recipe says it."""
    if stage.train_iters is not None:
        return f"{stage.train_iters:,} steps"
    return f"{stage.epochs} epoch(s)" if stage.train_tokens is None else f"{stage.train_tokens:,} tokens"


def _describe_rank(rank: PipelineRank) -> dict[str, Any]:
    layers = [[chunk.start, chunk.stop - 1] for chunk in rank.layers]
    return {"layers": layers, "embeds": rank.embeds, "predicts": rank.predicts, "parameters": rank.parameters}


def as_text(facts: Mapping[str, Any]) -> str:
    """The facts of `describe_run` as lines for a person."""
    lines = [f"{facts['model']}: {facts['parameters']:,} parameters"]
    if "steps" in facts:
        lines.append(f"{facts['steps']:,} steps, of which {facts['steps_done']:,} are done")
    for stage in facts["stages"]:
        lines += ["", *_stage_lines(stage)]
    lines += [f"\nwarning: {doubt}" for doubt in facts["warnings"]]
    if facts["missing"]:
        lines.append("\nnot here, and needed to train:")
        lines += [f"  {each}" for each in facts["missing"]]
    return "\n".join(lines)


def _batch_line(stage: Mapping[str, Any]) -> str:
    """What a stage draws, as far as its corpora are known."""
    batch = stage["batch"]
    unit = f"{batch['global_batch_size']:,} {batch['unit']}"
    head, rows = f"stage {stage['name']} ({stage['objective']}): ", f"in sequences of {stage['seq_length']:,}"
    if "steps" not in stage:
        return f"{head}steps of {unit}, {stage['length']}, {rows}"
    if each := stage["epochs_of_each"]:
        seen = ", ".join(f"{name} {epochs:g} x" for name, epochs in each.items())
        return (
            f"{head}{stage['steps']:,} steps of {unit}, {stage['tokens']:,} tokens by weight ({seen}), {rows}; about "
            f"{stage['tokens_a_step']:,} tokens a step"
        )
    return (
        f"{head}{stage['steps']:,} steps of {unit}, {stage['epochs']:g} x {stage['documents_an_epoch']:,} documents, "
        f"{stage['tokens_an_epoch']:,} tokens, {rows}; about {stage['tokens_a_step']:,} tokens a step"
    )


def _stage_lines(stage: Mapping[str, Any]) -> list[str]:
    held, peak = stage["state_bytes_a_rank"], stage["predicted_peak_bytes"]
    chunks = f" in {stage['chunks_a_rank']} chunks" if stage["chunks_a_rank"] > 1 else ""
    lines = [
        _batch_line(stage),
        f"  tensor {stage['tensor']} x pipeline {stage['pipeline']}{chunks} x context {stage['context']} = "
        f"{stage['ranks_a_replica']} ranks hold a replica; more are data parallel",
        f"  weights, gradients, optimizer: {held['one_replica'] / GIB:.2f} GiB on the fullest rank with one replica, "
        f"towards {held['ever_more_replicas'] / GIB:.2f} with more",
        f"  at the peak, activations and all, about {peak['one_replica'] / GIB:.1f} GiB on pipeline rank "
        f"{peak['pipeline_rank']} with one replica (predicted for GPUs; measured ones were up to {MARGIN:.0%} more)",
    ]
    if "steps" in stage:
        lines.append(
            f"  documents take room up to a multiple of {stage['document_alignment']} tokens "
            f"({stage['alignment_waste']:.2%} of it padding), rows are multiples of {stage['row_alignment']}"
        )
    for number, rank in enumerate(stage["pipeline_ranks"]):
        layers = ", ".join(f"{first} to {last}" for first, last in rank["layers"])
        ends = [what for what, there in (("embeddings", rank["embeds"]), ("output", rank["predicts"])) if there]
        also = f", {', '.join(ends)}" if ends else ""
        lines.append(f"  pipeline rank {number}: layers {layers}{also}: {rank['parameters']:,} parameters on each rank")
    return lines

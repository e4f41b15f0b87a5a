"""What a run would do, without a step: every input opened and checked, the layout of its stages to the parameter."""

from collections.abc import Mapping
from typing import Any

from megatron_davinci.config import Recipe
from megatron_davinci.core import device
from megatron_davinci.core.build import transformer_config
from megatron_davinci.models.layout import PipelineRank, pipeline_ranks
from megatron_davinci.models.memory import GIB, state_bytes
from megatron_davinci.plan.memory import MARGIN
from megatron_davinci.plan.peak import doubts_about_memory, predicted_peak
from megatron_davinci.train.prepare import RunState, doubts_about, inspect_run


def describe_run(recipe: Recipe) -> dict[str, Any]:
    """Facts about a run and its stages. Raises InputError for everything that training would refuse before a step."""
    run = inspect_run(recipe)
    for stage in run.batches.stages:
        transformer_config(run.model, stage.recipe.megatron)
    return {
        "model": recipe.model,
        "parameters": run.model.num_parameters(),
        "steps": run.batches.num_steps,
        "steps_done": run.step,
        "stages": [_describe_stage(run, index) for index in range(len(run.batches.stages))],
        "warnings": [*doubts_about(run), *_doubts_about_memory(run)],
    }


def _doubts_about_memory(run: RunState) -> list[str]:
    """What a GPU of this machine, if it has one, may have no room for, with as many replicas as there can be."""
    if not device.has_gpu():
        return []
    return doubts_about_memory(run.recipe, None, device.memory_bytes() / GIB, refuse=False)


def _describe_stage(run: RunState, index: int) -> dict[str, Any]:
    stage = run.batches.stages[index]
    layout = stage.recipe.layout
    tally = stage.tally_of_an_epoch()
    state = state_bytes(run.model, stage.recipe.megatron)
    peak = predicted_peak(stage.recipe, run.model, layout.ranks_per_replica)
    return {
        "name": stage.name,
        "objective": stage.recipe.objective.kind,
        "steps": stage.num_batches,
        "epochs": stage.recipe.epochs,
        "documents_an_epoch": tally.documents,
        "tokens_an_epoch": tally.tokens,
        "tokens_a_step": round(tally.tokens * stage.recipe.epochs / max(1, stage.num_batches)),
        "seq_length": stage.recipe.seq_length,
        "batch": stage.recipe.batch.model_dump(),
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "chunks_a_rank": layout.model_chunks,
        "context": layout.context,
        "ranks_a_replica": stage.recipe.layout.ranks_per_replica,
        "document_alignment": stage.alignment,
        "row_alignment": stage.recipe.alignment.row,
        "alignment_waste": stage.alignment_waste(),
        "state_bytes_a_rank": {"one_replica": state.of_each(layout.context), "ever_more_replicas": state.kept},
        "predicted_peak_bytes": {"one_replica": round(peak.total), "pipeline_rank": peak.rank},
        "pipeline_ranks": [_describe_rank(rank) for rank in pipeline_ranks(run.model, layout)],
    }


def _describe_rank(rank: PipelineRank) -> dict[str, Any]:
    layers = [[chunk.start, chunk.stop - 1] for chunk in rank.layers]
    return {"layers": layers, "embeds": rank.embeds, "predicts": rank.predicts, "parameters": rank.parameters}


def as_text(facts: Mapping[str, Any]) -> str:
    """The facts of `describe_run` as lines for a person."""
    lines = [
        f"{facts['model']}: {facts['parameters']:,} parameters",
        f"{facts['steps']:,} steps, of which {facts['steps_done']:,} are done",
    ]
    for stage in facts["stages"]:
        lines += ["", *_stage_lines(stage)]
    lines += [f"\nwarning: {doubt}" for doubt in facts["warnings"]]
    return "\n".join(lines)


def _stage_lines(stage: Mapping[str, Any]) -> list[str]:
    batch, held, peak = stage["batch"], stage["state_bytes_a_rank"], stage["predicted_peak_bytes"]
    chunks = f" in {stage['chunks_a_rank']} chunks" if stage["chunks_a_rank"] > 1 else ""
    lines = [
        f"stage {stage['name']} ({stage['objective']}): {stage['steps']:,} steps of {batch['global_batch_size']:,} "
        f"{batch['unit']}, {stage['epochs']} x {stage['documents_an_epoch']:,} documents, "
        f"{stage['tokens_an_epoch']:,} tokens, in sequences of {stage['seq_length']:,}; "
        f"about {stage['tokens_a_step']:,} tokens a step",
        f"  tensor {stage['tensor']} x pipeline {stage['pipeline']}{chunks} x context {stage['context']} = "
        f"{stage['ranks_a_replica']} ranks hold a replica; more are data parallel",
        f"  weights, gradients, optimizer: {held['one_replica'] / GIB:.2f} GiB on the fullest rank with one replica, "
        f"towards {held['ever_more_replicas'] / GIB:.2f} with more",
        f"  at the peak, activations and all, about {peak['one_replica'] / GIB:.1f} GiB on pipeline rank "
        f"{peak['pipeline_rank']} with one replica (predicted for GPUs; measured ones were up to {MARGIN:.0%} more)",
        f"  documents take room up to a multiple of {stage['document_alignment']} tokens "
        f"({stage['alignment_waste']:.2%} of it padding), rows are multiples of {stage['row_alignment']}",
    ]
    for number, rank in enumerate(stage["pipeline_ranks"]):
        layers = ", ".join(f"{first} to {last}" for first, last in rank["layers"])
        ends = [what for what, there in (("embeddings", rank["embeds"]), ("output", rank["predicts"])) if there]
        also = f", {', '.join(ends)}" if ends else ""
        lines.append(f"  pipeline rank {number}: layers {layers}{also}: {rank['parameters']:,} parameters on each rank")
    return lines

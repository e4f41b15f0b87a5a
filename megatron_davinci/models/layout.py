"""How a model lies on the ranks of a layout, to the parameter. Torch-free."""

from dataclasses import dataclass

from megatron_davinci.models.parallel_layout import ParallelLayout
from megatron_davinci.models.sizes import ModelSizes


@dataclass(frozen=True)
class PipelineRank:
    """What each tensor-parallel rank of one pipeline rank holds. `layers`: their numbers, chunk by chunk."""

    layers: tuple[range, ...]
    embeds: bool
    predicts: bool
    parameters: int


def pipeline_ranks(model: ModelSizes, layout: ParallelLayout) -> list[PipelineRank]:
    """The ranks of a pipeline, whose sizes divide the model's.

    Vocabularies count as they are padded under training. Chunk c of rank r has the layers that follow those of the
    chunks (c, r - 1) and (c - 1, last), as Megatron shards them.
    """
    tensor, pipeline, chunks = layout.tensor, layout.pipeline, layout.model_chunks
    sizes = [layers // chunks for layers in layout.layers_by_rank(model.num_layers)]
    embedding = model.padded_vocab_size // tensor * model.hidden_size
    found = []
    for rank in range(pipeline):
        size = sizes[rank]
        starts = [chunk * sum(sizes) + sum(sizes[:rank]) for chunk in range(chunks)]
        embeds, predicts = rank == 0, rank == pipeline - 1
        parameters = size * chunks * model.layer_parameters(tensor) + embeds * embedding
        if predicts:
            parameters += model.hidden_size  # the last norm
            if not (model.tied_embeddings and embeds):  # a pipeline's last rank has a copy of tied embeddings
                parameters += embedding
        found.append(PipelineRank(tuple(range(start, start + size) for start in starts), embeds, predicts, parameters))
    return found

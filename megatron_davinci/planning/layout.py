"""How a model lies on the ranks of a layout, to the parameter. Torch-free."""

from dataclasses import dataclass

from megatron_davinci.models.config import ModelConfig


@dataclass(frozen=True)
class PipelineRank:
    """What each tensor-parallel rank of one pipeline rank holds. `layers`: their numbers, chunk by chunk."""

    layers: tuple[range, ...]
    embeds: bool
    predicts: bool
    parameters: int


def pipeline_ranks(model: ModelConfig, tensor: int, pipeline: int, virtual: int | None) -> list[PipelineRank]:
    """The ranks of a pipeline, whose sizes divide the model's; `virtual`: chunks of layers on each, None for one.

    Vocabularies count as they are padded under training. Chunk c of rank r has the layers that follow those of the
    chunks (c, r - 1) and (c - 1, last), as Megatron deals them out.
    """
    chunks = virtual or 1
    size = model.num_layers // (pipeline * chunks)
    embedding = model.padded_vocab_size // tensor * model.hidden_size
    found = []
    for rank in range(pipeline):
        starts = [(chunk * pipeline + rank) * size for chunk in range(chunks)]
        embeds, predicts = rank == 0, rank == pipeline - 1
        parameters = size * chunks * layer_parameters(model, tensor) + embeds * embedding
        if predicts:
            parameters += model.hidden_size  # the last norm
            if not (model.tied_embeddings and embeds):  # a pipeline's last rank has a copy of tied embeddings
                parameters += embedding
        found.append(PipelineRank(tuple(range(start, start + size) for start in starts), embeds, predicts, parameters))
    return found


def layer_parameters(model: ModelConfig, tensor: int) -> int:
    """Of one layer, on one of `tensor` ranks: linear layers are shared out, norms are on each."""
    queries = model.num_attention_heads * model.kv_channels
    keys_values = 2 * model.num_query_groups * model.kv_channels
    shared = model.hidden_size * (2 * queries + keys_values) + 3 * model.hidden_size * model.ffn_hidden_size
    if model.family.megatron["add_qkv_bias"]:
        shared += queries + keys_values
    return shared // tensor + norm_parameters(model)


def norm_parameters(model: ModelConfig) -> int:
    """Of the norms of one layer."""
    return 2 * model.hidden_size + (2 * model.kv_channels if model.family.megatron["qk_layernorm"] else 0)

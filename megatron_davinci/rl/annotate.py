"""`davinci rmt annotate`: how uncertain a model is of every token of a corpus, in blocks that a killed run keeps."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from xxhash import xxh3_64

from data_prep import InputError
from data_prep.corpus import Annotation, AnnotationWriter, Corpus
from data_prep.io.arithmetic import ceil_to_multiple
from data_prep.io.files import block_checksums
from data_prep.io.progress import counter
from megatron_davinci.config import Recipe, StageRecipe, parse_recipe
from megatron_davinci.config.objectives import EntropyKind
from megatron_davinci.config.processes import check_number_of_ranks
from megatron_davinci.core.attention.packed import PackedSegments
from megatron_davinci.core.build_trainer import build_model
from megatron_davinci.core.gpt import LabelScores, TopKEntropy
from megatron_davinci.core.groups import (
    all_gather_object,
    broadcast_object,
    data_rank,
    is_main_rank,
    model_parallel,
    world,
)
from megatron_davinci.core.optimizer import in_precision
from megatron_davinci.core.step import ForwardOutput, run_schedule
from megatron_davinci.core.transformer_impl import check_transformer_impl
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.data.checks import check_tokenizer, check_vocabulary
from megatron_davinci.data.documents import Documents, PackedSequence, Span
from megatron_davinci.data.packed import PackedBatch, pack_micro_batch
from megatron_davinci.data.rows import RowRules
from megatron_davinci.models.config import ModelConfig, load_model_config

_Chunks = list[torch.nn.Module]
BLOCK_TOKENS = 1 << 20  # computed and written at once; where a killed run goes on
_LIKELIEST = 16
_LEAST_WIDTH, _WIDTH_MULTIPLE = 4096, 128
_HASH_BLOCK_BYTES = 64 << 20


def annotate(prefix: Path, model_directory: Path, kind: EntropyKind, megatron: dict[str, Any]) -> dict[str, Any]:
    """Write PREFIX.entropy.{bin,idx,json}; returns what is worth telling. Raises InputError before any process group.

    `megatron`: the layout of ranks and other fields, as in a recipe.
    """
    corpus = Corpus(prefix)
    model = load_model_config(str(model_directory))
    recipe = _recipe(corpus, model_directory, megatron)
    stage = recipe.stage(0)
    _check(recipe, stage, corpus, model)
    check_transformer_impl(stage.megatron, model, trees=False)
    blocks = _blocks(corpus)
    with world():
        writer = _go_on(corpus, _describe(recipe, kind), blocks) if is_main_rank() else None
        done = broadcast_object(writer.position if writer is not None else 0)
        quiet = not is_main_rank()
        with model_parallel(stage, recipe.seed) as device, counter("tokens", len(corpus.tokens), quiet) as count:
            config, models = build_model(recipe, stage, model, device)
            chunks = in_precision(config, models)
            count(done)
            for first, stop in blocks:
                if corpus.starts[first] < done:
                    continue
                entropies = _annotate_block(chunks, corpus, (first, stop), RowRules.of(stage, model), kind, device)
                if writer is not None:
                    writer.append(entropies)
                count(len(entropies))
    if writer is None:
        return {}
    writer.commit()
    return _summary(Annotation(corpus), kind)


def _recipe(corpus: Corpus, model_directory: Path, megatron: dict[str, Any]) -> Recipe:
    """A run that never takes a step, so that a layout is checked as everywhere."""
    longest = int(corpus.lengths.max())
    tensor = megatron.get("tensor_model_parallel_size", 1)
    multiple = math.lcm(_WIDTH_MULTIPLE, tensor if isinstance(tensor, int) and tensor > 0 else 1)
    width = ceil_to_multiple(max(_LEAST_WIDTH, longest), multiple)
    return parse_recipe(
        {
            "model": str(model_directory),
            "init_from": str(model_directory),
            "megatron": megatron,
            "data": {
                "seq_length": width,
                "stages": [{"name": "annotate", "blend": [{"corpus": str(corpus.prefix)}], "loss_mask": False}],
            },
            "batch": {"global_batch_size": 1},
            "schedule": {"lr": 1.0},
            "checkpoint": {"dir": str(corpus.prefix)},
        }
    )


def _check(recipe: Recipe, stage: StageRecipe, corpus: Corpus, model: ModelConfig) -> None:
    AnnotationWriter.refuse_finished(corpus)
    if stage.layout.context > 1:
        raise InputError("annotating does not share out sequences: leave context_parallel_size out")
    batches = RunBatches(recipe)
    check_vocabulary(batches, model)
    check_tokenizer(recipe, batches)
    longest = int(corpus.lengths.max())
    if longest > model.max_position_embeddings:
        raise InputError(
            f"{corpus.prefix} has a document of {longest} tokens, the model takes {model.max_position_embeddings}: "
            "annotate with another model, or split the document"
        )
    check_number_of_ranks(stage)


def _describe(recipe: Recipe, kind: EntropyKind) -> dict[str, Any]:
    """What determines the entropies: the corpus is not among it."""
    digest = xxh3_64()
    directory = Path(recipe.model)
    for path in [directory / "config.json", *sorted(directory.glob("*.safetensors"))]:
        digest.update("".join(block_checksums(path, _HASH_BLOCK_BYTES)).encode())
    precision = "bf16" if recipe.megatron.get("bf16") else "fp32"
    return {"entropy": kind, "model": digest.hexdigest(), "precision": precision}


def _blocks(corpus: Corpus) -> list[tuple[int, int]]:
    """Documents first to stop - 1, of about BLOCK_TOKENS; the same for every layout of ranks."""
    ends = np.cumsum(corpus.lengths)
    found, first = [], 0
    while first < len(corpus):
        stop = int(np.searchsorted(ends, corpus.starts[first] + BLOCK_TOKENS, side="right"))
        found.append((first, max(stop, first + 1)))
        first = found[-1][1]
    return found


def _go_on(corpus: Corpus, description: dict[str, Any], blocks: Sequence[tuple[int, int]]) -> AnnotationWriter:
    """A writer that stands behind the last whole block of an earlier run."""
    writer = AnnotationWriter(corpus, description)
    ends = np.array([0, *(int(corpus.starts[stop - 1] + corpus.lengths[stop - 1]) for _, stop in blocks)])
    writer.go_back_to(int(ends[ends <= writer.position].max()))
    return writer


@torch.no_grad()
def _annotate_block(
    chunks: _Chunks, corpus: Corpus, block: tuple[int, int], rules: RowRules, kind: EntropyKind, device: torch.device
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Entropies of all tokens of some documents, on every rank; 0 for each document's first."""
    first, stop = block
    documents = Documents([corpus], honour_masks=False)
    spans = [Span(number, 0, int(corpus.lengths[number]), 0) for number in range(first, stop)]
    rank, size = data_rank()
    dealt = rules.deal([rules.unit_of([span]) for span in spans], size)[rank]
    share = [[spans[number] for number in row.units] for row in dealt]
    widths = [row.width for row in dealt]
    batches = [
        pack_micro_batch(documents, row, width, 1, 1.0).to(device) for row, width in zip(share, widths, strict=True)
    ]
    how = {"forward_only": True, "collect_non_loss_data": True}
    found = run_schedule(chunks, partial(_forward, kind), batches, widths, **how)
    ours = _by_document(corpus, share, found) if found and parallel_state.get_tensor_model_parallel_rank() == 0 else {}
    by_document = {number: entropies for part in all_gather_object(ours) for number, entropies in part.items()}
    whole = np.concatenate([by_document[number] for number in range(first, stop)])
    if not np.isfinite(whole).all():
        raise FloatingPointError(
            f"the model's entropies of documents {first} to {stop - 1} are not all finite: its weights are damaged, or "
            "overflow in bf16; nothing of this block is written"
        )
    return whole


def _by_document(corpus: Corpus, share: list[PackedSequence], found: list[torch.Tensor]) -> dict[int, Any]:
    by_document = {}
    for sequence, entropies in zip(share, found, strict=True):
        numbers, at = entropies.float().cpu().numpy(), 0
        for span in sequence:
            by_document[span.document] = np.concatenate([np.zeros(1, np.float32), numbers[at : at + span.length - 1]])
            at += span.length - 1
    return by_document


def _forward(kind: EntropyKind, batches: Iterator[PackedBatch], chunk: Any) -> ForwardOutput:
    batch = next(batches)
    asked = LabelScores(batch.rows, batch.labels) if kind == "full" else TopKEntropy(batch.rows, _LIKELIEST)
    segments = PackedSegments.of(batch.boundaries, batch.tokens.device)
    output = chunk(batch.tokens, batch.position_ids, None, labels=asked, packed_seq_params=segments)
    return output, lambda output, non_loss_data: output[1] if kind == "full" else output


def _summary(annotation: Annotation, kind: EntropyKind) -> dict[str, Any]:
    """Tokens, and the shares of them at or above some entropies."""
    thresholds = (0.5, 1.0, 1.5)
    entropies = annotation.entropies
    shares = {f"at_least_{value}_nats": float((entropies >= value).mean()) for value in thresholds}
    return {"tokens": len(entropies), "entropy": kind, "mean_nats": float(entropies.mean()), **shares}

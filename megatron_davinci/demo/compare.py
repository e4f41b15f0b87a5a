"""The exported model in transformers against the checkpoint in Megatron."""

from dataclasses import replace
from pathlib import Path

import torch

from data_prep.corpus import Corpus
from megatron_davinci.config import Recipe
from megatron_davinci.core.build_trainer import build_trainer
from megatron_davinci.core.groups import model_parallel, world
from megatron_davinci.core.optimizer import build_optimizer
from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.parallel_layout import MegatronOptions
from megatron_davinci.testing.logits import pack_documents_for_logits, packed_logits
from megatron_davinci.train.checkpoint.manager import CheckpointManager
from megatron_davinci.weights.paths import latest_checkpoint

_DOCUMENTS, _TOKENS = 4, 128


def compare_logits(recipe: Recipe, exported: Path, corpus: Corpus) -> float:
    """max|difference| over the first TOKENS tokens of documents: packed in Megatron, one by one in transformers."""
    documents = [corpus.span(number, 0, _TOKENS).tolist() for number in range(min(_DOCUMENTS, len(corpus)))]
    stage = replace(recipe.stage(0), megatron=MegatronOptions.of({}))
    model = load_model_config(recipe.model)
    with world(), model_parallel(stage, recipe.seed) as device:
        trainer = build_trainer(recipe, stage, model, device)
        checkpoint = latest_checkpoint(Path(recipe.checkpoint.dir))
        assert checkpoint is not None
        CheckpointManager(recipe, model, trainer.chunks, build_optimizer(stage.megatron, trainer.chunks)).load(
            checkpoint
        )
        ours = packed_logits(trainer, pack_documents_for_logits(documents))
    assert ours is not None  # one process holds every stage
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    theirs_model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    with torch.no_grad():
        theirs = torch.cat([theirs_model(torch.tensor([document])).logits[0] for document in documents])
    return float((ours[:, : theirs.size(1)] - theirs).abs().max())

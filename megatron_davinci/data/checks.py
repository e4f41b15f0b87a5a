"""Whether corpora fit the model and the tokenizer of a recipe. Torch-free."""

from data_prep import InputError
from data_prep.tokenizers import is_tokenizer_of
from megatron_davinci.config import Recipe
from megatron_davinci.data.batches import RunBatches
from megatron_davinci.models.config import ModelConfig


def check_vocabulary(batches: RunBatches, model: ModelConfig) -> None:
    """Raise InputError when the corpora's tokenizer has ids that the model has no embedding for."""
    needed = batches.tokenizer["vocab_size"]
    if needed > model.vocab_size:
        raise InputError(
            f"the corpora's tokenizer has ids up to {needed - 1}, the model's vocab_size is {model.vocab_size}: "
            f"choose a model with at least {needed}, or tokenize with the model's own tokenizer"
        )


def check_tokenizer(recipe: Recipe, batches: RunBatches) -> None:
    """Raise InputError when the tokenizer that would go into checkpoints is not the one that made the corpora."""
    source = recipe.find_tokenizer()
    if source is None or batches.tokenizer["kind"] != "huggingface":
        return  # an export then names one
    if not is_tokenizer_of(source, batches.tokenizer):
        raise InputError(
            f"{source} has another tokenizer than the one that made the corpora: set tokenizer to that one's "
            "directory, or tokenize again"
        )

"""This process among those that torchrun or srun has started. Torch-free."""

import os

from data_prep import InputError
from megatron_davinci.config.stage import StageRecipe


def process_rank() -> int:
    """This process's rank: RANK of the environment, 0 where nobody has set it."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """How many processes there are: WORLD_SIZE of the environment, 1 where nobody has set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_number_of_ranks(stage: StageRecipe) -> None:
    """Raise InputError unless the processes that torchrun has started can be shared out over the stage's layout."""
    ranks, layout = num_processes(), stage.layout
    needed = layout.ranks_per_replica
    if ranks % needed:
        raise InputError(
            f"{ranks} process(es) cannot hold tensor {layout.tensor} x pipeline "
            f"{layout.pipeline} x context {layout.context} ranks: start a multiple of "
            f"{needed}, as with torchrun --nproc-per-node {needed}"
        )

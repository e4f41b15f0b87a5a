"""Do a recipe's stages fit the nodes that they are to run on? Torch-free."""

from math import lcm
from pathlib import Path

from data_prep import InputError
from megatron_davinci.config import Recipe
from megatron_davinci.config.rollouts import VllmRollouts

_GPUS_OF_A_NODE = 8


def check_ranks(recipe: Recipe, nodes: int, per_node: int) -> None:
    """Raise InputError unless every stage's replicas fill the ranks, saying which numbers would do."""
    stages = [recipe.stage(index) for index in range(len(recipe.data.stages))]
    ranks, needed = nodes * per_node, lcm(*(stage.layout.ranks_per_replica for stage in stages))
    for stage in stages:
        tensor = stage.layout.tensor
        if nodes > 1 and per_node % tensor and tensor % per_node:
            raise InputError(
                f"stage {stage.name} has tensor_model_parallel_size {tensor}, which nodes of {per_node} cut apart: "
                "give --gpus-per-node that divides it, or is a multiple"
            )
    if ranks % needed:
        several = ", ".join(f"{stage.layout.ranks_per_replica} in stage {stage.name}" for stage in stages)
        on_one = nodes == 1 and needed <= _GPUS_OF_A_NODE
        remedy = f"--gpus-per-node {needed}" if on_one else f"--nodes {lcm(needed, per_node) // per_node}"
        raise InputError(
            f"{nodes} {'nodes' if nodes > 1 else 'node'} of {per_node} are {ranks} ranks; a replica takes {several}: "
            f"give a multiple of {needed}, such as {remedy}"
        )
    for stage in stages:
        replicas, batch = ranks // stage.layout.ranks_per_replica, stage.batch
        if batch.unit != "tokens" and replicas > batch.global_batch_size:
            raise InputError(
                f"stage {stage.name} would have {replicas} replicas share a batch of {batch.global_batch_size} "
                f"{batch.unit}: give fewer nodes, or a larger batch.global_batch_size"
            )


def check_rollout_nodes(recipe: Recipe, nodes: int, slurm: bool) -> None:
    """Raise InputError where nodes for rollout servers and the recipe do not fit together."""
    if nodes and not slurm:
        raise InputError("--rollout-nodes is for Slurm: add --slurm, or start davinci rollout serve on them yourself")
    wanted = str(Path(recipe.checkpoint.dir) / "servers")
    for stage in (recipe.stage(index) for index in range(len(recipe.data.stages))):
        rollouts = getattr(stage.objective, "rollouts", None)
        if isinstance(rollouts, VllmRollouts) and rollouts.servers is not None and nodes:
            if (rollouts.servers, rollouts.num_servers) == (wanted, nodes):
                return
            raise InputError(
                f"stage {stage.name} waits for {rollouts.num_servers} servers in {rollouts.servers}, and "
                f"--rollout-nodes {nodes} start as many in {wanted}: set objective.rollouts.servers and num_servers so"
            )
    if nodes:
        raise InputError(
            f"--rollout-nodes is {nodes}, and no stage waits for servers: set objective.rollouts to {{engine: vllm, "
            f"servers: {wanted}, num_servers: {nodes}}}"
        )

"""Pipelines over micro-batches of unlike widths: hidden states travel in the shapes that all ranks know beforehand.

Megatron's `variable_seq_lengths` sends each shape ahead of each tensor and waits for it, which stops a GPU at each hop,
and which an interleaved schedule that overlaps its hops cannot take. Here the widths of a step's micro-batches are the
same numbers on all ranks of a replica, and the schedule says in which order they arrive: the receiver takes the next
shape of a list, and what is sent is as it was.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any

from megatron.core import parallel_state
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import get_schedule_table
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

_NOTHING = [0, 0, 0]


class KnownShapesCommunicator(P2PCommunicator):
    """A P2PCommunicator that knows the shape of every tensor to come. `widths`: tokens of each micro-batch on one rank;
    `chunks`: of the model, on each pipeline rank."""

    def __init__(self, config: TransformerConfig, widths: Sequence[int], chunks: int) -> None:
        group = parallel_state.get_pipeline_model_parallel_group()
        ours = copy(config)
        ours.variable_seq_lengths = True  # upstream then asks `_communicate_shapes`
        super().__init__(group, ours)
        table = get_schedule_table(len(widths), chunks, config.microbatch_group_size_per_vp_stage or group.size())

        def shapes(is_edge: bool) -> list[list[int]]:
            """The first rank gets no input for its first chunk, the last no gradient for its last, which is the first
            to go backward."""
            return [[widths[number], 1, config.hidden_size] for number, chunk in table if chunk or not is_edge]

        self._inputs = iter(shapes(group.rank() == 0))
        self._gradients = iter(shapes(group.rank() == group.size() - 1))

    def _communicate_shapes(
        self, tensor_send_next: Any, tensor_send_prev: Any, recv_prev: bool, recv_next: bool
    ) -> tuple[list[int], list[int]]:
        """The shapes of the input and of the gradient that this call receives: nothing is communicated."""
        return next(self._inputs) if recv_prev else _NOTHING, next(self._gradients) if recv_next else _NOTHING


def with_known_shapes(config: TransformerConfig, widths: Sequence[int], chunks: int) -> dict[str, Any]:
    """Arguments of Megatron's pipeline schedules for micro-batches of these widths, in tokens over context ranks."""
    ranks = config.context_parallel_size * (config.tensor_model_parallel_size if config.sequence_parallel else 1)
    groups = ProcessGroupCollection()  # a schedule that is given a communicator wants these too
    groups.tp = parallel_state.get_tensor_model_parallel_group()
    groups.cp = parallel_state.get_context_parallel_group()
    groups.pp = parallel_state.get_pipeline_model_parallel_group()
    groups.embd = parallel_state.get_embedding_group(check_initialized=False)
    groups.pos_embd = parallel_state.get_position_embedding_group(check_initialized=False)
    groups.dp = parallel_state.get_data_parallel_group()
    groups.dp_cp = parallel_state.get_data_parallel_group(with_context_parallel=True)
    groups.tp_dp_cp = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    communicator = KnownShapesCommunicator(config, [width // ranks for width in widths], chunks)
    return {"p2p_communicator": communicator, "pg_collection": groups}

"""torch's AdamW with the state layout of FusedAdam, which Megatron's distributed checkpoints are written for.

FusedAdam keeps `step` once per parameter group and two tensors per parameter; torch keeps a `step` beside the two, and
Megatron-Core then fails to load what it saved, or loads step 5 as 1. On a GPU Megatron picks FusedAdam itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor


class GroupStepAdamW(torch.optim.AdamW):
    """AdamW with an int `group["step"]`; `exp_avg` and `exp_avg_sq` are a parameter's whole state.

    `state_dict()` shows torch's layout besides (a `step` per parameter, also before the first), and
    `load_state_dict()` takes either: Megatron's code asks for both on its different ways.
    """

    @classmethod
    def in_place_of(cls, other: torch.optim.Optimizer) -> "GroupStepAdamW":
        """Make a GroupStepAdamW over the groups of another optimizer that has not taken a step."""
        assert not other.state
        adam = cls([torch.nn.Parameter(torch.empty(0))])  # shards of weights are no leaves: no constructor takes them
        adam.defaults = {**other.defaults, "fused": True}  # one pass over memory, on the CPU too
        adam.param_groups = other.param_groups
        for group in adam.param_groups:
            group["fused"] = True
        adam.set_step_where_absent()
        return adam

    def set_step_where_absent(self) -> None:
        """Give each group its count of steps, and what FusedAdam reads from a group."""
        for group in self.param_groups:
            group["step"] = int(group.get("step") or 0)
            group.setdefault("bias_correction", True)

    def forget(self) -> None:
        """Forget moments and steps, as before the first step."""
        self.state.clear()
        for group in self.param_groups:
            group["step"] = 0

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of torch's AdamW, with each group's `step` lent to its parameters meanwhile."""
        lent = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                for name in ("exp_avg", "exp_avg_sq"):
                    if name not in state:
                        state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["step"] = _as_tensor(group["step"])  # torch counts it up in place
                lent.append(state)
        try:
            return super().step(closure)
        finally:
            for state in lent:
                del state["step"]
            for group in self.param_groups:
                group["step"] += 1

    def state_dict(self) -> dict[str, Any]:
        """torch's layout: a `step` in every parameter's state, beside FusedAdam's in the groups."""
        packed = super().state_dict()
        state = dict(packed["state"])
        for group in packed["param_groups"]:
            for index in group["params"]:
                state[index] = {**state.get(index, {}), "step": _as_tensor(group["step"])}
        return {**packed, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take `step` from the parameters' states or from the groups, wherever it stands."""
        state: dict[int, Any] = {}
        groups = []
        for group in state_dict["param_groups"]:
            entries = {index: state_dict["state"].get(index, {}) for index in group["params"]}
            steps = {int(entry["step"]) for entry in entries.values() if "step" in entry}
            assert len(steps) <= 1, "parameters of one group have made different numbers of steps"
            step = steps.pop() if steps else int(group.get("step") or 0)
            groups.append({**group, "step": step})
            moments = {index: entry for index, entry in entries.items() if entry.keys() - {"step"}}
            state |= {index: {**entry, "step": _as_tensor(step)} for index, entry in moments.items()}
        super().load_state_dict({**state_dict, "state": state, "param_groups": groups})
        for entry in self.state.values():
            del entry["step"]
        self.set_step_where_absent()


def reset_moments(optimizer: MegatronOptimizer) -> None:
    """Begin anew with the weights as they are: a fine-tuning stage does not go on with mid-training's averages."""
    for part in parts_of(optimizer):
        inner = part.optimizer
        if isinstance(inner, GroupStepAdamW):
            inner.forget()
        else:
            inner.state.clear()
            for group in inner.param_groups:
                group.pop("step", None)  # FusedAdam then counts from 1


def parts_of(optimizer: MegatronOptimizer) -> list[Any]:
    """Megatron chains one optimizer per kind of buffer; often there is one."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _as_tensor(step: int) -> Tensor:
    return torch.tensor(float(step))

"""The extra state of Transformer Engine's layers: scales of FP8, in a pickle that their `set_extra_state` unpickles.

So that it unpickles nothing of a checkpoint, it is given a pickle made here, of the same tensors and this run's recipe.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from data_prep import InputError
from megatron_davinci.weights.safe_pickle import RefusedPickleError
from megatron_davinci.weights.torch_objects import read_pickled

SUFFIX = "._extra_state"
_RECIPES = "transformer_engine.common.recipe"
_SCALES = ("scale_fwd", "scale_bwd", "amax_history_fwd", "amax_history_bwd")  # delayed scaling's; others keep none
_VARIABLES, _MAX_NUMBER = "extra_fp8_variables", 1 << 16
_CONSENT = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"  # without it, newer releases refuse every pickle


def rebuild_extra_states(state: dict[str, Any], recipe: Any, origin: str) -> dict[str, Any]:
    """A model's state with the extra states of its layers made anew; `recipe` is this run's, None without FP8.

    Raises InputError for an extra state that no layer writes; `origin` names the checkpoint.
    """
    rebuilt = {}
    for name, value in state.items():
        if not name.endswith(SUFFIX) or value is None:
            rebuilt[name] = value
            continue
        try:
            rebuilt[name] = _rebuild(value, recipe)
        except RefusedPickleError as error:
            raise InputError(f"{origin}: {name} was refused, {error}") from None
    return rebuilt


@contextmanager
def transformer_engine_may_unpickle() -> Iterator[None]:
    """While a state from `rebuild_extra_states` is loaded: allow Transformer Engine to unpickle what was made here."""
    before = os.environ.get(_CONSENT)
    os.environ[_CONSENT] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CONSENT]
        else:
            os.environ[_CONSENT] = before


def _rebuild(value: Any, recipe: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype != torch.uint8:
        raise RefusedPickleError(f"it is a {type(value).__name__} where Transformer Engine writes bytes")
    empty = torch.empty(0, dtype=torch.uint8)
    if value.numel() == 0:
        return empty
    found = read_pickled(value.numpy().tobytes(), _RECIPES)
    if not isinstance(found, dict):
        raise RefusedPickleError(f"it is the pickle of a {type(found).__name__}")
    scales = {name: found[name] for name in _SCALES if name in found}
    if not all(isinstance(tensor, Tensor) for tensor in scales.values()):
        raise RefusedPickleError("its scales are no tensors")
    if recipe is None or not recipe.delayed() or len(scales) < len(_SCALES):
        return empty  # scales are found anew: this run's recipe keeps none, or the one before it kept none
    state = {"recipe": recipe, **scales, _VARIABLES: _plain_variables(found.get(_VARIABLES))}
    return torch.frombuffer(bytearray(pickle.dumps(state)), dtype=torch.uint8)


def _plain_variables(found: Any) -> dict[str, Any]:
    """Numbers and words of the layer, such as how many products it has: they size what is allocated, so none is large.

    Lists are of one process alone, and newer releases leave them out.
    """
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise RefusedPickleError(f"its {_VARIABLES} have no names")
    owned = ("recipe", "scaling_", "global_")  # of the layer itself, which takes over every name that it is given
    plain = {k: v for k, v in found.items() if not isinstance(v, list | tuple) and not k.startswith(owned)}
    for name, value in plain.items():
        if not isinstance(value, str) and not (isinstance(value, int | float) and abs(value) <= _MAX_NUMBER):
            raise RefusedPickleError(f"its {name} is no number up to {_MAX_NUMBER:,}"[:200])
    return plain

"""Rotary positions as config.json gives them: plain, or scaled in one of four ways. Torch-free."""

import math
from dataclasses import dataclass
from typing import Any

from data_prep import InputError

_NUMBERS = {"linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor")}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """What transformers makes of its rope parameters; fields that `rope_type` does not have stay neutral.

    attention_factor: cosine and sine are multiplied by it.
    """

    rope_type: str
    factor: float
    original_max_position_embeddings: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    @property
    def is_llama3(self) -> bool:
        """Whether it is what Llama 3.1 and its successors have, but for the factor."""
        own = (self.low_freq_factor, self.high_freq_factor, self.original_max_position_embeddings)
        return self.rope_type == "llama3" and own == (1.0, 4.0, 8192)


def read_rope(config: dict[str, Any], origin: str) -> tuple[Any, RopeScaling | None]:
    """rope_theta as it stands there, and how RoPE is scaled; None where it is plain. Raises InputError.

    As in transformers 5, a rope_scaling that is not empty stands in place of rope_parameters as a whole.
    """
    old, new = config.get("rope_scaling") or {}, config.get("rope_parameters") or {}
    rope = old or new
    if any(isinstance(value, dict) or name.endswith("_attention") for name, value in rope.items()):
        raise InputError(f"{origin} gives each type of layer a RoPE of its own ({rope}): give one for all, not nested")
    kind, theta = _kind(rope, origin), rope.get("rope_theta", config.get("rope_theta", 10000.0))
    if old and new and (_kind(new, origin) not in ("default", kind) or new.get("rope_theta", theta) != theta):
        raise InputError(
            f"{origin} has rope_scaling {old} beside rope_parameters {new}: transformers takes the first alone, with a "
            f"rope_theta of {theta}; leave out one of them"
        )
    if any((where.get("partial_rotary_factor") or 1.0) != 1.0 for where in (config, rope)):
        raise InputError(f"{origin} has a partial_rotary_factor: the models known here turn whole heads")
    if kind == "default":
        return theta, None
    if kind not in _NUMBERS:
        raise InputError(f"{origin} scales RoPE ({rope}); known: plain RoPE, and {', '.join(_NUMBERS)}")
    return theta, _scaling(kind, rope, config, origin)


def _kind(rope: dict[str, Any], origin: str) -> str:
    kinds = {str(rope[name]) for name in ("rope_type", "type") if rope.get(name) is not None} or {"default"}
    if len(kinds) > 1:
        raise InputError(f"{origin} has a rope_type and a type that differ ({rope}): leave out one of them")
    return kinds.pop()


def _scaling(kind: str, rope: dict[str, Any], config: dict[str, Any], origin: str) -> RopeScaling:
    numbers: dict[str, Any] = {name: rope.get(name) for name in _NUMBERS[kind]}
    if kind in ("yarn", "llama3"):
        name, longest = "original_max_position_embeddings", config.get("max_position_embeddings", 32768)
        numbers[name] = config.get(name) or rope.get(name) or longest  # at top level it is believed first
    if kind == "yarn":
        if "factor" in rope and rope["factor"] is None:
            if type(longest) is not int or type(numbers[name]) is not int or min(longest, numbers[name]) < 1:
                raise InputError(f"{origin} scales RoPE ({kind}) from {numbers[name]!r} to {longest!r} positions")
            numbers["factor"] = longest / numbers[name]
        numbers |= {
            name: rope[name] for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim") if rope.get(name)
        }
        numbers |= {"attention_factor": rope["attention_factor"]} if rope.get("attention_factor") is not None else {}
    for name, value in numbers.items():
        if type(value) not in (int, float) or not 0 < value < math.inf or (name == "factor" and value < 1):
            raise InputError(f"{origin} scales RoPE ({kind}) with {name} {value!r}; it must be a number, a factor >= 1")
    if kind == "yarn":
        by = [numbers.pop(name, None) for name in ("mscale", "mscale_all_dim")]
        upper, lower = (_mscale(numbers["factor"], each) for each in (by if all(by) else (1.0, 0.0)))
        numbers = {"attention_factor": upper / lower, "truncate": _boolean(rope, "truncate", origin), **numbers}
    return RopeScaling(rope_type=kind, **numbers)


def _boolean(rope: dict[str, Any], name: str, origin: str) -> bool:
    value = rope.get(name, True)
    if not isinstance(value, bool):
        raise InputError(f"{origin} scales RoPE with {name} {value!r}; it must be true or false")
    return value


def _mscale(factor: float, by: float) -> float:
    return 0.1 * by * math.log(factor) + 1.0

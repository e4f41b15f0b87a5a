"""Frequencies of scaled RoPE, as transformers computes them (modeling_rope_utils.py), to the last bit.

linear: positions divided. yarn: "by parts", Peng et al., arXiv 2309.00071. llama3: long waves stretched, as Llama 3.1
has it. dynamic: plain within max_position_embeddings, beyond which `config.stage` lets nothing go.
"""

import math

import torch
from torch import Tensor

from megatron_davinci.models.rope import RopeScaling


def scaled_frequencies(width: int, base: float, scaling: RopeScaling) -> Tensor:
    """Angles by which a position turns the pairs of a head of `width`, (width / 2,), fp32, on the CPU."""
    powers = base ** (torch.arange(0, width, 2, device="cpu").float() / width)
    if scaling.rope_type == "linear":
        return 1.0 / powers / scaling.factor
    if scaling.rope_type == "yarn":
        return _yarn(powers, width, base, scaling)
    if scaling.rope_type == "llama3":
        return _llama3(1.0 / powers, scaling)
    assert scaling.rope_type == "dynamic"
    return 1.0 / powers


def _yarn(powers: Tensor, width: int, base: float, scaling: RopeScaling) -> Tensor:
    """Fast pairs stay, slow ones are divided by the factor, those in between are mixed."""

    def pair_that_turns(turns: float) -> float:
        return width * math.log(scaling.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low if high != low else high + 0.001 - low
    kept = 1 - ((torch.arange(width // 2, device="cpu").float() - low) / span).clamp(0, 1)
    return 1.0 / (scaling.factor * powers) * (1 - kept) + 1.0 / powers * kept


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Long waves are stretched by the factor, short ones stay, those in between are mixed."""
    length, least, most = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    waves = 2 * math.pi / plain
    long, short = waves > length / least, waves < length / most
    stretched = torch.where(long, plain / scaling.factor, plain)
    smooth = (length / waves - least) / (most - least)
    mixed = (1 - smooth) * stretched / scaling.factor + smooth * stretched
    return torch.where(~long & ~short, mixed, stretched)

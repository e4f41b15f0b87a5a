"""Reinforcement mid-training, after the paper "RMT": what is asked when, and what an answer is worth."""

from typing import Literal

EntropyKind = Literal["top16", "full"]
"""Of the 16 likeliest tokens, renormalised, or of all."""

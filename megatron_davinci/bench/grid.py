"""Layouts to try: every combination of some overrides. Torch-free."""

from collections.abc import Sequence
from itertools import product

from data_prep import InputError


def combinations(axes: Sequence[str]) -> list[list[str]]:
    """Lists of key=value: each value of every key=a,b with each value of the others. Raises InputError."""
    values = []
    for axis in axes:
        key, equals, listed = axis.partition("=")
        if not (key and equals and all(listed.split(","))):
            raise InputError(f"--grid {axis}: give key=value,value,... such as megatron.tensor_model_parallel_size=1,2")
        values.append([f"{key}={value}" for value in listed.split(",")])
    return [list(chosen) for chosen in product(*values)]

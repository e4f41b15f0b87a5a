"""The CPU as a machine to train on."""

import subprocess
import sys

import pytest

from megatron_davinci.core.device import has_gpu

STEPS = """
import resource, torch
from megatron_davinci.core import patches
if {wanted}:
    patches.run_on_cpu_without_gpu()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(16 << 20)  # 64 MiB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(has_gpu(), reason="of machines without a GPU")
def test_large_tensors_of_a_step_are_laid_into_memory_that_is_there() -> None:
    faults = {}
    for wanted in (True, False):
        program = STEPS.format(wanted=wanted)
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        faults[wanted] = int(found.stdout)
    # what else the process lays beside a tensor may part the first ones: two or three are laid anew, not twenty
    assert faults[True] < faults[False] / 4

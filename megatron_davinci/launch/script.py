"""The script that runs a recipe on one node, or on each of several; and what it shares with Slurm's. Torch-free.

It repeats training while that gets further: stages with another layout begin in fresh processes, a run that was stopped
by a limit or a failing node goes on from its last checkpoint, and one that saves no step ends.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = """\
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export CUDA_DEVICE_MAX_CONNECTIONS=1  # Megatron overlaps communication with it
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # ranks that torchrun starts again would find addresses of dead ones
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
"""
STATE = """\
state() { %(python)s -m megatron_davinci.launch.state %(run)s; }
before=$(state)
[ "$before" = finished ] && echo %(run)s is finished >&2 && exit 0
"""


@dataclass(frozen=True)
class Job:
    """What runs where. `restarts`: how often torchrun starts failed ranks again; `port`: where they meet."""

    recipe: Path
    overrides: Sequence[str]
    run: str
    nodes: int
    per_node: int
    gpus: bool = True
    python: str = "python"
    restarts: int = 3
    port: int = 29500

    def training(self) -> str:
        """The command of one rank, behind its interpreter."""
        return shlex.join(["-m", "megatron_davinci", "train", str(self.recipe), *self.overrides])


def local_script(job: Job) -> str:
    """For one node, or for each of several with MASTER_ADDR set to the first."""
    launcher = [
        "-m",
        "megatron_davinci.launch.torchrun",
        f"--nproc-per-node={job.per_node}",
        f"--max-restarts={job.restarts}",
    ]
    where = "--standalone"
    if job.nodes > 1:
        first = "${MASTER_ADDR:?set it to the first node}"
        where = f'--nnodes={job.nodes} --rdzv-backend=c10d --rdzv-endpoint="{first}:{job.port}"'
    command = f"{job.python} {shlex.join(launcher)} {where} {job.training()}"
    state = STATE % {"python": job.python, "run": shlex.quote(job.run)}
    return f"""\
#!/bin/bash
set -uo pipefail
{ENVIRONMENT}
# Ctrl-C has training save and end; once more ends it at once, with the ranks that torchrun has started.
interrupt() {{
    trap 'kill -KILL $(cat /proc/$ranks/task/$ranks/children) $ranks; exit 130' INT
    echo "Ctrl-C once more ends at once" >&2
    kill -INT $ranks
    wait $ranks
    exit 130
}}
while :; do
{_indented(state)}
    set -m  # Ctrl-C comes to this shell alone, which has training save
    {command} &
    ranks=$!
    set +m  # and says nothing of how it ended
    # Has training save and end; torchrun gives it 30 seconds for that.
    trap 'trap - TERM USR1 INT HUP; kill -TERM $ranks; wait $ranks; exit 143' TERM USR1 HUP
    trap interrupt INT
    wait $ranks || exit $?
    if [ "$(state)" = "$before" ]; then
        echo "nothing was saved after $before: see what training said" >&2
        exit 1
    fi
done
"""


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines()).rstrip("\n")

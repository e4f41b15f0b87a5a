"""The script that runs a recipe: one text, printed, run here, or handed to Slurm. Torch-free.

It repeats training while that gets further: stages with another layout begin in fresh processes, a run that was stopped
by a limit or a failing node goes on from its last checkpoint, and one that saves no step ends.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep import InputError

_ENVIRONMENT = """\
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export CUDA_DEVICE_MAX_CONNECTIONS=1  # Megatron overlaps communication with it
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # ranks that torchrun starts again would find addresses of dead ones
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
"""
_STATE = """\
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
        return shlex.join(["-m", "megatron_davinci.train", str(self.recipe), *self.overrides])


@dataclass(frozen=True)
class Slurm:
    """What Slurm is told. `warning`: seconds before the limit at which training is told to save and end."""

    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    container: str | None = None
    warning: int = 600
    chain: int = 1
    more: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        limit = _seconds(self.time)
        if limit is not None and limit <= self.warning:
            raise InputError(
                f"--time {self.time} is a limit of {limit} s, and jobs save {self.warning} s before theirs: "
                "give more time, or a smaller --warning"
            )


def _seconds(time: str) -> int | None:
    """Of minutes, minutes:seconds, h:m:s, days-h, days-h:m or days-h:m:s, as Slurm has it; None is no limit."""
    if time.upper() in ("UNLIMITED", "INFINITE"):
        return None
    written = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if written is None:
        raise InputError(f"--time {time} is no limit of Slurm's: give minutes, hours:minutes:seconds or days-hours")
    days, *parts = (None if part is None else int(part) for part in written.groups())
    first, second, third = (part or 0 for part in parts)
    if days is None and parts[2] is None:
        return 60 * first + second
    return 86400 * (days or 0) + 3600 * first + 60 * second + third


def local_script(job: Job) -> str:
    """For one node, or for each of several with MASTER_ADDR set to the first."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={job.per_node}", f"--max-restarts={job.restarts}"]
    where = "--standalone"
    if job.nodes > 1:
        where = f'--nnodes={job.nodes} --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:{job.port}"'
    command = f"{job.python} {shlex.join(launcher)} {where} {job.training()}"
    state = _STATE % {"python": job.python, "run": shlex.quote(job.run)}
    return f"""\
#!/bin/bash
set -uo pipefail
{_ENVIRONMENT}
while :; do
{_indented(state)}
    {command} &
    ranks=$!
    # Has training save and end; torchrun gives it 30 seconds for that.
    trap 'trap - TERM USR1; kill -TERM $ranks; wait $ranks; exit 143' TERM USR1
    wait $ranks || exit $?
    if [ "$(state)" = "$before" ]; then
        echo "nothing was saved after $before: see what training said" >&2
        exit 1
    fi
done
"""


def slurm_script(job: Job, slurm: Slurm) -> str:
    """For sbatch. With a chain of jobs the next one goes on, else the job requeues itself."""
    wanted = {
        "job-name": re.sub(r"[^\w.-]+", "-", Path(job.run).name),
        "nodes": job.nodes,
        "ntasks-per-node": job.per_node,
        "gpus-per-node": job.per_node if job.gpus else None,
        "time": slurm.time,
        "partition": slurm.partition,
        "account": slurm.account,
        "signal": f"USR1@{slurm.warning}",
        "output": "slurm-%x-%j.log",  # where it was submitted: Slurm makes no directories
        "open-mode": "append",
    }
    options = [f"--{name}={value}" for name, value in wanted.items() if value is not None]
    options += ["--requeue" if slurm.chain == 1 else "--no-requeue", *slurm.more]
    container = ""
    if slurm.container is not None:
        image = shlex.quote(f"--container-image={slurm.container}")
        container = f'{image} --container-mounts="$PWD:$PWD" --container-workdir="$PWD" '
    going_on = "scontrol requeue $SLURM_JOB_ID" if slurm.chain == 1 else 'echo "the next job of the chain goes on"'
    inside = f"srun --nodes=1 --ntasks=1 {container}" if container else ""
    state = _STATE % {"python": inside + job.python, "run": shlex.quote(job.run)}
    return f"""\
#!/bin/bash
{"".join(f"#SBATCH {option}{chr(10)}" for option in options)}
set -uo pipefail
{_ENVIRONMENT}
{state}
srun --kill-on-bad-exit=1 {container}{job.python} {job.training()}  # each task is a rank; USR1 has it save and end
code=$?
after=$(state)
[ "$after" = finished ] && exit 0
# What saved no step gets a second chance if it failed: a node may have, before the first checkpoint.
if [ $code -eq 2 ] || {{ [ "$after" = "$before" ] && [ $code -eq 0 -o "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ]; }}; then
    echo "not started again: exit code $code, nothing saved after $before" >&2
    exit $((code ? code : 1))
fi
{going_on}
"""


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines()).rstrip("\n")

"""The script that runs a recipe under Slurm. Torch-free.

A job that is stopped by its limit or by a failing node goes on from its last checkpoint: it requeues itself or, in a
chain, the next one does. One that can only fail again ends.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep import InputError
from megatron_davinci.launch.script import ENVIRONMENT, STATE, Job

_BEFORE = """\
unset MASTER_ADDR MASTER_PORT RANK WORLD_SIZE LOCAL_RANK  # of the shell that submitted this: ranks are srun's
run=%s
"""
# A node may have failed: what saved no step is tried once more, but not a third time from the same step.
_AFTER = """\
code=$?
after=$(state)
[ "$after" = finished ] && exit 0
failed=$(cat "$run/failed-after" 2> /dev/null)
if [ $code -eq 2 ] || { [ "$after" = "$before" ] && { [ $code -eq 0 ] || [ "$after" = "$failed" ]; }; }; then
    echo "not started again: exit code $code, nothing saved after $before" >&2
    rm -f "$run/failed-after"
    mkdir -p "$run" && echo "$SLURM_JOB_ID" > "$run/gave-up"
    exit $((code ? code : 1))
fi
[ "$after" = "$before" ] && mkdir -p "$run" && echo "$after" > "$run/failed-after"
"""
# The jobs of a chain begin whatever became of the one before: here they learn that it gave up.
_CHAINED = """\
if [[ "${SLURM_JOB_DEPENDENCY:-}" =~ ^afterany:$(cat "$run/gave-up" 2> /dev/null || echo none)($|[^0-9]) ]]; then
    echo "the job before gave up" >&2
    echo "$SLURM_JOB_ID" > "$run/gave-up"
    exit 1
fi
"""
# One on each of the job's last nodes; they end with its script.
_SERVERS = """\
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
rm -f "$run"/servers/*.json  # of the job before
for number in $(seq 0 %(last)d); do
    srun --nodes=1 --ntasks=1 --nodelist="${nodes[%(ranks)d + number]}" %(container)s%(python)s -m megatron_davinci \\
        rollout serve %(recipe)s --out "$run/servers/$number.json" &
done
trap 'kill $(jobs -p) 2> /dev/null' EXIT
"""


@dataclass(frozen=True)
class Slurm:
    """What Slurm is told. `warning`: seconds before the limit at which training is told to save and end.
    `rollout_nodes`: the last nodes of the job, which have a rollout server each, and no rank."""

    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    container: str | None = None
    mounts: Sequence[str] = ()
    warning: int = 600
    chain: int = 1
    rollout_nodes: int = 0
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
    if time.upper() in ("UNLIMITED", "INFINITE", "0"):
        return None
    written = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if written is None:
        raise InputError(f"--time {time} is no limit of Slurm's: give minutes, hours:minutes:seconds or days-hours")
    days, *parts = (None if part is None else int(part) for part in written.groups())
    first, second, third = (part or 0 for part in parts)
    if days is None and parts[2] is None:
        return 60 * first + second
    return 86400 * (days or 0) + 3600 * first + 60 * second + third


def slurm_script(job: Job, slurm: Slurm) -> str:
    """For sbatch. With a chain of jobs the next one goes on, else the job requeues itself."""
    wanted = {
        "job-name": re.sub(r"[^\w.-]+", "-", Path(job.run).name),
        "nodes": job.nodes + slurm.rollout_nodes,
        "ntasks-per-node": job.per_node,
        "gpus-per-node": job.per_node if job.gpus else None,
        "mem": 0 if job.gpus else None,  # all of it
        "time": slurm.time,
        "partition": slurm.partition,
        "account": slurm.account,
        "signal": f"USR1@{slurm.warning}",
        "output": "slurm-%x-%j.log",  # where it was submitted: Slurm makes no directories
        "open-mode": "append",
    }
    options = [f"--{name}={value}" for name, value in wanted.items() if value is not None]
    options += ["--exclusive"] if job.gpus else []  # all cores: a rank is not only its main thread
    options += ["--requeue" if slurm.chain == 1 else "--no-requeue", *slurm.more]
    container = ""
    if slurm.container is not None:
        image = shlex.quote(f"--container-image={slurm.container}")
        mounts = "".join(f",{shlex.quote(f'{mount}:{mount}')}" for mount in slurm.mounts)
        container = f'{image} --container-mounts="$PWD:$PWD"{mounts} --container-workdir="$PWD" '
    inside = f"srun --nodes=1 --ntasks=1 {container}" if container else ""
    state = STATE % {"python": inside + job.python, "run": '"$run"'}
    chained, going_on = "", "scontrol requeue $SLURM_JOB_ID"
    if slurm.chain > 1:
        chained, going_on = _CHAINED, 'echo "saved at $after: the next job of the chain goes on, if there is one"'
    return f"""\
#!/bin/bash
{"".join(f"#SBATCH {option}{chr(10)}" for option in options)}
set -uo pipefail
{ENVIRONMENT}{_BEFORE % shlex.quote(job.run)}{chained}
{state}
{_servers(job, slurm, container)}# each task is a rank; USR1 has it save and end
srun --kill-on-bad-exit=1 {_ranks(job, slurm)}{container}{job.python} {job.training()}
{_AFTER}{going_on}
"""


def _servers(job: Job, slurm: Slurm, container: str) -> str:
    """A rollout server on each of the last nodes; they end with the job's script."""
    if not slurm.rollout_nodes:
        return ""
    return _SERVERS % {
        "last": slurm.rollout_nodes - 1,
        "ranks": job.nodes,
        "container": container,
        "python": job.python,
        "recipe": shlex.join([str(job.recipe), *job.overrides]),
    }


def _ranks(job: Job, slurm: Slurm) -> str:
    """Which nodes have ranks, where not all do."""
    if not slurm.rollout_nodes:
        return ""
    names = f'--nodelist="$(IFS=,; echo "${{nodes[*]:0:{job.nodes}}}")"'
    return f"--nodes={job.nodes} --ntasks={job.nodes * job.per_node} {names} "

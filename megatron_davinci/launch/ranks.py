"""Which rank is this process under srun. Torch-free."""

import os
import shutil
import subprocess

_FIRST_PORT, _PORTS = 20000, 12768  # below those that Linux gives to whoever asks for any


def adopt_slurm_ranks() -> None:
    """Take this process's rank from srun, where srun started several and nobody else has said which is which."""
    environment = os.environ
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_STEP_NUM_TASKS"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    environment.setdefault("MASTER_ADDR", _first_host(environment["SLURM_STEP_NODELIST"]))
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    environment.setdefault("MASTER_PORT", str(_FIRST_PORT + (7 * job + step) % _PORTS))


def _first_host(nodes: str) -> str:
    """Of Slurm's short form, node[003-010,17]."""
    if shutil.which("scontrol") is None:
        return os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return shown.stdout.split()[0]

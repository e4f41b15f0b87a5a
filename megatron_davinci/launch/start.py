"""Start what a script says, here or under Slurm. Torch-free."""

import os
import shutil
import socket
import subprocess

from data_prep import InputError, WorkFailed
from megatron_davinci.launch.script import Job, local_script
from megatron_davinci.launch.slurm import Slurm, slurm_script


def check_here(job: Job) -> None:
    """Raise InputError where this node cannot be one of the job's."""
    if job.nodes == 1:
        return
    first = os.environ.get("MASTER_ADDR")
    if first is None:
        raise InputError(
            f"{job.nodes} nodes without Slurm need MASTER_ADDR: set it to the first node's name and start the same "
            "command on each, or give --slurm"
        )
    if first in ("localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn()) and _in_use(job.port):
        raise InputError(f"port {job.port}, where the ranks would meet, is in use: give another --port to all nodes")


def _in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def run_locally(job: Job) -> None:
    """Become the job's script; comes back only where that cannot be."""
    check_here(job)
    os.execvp("bash", ["bash", "-c", local_script(job)])


def submit(job: Job, slurm: Slurm) -> list[str]:
    """Hand the job, or its chain, to Slurm; gives the numbers of its jobs. Raises InputError and WorkFailed."""
    if shutil.which("sbatch") is None:
        raise InputError("sbatch is not on the path: run this where Slurm is, or print the script with --dry-run")
    script, jobs = slurm_script(job, slurm), list[str]()
    for _ in range(slurm.chain):
        after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else []
        done = subprocess.run(
            ["sbatch", "--parsable", *after], input=script, capture_output=True, text=True, check=False
        )
        if done.returncode:
            before = f" after {', '.join(jobs)}, which scancel would end" if jobs else ""
            raise WorkFailed(f"sbatch refused the job{before}: {done.stderr.strip()}")
        jobs.append(done.stdout.strip().partition(";")[0])
    return jobs

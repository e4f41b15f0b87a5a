"""The machine: GPUs, disk, shared memory, sockets, limits, commands."""

import importlib
import os
import resource
import shutil
import socket
import subprocess
from pathlib import Path

from data_prep import InputError
from data_prep.environments.interpreters import interpreters, uv_program
from data_prep.environments.sandbox.bubblewrap import BubblewrapSandbox
from data_prep.io.files import nearest_existing
from megatron_davinci.doctor.finding import Finding, fail, ok, warn

_GIB = 1 << 30
_OWN_ADDRESS = "nothing on one node; for more, give this host its address on the network in /etc/hosts"
_LEAST_DISK, _LEAST_SHARED, _LEAST_FILES = 20 * _GIB, 1 * _GIB, 4096


def check_gpu() -> Finding:
    """GPUs that torch can use, and NCCL."""
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}))
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        return ok("GPU", f"{torch.cuda.device_count()} x {names}, CUDA {torch.version.cuda}, NCCL {nccl}")
    if shutil.which("nvidia-smi") is None:
        return warn("GPU", "none: training runs on the CPU, for trials", "nothing, unless a GPU should be here")
    if torch.version.cuda is None:
        return fail("GPU", "there is a driver, but torch is built without CUDA", "install a CUDA build of torch")
    return fail("GPU", "there is a driver, but torch finds no GPU", "see nvidia-smi, and CUDA_VISIBLE_DEVICES")


def check_disk(directory: Path) -> Finding:
    """Room where runs are written: a checkpoint of N parameters takes 12 to 14 N bytes."""
    nearest = nearest_existing(directory)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        return fail("disk", f"{nearest} cannot be written to", "name another place with --directory")
    if not directory.is_dir():
        return fail("disk", f"{directory} does not exist", f"mkdir -p {directory}")
    free = shutil.disk_usage(nearest).free
    said = f"{free / _GIB:,.0f} GiB free in {directory.absolute()}"
    if free < _LEAST_DISK:
        return warn("disk", said, "make room, or run elsewhere: a checkpoint takes 12 to 14 bytes a parameter")
    return ok("disk", said)


def check_shared_memory(directory: Path = Path("/dev/shm")) -> Finding:
    """Where NCCL and loaders of data exchange what processes share."""
    if not directory.is_dir():
        return fail("shared memory", f"{directory} is absent", f"mount it: mount -t tmpfs -o size=16g none {directory}")
    size = shutil.disk_usage(directory).total
    said = f"{size / _GIB:,.2f} GiB in {directory}"
    if size < _LEAST_SHARED:
        return fail("shared memory", said, "give the container more: docker run --shm-size=16g, or --ipc=host")
    return ok("shared memory", said)


def check_sockets(host: str | None = None) -> Finding:
    """Ranks find each other by this host's name, and listen on ports."""
    host = host or socket.gethostname()
    try:
        address = socket.gethostbyname(host)
        with socket.create_server(("", 0)) as server, socket.create_connection((address, server.getsockname()[1]), 5):
            if address.startswith("127."):
                return warn("sockets", f"{host} is {address}, which no other node reaches", _OWN_ADDRESS)
            return ok("sockets", f"{host} is {address}, and can be reached")
    except OSError as error:
        return fail("sockets", f"{host}: {error}", "name this host in /etc/hosts, and let its ports be reached")


def check_open_files() -> Finding:
    """How many files a process may hold open: a checkpoint of many ranks is many."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _LEAST_FILES:
        return warn("open files", f"at most {soft}", f"ulimit -n {_LEAST_FILES * 16}")
    return ok("open files", f"at most {soft}")


def check_git() -> Finding:
    """git, which mines histories."""
    if shutil.which("git") is None:
        return warn("git", "not on the path", "install it: davinci data collect reads histories with it")
    said = subprocess.run(["git", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return ok("git", said.removeprefix("git version "))


def check_sandbox(directory: Path) -> Finding:
    """Where strangers' code runs, and each protection that this machine gives it."""
    try:
        able = BubblewrapSandbox().capabilities(nearest_existing(directory))
        uv_program()
    except InputError as error:
        return warn("sandbox", f"{error}", "davinci data environments needs it")
    except OSError as error:
        return warn("sandbox", f"bubblewrap: {error}", "davinci data environments needs it")
    missing = {name: why for name, why in able.items() if why}
    there = ", ".join(name for name in able if name not in missing)
    if not missing:
        return ok("sandbox", f"bubblewrap: {there}; Python {', '.join(interpreters())}")
    said = "; ".join(f"no {name} ({why})" for name, why in missing.items())
    return warn("sandbox", f"bubblewrap: {there or 'nothing'}; {said}", "davinci data environments needs them")


def check_slurm() -> Finding:
    """Slurm, if this is a cluster's node."""
    found = shutil.which("sbatch")
    return ok("Slurm", found if found else "not on the path, and needed for davinci launch --slurm alone")

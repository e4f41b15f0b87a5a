"""A real Slurm of one node or several, for as long as a test needs it: Debian's slurm-wlm and munge, and root.

Several nodes are hosts of their own (`hosts.py`), which can crash.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hosts import Host

_CONFIGURATION = """\
ClusterName=trial
SlurmctldHost={control}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket{credentials}
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={port}
SlurmdPort={next_port}
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=YES State=UP
"""


# A node that has crashed is missed within seconds, and its job need not rest for two minutes.
_SOON = "SlurmdTimeout=5\nMessageTimeout=5\nTCPTimeout=1\n"


def why_none() -> str:
    """The reason for which no Slurm can be started here; empty where one can."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if _find(name) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "needs root"


@contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """Start it, with this machine as its one node; gives the environment in which Slurm's commands talk to it."""
    host = socket.gethostname().partition(".")[0]
    with _prepared(f"{host}(127.0.0.1)", {host: "127.0.0.1"}) as (folder, environment), ExitStack() as stack:
        stack.enter_context(_daemon([str(_find("slurmctld")), "-D"], environment))
        stack.enter_context(_daemon([str(_find("slurmd")), "-D"], environment))
        _wait(lambda: "idle" in _said(["sinfo", "-h", "-o", "%T"], environment), folder)
        yield environment


class SeveralNodes:
    """A Slurm whose controller and nodes are hosts; its commands are run on the controller."""

    def __init__(self, control: Host, environment: dict[str, str], stack: ExitStack) -> None:
        self.control, self.environment, self._stack = control, environment, stack

    def start_node(self, node: Host) -> None:
        """Start a node's daemon, also after a crash."""
        self._stack.enter_context(_daemon(node.command(str(_find("slurmd")), "-D"), self.environment))

    def said(self, *command: str) -> str:
        """What a command of Slurm prints."""
        return _said(self.control.command(*command), self.environment)


@contextmanager
def slurm_of(control: Host, *nodes: Host) -> Iterator[SeveralNodes]:
    """Start it on hosts. A node that does not answer for some seconds is down, and its jobs are requeued."""
    addresses = {node.name: node.address for node in nodes}
    with (
        _prepared(f"{control.name}({control.address})", addresses, ",cred_expire=5", _SOON) as (folder, environment),
        ExitStack() as stack,
    ):
        cluster = SeveralNodes(control, environment, stack)
        stack.enter_context(_daemon(control.command(str(_find("slurmctld")), "-D"), environment))
        for node in nodes:
            cluster.start_node(node)
        states = ["sinfo", "-h", "-N", "-o", "%T"]
        _wait(lambda: cluster.said(*states).split() == ["idle"] * len(nodes), folder)
        yield cluster


@contextmanager
def _prepared(
    control: str, nodes: dict[str, str], credentials: str = "", more: str = ""
) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with the configuration of a cluster, whose keys are served; and the environment that names it."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        for name in ("munge", "state", *(f"spool-{node}" for node in nodes)):
            (folder / name).mkdir()
        configuration = folder / "slurm.conf"
        port, next_port = _free_ports(2)
        lines = [f"NodeName={name} NodeAddr={at} CPUs=2 RealMemory=4096 State=UNKNOWN" for name, at in nodes.items()]
        configuration.write_text(
            _CONFIGURATION.format(
                folder=folder,
                control=control,
                port=port,
                next_port=next_port,
                credentials=credentials,
                nodes=more + "\n".join(lines),
            )
        )
        environment = {**os.environ, "SLURM_CONF": str(configuration)}
        stack.enter_context(_daemon(_munged(folder), environment))
        _wait(lambda: (folder / "munge.socket").exists(), folder)
        yield folder, environment


def _munged(folder: Path) -> list[str]:
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    shutil.chown(folder, "munge")
    for path in (folder / "munge", key):
        shutil.chown(path, "munge", "munge")
    files = {"socket": "munge.socket", "key-file": "munge/key", "pid-file": "munge/pid", "log-file": "munge/log",
             "seed-file": "munge/seed"}  # fmt: skip
    options = [f"--{name}={folder / file}" for name, file in files.items()]
    return [
        "setpriv",
        "--reuid=munge",
        "--regid=munge",
        "--clear-groups",
        str(_find("munged")),
        "--foreground",
        *options,
    ]


@contextmanager
def _daemon(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _said(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def _wait(ready: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        logs = {path.name: path.read_text()[-2000:] for path in folder.glob("*.log")}
        assert time.monotonic() < deadline, logs
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]

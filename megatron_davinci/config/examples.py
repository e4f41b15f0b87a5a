"""The examples that come with the package: in a wheel beside the modules, in a checkout in examples/. Torch-free."""

import shutil
import textwrap
from pathlib import Path

from data_prep import InputError
from data_prep.io.files import refuse_existing
from data_prep.io.registry import nearest

_PACKAGE = Path(__file__).parents[1]
_MOST_CHARACTERS = 200


def examples_folder() -> Path:
    """Where the examples lie. Raises InputError where neither a wheel nor a checkout brought them."""
    for folder in (_PACKAGE / "example_files", _PACKAGE.parent / "examples"):
        if (folder / "README.md").is_file():
            return folder
    raise InputError("the examples did not come with this installation: install a wheel, or use a checkout")


def describe_examples() -> dict[str, str]:
    """Name -> what its recipe, or its page, says first."""
    folder = examples_folder()
    return {path.name: _first_line(path) for path in sorted(folder.iterdir()) if path.is_dir() and _files(path)}


def copy_files(name: str, out: Path) -> Path:
    """Copy an example to a directory that is not there yet. Raises InputError."""
    known = describe_examples()
    if name not in known:
        raise InputError(f"example {name!r} is unknown{nearest(name, known)}: davinci examples list names them")
    refuse_existing(out)
    out.mkdir(parents=True)
    for file in _files(examples_folder() / name):
        shutil.copyfile(file, out / file.name)
    return out


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _first_line(folder: Path) -> str:
    """The comment at the head of a recipe, or the first paragraph of a page."""
    recipe, page = folder / "recipe.yaml", folder / "README.md"
    if recipe.is_file():
        line = recipe.read_text().splitlines()[0].removeprefix("#")
    else:
        line = " ".join(page.read_text().split("\n\n")[1].split()) if page.is_file() else ""
    return textwrap.shorten(line, _MOST_CHARACTERS, placeholder=" ...")

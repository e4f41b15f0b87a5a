"""Property: a wheel and a source distribution install and work in clean environments: to train, and for data alone."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import of_acceptance

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools import build_meta as b; import sys; getattr(b, sys.argv[1])(sys.argv[2])"


def output_of(*command: object, cwd: Path, status: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run a command without this checkout on its path; it must end with `status`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, (command, done.stdout[-1000:], done.stderr[-2000:])
    return done


def files_of(*areas: str) -> list[str]:
    """What git has, and what it would take, below the areas."""
    listed = output_of("git", "ls-files", "-co", "--exclude-standard", *areas, cwd=ROOT).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a source distribution, and of the wheel that is made of it."""
    folder = tmp_path_factory.mktemp("packages")
    checkout = folder / "checkout"
    for name in files_of():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    output_of(sys.executable, "-c", BUILD, "build_sdist", folder, cwd=checkout)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    [unpacked] = [path for path in folder.glob("megatron_davinci-*") if path.is_dir()]
    output_of(sys.executable, "-c", BUILD, "build_wheel", folder, cwd=unpacked)
    return folder


def test_the_source_distribution_holds_what_building_needs(built: Path) -> None:
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {*files_of("csrc"), "setup.py", "pyproject.toml", "LICENSE", "README.md", "examples/README.md"} <= names
    assert not any(name.endswith((".so", ".pyc")) for name in names)


def test_the_wheel_works_in_a_clean_environment(built: Path, tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    """Dependencies are those of this environment, so that nothing is downloaded."""
    [wheel] = built.glob("*.whl")
    assert set(files_of("data_prep", "megatron_davinci")) - set(zipfile.ZipFile(wheel).namelist()) == set()
    venv.create(tmp_path / "env", with_pip=True)
    python, davinci = (tmp_path / "env" / "bin" / name for name in ("python", "davinci"))
    output_of(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    [packages] = (tmp_path / "env").glob("lib/python*/site-packages")
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "of_the_tests.pth").write_text(f"{here}\n")
    where = "import megatron_davinci as m, data_prep._native as n; print(m.__file__); print(n.__file__)"
    found = output_of(python, "-c", where, cwd=tmp_path).stdout.split()
    assert all(line.startswith(str(tmp_path / "env")) for line in found), found
    recipe_values["data"]["stages"][0]["epochs"] = 2
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_values))
    output_of(davinci, "examples", "copy", "davinci-7b", "mine", cwd=tmp_path)
    output_of(davinci, "train", "mine/recipe.yaml", "--dry-run", cwd=tmp_path)
    output_of(davinci, "train", "recipe.yaml", cwd=tmp_path)
    output_of(davinci, "convert", "megatron-to-hf", "run", "hf", cwd=tmp_path)
    output_of(davinci, "report", "run", cwd=tmp_path)
    assert (tmp_path / "hf" / "README.md").read_text().startswith("---\nlibrary_name: transformers")


@of_acceptance
@pytest.mark.parametrize("extra", ["", "[train]"])
def test_pip_installs_everything_that_is_declared(built: Path, tmp_path: Path, extra: str) -> None:
    """From the index, torch first; the data tools alone have no torch, and say what training wants."""
    [wheel] = built.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python, davinci = (tmp_path / "env" / "bin" / name for name in ("python", "davinci"))
    install = (python, "-m", "pip", "install", "-q")
    if extra:
        output_of(*install, "-r", ROOT / "requirements" / "torch.txt", cwd=tmp_path)
    output_of(*install, f"{wheel}{extra}", cwd=tmp_path)
    (tmp_path / "texts.jsonl").write_text('{"text": "one"}\n')
    said = output_of(davinci, "doctor", cwd=tmp_path).stdout
    assert ("davinci data works, training does not" in said) == (extra == "")
    output_of(davinci, "data", "deduplicate", "texts.jsonl", "--out", "unique", cwd=tmp_path)
    said = output_of(davinci, "train", "nowhere.yaml", cwd=tmp_path, status=2).stderr
    assert said.startswith("error: ") and said.count("\n") == 1

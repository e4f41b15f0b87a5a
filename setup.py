"""Builds the C++ core and takes the examples along; everything else about the package stands in pyproject.toml."""

import shutil
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup
from setuptools.command.build_py import build_py

SOURCES = sorted(str(path) for path in Path("csrc").glob("*.cpp"))
HEADERS = sorted(str(path) for path in Path("csrc").glob("*.h"))


class BuildWithExamples(build_py):
    """A wheel holds examples/ for `davinci examples copy`; an editable installation has the folder itself."""

    def run(self) -> None:
        """Copy modules, then the examples."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "megatron_davinci" / "example_files"
            shutil.copytree("examples", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    ext_modules=[
        Pybind11Extension(
            "data_prep._native",
            SOURCES,
            depends=HEADERS,
            cxx_std=20,
            extra_compile_args=["-O3", "-Wall", "-Wextra"],
        )
    ],
    cmdclass={"build_ext": build_ext, "build_py": BuildWithExamples},
)

"""Imports go downwards: the order of packages is one list, and no module is in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from layers import LAYERS

ROOT = Path(__file__).parents[2]


def name_of(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for area in ("data_prep", "megatron_davinci") for path in (ROOT / area).rglob("*.py")}


def imported(source: str, modules: set[str]) -> set[str]:
    """Modules that a source imports anywhere: in functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & modules
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules or {node.module} & modules
    return found


def layer_of(module: str) -> int:
    """Place of the longest package in the list that a module lies in; a file at the top belongs to the top."""
    package = module
    while package not in LAYERS:
        package = package.rpartition(".")[0]
    return LAYERS.index(package)


def upwards(module: str, source: str, modules: set[str]) -> list[str]:
    return sorted(other for other in imported(source, modules) if layer_of(other) > layer_of(module))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_downwards(module: str) -> None:
    if module == "megatron_davinci.__main__":
        return  # python -m: it starts the command, which is on top
    assert upwards(module, MODULES[module].read_text(), set(MODULES)) == []


def test_every_package_has_a_layer() -> None:
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert packages == set(LAYERS)


def test_no_module_is_in_a_circle() -> None:
    graph = {module: imported(path.read_text(), set(MODULES)) - {module} for module, path in MODULES.items()}
    list(TopologicalSorter(graph).static_order())


def test_the_rules_see_what_breaks_them() -> None:
    lazy = "def f():\n    from megatron_davinci.train import loop\n"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import megatron_davinci.train.loop\n"
    for source in (lazy, typed):
        assert upwards("megatron_davinci.core.step", source, set(MODULES)) == ["megatron_davinci.train.loop"]
    with pytest.raises(CycleError):
        list(
            TopologicalSorter(
                {"a": imported("import b", {"a", "b"}), "b": imported("import a", {"a", "b"})}
            ).static_order()
        )

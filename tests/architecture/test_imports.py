"""Which packages may import what is heavy, and what works where torch is not installed."""

import ast
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchgen", "functorch", "megatron", "transformers")
MEGATRON_ALLOWED = ("core", "testing", "rl", "train", "evaluate", "first_import")


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, inside functions too, and the names it takes out of packages."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def roots(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("path", files("data_prep"), ids=lambda p: str(p.relative_to(ROOT)))
def test_data_prep_imports_nothing_heavy_and_nothing_above_it(path: Path) -> None:
    assert not roots(imports(path)) & {*HEAVY, "megatron_davinci", "tools"}


@pytest.mark.parametrize("path", files("megatron_davinci/core/losses"), ids=lambda p: str(p.relative_to(ROOT)))
def test_losses_know_torch_but_not_megatron(path: Path) -> None:
    assert "megatron" not in roots(imports(path))


@pytest.mark.parametrize("path", files("megatron_davinci"), ids=lambda p: str(p.relative_to(ROOT)))
def test_megatron_appears_only_where_it_may(path: Path) -> None:
    area = path.relative_to(ROOT / "megatron_davinci").parts[0].removesuffix(".py")
    if area not in MEGATRON_ALLOWED:
        assert "megatron" not in roots(imports(path))


def test_the_extension_is_data_preps_own() -> None:
    for path in files("megatron_davinci"):
        assert "data_prep._native" not in imports(path)


UNPICKLING = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "dist_checkpointing.load", "checkpoint.load",
    "checkpoint.load_state_dict", "numpy.load", "np.load", "marshal.load", "marshal.loads", "dill.load", "dill.loads",
    "joblib.load", "shelve.open",
}  # fmt: skip
# Bytes that a process of the same rank has put into a queue.
OWN_PICKLES = {"megatron_davinci/core/patches.py": {"pickle.loads"}}


def attributes(path: Path) -> set[str]:
    """Names of the form a.b that a file uses, without what is before the last point but one."""
    found = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    return {".".join(name.split(".")[-2:]) for name in found}


@pytest.mark.parametrize(
    "path",
    [path for area in ("data_prep", "megatron_davinci", "tools", "examples") for path in (ROOT / area).rglob("*.py")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_nothing_is_unpickled_but_by_our_own_reader(path: Path) -> None:
    """Checkpoints are anybody's, and a pickle is a program: `safe_pickle` alone reads them."""
    allowed = OWN_PICKLES.get(str(path.relative_to(ROOT)), set())
    assert attributes(path) & UNPICKLING == allowed
    unpicklers = {"Unpickler", "_Unpickler", "_loads", "_load"}
    assert not any(name in unpicklers for module in imports(path) if "pickle" in module for name in module.split("."))


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A Python that has every installed package but the heavy ones, and this checkout."""
    site = tmp_path_factory.mktemp("site")
    for entry in Path(sysconfig.get_path("platlib")).iterdir():
        if entry.name.split("-")[0].split(".")[0].replace("megatron_core", "megatron") not in HEAVY:
            (site / entry.name).symlink_to(entry)
    return ["env", "-i", f"PATH={os.environ['PATH']}", f"PYTHONPATH={site}:{ROOT}", sys.executable, "-S"]


def run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_torch_is_really_absent(without_torch: list[str]) -> None:
    for name in HEAVY:
        result = subprocess.run([*without_torch, "-c", f"import {name}"], capture_output=True, check=False, cwd="/")
        assert b"ModuleNotFoundError" in result.stderr, name


def test_data_prep_works_without_torch(without_torch: list[str]) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files("data_prep")
    ]
    run([*without_torch, "-c", f"import {', '.join(modules)}; from data_prep._native import pack_best_fit"])


@pytest.mark.parametrize("command", ["", "data", "data collect git", "data tokenize", "train", "demo", "convert"])
def test_help_works_without_torch(without_torch: list[str], command: str) -> None:
    out = run([*without_torch, "-c", "from megatron_davinci.cli import main; main()", *command.split(), "--help"])
    assert "Usage" in out


def test_a_command_imports_nothing_of_the_product_before_it_runs() -> None:
    """So `doctor` runs where an extension is missing, and --help appears at once."""
    show = "import sys, megatron_davinci.cli.app; print(*sys.modules)"
    loaded = run([sys.executable, "-c", show]).split()
    assert "megatron_davinci.cli.doctor" in loaded
    beside = ("data_prep.cli", "data_prep.io", "data_prep.samples", "megatron_davinci.cli", "megatron_davinci.first_")
    ours = [module for module in loaded if module.count(".") and module.startswith(("data_prep.", "megatron_davinci."))]
    assert [module for module in ours if not module.startswith(beside)] == []
    assert not roots(set(loaded)) & {*HEAVY, "numpy", "pydantic"}


UNUSED = ("wandb", "torch._dynamo", "torch._inductor")


@pytest.mark.parametrize("first", ["megatron.core", "megatron_davinci.rl.annotate", "megatron_davinci.train.loop"])
def test_megatron_is_imported_without_what_is_not_used(first: str) -> None:
    """As `first_import.py` says; all of it can be imported afterwards."""
    show = f"import sys, megatron_davinci, {first}, megatron.core.fusions.fused_bias_swiglu; print(*sys.modules)"
    loaded = set(run([sys.executable, "-c", f"{show}; import {', '.join(UNUSED)}"]).split())
    assert "megatron.core.parallel_state" in loaded
    assert not loaded & set(UNUSED)


def test_megatron_alone_imports_what_is_left_out() -> None:
    """Otherwise `first_import.py` has nothing to do and can go."""
    loaded = set(run([sys.executable, "-c", "import sys, megatron.core; print(*sys.modules)"]).split())
    assert set(UNUSED) <= loaded


def test_recipes_are_checked_without_torch(without_torch: list[str], recipe_values: dict[str, Any]) -> None:
    # Where torch is installed, checking must not import it; megatron-core's sources are read, not run.
    check = f"import sys; from megatron_davinci.config import parse_recipe; parse_recipe({recipe_values!r})"
    run([sys.executable, "-c", f"{check}; assert not {{'torch', 'megatron'}} & sys.modules.keys()"])
    run(
        [
            *without_torch,
            "-c",
            "import megatron_davinci.config, megatron_davinci.models.config, megatron_davinci.train.schedule",
        ]
    )

"""Objects and modules of other packages are changed in `core/patches.py` alone, and while Megatron is imported in
`first_import.py`; each change names its symptom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UPSTREAM = ("torch", "megatron", "transformer_engine", "transformers")
PATCHES = (ROOT / "megatron_davinci/core/patches.py", ROOT / "megatron_davinci/first_import.py")
WORKER = ROOT / "megatron_davinci" / "rl" / "math_grader.py"  # without torch; shuts itself in


def of_upstream(tree: ast.Module) -> set[str]:
    """Names that an import of another package, or import_module, has bound."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names if a.name.split(".")[0] in UPSTREAM}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UPSTREAM:
            names |= {a.asname or a.name for a in node.names}
        elif isinstance(node, ast.Assign) and "import_module" in ast.unparse(node.value):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def changed(source: str) -> list[str]:
    """Assignments to attributes of what is imported from upstream, and changes of any object's class."""
    tree = ast.parse(source)
    names, found = of_upstream(tree), []
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) else ():
            if isinstance(target, ast.Attribute):
                root = ast.unparse(target).split(".")[0].split("(")[0]
                if root in names or target.attr == "__class__" or "import_module" in ast.unparse(target):
                    found.append(ast.unparse(target))
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if called == "setattr" and ast.unparse(node.args[0]) != "self":
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "megatron_davinci").rglob("*.py")) if path not in (*PATCHES, WORKER)],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_nothing_upstream_is_changed_elsewhere(path: Path) -> None:
    assert changed(path.read_text()) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import torch\ntorch.cuda.synchronize = print",
        "from megatron.core import parallel_state as p\np.is_initialized = print",
        "import megatron.core.utils\nsetattr(megatron.core.utils, 'torch', None)",
        "import importlib\nm = importlib.import_module('megatron.core')\nm.x = 1",
        "layer.__class__ = Other",
        "for module in sys.modules.values():\n    setattr(module, 'lambdify', None)",
    ],
)
def test_the_rule_sees_a_patch(planted: str) -> None:
    assert changed(planted)


def test_every_patch_names_its_symptom() -> None:
    body = [node for path in PATCHES for node in ast.parse(path.read_text()).body]
    public = [n for n in body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    assert len(public) >= 5
    for function in public:
        assert "Symptom: " in (ast.get_docstring(function) or ""), function.name

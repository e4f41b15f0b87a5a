"""One public name has one meaning in the whole repository; the list of renamed recipe keys is true."""

import ast
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from data_prep import InputError
from megatron_davinci.config import parse_recipe
from megatron_davinci.config.renamed import RENAMED_KEYS

ROOT = Path(__file__).parents[2]
# Commands are called as the functions that they run.
COMMANDS = ("data_prep/cli", "megatron_davinci/cli")


def public_names(source: str) -> set[str]:
    """What a module defines at its top and does not hide."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def duplicates(sources: dict[str, str]) -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for path, source in sources.items():
        for name in public_names(source):
            places[name].append(path)
    return {name: paths for name, paths in places.items() if len(paths) > 1}


def test_a_public_name_has_one_meaning() -> None:
    files = [path for area in ("data_prep", "megatron_davinci") for path in sorted((ROOT / area).rglob("*.py"))]
    relative = {str(path.relative_to(ROOT)): path for path in files}
    sources = {name: path.read_text() for name, path in relative.items() if not name.startswith(COMMANDS)}
    assert duplicates(sources) == {}


def test_the_rule_sees_a_second_meaning() -> None:
    assert duplicates({"a.py": "def f(): ...\n_x = 1", "b.py": "f: int = 1\n_x = 2"}) == {"f": ["a.py", "b.py"]}


# A docstring that starts so cannot be read without what stands around it.
FRAGMENT = re.compile(r"(Of|As|All of (it|them)|Those|The same|Its?|Both|Them|So|And|But|That|Some of them)\b")


@pytest.mark.parametrize("area", ["data_prep", "megatron_davinci"])
def test_docstrings_stand_alone(area: str) -> None:
    for path in sorted((ROOT / area).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                text = ast.get_docstring(node) or ""
                assert not FRAGMENT.match(text), f"{path}: {node.name}: {text.splitlines()[0]}"


SECTIONS = {
    "": [], "faults": ["fault_tolerance"], "budget": ["objective", "budget"], "curriculum": ["objective", "curriculum"],
    "reward": ["objective", "reward"], "policy": ["objective", "policy"],
}  # fmt: skip


@pytest.mark.parametrize("section, old", sorted(RENAMED_KEYS))
def test_an_old_key_is_refused_with_its_new_name(recipe_values: dict[str, Any], section: str, old: str) -> None:
    values = {
        **recipe_values,
        "objective": {"kind": "rmt"},
        "evaluation": {"eval_interval": 1, "held_out_documents": 1},
    }
    inner = values
    for key in SECTIONS.get(section, [section]):
        inner = inner.setdefault(key, {})
    inner[old] = 1
    with pytest.raises(InputError) as error:
        parse_recipe(values)
    new = RENAMED_KEYS[section, old]
    name = re.search(rf"{old}' is now called '(.*)': rename it$", str(error.value))
    assert name, error.value
    del inner[old]
    *path, new = name[1].split(".")
    inner = values
    for key in path:
        inner = inner.setdefault(key, {})
    inner[new] = "of no type that it takes"
    with pytest.raises(InputError) as error:  # the new name is a key
        parse_recipe(values)
    assert "unknown recipe key" not in str(error.value) and "is now called" not in str(error.value)
    page = (ROOT / "docs" / "renamed.md").read_text()
    assert f"| `{section + '.' if section else ''}{old}` | `{RENAMED_KEYS[section, old].removeprefix('^')}` |" in page


# Old keys that are no word of anything else.
OLD_KEYS = sorted(
    {old for (_, old), new in RENAMED_KEYS.items() if "_" in old and not new.endswith(old)}
    - {"response_tokens", "held_out"}
)


@pytest.mark.parametrize("pattern", ["README.md", "docs/**/*.md", "examples/**/*", "tools/*", "**/*.py", "SECURITY.md"])
def test_no_page_recipe_or_program_has_an_old_key(pattern: str) -> None:
    areas = [ROOT / area for area in ("data_prep", "megatron_davinci", "benchmarks")] if "py" in pattern else [ROOT]
    files = [path for area in areas for path in area.glob(pattern) if path.is_file()]
    assert files
    for path in files:
        if path.name not in ("renamed.md", "renamed.py"):
            text = path.read_text()
            found = [
                old for old in OLD_KEYS if re.search(rf"(?<![\w.]){old}(?=[`:=])|objective\.response_tokens", text)
            ]
            assert not found, f"{path}: {found}"


def test_the_page_of_renamed_names_names_what_there_is() -> None:
    page = (ROOT / "docs" / "renamed.md").read_text()
    packages, names = page[: page.index("## Names")], page[page.index("## Names") : page.index("## Recipe keys")]
    for module in re.findall(r"\| `([\w.]+)` \|$", packages, re.MULTILINE):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), module
    areas = ("data_prep", "megatron_davinci")
    sources = "\n".join(path.read_text() for area in areas for path in sorted((ROOT / area).rglob("*.py")))
    rows = [
        row.strip("| ").split(" | ")[1] for row in names.splitlines() if row.startswith("| ") and row.count(" | ") == 1
    ]
    found = [name for row in rows for name in re.findall(r"\b(?:[A-Za-z]+_[a-z_]+|[A-Z][a-z]+[A-Z]\w+)\b", row)]
    assert len(found) > 100
    assert [name for name in found if not re.search(rf"\b{name}\b", sources)] == []

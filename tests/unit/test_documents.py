"""What is written for people: links lead somewhere, commands exist, references are fresh, help has examples."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

import megatron_davinci
from megatron_davinci.cli.app import app
from megatron_davinci.config.reference import reference

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words of each davinci command in a page's blocks, without comments."""
    for block in BLOCK.findall(page.read_text()):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            words = shlex.split(line, comments=True) if "davinci" in line and not line.startswith(("#", " ")) else []
            if words and words[0].endswith("davinci"):
                yield words[1 : words.index("--") if "--" in words else None]  # what follows is another program's
            elif "megatron_davinci" in words and words[0] != "import":  # behind torchrun
                yield words[words.index("megatron_davinci") + 1 :]


def every_command(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in getattr(group, "commands", {}).items():
        if hasattr(command, "commands"):
            yield from every_command(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(every_command(typer.main.get_command(app)))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link, anchor in LINK.findall(page.read_text()):
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings], (
                anchor
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in commands_of(page):
        name = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
        assert name is not None or words[:1] == ["--help"], words
        if name is not None:
            known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
            used = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert used <= known | {"--help"}, (name, used - known)


def test_pages_hold_commands() -> None:
    """Control: the patterns above find what stands there."""
    found = [" ".join(words) for page in PAGES for words in commands_of(page)]
    assert len(found) > 30 and any(words.startswith("rmt annotate") for words in found)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name: str) -> None:
    described = COMMANDS[name].help or ""
    assert f"davinci {name}" in " ".join(described.split()), described


def test_the_recipe_reference_is_fresh_and_explains_every_field() -> None:
    """python -m megatron_davinci.config.reference > docs/recipe.md"""
    written = (ROOT / "docs" / "recipe.md").read_text()
    assert written == reference()
    assert not re.search(r"\|\s*\|$", written, re.MULTILINE), "a field without an explanation"


@pytest.mark.parametrize("page", ["commands", "api"])
def test_the_pages_made_from_the_code_are_fresh(page: str) -> None:
    """python tools/references.py commands > docs/commands.md; python tools/references.py api > docs/python-api.md"""
    file = ROOT / "docs" / {"commands": "commands.md", "api": "python-api.md"}[page]
    made = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "references.py"), page], capture_output=True, text=True, check=True
    )
    assert file.read_text() == made.stdout


def test_every_public_name_has_a_type_and_is_light_to_import() -> None:
    stub = (ROOT / "megatron_davinci" / "__init__.pyi").read_text()
    typed = set(re.findall(r"^from .* import \w+ as (\w+)", stub, re.MULTILINE)) | {"__version__"}
    assert typed == set(megatron_davinci.__all__)
    program = "import sys, megatron_davinci as d; d.Corpus; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        megatron_davinci.nothing  # noqa: B018


def test_every_page_has_its_place_on_the_site() -> None:
    docs = ROOT / "docs"
    listed = re.findall(r"^   (\S+)$", (docs / "site.rst").read_text(), re.MULTILINE)
    assert all((docs / f"{name}.md").is_file() for name in listed) and len(set(listed)) == len(listed)
    assert {str(page.relative_to(docs).with_suffix("")) for page in docs.glob("**/*.md")} <= set(listed)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_shell_completes_commands() -> None:
    asked = {**os.environ, "_DAVINCI_COMPLETE": "complete_bash", "COMP_WORDS": "davinci tr", "COMP_CWORD": "1"}
    program = "import sys; sys.argv = ['davinci']; from megatron_davinci.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env=asked, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["train"], done.stderr


def test_the_version_is_the_packages() -> None:
    found = CliRunner().invoke(app, ["--version"])
    assert (found.exit_code, found.output) == (0, f"davinci {version('megatron-davinci')}\n")

"""Pages that are made from the code: python tools/references.py commands > docs/commands.md, api > docs/python-api.md.

`commands` is every command with its options, as its help says them; `api` every public name of megatron_davinci.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import typer

import megatron_davinci
from megatron_davinci.cli.app import app
from megatron_davinci.config.section import Section

_COMMANDS = """\
# Commands

Made from the code by `python tools/references.py commands`. `davinci COMMAND --help` (or `-h`) says the same in a
terminal; `davinci --install-completion` has the shell complete names and options. Exit codes: 0 done, 1 failed, 2 a
mistake in what was given, 130 ended by Ctrl-C. `--json` prints what a script reads on stdout; messages go to stderr.
"""
_API = """\
# Python API

Made from the code by `python tools/references.py api`. `import megatron_davinci as davinci` is light: each name is
imported where it is first used, torch and Megatron only by `describe_run` and `train_recipe`. All are typed. A mistake
in what is given raises `davinci.InputError`, with the sentence that the command line prints. Your own objectives,
engines, sources and formats: [extending](extending.md).

```python
import megatron_davinci as davinci

recipe = davinci.parse_recipe(
    {
        "model": "qwen2.5-7b",
        "megatron": {"bf16": True, "tensor_model_parallel_size": 2},
        "data": {"seq_length": 32768, "stages": [{"name": "python", "blend": [{"corpus": "corpus/py"}]}]},
        "batch": {"global_batch_size": 256},
        "schedule": {"lr": 1e-5},
        "checkpoint": {"dir": "runs/python"},
    },
    with_weights=False,
)
plan = davinci.make_plan(recipe, gpus=8, device=davinci.find_device("h100"), lengths={}, top=1)
print(plan["stages"][0]["best"][0])
```
"""


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """A section for each command below a group, in the order of its help."""
    context = typer.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "commands"):
            yield f"## davinci {' '.join((*path, name))}\n\n{' '.join((command.help or '').split())}\n"
            yield from commands(command, (*path, name))
        else:
            yield _section(" ".join((*path, name)), command)


def _section(name: str, command: Any) -> str:
    example = command.epilog.removeprefix("Example: ")
    rows = "".join(f"| {_name(each)} | {_default(each)} | {_cell(each.help)} |\n" for each in command.params)
    text = " ".join((command.help or "").split())
    return f"### {name}\n\n{text}\n\n```\n{example}\n```\n\n| option | default | meaning |\n|---|---|---|\n{rows}"


def _name(option: Any) -> str:
    names = [each for each in option.opts if each.startswith("-")]
    return ", ".join(f"`{each}`" for each in names) or f"`{option.name.upper()}`"


def _default(option: Any) -> str:
    if option.required:
        return "needed"
    return "" if option.default in (None, False, (), []) else f"`{option.default}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "\\<")


def api() -> Iterator[str]:
    """A section for each public name."""
    for name in megatron_davinci.__all__:
        if name == "__version__":
            continue
        member = getattr(megatron_davinci, name)
        yield f"## {name}\n\n```python\ndavinci.{name}{_signature(member)}\n```\n\n{inspect.getdoc(member)}\n"


def _signature(member: Any) -> str:
    """The parameters and what is returned, by short names of types; none of an exception."""
    if isinstance(member, type) and issubclass(member, Exception | Section):
        return ""
    written = re.sub(r"<function .*? at 0x[0-9a-f]+>", "...", str(inspect.signature(member)))
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", written.replace("'", ""))


def page(name: str) -> str:
    """One of the two pages."""
    if name == "api":
        return "\n".join([_API, *api()])
    return "\n".join([_COMMANDS, *commands(typer.main.get_command(app))])


if __name__ == "__main__":
    print(page(sys.argv[1]), end="")

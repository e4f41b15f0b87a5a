"""Groups of commands, as all of `davinci` has them."""

from typing import Any

import typer
from typer.core import TyperGroup


class CommandGroup(TyperGroup):
    """A group whose help comes fast, in the order of the work, and shows no type of a flag."""

    order: tuple[str, ...] = ()

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the work; what it does not name comes last, as it was added."""
        place = {name: number for number, name in enumerate(self.order)}
        return sorted(super().list_commands(ctx), key=lambda name: place.get(name, len(place)))

    def get_params(self, ctx: Any) -> list[Any]:
        """Options of the group, where a flag is false by default: typer would import pydantic to read None as false."""
        options = super().get_params(ctx)
        for option in options:
            if option.default is None:
                option.default = False
        return _quiet(options)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, or None."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.epilog is None:
            _quiet(command.get_params(ctx))
            command.help, example, line = (command.help or "").partition("Example: ")
            command.epilog = f"{example}{' '.join(line.split())}"
        return command


def command_group(text: str, order: str = "") -> typer.Typer:
    """A group that shows its help where no command is named; `text` is its description, `order` the names of
    commands in that of the work."""
    kind = type("OrderedGroup", (CommandGroup,), {"order": tuple(order.split())})
    names = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(
        cls=kind, no_args_is_help=True, pretty_exceptions_enable=False, context_settings=names, help=text
    )


def _quiet(options: list[Any]) -> list[Any]:
    """The options, of which flags say no type."""
    for option in options:
        if getattr(option, "is_flag", False):
            option.metavar = ""
    return options

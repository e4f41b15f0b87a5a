"""`davinci doctor`. Imports nothing heavy before the command runs."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import orjson
import typer

_MARKS = {"ok": "[green]ok  [/green]", "warn": "[yellow]warn[/yellow]", "fail": "[red]fail[/red]"}


def doctor(
    directory: Annotated[Path, typer.Option(help="Where runs are to be written.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="For a script.")] = False,
) -> None:
    """What is here, what is missing, and what to do about it; a trial on two ranks, and a step of packed attention.

    Ends with exit code 1 where something must be mended. Example: davinci doctor --json
    """
    from rich.console import Console
    from rich.markup import escape

    from megatron_davinci.doctor.examine import examine

    findings, console = [], Console(highlight=False, soft_wrap=True)
    for finding in examine(directory):
        findings.append(finding)
        if not as_json:
            console.print(f"{_MARKS[finding.state]}  {finding.name:<20}  {escape(finding.said)}")
            if finding.remedy:
                console.print(f"{'':26}  -> {escape(finding.remedy)}")
    if as_json:
        typer.echo(orjson.dumps([asdict(finding) for finding in findings]).decode())
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)

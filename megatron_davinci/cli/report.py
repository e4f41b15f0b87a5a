"""`davinci report`. Imports nothing heavy before the command runs."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep.cli.app import local_tokenizer, plain_prefix


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            callback=plain_prefix,
            help="Directories of runs; or a PREFIX of a corpus, directories of records, samples, evals; leakage.json.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write; of one path the default is report.html in it, or beside it.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(callback=local_tokenizer, help="Of a corpus, to show documents as text.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """One HTML file to look at: a run, several runs laid over each other, or a corpus.

    It needs no network and no server. A run writes its own at every checkpoint.
    Example: davinci report runs/base runs/rmt --out compare.html
    """
    from data_prep.io.errors import printable
    from megatron_davinci.report.write import default_report_file, write_report

    target = out or default_report_file(paths)
    for fault in write_report(paths, target, tokenizer, title):
        typer.echo(f"warning: {printable(fault)}", err=True)
    typer.echo(target)

"""Changes to records, records to training documents."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_prep.cli.app import AsJson, app, collect, report

FormName = Literal["python", "general", "factorised"]


@collect.command("git")
def collect_git(
    path: Annotated[Path, typer.Argument(help="A clone, bare or not; refs/pull/*/head are used where it has them.")],
    out: Annotated[Path, typer.Option(help="Directory to make: records/, summary.json.")],
    as_json: AsJson = False,
) -> None:
    """Merged pull requests of a clone, squashed ones, or plain commits where it has neither.

    Example: davinci data collect git ./pluggy --out records
    """
    from data_prep.pull_request.build import collect_git

    report(collect_git(path, out), as_json)


@app.command()
def build(
    records: Annotated[Path, typer.Argument(help="What davinci data collect made.")],
    out: Annotated[Path, typer.Option(help="Directory to make: samples/, rejected/, summary.json.")],
    form: Annotated[
        FormName, typer.Option("--format", help="python, general, or factorised (localization and editing apart).")
    ] = "python",
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer of the length filter; without one no sample is too long.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest sample, in tokens.")] = 32_768,
    keep_names: Annotated[bool, typer.Option("--keep-names", help="Do not put pseudonyms in place of people.")] = False,
    as_json: AsJson = False,
) -> None:
    """Records to training documents; every one replays to the head it came from, byte for byte.

    Killed, and started again, it goes on where it was. Example: davinci data build records --format python
    --tokenizer qwen.tiktoken --out samples
    """
    from data_prep.progress import counter
    from data_prep.pull_request.build import BuildJob, build_samples
    from data_prep.pull_request.statistics import as_text

    job = BuildJob(records, form, tokenizer, max_tokens, pseudonyms=not keep_names)
    with counter("shards", quiet=as_json) as advance:
        summary = build_samples(job, out, advance)
    if as_json:
        report(summary, as_json)
        return
    collected, lengths = summary.pop("collected"), summary.pop("lengths")
    report({**summary, "collected": {k: v for k, v in collected.items() if isinstance(v, int)}}, as_json)
    if lengths:
        typer.echo(as_text({"lengths": lengths}))

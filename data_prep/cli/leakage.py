"""Benchmarks that leak into corpora, or into texts not tokenized yet."""

import os
from pathlib import Path
from typing import Annotated

import typer

from data_prep.cli.app import AsJson, app, local_tokenizer, plain_prefix
from data_prep.io.summary import print_summary


@app.command()
def decontaminate(
    inputs: Annotated[
        list[str],
        typer.Argument(callback=plain_prefix, help="PREFIX of each corpus; with --text, inputs as for tokenize."),
    ],
    benchmark: Annotated[
        list[str], typer.Option(help="FILE or FILE:field+field: JSON, CSV or Parquet; prompt and solution are joined.")
    ],
    tokenizer: Annotated[
        Path, typer.Option(callback=local_tokenizer, help="The tokenizer that made the corpora, or will.")
    ],
    out: Annotated[Path, typer.Option(help="Report to write, as JSON.")],
    text: Annotated[bool, typer.Option("--text", help="Search texts; only what can leak is tokenized.")] = False,
    json_key: Annotated[str, typer.Option(help="With --text: the field that holds the text.")] = "text",
    n: Annotated[int, typer.Option("-n", help="Tokens of an n-gram.")] = 13,
    tau: Annotated[float, typer.Option(help="Score from which an instance is contaminated.")] = 0.10,
    threads: Annotated[int | None, typer.Option(help="Threads; default: as many as there are cores.")] = None,
    clean_benchmark: Annotated[
        Path | None, typer.Option(help="Directory to make: the benchmarks without contaminated instances.")
    ] = None,
    drop_to: Annotated[
        Path | None, typer.Option(help="PREFIX of a new corpus without the documents that leak (score >= tau).")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Page to write: every hit in its context.")] = None,
    as_json: AsJson = False,
) -> None:
    """Exact n-gram leakage of benchmarks into corpora: the worst document and the matching span for every instance.

    Example: davinci data decontaminate corpus/py --benchmark HumanEval.jsonl.gz:prompt+canonical_solution
    --tokenizer qwen.tiktoken --out leakage.json --html leakage.html
    """
    from data_prep.leakage.search import LeakageSearch

    search = LeakageSearch(
        inputs=inputs,
        benchmarks=benchmark,
        tokenizer=tokenizer,
        out=out,
        json_key=json_key if text else None,
        n=n,
        tau=tau,
        threads=os.cpu_count() or 1 if threads is None else threads,
        clean_benchmark=clean_benchmark,
        drop_to=drop_to,
        html=html,
        quiet=as_json,
    )
    print_summary(search.run(), as_json)

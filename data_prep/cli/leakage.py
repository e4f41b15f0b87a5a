"""Benchmarks that leak into corpora, or into texts not tokenized yet."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_prep.cli.app import AsJson, app, report
from data_prep.io.errors import InputError

if TYPE_CHECKING:
    from data_prep.leakage.candidates import Candidates


@app.command()
def decontaminate(
    inputs: Annotated[list[str], typer.Argument(help="PREFIX of each corpus; with --text, inputs as for tokenize.")],
    benchmark: Annotated[
        list[str], typer.Option(help="FILE or FILE:field+field: JSON Lines or Parquet; prompt and solution are joined.")
    ],
    tokenizer: Annotated[Path, typer.Option(help="The tokenizer that made the corpora, or will.")],
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
    from data_prep.corpus.indexed import Corpus, corpus_files
    from data_prep.io.files import make_parent, refuse_existing, write_json
    from data_prep.io.progress import counter
    from data_prep.leakage.benchmarks import References
    from data_prep.leakage.candidates import collect_candidates
    from data_prep.leakage.decontaminate import (
        check_parameters,
        clean_names,
        measure_leakage,
        write_clean_benchmarks,
        write_without,
    )
    from data_prep.leakage.page import write_page

    if text and drop_to is not None:
        raise InputError("--drop-to writes a corpus: tokenize the texts first, then give their corpus without --text")
    for path in (out, html, clean_benchmark, drop_to and corpus_files(drop_to, masked=False)["idx"]):
        refuse_existing(path)
    check_parameters(n, tau)
    if threads is not None and threads < 1:
        raise InputError(f"--threads is {threads}; it must be at least 1")
    threads = threads or os.cpu_count() or 1
    corpora = [] if text else Corpus.open_all(inputs)
    references = References.read(benchmark, tokenizer)
    if clean_benchmark is not None:
        clean_names(references.benchmarks)
    with TemporaryDirectory(prefix="candidates-", dir=make_parent(out)) as folder:
        found: Candidates | None = None
        if text:
            with counter("texts", quiet=as_json) as advance:
                prefix = Path(folder) / "corpus"
                found = collect_candidates(inputs, json_key, references, n, prefix, threads, advance)
            corpora = found.corpora
        with counter("tokens", sum(int(corpus.lengths.sum()) for corpus in corpora), quiet=as_json) as advance:
            leakage = measure_leakage(corpora, references, n, tau, threads, advance)
        write_json(out, found.say_where(leakage) if found else leakage.report)
        if html is not None:
            write_page(leakage.report, references, corpora, html, *([found.where] if found else []))
    if clean_benchmark is not None:
        write_clean_benchmarks(references.benchmarks, leakage.report["instances"], clean_benchmark)
    if drop_to is not None:
        write_without(corpora, leakage.leaking, drop_to)
    facts = {**facts_of(benchmark, leakage.report), **(facts_of_texts(found) if found else {})}
    report({**facts, "leaking_documents": len(leakage.leaking), "report": str(out)}, as_json)


def facts_of(benchmarks: list[str], found: dict[str, Any]) -> dict[str, Any]:
    """Counts of each benchmark, as it was named."""
    return {
        argument: {key: entry[key] for key in ("instances", "contaminated", "too_short")}
        for argument, entry in zip(benchmarks, found["benchmarks"], strict=True)
    }


def facts_of_texts(found: "Candidates") -> dict[str, Any]:
    """How many texts there were and how many could leak; records that hold none are said on stderr."""
    if found.broken:
        typer.echo(f"warning: {len(found.broken):,} broken records were left out: {found.broken[0]}", err=True)
    return {"texts": found.texts, "tokenized": len(found.places)}

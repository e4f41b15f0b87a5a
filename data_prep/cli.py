"""`davinci data ...`: the commands of this package. Heavy imports happen inside the commands."""

from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import typer

from data_prep.errors import InputError

LongDocuments = Literal["error", "split", "drop"]


app = typer.Typer(no_args_is_help=True, help="Git histories -> samples -> tokens -> packed sequences.")
collect = typer.Typer(no_args_is_help=True, help="Collect changes from a source into records.")
app.add_typer(collect, name="collect")

AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]


def report(summary: dict[str, Any], as_json: bool) -> None:
    """Print a summary for a person, one line per fact, or for a script."""
    if as_json:
        typer.echo(orjson.dumps(summary).decode())
        return
    for key, value in summary.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {count:,}" for name, count in value.items()) or "none"
        elif isinstance(value, float):
            value = f"{value:.4f}"
        elif isinstance(value, int):
            value = f"{value:,}"
        typer.echo(f"{key.replace('_', ' '):>18}  {value}")


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
    form: Annotated[Literal["python"], typer.Option("--format", help="Form of the samples.")] = "python",
    as_json: AsJson = False,
) -> None:
    """Records to training documents; every one replays to the head it came from, byte for byte.

    Example: davinci data build records --format python --out samples
    """
    from data_prep.pull_request.build import build_samples

    report(build_samples(records, out), as_json)


@app.command()
def tokenize(
    inputs: Annotated[list[Path], typer.Argument(help="JSON Lines files: .jsonl, .jsonl.gz or .jsonl.zst.")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json, a directory with one, or a Qwen .tiktoken file.")],
    out: Annotated[Path, typer.Option(help="PREFIX of PREFIX.bin, PREFIX.idx and PREFIX.manifest.json.")],
    json_key: Annotated[str, typer.Option(help="Field that holds the text.")] = "text",
    append_eod: Annotated[bool, typer.Option("--append-eod", help="End each document with the EOD token.")] = False,
    as_json: AsJson = False,
) -> None:
    """Texts to a corpus that Megatron reads.

    Example: davinci data tokenize samples/samples/*.jsonl.zst --tokenizer qwen.tiktoken --out corpus/py --append-eod
    """
    from data_prep.corpus.tokenize import tokenize_files
    from data_prep.progress import counter

    with counter("documents", quiet=as_json) as advance:
        manifest = tokenize_files(inputs, tokenizer, out, json_key, append_eod, advance)
    keys = ("documents", "tokens", "empty_documents_dropped")
    report({"corpus": str(out), **{key: manifest[key] for key in keys}}, as_json)


@app.command()
def verify(prefixes: Annotated[list[Path], typer.Argument(help="PREFIX of each corpus.")]) -> None:
    """Check every byte of corpora against their manifests; exit code 1 where one is damaged.

    Example: davinci data verify corpus/py corpus/general
    """
    from data_prep.corpus.verify import verify_corpus

    damaged = False
    for prefix in prefixes:
        faults = verify_corpus(prefix)
        damaged |= bool(faults)
        typer.echo("\n".join(faults) if faults else f"{prefix} is whole")
    if damaged:
        raise typer.Exit(1)


@app.command()
def inspect(
    prefix: Annotated[Path, typer.Argument(help="PREFIX of the corpus.")],
    tokenizer: Annotated[Path, typer.Option(help="The tokenizer that made the corpus.")],
    document: Annotated[int, typer.Option(help="Number of the first document to show.")] = 0,
    count: Annotated[int, typer.Option(help="How many documents to show.")] = 1,
) -> None:
    """Show documents of a corpus as text. Example: davinci data inspect corpus/py --tokenizer qwen.tiktoken"""
    from data_prep.corpus.indexed import Corpus
    from data_prep.corpus.tokenizers import load_tokenizer_of

    corpus = Corpus(prefix)
    decoder = load_tokenizer_of(corpus.tokenizer, tokenizer)
    if not 0 <= document < len(corpus):
        raise InputError(f"--document is {document}; the corpus has documents 0 to {len(corpus) - 1}")
    for number in range(document, min(document + count, len(corpus))):
        typer.secho(f"--- document {number}: {corpus.lengths[number]:,} tokens", bold=True)
        typer.echo(decoder.decode(corpus[number].tolist()))


@app.command()
def merge(
    prefixes: Annotated[list[Path], typer.Argument(help="PREFIX of each corpus, in order.")],
    out: Annotated[Path, typer.Option(help="PREFIX of the corpus to write.")],
    as_json: AsJson = False,
) -> None:
    """Several corpora as one. Example: davinci data merge corpus/a corpus/b --out corpus/both"""
    from data_prep.corpus.indexed import Corpus
    from data_prep.corpus.merge import merge_corpora

    manifest = merge_corpora(Corpus.open_all(prefixes), out)
    report({"corpus": str(out), "documents": manifest["documents"], "tokens": manifest["tokens"]}, as_json)


@app.command()
def decontaminate(
    prefixes: Annotated[list[Path], typer.Argument(help="PREFIX of each corpus.")],
    benchmark: Annotated[
        list[str], typer.Option(help="FILE or FILE:field+field: JSON Lines or Parquet; prompt and solution are joined.")
    ],
    tokenizer: Annotated[Path, typer.Option(help="The tokenizer that made the corpora.")],
    out: Annotated[Path, typer.Option(help="Report to write, as JSON.")],
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
    from data_prep.corpus.benchmarks import read_benchmark
    from data_prep.corpus.decontaminate import measure_leakage, write_clean_benchmarks, write_without
    from data_prep.corpus.indexed import Corpus
    from data_prep.corpus.leakage_page import write_page
    from data_prep.files import refuse_existing, write_json
    from data_prep.progress import counter

    for path in (out, html, clean_benchmark):
        refuse_existing(path)
    corpora = Corpus.open_all(prefixes)
    benchmarks = [read_benchmark(argument) for argument in benchmark]
    total = sum(int(corpus.lengths.sum()) for corpus in corpora)
    with counter("tokens", total, quiet=as_json) as advance:
        leakage = measure_leakage(corpora, benchmarks, tokenizer, n, tau, threads, advance)
    if drop_to is not None:
        write_without(corpora, leakage.leaking, drop_to)
    if clean_benchmark is not None:
        write_clean_benchmarks(benchmarks, leakage.report["instances"], clean_benchmark)
    if html is not None:
        write_page(leakage.report, benchmarks, corpora, tokenizer, html)
    write_json(out, leakage.report)
    facts = {
        Path(entry["file"]).name: {key: entry[key] for key in ("instances", "contaminated", "too_short")}
        for entry in leakage.report["benchmarks"]
    }
    report({**facts, "leaking_documents": len(leakage.leaking), "report": str(out)}, as_json)


@app.command()
def pack(
    prefixes: Annotated[list[Path], typer.Argument(help="PREFIX of each corpus.")],
    seq_length: Annotated[int, typer.Option(help="Tokens of a packed sequence.")],
    out: Annotated[Path, typer.Option(help="Plan file to write.")],
    long_documents: Annotated[
        LongDocuments, typer.Option(help="What to do with a document longer than a sequence: error, split or drop.")
    ] = "error",
    as_json: AsJson = False,
) -> None:
    """Best-fit packing of whole corpora into sequences: the plan is the same for every training layout.

    Example: davinci data pack corpus/py --seq-length 32768 --out plan --long-documents split
    """
    import numpy as np

    from data_prep.corpus.indexed import Corpus
    from data_prep.corpus.packing import pack_documents, save_plan

    corpora = Corpus.open_all(prefixes)
    plan = pack_documents(np.concatenate([c.lengths for c in corpora]), seq_length, long_documents)
    save_plan(plan, corpora, out)
    report({"plan": str(out), **plan.summary()}, as_json)

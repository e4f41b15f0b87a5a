"""`davinci data ...`: the commands of this package. Heavy imports happen inside the commands."""

from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import typer

from data_prep.errors import InputError

LongDocuments = Literal["error", "split", "drop"]
Executor = Literal["local", "slurm", "ray"]


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
    inputs: Annotated[
        list[str],
        typer.Argument(help="JSON Lines (.jsonl, .gz, .zst), Parquet, saved datasets, directories of these, patterns."),
    ],
    tokenizer: Annotated[
        Path, typer.Option(help="tokenizer.json, a directory with one, a Qwen .tiktoken or a SentencePiece .model.")
    ],
    out: Annotated[Path, typer.Option(help="PREFIX of PREFIX.bin, .idx, .manifest.json; several keys: PREFIX_KEY.")],
    json_key: Annotated[list[str] | None, typer.Option(help="Field that holds the text; may be repeated.")] = None,
    append_eod: Annotated[bool, typer.Option("--append-eod", help="End each document with the EOD token.")] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Fields hold messages (default: 'messages'); writes a loss mask too.")
    ] = False,
    chat_template: Annotated[
        Path | None, typer.Option(help="Jinja template, implies --chat; default: the tokenizer's own.")
    ] = None,
    split_sentences: Annotated[
        bool, typer.Option("--split-sentences", help="A sequence per sentence; white space stays with the one before.")
    ] = False,
    punkt: Annotated[
        Path | None, typer.Option(help="Punkt model: a language of NLTK's punkt_tab; default: learned from the input.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at a broken record instead of counting it.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that encode.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Texts or conversations to a corpus that Megatron reads. Killed, and started again, it goes on where it was.

    Example: davinci data tokenize 'samples/**/*.jsonl.zst' --tokenizer qwen.tiktoken --out corpus/py --append-eod
    """
    from data_prep.corpus.tokenize import TokenizeJob, outputs_of
    from data_prep.corpus.tokenize import tokenize as run
    from data_prep.progress import counter

    chat |= chat_template is not None
    keys = json_key or ["messages" if chat else "text"]
    job = TokenizeJob(
        inputs=tuple(inputs),
        tokenizer=tokenizer,
        outputs=outputs_of(out, keys),
        append_eod=append_eod,
        conversations=chat,
        chat_template=chat_template,
        split_sentences=split_sentences,
        punkt=punkt,
        strict=strict,
        workers=workers,
    )
    with counter("documents", quiet=as_json) as advance:
        manifests = run(job, advance)
    for key, manifest in manifests.items():
        warn_of_records(manifest["provenance"])
        report({"corpus": str(job.outputs[key]), **tokenize_facts(manifest)}, as_json)


def tokenize_facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a person wants to know of a corpus just made; counts of what did not happen are left out."""
    facts = {key: manifest[key] for key in ("documents", "tokens", "empty_documents_dropped")}
    if "trained_tokens" in manifest:
        facts["trained_tokens"] = manifest["trained_tokens"]
    notes = {key: manifest["provenance"][key] for key in ("broken_records", "changed_turns")}
    return facts | {key: count for key, count in notes.items() if count}


def warn_of_records(provenance: dict[str, Any]) -> None:
    """Say on stderr which records were left out, and which turns the chat template changed."""
    texts = {"broken": "broken records were left out", "changed": "turns of the assistant were changed by the template"}
    for kind, counter in (("broken", "broken_records"), ("changed", "changed_turns")):
        if count := provenance[counter]:
            typer.echo(f"warning: {count:,} {texts[kind]}: {'; '.join(provenance['examples'][kind][:3])}", err=True)


@app.command()
def shards(
    inputs: Annotated[list[str], typer.Argument(help="Inputs as for tokenize; each task takes every TASKS-th file.")],
    tokenizer: Annotated[Path, typer.Option(help="Tokenizer as for tokenize.")],
    out: Annotated[Path, typer.Option(help="PREFIX of the corpus; its shards and logs go to PREFIX.shards.")],
    tasks: Annotated[int, typer.Option(help="Tasks, and shards; at most as many as there are files.")],
    workers: Annotated[int, typer.Option(help="Tasks at a time.")] = 1,
    executor: Annotated[Executor, typer.Option(help="Where tasks run: local, slurm or ray.")] = "local",
    option: Annotated[
        list[str] | None, typer.Option(help="name=value for datatrove's executor: partition=cpu, time=04:00:00 ...")
    ] = None,
    json_key: Annotated[str | None, typer.Option(help="Field that holds the text.")] = None,
    append_eod: Annotated[bool, typer.Option("--append-eod", help="End each document with the EOD token.")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="The field holds messages; writes a loss mask too.")] = False,
    chat_template: Annotated[Path | None, typer.Option(help="Jinja template; implies --chat.")] = None,
) -> None:
    """Tokenize many files as tasks of datatrove, then merge. Started again, finished tasks are not repeated.

    Example: davinci data shards 'crawl/*.jsonl.zst' --tokenizer qwen.tiktoken --out corpus/crawl --tasks 64
    --executor slurm --option partition=cpu --option time=04:00:00
    """
    from data_prep.corpus.indexed import corpus_files
    from data_prep.corpus.inputs import expand
    from data_prep.corpus.tokenize import TokenizeJob
    from data_prep.files import read_json, refuse_existing
    from data_prep.pipeline import tokenize_shards

    refuse_existing(corpus_files(out, masked=False)["idx"])
    chat |= chat_template is not None
    files = expand(inputs)
    if not 1 <= tasks <= len(files):
        raise InputError(f"--tasks is {tasks}; it must be from 1 to {len(files)}, the number of files")
    if workers < 1:
        raise InputError(f"--workers is {workers}; it must be at least 1")
    options = dict(text.partition("=")[::2] for text in option or [])
    key = json_key or ("messages" if chat else "text")
    paths = tuple(str(path.absolute()) for path in files)  # a task may start somewhere else
    job = TokenizeJob(
        inputs=paths,
        tokenizer=tokenizer.absolute(),
        outputs={key: out.absolute()},
        append_eod=append_eod,
        conversations=chat,
        chat_template=chat_template and chat_template.absolute(),
    )
    folder = out.absolute().with_name(f"{out.name}.shards")
    tokenize_shards(job, folder, tasks, workers, executor, out.absolute(), **options).run()
    if executor != "slurm":  # there the jobs have only been handed in
        manifest = read_json(out.with_name(f"{out.name}.manifest.json"))
        warn_of_records(manifest["provenance"])
        report({"corpus": str(out), **tokenize_facts(manifest)}, as_json=False)


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
    """Show documents of a corpus as text; what a loss mask leaves out stands between ⟦ and ⟧.

    Example: davinci data inspect corpus/py --tokenizer qwen.tiktoken
    """
    from data_prep.corpus.indexed import Corpus
    from data_prep.corpus.masks import masked_text
    from data_prep.corpus.tokenizers import load_tokenizer_of

    corpus = Corpus(prefix)
    decoder = load_tokenizer_of(corpus.tokenizer, tokenizer)
    if not 0 <= document < len(corpus):
        raise InputError(f"--document is {document}; the corpus has documents 0 to {len(corpus) - 1}")
    for number in range(document, min(document + count, len(corpus))):
        typer.secho(f"--- document {number}: {corpus.lengths[number]:,} tokens", bold=True)
        typer.echo(masked_text(corpus, number, decoder.decode))


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
    from data_prep.corpus.decontaminate import clean_names, measure_leakage, write_clean_benchmarks, write_without
    from data_prep.corpus.indexed import Corpus, corpus_files
    from data_prep.corpus.leakage_page import write_page
    from data_prep.files import refuse_existing, write_json
    from data_prep.progress import counter

    for path in (out, html, clean_benchmark, drop_to and corpus_files(drop_to, masked=False)["idx"]):
        refuse_existing(path)
    if threads is not None and threads < 1:
        raise InputError(f"--threads is {threads}; it must be at least 1")
    corpora = Corpus.open_all(prefixes)
    benchmarks = [read_benchmark(argument) for argument in benchmark]
    if clean_benchmark is not None:
        clean_names(benchmarks)
    total = sum(int(corpus.lengths.sum()) for corpus in corpora)
    with counter("tokens", total, quiet=as_json) as advance:
        leakage = measure_leakage(corpora, benchmarks, tokenizer, n, tau, threads, advance)
    write_json(out, leakage.report)
    if html is not None:
        write_page(leakage.report, benchmarks, corpora, tokenizer, html)
    if clean_benchmark is not None:
        write_clean_benchmarks(benchmarks, leakage.report["instances"], clean_benchmark)
    if drop_to is not None:
        write_without(corpora, leakage.leaking, drop_to)
    facts = {
        argument: {key: entry[key] for key in ("instances", "contaminated", "too_short")}
        for argument, entry in zip(benchmark, leakage.report["benchmarks"], strict=True)
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
    repeat: Annotated[
        list[int] | None, typer.Option(help="How often each corpus is taken: once per PREFIX, in order.")
    ] = None,
    document_alignment: Annotated[
        int, typer.Option(help="Room of a document: a multiple of this; 2 * CP for context parallelism.")
    ] = 1,
    pack_alignment: Annotated[
        int,
        typer.Option(help="Must divide the sequence length; FP8: 16, blockwise 128, times TP with sequence parallel."),
    ] = 1,
    histogram: Annotated[Path | None, typer.Option(help="PNG to write: how long the documents are.")] = None,
    as_json: AsJson = False,
) -> None:
    """Best-fit packing of whole corpora into sequences: the plan is the same for every training layout.

    Example: davinci data pack corpus/py corpus/env --repeat 1 --repeat 3 --seq-length 32768 --out plan
    --long-documents split
    """
    import numpy as np

    from data_prep.corpus.indexed import Corpus
    from data_prep.corpus.length_histogram import LengthHistogram
    from data_prep.corpus.packing import pack_documents, repeated, save_plan
    from data_prep.files import refuse_existing

    refuse_existing(out)
    refuse_existing(histogram)
    corpora = repeated(Corpus.open_all(prefixes), repeat)
    lengths = np.concatenate([corpus.lengths for corpus in corpora])
    plan = pack_documents(lengths, seq_length, long_documents, document_alignment, pack_alignment)
    counts = LengthHistogram(lengths)
    if histogram is not None:
        counts.draw(histogram, seq_length)
    save_plan(plan, corpora, out)
    if as_json:
        report({"plan": str(out), **plan.summary(), "length_histogram": counts.as_json()}, as_json)
    else:
        report({"plan": str(out), **plan.summary()}, as_json)
        typer.echo(counts.as_text())

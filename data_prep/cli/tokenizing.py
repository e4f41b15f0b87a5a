"""Texts to corpora: in one process or many, as one command or as tasks."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep.cli.app import AsJson, ExecutorKind, ExecutorOptions, Workers, app, local_tokenizer
from data_prep.io.errors import InputError
from data_prep.io.exit_codes import resumable
from data_prep.io.summary import print_summary


@app.command()
@resumable
def tokenize(
    inputs: Annotated[
        list[str],
        typer.Argument(help="JSON Lines or arrays (also .gz, .zst), Parquet, saved datasets, directories, patterns."),
    ],
    tokenizer: Annotated[
        Path,
        typer.Option(
            callback=local_tokenizer,
            help="tokenizer.json, a directory with one, a Qwen .tiktoken or a SentencePiece .model.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="PREFIX of PREFIX.bin, .idx, .manifest.json; several keys: PREFIX_KEY.")],
    json_key: Annotated[
        list[str] | None, typer.Option(help="Field that holds the text, or OUTER.INNER; may be repeated.")
    ] = None,
    append_eod: Annotated[bool, typer.Option("--append-eod", help="End each document with the EOD token.")] = False,
    prepend_bos: Annotated[bool, typer.Option("--prepend-bos", help="Begin each text with the BOS token.")] = False,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Conversations (messages, ShareGPT, prompt/completion), with a loss mask."),
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
    from data_prep.io.progress import counter
    from data_prep.tokenize.summary import corpus_facts, warn_of_records
    from data_prep.tokenize.tokenize import TokenizeJob, outputs_of
    from data_prep.tokenize.tokenize import tokenize as run

    chat |= chat_template is not None
    keys = json_key or ["messages" if chat else "text"]
    job = TokenizeJob(
        inputs=tuple(inputs),
        tokenizer=tokenizer,
        outputs=outputs_of(out, keys),
        append_eod=append_eod,
        prepend_bos=prepend_bos,
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
        following = f"davinci data pack {job.outputs[key]} --seq-length N --out PLAN, or a recipe: examples/"
        print_summary({"corpus": str(job.outputs[key]), **corpus_facts(manifest)}, as_json, following)


@app.command()
@resumable
def shards(
    inputs: Annotated[list[str], typer.Argument(help="Inputs as for tokenize; each task takes every TASKS-th file.")],
    tokenizer: Annotated[Path, typer.Option(callback=local_tokenizer, help="Tokenizer as for tokenize.")],
    out: Annotated[Path, typer.Option(help="PREFIX of the corpus; its shards and logs go to PREFIX.shards.")],
    tasks: Annotated[int, typer.Option(help="Tasks, and shards; at most as many as there are files.")],
    workers: Workers = 1,
    executor: ExecutorKind = "local",
    option: ExecutorOptions = None,
    json_key: Annotated[str | None, typer.Option(help="Field that holds the text.")] = None,
    append_eod: Annotated[bool, typer.Option("--append-eod", help="End each document with the EOD token.")] = False,
    prepend_bos: Annotated[bool, typer.Option("--prepend-bos", help="Begin each text with the BOS token.")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Records hold conversations; writes a loss mask too.")] = False,
    chat_template: Annotated[Path | None, typer.Option(help="Jinja template; implies --chat.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tokenize many files as tasks of datatrove, then merge. Started again, finished tasks are not repeated.

    Example: davinci data shards 'crawl/*.jsonl.zst' --tokenizer qwen.tiktoken --out corpus/crawl --tasks 64
    --executor slurm --option partition=cpu --option time=04:00:00
    """
    from data_prep.corpus.indexed import corpus_files
    from data_prep.io.files import read_json, refuse_existing
    from data_prep.pipeline.run import start, tokenize_shards
    from data_prep.tokenize.inputs import expand
    from data_prep.tokenize.summary import corpus_facts, warn_of_records
    from data_prep.tokenize.tokenize import TokenizeJob

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
        prepend_bos=prepend_bos,
        conversations=chat,
        chat_template=chat_template and chat_template.absolute(),
    )
    folder = out.absolute().with_name(f"{out.name}.shards")
    start(tokenize_shards(job, folder, tasks, workers, executor, out.absolute(), **options))
    if executor != "slurm":  # there the jobs have only been handed in
        manifest = read_json(out.with_name(f"{out.name}.manifest.json"))
        warn_of_records(manifest["provenance"])
        print_summary({"corpus": str(out), **corpus_facts(manifest)}, as_json)

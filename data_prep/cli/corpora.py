"""What is done with corpora as they are: check, show, merge."""

from pathlib import Path
from typing import Annotated

import orjson
import typer

from data_prep.cli.app import AsJson, ExecutorKind, ExecutorOptions, Workers, app, local_tokenizer, plain_prefix
from data_prep.io.errors import InputError, escaped, printable
from data_prep.io.exit_codes import resumable
from data_prep.io.summary import print_summary


@app.command()
def verify(
    prefixes: Annotated[list[Path], typer.Argument(callback=plain_prefix, help="PREFIX of each corpus.")],
    as_json: AsJson = False,
) -> None:
    """Check every byte of corpora against their manifests; exit code 1 where one is damaged.

    Example: davinci data verify corpus/py corpus/general
    """
    from data_prep.corpus.verify import verify_corpus

    damage = {str(prefix): verify_corpus(prefix) for prefix in prefixes}
    if as_json:
        typer.echo(orjson.dumps(damage).decode())
    else:
        for prefix, found in damage.items():
            typer.echo("\n".join(map(printable, found)) if found else f"{prefix} is whole")
    if any(damage.values()):
        raise typer.Exit(1)


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            callback=plain_prefix, help="PREFIX of a corpus; samples or conversations: what made them, or a file."
        ),
    ],
    tokenizer: Annotated[
        Path | None, typer.Option(callback=local_tokenizer, help="The tokenizer that made the corpus.")
    ] = None,
    document: Annotated[int, typer.Option(help="Number of the first document to show.")] = 0,
    count: Annotated[int, typer.Option(help="How many documents to show.")] = 1,
) -> None:
    """Show documents of a corpus, or samples, as text; what a loss mask leaves out stands between ⟦ and ⟧.

    Example: davinci data inspect corpus/py --tokenizer qwen.tiktoken
    """
    from data_prep.samples.show import show_samples
    from data_prep.tokenize.show import show_documents

    if document < 0 or count < 1:
        raise InputError(f"--document is {document} and --count {count}: give numbers from 0 and from 1 on")
    if path.is_dir() or path.suffix == ".zst":
        shown = show_samples(path, document, count)
    elif tokenizer is None:
        raise InputError(
            f"{path} is no directory of samples or conversations; for a corpus, give the --tokenizer that made it"
        )
    else:
        shown = show_documents(path, tokenizer, document, count)
    for heading, text in shown:
        typer.secho(printable(heading), bold=True)
        typer.echo(escaped(text))


@app.command()
def merge(
    prefixes: Annotated[list[Path], typer.Argument(callback=plain_prefix, help="PREFIX of each corpus, in order.")],
    out: Annotated[Path, typer.Option(help="PREFIX of the corpus to write.")],
    as_json: AsJson = False,
) -> None:
    """Several corpora as one. Example: davinci data merge corpus/a corpus/b --out corpus/both"""
    from data_prep.corpus.indexed import Corpus
    from data_prep.corpus.merge import merge_corpora

    manifest = merge_corpora(Corpus.open_all(prefixes), out)
    print_summary({"corpus": str(out), "documents": manifest["documents"], "tokens": manifest["tokens"]}, as_json)


@app.command()
def adopt(
    prefix: Annotated[Path, typer.Argument(callback=plain_prefix, help="PREFIX of PREFIX.bin and PREFIX.idx.")],
    tokenizer: Annotated[Path, typer.Option(callback=local_tokenizer, help="The tokenizer that made the corpus.")],
    as_json: AsJson = False,
) -> None:
    """Take over a corpus that Megatron-LM wrote: its manifest is made, nothing else is changed.

    Example: davinci data adopt corpus/wiki_text_document --tokenizer qwen.tiktoken
    """
    from data_prep.corpus.adopt import adopt_corpus
    from data_prep.tokenizers import load_tokenizer

    manifest = adopt_corpus(prefix, load_tokenizer(tokenizer)[1], str(tokenizer))
    print_summary({"corpus": str(prefix), "documents": manifest["documents"], "tokens": manifest["tokens"]}, as_json)


@app.command()
@resumable
def deduplicate(
    inputs: Annotated[list[str], typer.Argument(help="Records: inputs as for tokenize; an earlier one stays.")],
    out: Annotated[Path, typer.Option(help="Directory to make: kept/, dropped/, summary.json.")],
    json_key: Annotated[str, typer.Option(help="Field that holds the text, or OUTER.INNER.")] = "text",
    threshold: Annotated[float, typer.Option(help="Jaccard similarity from which two texts say the same.")] = 0.8,
    workers: Workers = 1,
    executor: ExecutorKind = "local",
    option: ExecutorOptions = None,
    as_json: AsJson = False,
) -> None:
    """Leave out exact and near copies of texts. Killed, and started again, it goes on where it was.

    Example: davinci data deduplicate 'samples/samples/*.jsonl.zst' --out unique
    """
    from data_prep.deduplicate.run import deduplicate as run

    options = dict(text.partition("=")[::2] for text in option or [])
    summary = run(inputs, json_key, out, threshold, workers, executor, options)
    print_summary({"written to": str(out), **(summary or {"handed in": 1})}, as_json)

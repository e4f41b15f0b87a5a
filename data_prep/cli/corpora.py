"""What is done with corpora as they are: check, show, merge."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep.cli.app import AsJson, app, report
from data_prep.io.errors import InputError


@app.command()
def verify(prefixes: Annotated[list[Path], typer.Argument(help="PREFIX of each corpus.")]) -> None:
    """Check every byte of corpora against their manifests; exit code 1 where one is damaged.

    Example: davinci data verify corpus/py corpus/general
    """
    from data_prep.corpus.verify import verify_corpus

    damaged = False
    for prefix in prefixes:
        damage = verify_corpus(prefix)
        damaged |= bool(damage)
        typer.echo("\n".join(damage) if damage else f"{prefix} is whole")
    if damaged:
        raise typer.Exit(1)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="PREFIX of a corpus, or what davinci data build made.")],
    tokenizer: Annotated[Path | None, typer.Option(help="The tokenizer that made the corpus.")] = None,
    document: Annotated[int, typer.Option(help="Number of the first document to show.")] = 0,
    count: Annotated[int, typer.Option(help="How many documents to show.")] = 1,
) -> None:
    """Show documents of a corpus, or samples, as text; what a loss mask leaves out stands between ⟦ and ⟧.

    Example: davinci data inspect corpus/py --tokenizer qwen.tiktoken
    """
    if path.is_dir() or path.suffix == ".zst":
        show_samples(path, document, count)
    elif tokenizer is None:
        raise InputError(f"{path} is no directory of samples; for a corpus, give the --tokenizer that made it")
    else:
        show_documents(path, tokenizer, document, count)


def show_samples(path: Path, first: int, count: int) -> None:
    """Print samples by their number over all shards: where each comes from, and its text."""
    from itertools import islice

    from data_prep.io.files import read_jsonl
    from data_prep.io.shards import shards_in

    shards = shards_in(path, "samples", "davinci data build") if path.is_dir() else [path]
    chosen = list(islice((row for shard in shards for row in read_jsonl(shard)), first, first + count))
    if not chosen:
        raise InputError(f"--document is {first}; {path} has fewer samples")
    for number, row in enumerate(chosen, first):
        facts = {**row.get("meta", {}), "tokens": row.get("tokens")}
        said = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        typer.secho(f"--- sample {number}: {row.get('id')} ({said})", bold=True)
        typer.echo(row.get("text", ""))


def show_documents(prefix: Path, tokenizer: Path, document: int, count: int) -> None:
    """Print documents of a corpus."""
    from data_prep.corpus.indexed import Corpus
    from data_prep.tokenize.masks import masked_text
    from data_prep.tokenizers import load_tokenizer_of

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

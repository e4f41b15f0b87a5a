"""What is done with corpora as they are: check, show, merge."""

from pathlib import Path
from typing import Annotated

import typer

from data_prep.cli.app import AsJson, app, report
from data_prep.errors import InputError


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

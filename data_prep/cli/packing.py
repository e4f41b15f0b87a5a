"""Corpora to packed sequences."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_prep.cli.app import AsJson, app, plain_prefix
from data_prep.io.errors import InputError
from data_prep.io.summary import print_summary

LongDocuments = Literal["error", "split", "drop"]


@app.command()
def pack(
    prefixes: Annotated[list[Path], typer.Argument(callback=plain_prefix, help="PREFIX of each corpus.")],
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
    from data_prep.io.files import lock_of, only_writer, refuse_existing

    refuse_existing(out)
    if histogram is not None and histogram.suffix.lower() != ".png":
        raise InputError(f"--histogram is {histogram}: it is written as PNG, so name a .png")
    if histogram is not None and not lock_of(histogram).exists():
        refuse_existing(histogram)
    corpora = repeated(Corpus.open_all(prefixes), repeat)
    lengths = np.concatenate([corpus.lengths for corpus in corpora])
    plan = pack_documents(lengths, seq_length, long_documents, document_alignment, pack_alignment)
    counts = LengthHistogram(lengths)
    if histogram is None:
        save_plan(plan, corpora, out)
    else:
        with only_writer(histogram):  # whose lock tells of a killed start: the plan comes last
            counts.draw(histogram, seq_length)
            try:
                save_plan(plan, corpora, out)
            except BaseException:
                histogram.unlink()
                raise
    if as_json:
        print_summary({"plan": str(out), **plan.summary(), "length_histogram": counts.as_json()}, as_json)
    else:
        print_summary({"plan": str(out), **plan.summary()}, as_json)
        typer.echo(counts.as_text())

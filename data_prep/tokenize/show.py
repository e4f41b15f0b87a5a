"""Documents of a corpus as text, to read."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.corpus.indexed import Corpus
from data_prep.io.errors import InputError, refused_if_damaged
from data_prep.tokenize.masks import masked_text
from data_prep.tokenizers import load_tokenizer_of


def show_documents(prefix: Path, tokenizer: Path, first: int, count: int) -> Iterator[tuple[str, str]]:
    """A heading and the text of each of `count` documents from number `first` on."""
    corpus = Corpus(prefix)
    decoder = load_tokenizer_of(corpus.tokenizer, tokenizer)
    if not 0 <= first < len(corpus):
        raise InputError(f"--document is {first}; the corpus has documents 0 to {len(corpus) - 1}")
    for number in range(first, min(first + count, len(corpus))):
        with refused_if_damaged(prefix, "check it with data verify"):
            text = masked_text(corpus, number, decoder.decode)
        yield f"--- document {number}: {corpus.lengths[number]:,} tokens", text

"""Rendered conversations to ids and loss masks, and masked documents as text."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from data_prep.corpus.indexed import Corpus
from data_prep.tokenize.turns import Rendered
from data_prep.tokenizers.base import Tokenizer


def encode_rendered(rendered: Rendered, tokenizer: Tokenizer) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Ids and loss mask, both (tokens,): a token is trained where its first character is the assistant's.

    The text between two control tokens is encoded as one, as the model's own tokenizer does.
    """
    ids, starts = [], []
    at = 0
    for text, token in rendered.pieces:
        if token is None:
            piece_ids, piece_starts = tokenizer.encode_with_offsets(text)
            ids.append(piece_ids)
            starts.append(piece_starts + at)
        else:
            ids.append(np.array([token], np.int64))
            starts.append(np.array([at], np.int64))
        at += len(text)
    if not ids:
        return np.zeros(0, np.int64), np.zeros(0, np.uint8)
    # Inside a span where as many spans have begun as ended, and one more: spans do not overlap.
    begins, ends = (np.array([span[side] for span in rendered.spans], np.int64) for side in (0, 1))
    places = np.concatenate(starts)
    inside = np.searchsorted(begins, places, side="right") - np.searchsorted(ends, places, side="right")
    return np.concatenate(ids), inside.astype(np.uint8)


def masked_text(corpus: Corpus, document: int, decode: Callable[[Sequence[int]], str]) -> str:
    """A document as text; what the loss mask leaves out stands between ⟦ and ⟧."""
    ids = corpus[document]
    if corpus.loss_mask is None:
        return decode(ids.tolist())
    begin = int(corpus.starts[document])
    mask = corpus.loss_mask[begin : begin + len(ids)]
    cuts = np.flatnonzero(np.diff(mask)) + 1
    runs = zip(np.split(ids, cuts), np.split(mask, cuts), strict=True)
    return "".join(decode(run.tolist()) if trained[0] else f"⟦{decode(run.tolist())}⟧" for run, trained in runs)

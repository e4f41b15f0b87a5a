"""The index reader takes any bytes: it refuses them in a sentence, or what it gives lies inside the tokens."""

import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import EFFORT, write_corpus

from data_prep import InputError
from data_prep.corpus import Corpus

SECONDS = 6 * EFFORT**1.5  # about three minutes in the acceptance run
EXTREMES = [0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 255, 1 << 40]


def mutate(data: bytes, draw: random.Random) -> bytes:
    """A few of: flipped bits, extreme numbers, parts cut out, doubled or moved, another length."""
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 5)):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                value = draw.choice(EXTREMES) & (2**64 - 1)
                size = draw.choice([1, 4, 8])
                changed[at : at + size] = struct.pack("<Q", value)[:size]
            case 2:
                del changed[at : at + draw.choice([1, 4, 8, 64])]
            case 3:
                changed[at:at] = changed[: draw.choice([1, 4, 8, 12, 20])]
            case 4:
                del changed[at:]
            case 5:
                changed += draw.randbytes(draw.choice([1, 4, 8, 12, 20]))
    return bytes(changed)


def use(corpus: Corpus) -> None:
    """Read every document: nothing may lie outside."""
    assert (corpus.lengths > 0).all() and (corpus.starts >= 0).all()
    assert int((corpus.starts + corpus.lengths).max()) == len(corpus.tokens)
    assert sum(len(document) for document in corpus) == len(corpus.tokens)
    place, sequences, per_document = corpus.run_of(0, len(corpus))
    assert sequences.sum() == place.stop - place.start and per_document.sum() == len(sequences)


@pytest.mark.parametrize("damaged", [".idx", ".manifest.json"])
def test_no_bytes_break_the_reader(tmp_path: Path, damaged: str) -> None:
    draw = random.Random(damaged)
    path = write_corpus(tmp_path / "corpus", [3, 1, 40, 7])
    file = path.with_name(path.name + damaged)
    whole = file.read_bytes()
    refused = accepted = 0
    end = time.monotonic() + SECONDS / 2
    while time.monotonic() < end:
        file.write_bytes(mutate(whole, draw))
        try:
            use(Corpus(path))
            accepted += 1
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 100 and accepted > (0 if damaged == ".idx" else 10)


def test_the_reader_refuses_numbers_that_contradict_each_other(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "corpus", [3, 1, 40, 7])
    file = path.with_name("corpus.idx")
    whole = file.read_bytes()
    head = 34
    for offset, value in ((head, 4), (head + 4, 0), (head + 16 + 8, 5), (head + 48, 1), (head + 48 + 16, 0)):
        changed = bytearray(whole)
        changed[offset : offset + 4] = np.int32(value).tobytes()
        file.write_bytes(changed)
        with pytest.raises(InputError, match=r"altered|bytes where its index needs"):
            Corpus(path)

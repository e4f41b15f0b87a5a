"""Documents cut into sentences by nltk's Punkt, as Megatron's --split-sentences does; nothing is downloaded."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from nltk.tabdata import PunktDecoder, TabEncoder
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer, PunktTrainer

from data_prep.io.errors import InputError
from data_prep.io.files import new_directory

_MOST_CHARACTERS = 1_000_000  # of one call: Punkt's patterns are not linear
_TRAINING_CHARACTERS = 4_000_000

# The four files of a language in NLTK's punkt_tab: how each is read, and how it is written.
_FILES: dict[str, tuple[str, Callable[[TextIO], Any], Callable[[Any], str]]] = {
    "collocations.tab": (
        "collocations",
        lambda file: set(PunktDecoder().tab2tups(file)),
        lambda pairs: TabEncoder().tups2tab(sorted(pairs)),
    ),
    "sent_starters.txt": (
        "sent_starters",
        lambda file: PunktDecoder().txt2set(file),
        lambda words: TabEncoder().list2txt(sorted(words)),
    ),
    "abbrev_types.txt": (
        "abbrev_types",
        lambda file: PunktDecoder().txt2set(file),
        lambda words: TabEncoder().list2txt(sorted(words)),
    ),
    "ortho_context.tab": (
        "ortho_context",
        lambda file: PunktDecoder().tab2intdict(file),
        lambda counts: TabEncoder().ivdict2tab(dict(sorted(counts.items()))),
    ),
}


class SentenceSplitter:
    """Cuts a text into sentences.

    With `keep_space` white space stays with the sentence before it, and the sentences are the text; else it is dropped
    between sentences, as Megatron does.
    """

    def __init__(self, directory: Path, keep_space: bool) -> None:
        self._punkt = PunktSentenceTokenizer(_load(directory))
        self._keep_space = keep_space

    def split(self, text: str) -> list[str]:
        """Sentences of a text; none of an empty one."""
        spans = [
            (start + begin, start + end)
            for start in range(0, len(text), _MOST_CHARACTERS)
            for begin, end in self._punkt.span_tokenize(text[start : start + _MOST_CHARACTERS])
        ]
        if self._keep_space:
            begins = [0, *(begin for begin, _ in spans[1:])]
            spans = list(zip(begins, [*begins[1:], len(text)], strict=True))
        return [text[begin:end] for begin, end in spans if begin < end]


def train_punkt(texts: Iterable[str], directory: Path) -> None:
    """Learn abbreviations, collocations and sentence starters from the beginning of a corpus, and save them."""
    trainer = PunktTrainer()
    left = _TRAINING_CHARACTERS
    for text in texts:
        trainer.train(text[:left], finalize=False)
        left -= len(text)
        if left <= 0:
            break
    parameters = trainer.get_params()
    with new_directory(directory) as part:
        for name, (field, _, write) in _FILES.items():
            lines = write(getattr(parameters, field))
            (part / name).write_text(f"{lines}\n" if lines else "", encoding="utf-8")


def _load(directory: Path) -> PunktParameters:
    parameters = PunktParameters()
    for name, (field, read, _) in _FILES.items():
        try:
            with (directory / name).open(encoding="utf-8") as file:
                setattr(parameters, field, read(file))
        except FileNotFoundError:
            raise InputError(f"{directory / name} does not exist: give a language of NLTK's punkt_tab") from None
        except (ValueError, IndexError):
            raise InputError(f"{directory / name} is no file of NLTK's punkt_tab") from None
    return parameters

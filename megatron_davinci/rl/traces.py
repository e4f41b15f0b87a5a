"""Format traces: prompts with answers in the right form, made from a corpus, for a base model that knows no form.

A trace breaks a document off, thinks aloud how it goes on (the document's own next tokens), and answers with the first
of them. Budgets and lengths of thoughts are drawn apart: that one should meet the other is for reinforcement to teach.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep import InputError
from data_prep.corpus import Corpus, CorpusWriter
from data_prep.io.arrays import Int64s
from data_prep.tokenizers import is_tokenizer_of
from megatron_davinci.rl.answers import AnswerEnd
from megatron_davinci.rl.templates import PromptTemplate, load_template
from megatron_davinci.rl.token_bytes import TokenBytes


@dataclass(frozen=True)
class TraceRules:
    """`budgets`, `thoughts`: least and most tokens, of which any is as likely as another; `max_tokens`: of a trace.

    `per_document`: traces of each document, at different positions.
    """

    template: str
    budgets: tuple[int, int]
    thoughts: tuple[int, int]
    max_tokens: int
    per_document: int
    seed: int


def write_traces(corpus: Corpus, directory: Path, out: Path, rules: TraceRules) -> dict[str, Any]:
    """Write the corpus OUT of traces, whose prompts are not trained; `directory`: the tokenizer's.

    The same corpus and rules give the same traces. Raises InputError for another tokenizer, or where nothing fits.
    """
    for name, (low, high) in (("budget", rules.budgets), ("thought", rules.thoughts)):
        if not 1 <= low <= high:
            raise InputError(f"{name} from {low} to {high} tokens: it must be at least 1, and rise")
    if not is_tokenizer_of(directory, corpus.manifest["tokenizer"]):
        raise InputError(f"{corpus.prefix} was tokenized with another tokenizer than {directory} has: give that one's")
    maker = _Maker.of(TokenBytes(directory), rules)
    end = corpus.manifest["tokenizer"]["eod"]
    if end is None:
        raise InputError(
            f"the tokenizer in {directory} has no end of document, by which a response ends: choose another"
        )
    writer = CorpusWriter(out, corpus.manifest["tokenizer"], masked=True)
    for number in range(len(corpus)):
        ids = corpus[number]
        if len(ids) and ids[-1] == end:
            ids = ids[:-1]  # which would end the response inside its thought
        for prompt, response in maker.traces(ids, number):
            ids = np.array([*prompt, *response, end], np.int64)
            mask = np.array([0] * len(prompt) + [1] * (len(response) + 1), np.uint8)
            writer.add_flat(ids, np.array([len(ids)], np.int64), loss_mask=mask)
    if not writer.position[2]:
        writer.discard()
        raise InputError(
            f"no document of {corpus.prefix} has room for a trace of {rules.max_tokens} tokens: raise --max-tokens"
        )
    manifest = writer.commit({"made_by": "davinci rmt traces", "corpus": corpus.checksum, **vars(rules)})
    return {"traces": manifest["documents"], "tokens": manifest["tokens"], "trained": manifest["trained_tokens"]}


@dataclass(frozen=True)
class _Maker:
    """What all traces share."""

    rules: TraceRules
    prompt: PromptTemplate
    answerable: npt.NDArray[np.bool_]
    close: Sequence[int]
    end: Sequence[int]
    answer_end: AnswerEnd
    around: int
    """Most tokens that are neither document nor thought: prompt, tags, box, answer, end."""

    @classmethod
    def of(cls, texts: TokenBytes, rules: TraceRules) -> "_Maker":
        prompt = load_template(rules.template, texts.encode, texts.begin)
        close, end = texts.encode("</think>\\boxed{"), texts.encode("}")
        low, high = rules.budgets
        instruction = max(len(prompt.instruction_ids(budget)) for budget in range(low, high + 1))
        around = len(prompt.preamble_ids()) + instruction + len(close) + 1 + len(end) + 1
        return cls(rules, prompt, texts.answerable, close, end, AnswerEnd(texts.texts), around)

    def traces(self, ids: Int64s, document: int) -> Iterator[tuple[list[int], list[int]]]:
        """(prompt, response) of one document, each a list of ids."""
        rules = self.rules
        draws = np.random.default_rng([rules.seed, document])
        room = rules.max_tokens - self.around - rules.thoughts[1]
        positions = 1 + np.flatnonzero(self.answerable[ids[1 : max(1, room)]])
        for position in draws.permutation(positions)[: rules.per_document].tolist():
            budget, length = (int(draws.integers(low, high + 1)) for low, high in (rules.budgets, rules.thoughts))
            given, following = ids[:position].tolist(), ids[position : position + length].tolist()
            prompt = [*self.prompt.preamble_ids(), *given, *self.prompt.instruction_ids(budget)]
            response = [*following, *self.close, following[0], *self.end]
            if self.answer_end.position(response) == len(response):  # a text may hold tags and boxes of its own
                yield prompt, response

"""Tests of format traces: each is the recipe's own prompt, a thought of the document's tokens, and the right answer."""

from pathlib import Path

import numpy as np
import pytest

from data_prep import InputError
from data_prep.corpus import Corpus, CorpusWriter
from data_prep.tokenizers import load_tokenizer, tokenizer_file
from megatron_davinci.demo.toy_language import write_model
from megatron_davinci.rl.answers import read_response
from megatron_davinci.rl.templates import load_template
from megatron_davinci.rl.token_bytes import TokenBytes
from megatron_davinci.rl.traces import TraceRules, write_traces

RULES = TraceRules("suffix_1", (8, 32), (1, 6), 400, 2, 7)
TEXTS = ["Let $x^{2}$ be four {braces} and more\n", "one", "doors open and close " * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traces")
    write_model(folder / "model")
    tokenizer, description = load_tokenizer(tokenizer_file(folder / "model"))
    writer = CorpusWriter(folder / "texts", description)
    writer.add([[*ids, tokenizer.eod] for ids in tokenizer.encode(TEXTS)])
    writer.commit({})
    write_traces(Corpus(folder / "texts"), folder / "model", folder / "traces", RULES)
    return folder


def test_each_trace_answers_its_own_prompt(folder: Path) -> None:
    texts, source, traces = TokenBytes(folder / "model"), Corpus(folder / "texts"), Corpus(folder / "traces")
    prompt = load_template("suffix_1", texts.encode)
    documents = [source[number].tolist() for number in range(len(source))]
    assert len(traces) >= 4
    for number in range(len(traces)):
        ids, start = traces[number], int(traces.starts[number])
        mask = np.asarray(traces.loss_mask[start : start + len(ids)])
        asked = ids[mask == 0].tolist()
        response = ids[mask == 1].tolist()
        assert response[-1] == source.tokenizer["eod"] and mask.tolist() == sorted(mask.tolist())
        reading = read_response(texts.of(response))
        budget = next(b for b in range(8, 33) if asked[-len(prompt.instruction_ids(b)) :] == prompt.instruction_ids(b))
        given = asked[: -len(prompt.instruction_ids(budget))]
        [document] = [each for each in documents if each[: len(given)] == given and len(each) > len(given)]
        assert reading.closed and reading.answer == texts.texts[document[len(given)]]
        assert response.count(source.tokenizer["eod"]) == 1  # no thought runs over its document's end
        thought = response[: reading.thought_tokens]
        assert 1 <= len(thought) <= 6 and thought == document[len(given) : len(given) + len(thought)]
        assert len(ids) <= RULES.max_tokens


def test_the_same_rules_give_the_same_traces(folder: Path) -> None:
    write_traces(Corpus(folder / "texts"), folder / "model", folder / "again", RULES)
    assert (folder / "again.bin").read_bytes() == (folder / "traces.bin").read_bytes()


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"budgets": (9, 8)}, "budget from 9 to 8 tokens"),
        ({"thoughts": (0, 8)}, "thought from 0 to 8 tokens"),
        ({"max_tokens": 20}, "no document of .* has room for a trace of 20 tokens: raise --max-tokens"),
        ({"template": "suffix_9"}, "template 'suffix_9' is unknown"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    rules = TraceRules(**{**vars(RULES), **changes})
    with pytest.raises(InputError, match=sentence):
        write_traces(Corpus(folder / "texts"), folder / "model", tmp_path / "out", rules)
    assert not list(tmp_path.iterdir())


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    from test_token_texts import with_markup

    other = with_markup(folder / "model", tmp_path / "other")
    with pytest.raises(InputError, match="was tokenized with another tokenizer than"):
        write_traces(Corpus(folder / "texts"), other, tmp_path / "out", RULES)

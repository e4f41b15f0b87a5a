"""A page where a person can look at each hit of a leakage report in its context, and judge tau."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from data_prep.corpus.indexed import Corpus
from data_prep.io.files import new_file
from data_prep.leakage.benchmarks import References
from data_prep.tokenizers import Tokenizer

CONTEXT_TOKENS = 60
CONTEXT_CHARACTERS = 250
MOST_HITS = 500
_STYLE = (
    "body{font:15px/1.5 system-ui;max-width:75rem;margin:2rem auto;padding:0 1rem}"
    "td,th{text-align:left;padding:.1rem 1.5rem .1rem 0}section{border-top:1px solid #ccc;margin-top:1.5rem}"
    ".pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem}"
    "pre{background:#f5f5f5;padding:.7rem;overflow:auto;white-space:pre-wrap;margin:0}"
    "mark{background:#ffe08a}.contaminated{color:#b00020}"
)


def write_page(
    report: dict[str, Any],
    references: References,
    corpora: Sequence[Corpus],
    out: Path,
    where: Callable[[dict[str, Any]], str] = lambda place: f"{place['corpus']} number {place['document']}",
) -> None:
    """Write one HTML file without any reference to the outside; the highest scores come first. It appears by rename.

    `where` names a worst document.
    """
    texts = [text for benchmark in references.benchmarks for text in benchmark.texts()]
    by_prefix = {str(corpus.prefix): corpus for corpus in corpora}
    hits = [(entry, text) for entry, text in zip(report["instances"], texts, strict=True) if entry["span"]]
    hits.sort(key=lambda hit: -hit[0]["score"])
    sections = [_hit(entry, text, by_prefix, references.tokenizer, where) for entry, text in hits[:MOST_HITS]]
    left_out = (
        f"<p>The {len(hits) - MOST_HITS} lowest hits are in the report only.</p>" if len(hits) > MOST_HITS else ""
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Leakage</title><style>{_STYLE}</style>'
        f"<h1>{report['n']}-gram leakage</h1><p>Contaminated from a score of {report['tau']}.</p>"
        f"{_summary(report)}{''.join(sections)}{left_out}</html>\n"
    )
    with new_file(out) as part:
        part.write_text(page)


def _summary(report: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(b['file'])}</td><td>{escape('+'.join(b['fields']))}</td><td>{b['instances']}</td>"
        f"<td>{b['contaminated']}</td><td>{b['too_short']}</td></tr>"
        for b in report["benchmarks"]
    )
    head = "".join(f"<th>{name}</th>" for name in ("benchmark", "fields", "instances", "contaminated", "too short"))
    return f"<table><tr>{head}</tr>{rows}</table>"


def _hit(
    entry: dict[str, Any],
    text: str,
    corpora: dict[str, Corpus],
    decoder: Tokenizer,
    where: Callable[[dict[str, Any]], str],
) -> str:
    place, span = entry["worst_document"], entry["span"]
    ids = corpora[place["corpus"]][place["document"]].tolist()
    before = decoder.decode(ids[max(0, span["start"] - CONTEXT_TOKENS) : span["start"]])
    after = decoder.decode(ids[span["end"] : span["end"] + CONTEXT_TOKENS])
    verdict = "contaminated" if entry["contaminated"] else "below tau"
    return (
        f'<section class="{verdict}"><h2>{escape(entry["id"])}</h2></section>'
        f"<p>score {entry['score']:.3f} ({verdict}), {entry['ngrams']} n-grams; worst document: "
        f"{escape(where(place))}, tokens {span['start']} to {span['end']}</p>"
        f'<div class="pair"><pre>{_marked(text, span["text"])}</pre>'
        f"<pre>{escape(before)}<mark>{escape(span['text'])}</mark>{escape(after)}</pre></div>"
    )


def _marked(text: str, span: str) -> str:
    """The span inside the reference text; the text's beginning where the document joins what stands apart in it."""
    start = text.find(span)
    if start < 0:
        return escape(text[: 4 * CONTEXT_CHARACTERS])
    end = start + len(span)
    before, after = text[max(0, start - CONTEXT_CHARACTERS) : start], text[end : end + CONTEXT_CHARACTERS]
    return f"{escape(before)}<mark>{escape(text[start:end])}</mark>{escape(after)}"

"""SciBench (Wang et al., 2024): problems of ten textbooks, whose answer is a number, right within 5%.

Units hold powers of ten in 90 of 580 problems. As in the benchmark's own code the power is not shown where a unit
stands behind it, and the whole value is asked for; where the power is all there is, it is shown. `published` is the
verdict of that code, which takes some forms of a number alone, and never any answer to the four problems whose own
answer has a comma or a minus sign of typesetters.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_davinci.evaluate.tasks.reading import stated_answer
from megatron_davinci.evaluate.tasks.task import Answered, AnswerScore, BenchmarkTask, Question, ScoringTools
from megatron_davinci.rl.answers import last_boxed

_TOLERANCE = 0.05
_POWER = re.compile(r"\$? *10\^\{? *(-?[0-9]+) *\}? *\$?")
_VALUE = re.compile(
    r"([-+]?(?:\d+\.?\d*|\.\d+))(?:[eE]([-+]?\d+))?"
    r"(?:\s*(?:\\times|\\cdot|×|·|\*|x)\s*10\s*(?:\^|\*\*)\s*\{?\s*([-+]?\d+)\s*\}?)?"
)
_FRACTION = re.compile(r"([-+]?)\s*(?:\\[dt]?frac\{\s*([\d.]+)\s*\}\{\s*([\d.]+)\s*\}|([\d.]+)\s*/\s*([\d.]+))")
_UNIT = re.compile(r"(?:\\?%|°|\^\{?\\circ\}?|\s+[A-Za-z(\\].*|\\(?:mathrm|text|mu|Omega|AA)\b.*)?\s*\.?", re.DOTALL)
_NO_UNIT = re.compile(r"\s*\\(?:sqrt|pi|frac|times|cdot|ln|log|sin|cos|tan|exp)\b|\s*(?:or|and|to|x)\b")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_BARE_POWER = re.compile(r"\s*([-+]?)10\s*(?:\^|\*\*)\s*\{?\s*([-+]?\d+)\s*\}?")


class SciBench(BenchmarkTask):
    """The ten files together; the mean of textbooks stands beside the share of all problems."""

    name = "scibench"
    title = "SciBench"
    files = ("scibench/*.json",)
    leaves_out = "*_sol.json"  # worked examples
    all_files = True
    count = 580
    licence = "MIT; the problems are textbooks'"
    download = "fetch dataset/original/*.json of github.com/mandyyyyii/scibench into DATA/scibench"
    fields = ("problem_text", "answer_number", "unit", "source")
    may_be_shown = False
    grouped_by = "source"

    def check_row(self, row: Mapping[str, Any]) -> str:
        """See `BenchmarkTask`."""
        missing = super().check_row(row)
        if missing:
            return missing
        try:
            golds(row)
        except ValueError:
            return "its answer_number is no number"
        return ""

    def values(self, question: Question) -> dict[str, str]:
        """See `BenchmarkTask`."""
        unit, _ = shown_unit(question.row["unit"])
        said = f" The unit of the answer is {unit}." if unit else ""
        return {"problem": question.row["problem_text"].strip() + said}

    def scores(self, pairs: Sequence[Answered], tools: ScoringTools) -> Iterator[AnswerScore]:
        """See `BenchmarkTask`."""
        for question, answer in pairs:
            row, found = question.row, stated_answer(answer.text)
            tools.on_score(1)
            others = {"published": published_verdict(answer.text, row)}
            value = number_in(found)
            if value is None:
                yield AnswerScore("unparsed", found, others=others)
            else:
                right = any(math.isclose(value, gold, rel_tol=_TOLERANCE) for gold in golds(row))
                yield AnswerScore("right" if right else "wrong", found, others=others)


def shown_unit(unit: str) -> tuple[str, int]:
    """A unit as it is shown, and the power of ten by which the answer in the file is to be multiplied."""
    found = list(_POWER.finditer(unit))
    rest = unit[found[-1].end() :] if found else ""
    if not found or not rest:
        return unit.strip(), 0
    rest = rest.strip()
    if rest.count("$") % 2:
        rest = f"${rest}"
    return rest.replace("$}", "$"), int(found[-1][1])


def golds(row: Mapping[str, Any]) -> list[float]:
    """Values that are right: the whole one; where a power of ten is shown as the unit, what stands before it too."""
    gold = float(row["answer_number"].strip().replace(",", "").replace("−", "-"))
    _, power = shown_unit(row["unit"])
    bare = _POWER.search(row["unit"]) if not power else None
    return [gold * 10.0**power, *([gold * 10.0 ** int(bare[1])] if bare else [])]


def number_in(text: str) -> float | None:
    """The value of an answer that is one number, in any notation (decimal, scientific, a fraction), with or without a
    unit; None where it is more than that, such as a root."""
    text = re.sub(r"(?<=\d)(?:,|\{,\}|\\,)(?=\d{3})", "", text.rpartition("=")[2])
    text = re.sub("10([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)", lambda found: f"10^{found[1].translate(_SUPERSCRIPTS)}", text)
    text = re.sub(r"[−–]", "-", text)
    text = re.sub(r"\\(?:approx|left|right|;|,|!)|[~$]", " ", text).strip()
    try:
        for pattern, value in _NOTATIONS:
            found = pattern.match(text)
            rest = text[found.end() :] if found else ""
            if found and _UNIT.fullmatch(rest) and not _NO_UNIT.match(rest):
                return value(found)
    except (ValueError, ArithmeticError):
        return None
    return None


def _fraction(found: re.Match[str]) -> float:
    return float(f"{found[1]}1") * float(found[2] or found[4]) / float(found[3] or found[5])


def _bare_power(found: re.Match[str]) -> float:
    return float(f"{found[1]}1") * 10.0 ** int(found[2])


def _decimal(found: re.Match[str]) -> float:
    return float(found[1]) * 10.0 ** int(found[2] or 0) * 10.0 ** int(found[3] or 0)


_NOTATIONS = ((_FRACTION, _fraction), (_BARE_POWER, _bare_power), (_VALUE, _decimal))


def published_verdict(text: str, row: Mapping[str, Any]) -> bool:
    """What SciBench's own code says: the last box, its number or the first word of it, commas taken out of the answer
    alone; a value with a power where the unit has one, written with \\times or *."""
    boxed = last_boxed(text.encode("utf-8", "surrogatepass"))
    if boxed is None:
        return False
    answer = boxed.decode("utf-8", "surrogatepass").rpartition("=")[2].strip()
    _, power = shown_unit(row["unit"])
    gold = row["answer_number"]
    try:
        if power:
            number, exponent = _published_power(answer)
            return math.isclose(number * 10.0**exponent, float(gold) * 10.0**power, rel_tol=_TOLERANCE)
        return _is_close_word(answer, gold) or _is_close_word(answer.split(" ")[0], gold)
    except (ValueError, ArithmeticError):
        return False


def _published_power(answer: str) -> tuple[float, int]:
    """A number and its power of ten. Raises ValueError for other notations."""
    for sign in ("\\times", "*"):
        number, found, rest = answer.partition(sign)
        if found:
            power = _POWER.fullmatch(rest.strip())
            if power is None:
                raise ValueError(rest)
            return float(number), int(power[1])
    return float(answer), 0


def _is_close_word(word: str, gold: str) -> bool:
    try:
        return math.isclose(float(word.replace(",", "")), float(gold), rel_tol=_TOLERANCE)
    except ValueError:
        return False

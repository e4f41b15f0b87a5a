"""Final answers in what models write: of mathematics, numbers, letters of options."""

import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation

from megatron_davinci.rl.answers import last_boxed

_STATED = re.compile(
    r"(?:\b(?:final\s+answer|correct\s+answer|answer)\b[\s*_]*(?:is|are|:|=)(?:\s+therefore)?|####)[\s:*_]*(?=([^\n]{1,400}))",
    re.IGNORECASE,
)
_HOPE = re.compile(r"\.?\s*I hope it is correct\.?.*", re.IGNORECASE | re.DOTALL)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:[^$\\]|\\.)+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_WORDS = re.compile(r"(?<![\\A-Za-z{])[a-z]{2,},? [a-z]{2,}\b")  # between two amounts of money, not in a formula
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
_LISTED = re.compile(r"@(?:\s*(?:,|and|or|, and|, or)\s*@)+")
_MOST_STATED, _LONGEST_LINE = 20, 1000
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"(?:(?<![\w.)}}\]])[-−])?\\?\$?(?:{_DIGITS})(?:[eE][-+]?\d+)?")
_UNIT_NAME = r"(?<=\s)(?!(?:or|and|to|i|x|n|more|less)\b)[A-Za-z][A-Za-z /.]*"
_WHOLE_NUMBER = re.compile(
    rf"\s*\\?\$?\s*([-+−]?)\s*\\?\$?\s*({_DIGITS})\.?\s*"
    rf"(?:\\?%|\\?\$|(?:\\ ?|~)?\\(?:text|mathrm)\{{[A-Za-z /.~]*\}}|{_UNIT_NAME})?\s*\.?\s*"
)
_NAMED_SIDE = re.compile(r"\s*(?:[A-Za-z]\w*\([A-Za-z, ]+\)|\([A-Za-z](?:\s*,\s*[A-Za-z])+\))\s*=([^=]+)")
_SEVERAL = re.compile(r",|\\text\{\s*(?:or|and)|\bor\b|\band\b")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_LETTER = re.compile(
    r"\b(?:[Aa]nswer|ANSWER|[Oo]ption|[Cc]hoice)\b(?:\s+(?:is|was|must be|should be|would be))?[\s:]*"
    r"(?:the\s+)?(?:option|choice)?\s*(?:\(([A-Ja-j])\)|([A-J])(?=\s*(?:[.,;:)\]]|\n|$)))"
)
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boldsymbol)\b|[{}$*\"“”]")
_IN_BRACKETS = re.compile(r"\(([A-J])\)")
_LETTER_ALONE = re.compile(r"^[ \t]*[(\[]?([A-J])[)\].:]*[ \t]*$", re.MULTILINE)


def stated_answer(text: str) -> str:
    """The last answer that a text states: in a box, behind "the answer is" or "####"; else what its last line has in
    bold, or the last formula there. "" where there is none. Of a computation the result, see `result_of`."""
    stated = max(stated_places(text), default=None)
    if stated is not None:
        return result_of(stated[1])
    last_line = text.strip().rpartition("\n")[2][-_LONGEST_LINE:]
    found = _BOLD.findall(last_line) or _formulas(last_line)
    return result_of(found[-1].strip(" .")) if found else ""


def stated_places(text: str) -> Iterator[tuple[int, str]]:
    """Where a text states answers, in a box or behind "the answer is" or "####", and what they are."""
    boxed = last_boxed(text.encode("utf-8", "surrogatepass"))
    if boxed is not None:
        answer = boxed.decode("utf-8", "surrogatepass")
        yield text.rfind(f"\\boxed{{{answer}}}"), answer.strip()
    for found in reversed(list(_STATED.finditer(text))[-_MOST_STATED:]):
        if answer := _tidied(found[1]):
            yield found.start(), answer
            return


def _tidied(stated: str) -> str:
    """The answer in the rest of a line that states it."""
    stated = _HOPE.sub("", stated).strip()
    inner = last_boxed(stated.encode("utf-8", "surrogatepass"))
    if inner is not None:
        return inner.decode("utf-8", "surrogatepass").strip()
    formulas = _formulas(stated)
    if formulas:
        listed = _LISTED.fullmatch(_FORMULA.sub("@", stated).strip(" .*"))
        return ", ".join(formulas) if listed else formulas[0]
    sentence = _SENTENCE_END.split(stated, maxsplit=1)[0]
    return sentence.strip().strip("*_").strip()


def _formulas(text: str) -> list[str]:
    found = (next(filter(None, each)).strip() for each in _FORMULA.findall(text))
    return [each for each in found if not _WORDS.search(each)]


def result_of(answer: str) -> str:
    """The last side of "1200 - 1000 = 200", of a chain of equations, of "f(x) = ..." and "(x, y) = ..."; what stands
    before an approximation. Else the answer as it is: an equation may be what is asked for."""
    exact = re.split(r"\\approx|≈", answer)[0].strip() or answer
    sides = re.split(r"(?<![<>!\\])=", exact)
    named = _NAMED_SIDE.fullmatch(exact)
    if named is not None:
        return named[1].strip()
    if _SEVERAL.search(exact):
        return exact
    computed = len(sides) > 2 or not re.search(r"[A-Za-z]", _COMMAND.sub("", sides[0]))
    return sides[-1].strip() if computed and sides[-1].strip() else exact


def last_number(text: str) -> str:
    """The last number in a text, "" where there is none."""
    found = _NUMBER.findall(text)
    return found[-1] if found else ""


def first_number(text: str) -> str:
    """The first number in a text, "" where there is none."""
    found = _NUMBER.search(text)
    return found[0] if found else ""


def plain_number(text: str) -> Decimal | None:
    """The value of a text that is one number, with or without a unit behind it; None where it is more than that."""
    found = _WHOLE_NUMBER.fullmatch(text.strip().strip("$"))
    if found is None:
        return None
    digits = re.sub(r"[^\d.]", "", found[2])
    try:
        return Decimal(("-" if found[1] in ("-", "−") else "") + digits)
    except InvalidOperation:
        return None


def chosen_letter(text: str, letters: str) -> str:
    """The letter that a text states as its answer, "" where there is none, or it is no option's.

    It stands in the last box, or behind the last "answer is", or alone on a line, or in brackets as the only one of the
    last line.
    """
    boxed = last_boxed(text.encode("utf-8", "surrogatepass"))
    inside = "" if boxed is None else _MARKUP.sub("", boxed.decode("utf-8", "surrogatepass")).strip(" ().")
    plain = _MARKUP.sub("", text)
    last = set(_IN_BRACKETS.findall(plain.strip().rpartition("\n")[2]))
    found = (
        [inside] * (len(inside) == 1)
        or [(first or second).upper() for first, second in _LETTER.findall(plain)]
        or _LETTER_ALONE.findall(plain)
        or list(last) * (len(last) == 1)
    )
    return found[-1] if found and found[-1] in letters else ""

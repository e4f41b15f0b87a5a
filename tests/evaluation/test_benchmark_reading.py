"""Final answers are read as a person reads them; what differs from hand-made labels is on record."""

import multiprocessing
import sys
from pathlib import Path

import pytest

from megatron_davinci.evaluate.tasks.code_runs import CodeRuns
from megatron_davinci.evaluate.tasks.reading import chosen_letter, last_number, plain_number, result_of, stated_answer
from megatron_davinci.evaluate.tasks.registry import named_tasks
from megatron_davinci.evaluate.tasks.scibench import golds, number_in, published_verdict, shown_unit
from megatron_davinci.evaluate.tasks.task import AnswerText, Question, ScoringTools
from megatron_davinci.rl.math_grader import are_equal

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "text, answer",
    [
        ("So $x = \\boxed{24}$.\nFinal Answer: The final answer is $24$. I hope it is correct.", "24"),
        ("First \\boxed{1}, then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("The answer is 30. Wait: the correct answer is 24.", "24"),
        ("**Answer:** $[2,5)$", "[2,5)"),
        ("#### 1,200", "1,200"),
        ("Adding up, $3 + 4 = 7$.", "7"),
        ("The smallest one is **27**.", "27"),
        ("He has $130,000 and spends $60,000 of it.", ""),
        ("$\\boxed{\\$36}$.\nFinal Answer: The final answer is $\\$36$. I hope it is correct.", "\\$36"),
        ("The answer is $5$, because $2+3=5$.", "5"),
        ("The answers are: the answer is $1$ and $2$", "1, 2"),
        ("It is cut off at \\boxed{25", ""),
        ("", ""),
    ],
)
def test_the_last_stated_answer_is_read(text: str, answer: str) -> None:
    assert stated_answer(text) == answer


@pytest.mark.parametrize(
    "answer, result",
    [
        ("1200 - 1000 = 200", "200"),
        ("\\frac{26}{36} = \\frac{13}{18} \\approx 0.72", "\\frac{13}{18}"),
        ("P(x)=x^2-1", "x^2-1"),
        ("(x,y)=(1,2)", "(1,2)"),
        ("x^2 + y^2 = 4", "x^2 + y^2 = 4"),
        ("x = 3", "x = 3"),
        ("m = 1 \\text{ or } m = 2", "m = 1 \\text{ or } m = 2"),
        ("a \\le 3", "a \\le 3"),
    ],
)
def test_of_a_computation_the_result_is_taken_and_an_equation_stays(answer: str, result: str) -> None:
    assert result_of(answer) == result


def test_numbers_are_read_with_money_units_and_separators() -> None:
    assert [last_number(text) for text in ("20 - 5 = 15 apples", "costs $1,234.50.", "it is -3", "none")] == [
        "15", "$1,234.50", "-3", ""
    ]  # fmt: skip
    values = ("1{,}200", "$18.00", "18 dollars", "50\\%", "-.5", "3/4", "7 or 8", "", "2x", "3i", "6 or more")
    assert [None if (v := plain_number(text)) is None else float(v) for text in values] == [
        1200, 18, 18, 50, -0.5, None, None, None, None, None, None
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, letter",
    [
        ("... The correct answer is (C)", "C"),
        ("The correct answer is (A). No, the answer is (b).", "B"),
        ("Answer: D.", "D"),
        ("Thus $\\boxed{\\text{B}}$.", "B"),
        ("I think\n\n**C**", "C"),
        ("The answer is Einstein.", ""),
        ("The correct answer is a combination of both, so choose (D).", "D"),
        ("The answer is a little tricky. Yet (C) fits.", "C"),
        ("The correct answer is (C).\nA common error is that the answer is a force.", "C"),
        ("The answer is C4H10, i.e. (B)", "B"),
        ("The answer is D-glucose, (B).", "B"),
        ("The answer is B or C; more likely option C.", "C"),
        ("The correct answer is option C.", "C"),
        ("So the answer must be (B).", "B"),
        ("$\\boxed{\\textbf{(C)}}$", "C"),
        ("Final answer: $\\text{C}$", "C"),
        ('The answer is "C".', "C"),
        ("(A) is false and (B) is false", ""),
        ("The correct answer is (E)", ""),
        ("A is wrong and so is B", ""),
    ],
)
def test_letters_are_read_where_they_are_stated(text: str, letter: str) -> None:
    assert chosen_letter(text, "ABCD") == letter


@pytest.mark.parametrize(
    "text", ["the answer is \\\\(x ", "Answer: \\\\[x ", "The answer is ", "\n", "$", "answer ", "("]
)
def test_a_text_that_loops_is_read_at_once(text: str) -> None:
    """In time that grows with its length: what models write at 16,384 tokens must not hold up a run."""
    looped = text * (60_000 // len(text))
    process = multiprocessing.get_context("spawn").Process(target=_read_all, args=(looped,))
    process.start()
    process.join(60)
    ended = process.exitcode
    process.kill()
    assert ended == 0


def _read_all(text: str) -> None:
    for read in (stated_answer, last_number, number_in, lambda each: chosen_letter(each, "ABCD")):
        read(text)


@pytest.mark.parametrize(
    "answer, verdict", [("5 x 3 = 15", True), ("50% of 30 = 15", True), ("15 dollars", True), ("5", False)]
)
def test_of_a_sum_in_gsm8k_the_result_counts(answer: str, verdict: bool) -> None:
    [task] = named_tasks("gsm8k")
    question = Question("gsm8k/0", {"question": "?", "answer": "#### 15"}, "", "0")
    [score] = task.scores([(question, AnswerText(f"The answer is {answer}.", "stop"))], ScoringTools(CodeRuns(Path())))
    assert (score.status == "right") == verdict


def test_numbers_in_a_base_are_not_compared_as_plain_ones() -> None:
    pairs = {
        ("300_4", "300_{4}"): True,
        ("300_4", "300_{5}"): False,
        ("300_4", "48_{10}"): False,
        ("x_{1}", "x_1"): True,
    }
    assert are_equal(pairs) == pairs


def row(answer: str, unit: str) -> dict[str, str]:
    return {"answer_number": answer, "unit": unit, "problem_text": "How much is it?", "source": "s"}


def test_a_power_of_ten_in_a_unit_is_part_of_the_value() -> None:
    behind, bare = row("1.27", " $10^{-19} \\mathrm{~J}$"), row("1.27", "$10^{6}$")
    assert shown_unit(behind["unit"]) == ("$\\mathrm{~J}$", -19)
    assert shown_unit(bare["unit"]) == ("$10^{6}$", 0)
    assert golds(behind) == [pytest.approx(1.27e-19)] and golds(bare) == [1.27, pytest.approx(1.27e6)]
    assert shown_unit("$\\mathrm{kJ} \\mathrm{mol}^{-1}$") == ("$\\mathrm{kJ} \\mathrm{mol}^{-1}$", 0)


@pytest.mark.parametrize(
    "text, value",
    [
        ("1.27 \\times 10^{6}", 1.27e6),
        ("1.27\\cdot10^6", 1.27e6),
        ("1.27e-6", 1.27e-6),
        ("x = -2.5 \\mathrm{~m}", -2.5),
        ("10^{-3}", 1e-3),
        ("\\frac{3}{4}", 0.75),
        ("89{,}034.79", 89034.79),
        ("\\approx 3.1", 3.1),
        ("−2", -2),
        ("about nothing", None),
        ("3/4", 0.75),
        ("1.27x10^6", 1.27e6),
        ("2.5 × 10³", 2500),
        ("–1.5", -1.5),
        ("48.0 m/s", 48),
        ("25 \\%", 25),
        ("\\sqrt{2}", None),
        ("\\frac{\\pi}{4}", None),
        ("2\\pi", None),
        ("e^{2}", None),
        ("2^{10}", None),
    ],
)
def test_numbers_are_read_in_any_notation(text: str, value: float | None) -> None:
    found = number_in(text)
    assert found == (None if value is None else pytest.approx(value))


# What SciBench's own code says to answers in several forms (last box, units with a power behind it and bare).
PUBLISHED = {
    "g": ("1.27", False, True), "full": ("1.27e-19", True, False), "times": ("1.27 \\times 10^{-19}", True, True),
    "no space": ("1.27\\times 10^{-19}", True, False), "star": ("1.27*10^-19", True, False),
    "cdot": ("1.27 \\cdot 10^{-19}", False, True), "approx": ("\\approx 1.27 \\times 10^{-19}", False, False),
}  # fmt: skip


@pytest.mark.parametrize("form", PUBLISHED)
def test_the_published_verdict_is_that_of_scibenchs_own_code(form: str) -> None:
    answer, behind, bare = PUBLISHED[form]
    text = f"The answer is therefore \\boxed{{{answer}}}."
    assert published_verdict(text, row("1.27", "$10^{-19} \\mathrm{~J}$")) == behind
    assert published_verdict(text, row("1.27", "$10^{-19}$")) == bare


@pytest.mark.parametrize("gold, answer", [("89,034.79", "89034.79"), ("−2", "-2"), ("−1.642876", "-1.643")])
def test_golds_that_the_published_code_cannot_accept_are_mended(gold: str, answer: str) -> None:
    [task] = named_tasks("scibench")
    question = Question("diff/1", row(gold, " "), "", "1")
    text = f"The answer is therefore \\boxed{{{answer}}}."
    [score] = task.scores([(question, AnswerText(text, "stop"))], ScoringTools(CodeRuns(Path())))
    assert score.status == "right" and score.others == {"published": False}
    [wrong] = task.scores([(question, AnswerText("\\boxed{7}", "stop"))], ScoringTools(CodeRuns(Path())))
    assert wrong.status == "wrong"


def test_every_gold_of_scibench_is_a_number(shared_data: Path) -> None:
    from megatron_davinci.evaluate.tasks.data import TaskData

    [task] = named_tasks("scibench")
    questions = TaskData.read(task, shared_data / "benchmarks").questions
    assert len(questions) == 580 and all(golds(each.row) for each in questions)
    powers = [shown_unit(each.row["unit"]) for each in questions]
    assert sum(power != 0 for _, power in powers) + sum("10^" in unit for unit, _ in powers) == 90
    assert all("$}" not in unit for unit, _ in powers)


def test_options_are_shuffled_by_the_records_own_id() -> None:
    """Another record, or none, changes nothing; and all four places come."""
    [task] = named_tasks("gpqa_main")

    def letters(ids: list[str]) -> dict[str, str]:
        wrong = {f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}
        rows = [{"Record ID": name, "Question": "Q?", "Correct Answer": "right ", **wrong} for name in ids]
        prompts = {r["Record ID"]: task.prompt(Question(r["Record ID"], r, "", "")) for r in rows}
        return {name: prompt.rpartition(") right")[0][-1] for name, prompt in prompts.items()}

    all_of_them = letters([f"rec{number}" for number in range(40)])
    assert set(all_of_them.values()) == set("ABCD")
    assert letters(["rec7"])["rec7"] == all_of_them["rec7"]


def test_disagreements_with_hand_made_labels_are_those_on_record(shared_data: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import math_labels

    assert math_labels.page(shared_data / "benchmarks") == (ROOT / "benchmarks/results/math_labels.md").read_text()
    labels = list(math_labels.scored(shared_data / "benchmarks", "math_labels.jsonl"))
    assert len(labels) == 300

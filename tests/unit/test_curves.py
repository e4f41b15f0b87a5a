"""Properties of log-linear fits and of the tables they stand in."""

import json
import math
from pathlib import Path

import pytest

from data_prep import InputError
from megatron_davinci.evaluate.curves import read_scores, write_curves
from megatron_davinci.evaluate.fit import fit_log_linear


def test_a_line_over_ln_of_the_step_is_found_exactly() -> None:
    fit = fit_log_linear({step: 3.0 - 0.5 * math.log(step) for step in (10, 20, 40, 80)} | {0: 99.0})
    assert fit is not None
    assert (fit.intercept, fit.slope, fit.r_squared) == pytest.approx((3.0, -0.5, 1.0))
    assert fit.at(20) == pytest.approx(3.0 - 0.5 * math.log(20))


def test_what_the_line_leaves_is_told() -> None:
    """At ln(step) = 0, 1, 2 the values 0, 1, 0: the line is flat, and explains nothing."""
    fit = fit_log_linear({1: 0.0, 3: 1.0, 9: 0.0})
    assert fit is not None
    assert (fit.slope, fit.intercept, fit.r_squared) == pytest.approx((0.0, 1 / 3, 0.0), abs=1e-12)


def test_two_points_are_no_curve() -> None:
    assert fit_log_linear({0: 1.0, 1: 2.0, 2: 3.0}) is None


def test_table_picture_and_numbers_say_the_same(tmp_path: Path) -> None:
    curves = {"loss": {1: 2.0, 2: 1.5, 4: 1.0}, "pass@1": {2: 0.25}}
    table = write_curves(curves, tmp_path / "out")
    assert (
        "| 2 | 1.5000 | 0.2500 |\n" in table and "| 4 | 1.0000 |  |\n" in table and "| r squared | 1.0000 |  |" in table
    )
    held = json.loads((tmp_path / "out" / "results.json").read_text())
    assert held["loss"]["fit"]["slope"] == pytest.approx(-0.5 / math.log(2)) and held["pass@1"]["fit"] is None
    assert held["pass@1"]["values"] == {"2": 0.25} and (tmp_path / "out" / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "held, sentence", [([1], "holds no scores"), ({"a": {"x": 1}}, "no number"), ({"a": 1}, "no sc")]
)
def test_scores_that_are_none_are_refused(tmp_path: Path, held: object, sentence: str) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(held))
    with pytest.raises(InputError, match=sentence):
        read_scores([tmp_path / "scores.json"])

"""metrics.jsonl field by field: the page is the table, and names are told apart."""

from pathlib import Path

import pytest

from megatron_davinci.report.metric_fields import GROUPS, METRIC_FIELDS, as_markdown, curve_names, find_field


def test_the_page_is_the_table() -> None:
    """After a change: python -m megatron_davinci.report.metric_fields > docs/metrics.md."""
    assert (Path(__file__).parents[2] / "docs" / "metrics.md").read_text() == as_markdown()


def test_every_field_is_of_a_group_and_told_once() -> None:
    assert {field.group for field in METRIC_FIELDS} <= GROUPS.keys()
    names = [field.name for field in METRIC_FIELDS]
    assert len(set(names)) == len(names) and all(field.meaning.endswith(".") for field in METRIC_FIELDS)


@pytest.mark.parametrize(
    ("metric", "field"),
    [
        ("accuracy", "accuracy"),
        ("accuracy_hard", "accuracy_{level}"),
        ("seconds", "seconds"),
        ("seconds_forward_backward", "seconds_{phase}"),
        ("grad_norm", "grad_norm"),
        ("grad_norm_ntp", "grad_norm_{loss}"),
    ],
)
def test_a_metric_finds_its_field(metric: str, field: str) -> None:
    assert find_field(metric).name == field and find_field(metric).group != "objective"


def test_curves_are_named_by_group() -> None:
    line = {"loss": 2.0, "losses": {"py": 1.0, "md": 3.0}, "seconds": 4, "factor": 5.0, "note": "text", "kl": None}
    assert curve_names(line) == {
        "loss/loss": 2.0,
        "loss/losses/py": 1.0,
        "loss/losses/md": 3.0,
        "time/seconds": 4,
        "objective/factor": 5.0,
    }

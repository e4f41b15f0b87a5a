"""The hypotheses of README.md as differences, and what the cells say of each."""

from collections.abc import Callable
from dataclasses import dataclass

from study.analysis import (
    GRPO,
    LIKELIEST,
    SAMPLED,
    BySeed,
    Cells,
    Estimate,
    Units,
    estimate,
    gain,
    less,
    outcomes,
    positions_of,
    problems_of,
    solved,
)

MARGIN = 0.02
"""What "not below" allows: two points."""


@dataclass(frozen=True)
class Claim:
    """A part of a hypothesis: a difference, and when the claim holds for all of its interval."""

    number: int
    text: str
    needs: tuple[str, ...]
    difference: Callable[[Cells], BySeed]
    holds: Callable[[Estimate], bool]
    units: Callable[[Cells], Units] = positions_of
    is_share: bool = True

    def found(self, cells: Cells) -> Estimate | None:
        """What the cells say; None where one that is needed has no result."""
        if not all(name in cells for name in (*self.needs, "format", "format-free")):
            return None
        return estimate(self.difference(cells), self.units(cells))


def _above(found: Estimate) -> bool:
    return found.low > 0


def _below(found: Estimate) -> bool:
    return found.high < 0


def _not_below(found: Estimate) -> bool:
    return found.low > -MARGIN


def _of_outcomes(other: str, temperature: str, name: str) -> Callable[[Cells], BySeed]:
    return lambda cells: less(outcomes(cells, "rmt", temperature, name), outcomes(cells, other, temperature, name))


def _of_gains(other: str) -> Callable[[Cells], BySeed]:
    return lambda cells: less(gain(cells, "rmt", SAMPLED), gain(cells, other, SAMPLED))


def _of_sums(other: str) -> Callable[[Cells], BySeed]:
    return lambda cells: less(solved(cells, "rmt", SAMPLED, "after"), solved(cells, other, SAMPLED, "after"))


def _claims() -> list[Claim]:
    found = [
        Claim(number, f"NTR of rmt is above format's ({how})", ("rmt",), _of_outcomes("format", at, "reasoned"), _above)
        for number, at, how in ((1, SAMPLED, "sampled"), (2, LIKELIEST, "likeliest"))
    ]
    for other, holds in (("rpt", _above), ("rmt-no-ntp", _above), ("ntp", _not_below)):
        text = f"NTP of rmt is {'not below' if holds is _not_below else 'above'} {other}'s"
        found.append(Claim(3, text, ("rmt", other), _of_outcomes(other, LIKELIEST, "direct"), holds))
    for other in ("rpt", "rmt-no-budget"):
        thoughts = _of_outcomes(other, SAMPLED, "thought_tokens")
        text = f"thoughts of rmt are shorter than {other}'s (sampled; tokens)"
        found.append(Claim(4, text, ("rmt", other), thoughts, _below, is_share=False))
        text = f"the gain in NTR of rmt is not below {other}'s (sampled)"
        found.append(Claim(4, text, ("rmt", other), _of_gains(other), _not_below))
    for other in ("format", "ntp"):
        text = f"after GRPO, rmt solves more sums than {other} (sampled)"
        found.append(Claim(5, text, (f"{GRPO}rmt", GRPO + other), _of_sums(other), _above, problems_of))
    return found


CLAIMS = _claims()

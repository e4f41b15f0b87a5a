"""What RMT does when: the token budget (Eq. 1) and the mix of difficulties (Eq. 3, 4), as functions of the step.

t = optimizer step of the stage from 0, T = optimizer steps of the stage.
"""

import math

Mix = tuple[float, float, float]  # easy, medium, hard; they add up to 1


def token_budget(step: int, num_steps: int, initial: int, gamma: float, minimum: int) -> int:
    """Eq. 1: B_t = max(B_min, floor(B_0 * gamma^(t/T))), in content tokens between <think> and </think>."""
    return max(minimum, math.floor(initial * gamma ** (step / num_steps)))


def difficulty_mix(step: int, num_steps: int, early: Mix, late: Mix, start: float, end: float) -> Mix:
    """Eq. 3, 4: `early` before t1 = start * T, `late` from t2 = end * T on, between them linear in the step."""
    t1, t2 = start * num_steps, end * num_steps
    tau = 0.0 if step < t1 else 1.0 if step >= t2 else (step - t1) / (t2 - t1)
    easy, medium, hard = ((1 - tau) * a + tau * b for a, b in zip(early, late, strict=True))
    return easy, medium, hard


def over_levels_with_candidates(mix: Mix, candidates: tuple[int, int, int]) -> Mix:
    """The mix over the levels that have candidates; where it leaves those no share, they get equal ones.

    Raises ValueError where no level has any.
    """
    if not any(candidates):
        raise ValueError("no level has a candidate")
    kept = [share if count else 0.0 for share, count in zip(mix, candidates, strict=True)]
    if sum(kept) == 0.0:
        kept = [float(count > 0) for count in candidates]
    easy, medium, hard = (share / sum(kept) for share in kept)
    return easy, medium, hard

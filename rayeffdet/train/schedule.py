"""Learning rate as a pure function of the step."""

import math


def learning_rate(
    step: int,
    *,
    name: str,
    base: float,
    warmup_init: float,
    warmup_steps: int,
    total_steps: int,
    annealing_steps: int = 0,
) -> float:
    """Returns the rate for one step; defined for every step, also before 0 and past the end.

    ``cosine``: linear from ``warmup_init`` to ``base`` over the warm-up, then
    ``base / 2 * (1 + cos(pi * (step - warmup_steps) / (total_steps - warmup_steps)))``, which
    reaches zero at ``total_steps``.

    ``soft_anneal``: ``warmup_init ** (1 - k) * base ** k`` where k rises linearly from 0 to 1 over
    the warm-up, stays 1, and falls linearly from 1 at ``annealing_steps`` to 0 at ``total_steps``.
    ``warmup_init`` is the floor at both ends and should be positive: zero gives zero for all k < 1.

    Args:
        step: Optimizer steps taken so far: 0 for the first one.
        name: ``cosine`` or ``soft_anneal``.
        base: Rate after the warm-up.
        warmup_init: Rate of step 0 when there is a warm-up.
        warmup_steps: Length of the warm-up; 0 turns it off.
        total_steps: Length of the whole training.
        annealing_steps: Step at which soft_anneal starts to fall; cosine ignores it.

    Raises:
        ValueError: The name is neither of the two.
    """
    step = min(max(step, 0), total_steps)
    if name == "cosine":
        if step < warmup_steps:
            return warmup_init + step / warmup_steps * (base - warmup_init)
        progress = _fraction(step - warmup_steps, total_steps - warmup_steps)
        return base / 2 * (1 + math.cos(math.pi * progress))
    if name == "soft_anneal":
        rise = _fraction(step, warmup_steps)
        fall = _fraction(total_steps - step, total_steps - annealing_steps)
        k = min(rise, fall)
        return float(warmup_init ** (1 - k) * base**k)
    raise ValueError(f"{name!r} is neither 'cosine' nor 'soft_anneal'")


def _fraction(part: int, whole: int) -> float:
    """Returns part / whole, at most 1; a phase without length is over: 1."""
    return min(part / whole, 1.0) if whole > 0 else 1.0

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayeffdet.train.schedule import learning_rate

WARMUP, ANNEALING, TOTAL = 20, 60, 100
SETTINGS = {"base": 0.2, "warmup_init": 1e-4, "warmup_steps": WARMUP, "total_steps": TOTAL}


def cosine(step, **changes):
    return learning_rate(step, name="cosine", **{**SETTINGS, **changes})


def soft_anneal(step, **changes):
    options = {**SETTINGS, "annealing_steps": ANNEALING, **changes}
    return learning_rate(step, name="soft_anneal", **options)


@pytest.mark.parametrize("step", range(0, TOTAL, 7))
def test_cosine_follows_its_formula(step):
    expected = (
        1e-4 + step / WARMUP * (0.2 - 1e-4)
        if step < WARMUP
        else 0.5 * 0.2 * (1 + math.cos(math.pi * (step - WARMUP) / (TOTAL - WARMUP)))
    )
    assert cosine(step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("step", range(0, TOTAL, 7))
def test_soft_anneal_follows_its_formula(step):
    p, a, b = step / TOTAL, WARMUP / TOTAL, ANNEALING / TOTAL
    k = p / a if p < a else 1.0 if p <= b else (1 - p) / (1 - b)
    expected = math.exp(math.log(1e-4) + k * (math.log(0.2) - math.log(1e-4)))
    assert soft_anneal(step) == pytest.approx(expected, rel=1e-12)


def test_landmarks_are_hit():
    assert cosine(0) == 1e-4
    assert cosine(WARMUP) == 0.2
    assert cosine(TOTAL) == pytest.approx(0, abs=1e-15)
    assert soft_anneal(0) == pytest.approx(1e-4)
    assert soft_anneal(WARMUP) == soft_anneal(ANNEALING) == 0.2
    assert soft_anneal(TOTAL) == pytest.approx(1e-4)


def test_a_warmup_of_zero_steps_starts_at_the_base_rate():
    assert cosine(0, warmup_steps=0) == 0.2
    assert soft_anneal(0, warmup_steps=0) == 0.2


def test_annealing_that_starts_at_the_end_never_falls():
    assert soft_anneal(TOTAL - 1, annealing_steps=TOTAL) == 0.2


@settings(deadline=None)
@given(
    name=st.sampled_from(["cosine", "soft_anneal"]),
    step=st.integers(-5, 1000),
    base=st.floats(0, 1),
    warmup_init=st.floats(0, 1),
    warmup_steps=st.integers(0, 200),
    total_steps=st.integers(0, 200),
    annealing_steps=st.integers(0, 200),
)
def test_every_step_has_a_rate_between_zero_and_the_larger_bound(name, step, **options):
    rate = learning_rate(step, name=name, **options)
    assert 0 <= rate <= max(options["base"], options["warmup_init"]) * (1 + 1e-12)


def test_steps_past_the_end_keep_the_last_rate():
    assert cosine(TOTAL + 50) == cosine(TOTAL)
    assert soft_anneal(TOTAL + 50) == soft_anneal(TOTAL)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'linear' is neither"):
        learning_rate(0, name="linear", **SETTINGS)

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


# Step, rate of cosine, rate of soft_anneal: in 40 digits, rounded to 15.
# cosine: rising, 1e-4 + step / 20 * (0.2 - 1e-4); then 0.1 * (1 + cos(pi * (step - 20) / 80)).
# soft_anneal: 1e-4 * 2000^k where k = step / 20, then 1, then (100 - step) / 40.
RATES = (
    (0, 0.0001, 0.0001),
    (1, 0.010095, 0.000146235057355696),
    (10, 0.10005, 0.00447213595499958),
    (19, 0.190005, 0.136766110409167),
    (20, 0.2, 0.2),
    (21, 0.199922903624072, 0.2),
    (40, 0.170710678118655, 0.2),
    (59, 0.103925981575907, 0.2),
    (60, 0.1, 0.2),
    (61, 0.0960740184240931, 0.165388095344959),
    (80, 0.0292893218813452, 0.00447213595499958),
    (99, 7.70963759277065e-5, 0.000120927688043597),
    (100, 0.0, 0.0001),
)


@pytest.mark.parametrize(("step", "expected_cosine", "expected_soft_anneal"), RATES)
def test_the_rates_are_those_of_the_formulas(step, expected_cosine, expected_soft_anneal):
    assert cosine(step) == pytest.approx(expected_cosine, rel=1e-13, abs=1e-16)
    assert soft_anneal(step) == pytest.approx(expected_soft_anneal, rel=1e-13)


def test_the_warm_up_ends_at_the_base_rate_itself():
    assert cosine(0) == 1e-4
    assert cosine(WARMUP) == soft_anneal(WARMUP) == soft_anneal(ANNEALING) == 0.2


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

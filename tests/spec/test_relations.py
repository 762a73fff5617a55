import pytest

from rayeffdet.spec.fields import field_at, split_name
from rayeffdet.spec.relations import UNUSED, broken_relations, remarks
from rayeffdet.spec.root import Spec

SPLIT = {"image_dir": "a", "annotations_file": "b"}


def broken(**values: object) -> list[str]:
    return [text for _, text in broken_relations(Spec.from_dict(values))]


def test_the_defaults_agree_with_each_other_and_all_have_effect():
    assert list(broken_relations(Spec())) == []
    assert list(remarks(Spec())) == []


@pytest.mark.parametrize(
    ("train", "part"),
    [
        ({"num_epochs": 4}, "the warm-up does not end within the run"),
        ({"init_epoch": 300}, "no epoch is left"),
        ({"lr_schedule": {"name": "soft_anneal", "annealing_epoch": 301}}, "start to fall within"),
        ({"lr_schedule": {"name": "soft_anneal", "annealing_epoch": 5}}, "rise before it falls"),
        ({"lr_schedule": {"name": "soft_anneal", "warmup_init": 0}}, "cannot start at 0"),
    ],
)
def test_a_schedule_must_fit_into_the_run(train, part):
    (text,) = broken(train=train)
    assert part in text


def test_cosine_does_not_care_about_annealing():
    schedule = {"name": "cosine", "annealing_epoch": 400, "warmup_init": 0}
    assert broken(train={"lr_schedule": schedule}) == []


@pytest.mark.parametrize(
    "convert",
    [
        {"splits": {"train": SPLIT}, "synthetic": {}},
        {"image_dir": "a", "tag": "val", "synthetic": {}},
        {"image_dir": "a", "tag": "x", "splits": {"x": SPLIT}},
    ],
)
def test_two_sets_never_have_the_same_tag(convert):
    (text,) = broken(dataset_convert=convert)
    assert "rename" in text


def test_optuna_does_not_take_a_grid():
    space = {"prune.threshold": {"grid": [0.1, 0.2]}}
    (text,) = broken(tune={"search": "optuna", "search_space": space})
    assert "use choice, or search random" in text
    assert broken(tune={"search_space": space}) == []


def test_every_field_without_effect_exists():
    assert all(field_at(split_name(name)) for name in UNUSED)

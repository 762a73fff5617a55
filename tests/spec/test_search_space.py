import pytest

from rayeffdet.spec.search_space import search_space_problems


def problems(name: str, distribution: dict) -> list[str]:
    return [text for _, text in search_space_problems({name: distribution})]


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("train.lr_schedule.name", {"choice": ["cosine", "soft_anneal"]}),
        ("train.lr_schedule.learning_rate", {"loguniform": [0.01, 0.3]}),
        ("prune.threshold", {"grid": [0.1, 0.3, 0.5]}),
        ("train.batch_size", {"qrandint": [8, 64, 8]}),
        ("train.optimizer.momentum", {"quniform": [0.5, 0.9, 0.1]}),
        ("train.l2_weight_decay", {"uniform": [0, 1]}),
        ("model.freeze_blocks", {"choice": [[], [0, 1]]}),
    ],
)
def test_a_search_over_values_that_the_field_takes_is_accepted(name, distribution):
    assert problems(name, distribution) == []


@pytest.mark.parametrize(
    ("name", "distribution", "problem"),
    [
        ("train.lr_schedule.nam", {"choice": [1]}, "unknown field; did you mean 'name'?"),
        ("train.lr_schedule", {"choice": [1]}, "this is a section; name a field in it"),
        ("ray.num_workers", {"choice": [1]}, "this is the same for all trials"),
        ("results_dir", {"choice": ["a"]}, "this is the same for all trials"),
        ("train.image_preview", {}, "give exactly one of choice, grid"),
        ("train.image_preview", {"choice": [1], "grid": [1]}, "give exactly one of choice, grid"),
        ("train.image_preview", {"chioce": [True]}, "'chioce' is not one of choice, grid"),
        ("train.image_preview", {"choice": []}, "choice takes a list of values, not []"),
        ("train.image_preview", {"choice": [True, "maybe"]}, "'maybe' is not true or false"),
        ("train.batch_size", {"uniform": [1, 2]}, "1.0 is not an integer"),
        ("train.batch_size", {"randint": [0, 5]}, "0 is out of range: must be > 0"),
        ("train.batch_size", {"randint": [1.0, 5]}, "randint takes [low, high] as integers"),
        ("train.optimizer.momentum", {"uniform": [0.5, 1]}, "1.0 is out of range: must be < 1"),
        ("prune.threshold", {"uniform": [0.5, 0.1]}, "uniform: low 0.5 is not below high 0.1"),
        ("prune.threshold", {"loguniform": [0, 0.1]}, "loguniform: low 0 is not above 0"),
        ("prune.threshold", {"quniform": [0, 1]}, "quniform takes [low, high, step] as numbers"),
        ("prune.threshold", {"quniform": [0, 1, 0]}, "quniform: step 0 is not above 0"),
    ],
)
def test_a_search_that_could_sample_a_wrong_value_is_refused(name, distribution, problem):
    found = problems(name, distribution)
    assert found
    assert found[0].startswith(problem)


def test_the_upper_end_of_randint_is_never_sampled():
    assert problems("model.num_scales", {"randint": [1, 2]}) == []
    assert problems("train.random_seed", {"randint": [0, 2**32]}) == []
    assert problems("train.random_seed", {"qrandint": [0, 2**32, 1]})

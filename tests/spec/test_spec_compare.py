import pytest

from rayeffdet.spec.compare import compare_specs
from rayeffdet.spec.root import Spec


def test_a_spec_does_not_differ_from_itself():
    spec = Spec.from_dict({"encryption_key": "k", "dataset_convert": {"synthetic": {}}})
    assert compare_specs(spec.to_dict(), spec) == ([], [])
    assert compare_specs(spec.public_dict(), spec) == ([], [])


def test_a_field_that_an_older_spec_did_not_have_counts_as_its_default():
    assert compare_specs({}, Spec()) == ([], [])
    assert compare_specs({"train": {"gone": 1}}, Spec()) == ([], [])


@pytest.mark.parametrize(
    "values",
    [
        {"model": {"name": "efficientdet-d1"}},
        {"model": {"input_width": 640}},
        {"model": {"aspect_ratios": "[(1.0, 1.0)]"}},
        {"dataset": {"num_classes": 3}},
        {"train": {"optimizer": {"name": "adam"}}},
        {"train": {"pruned_model_path": "a.tlt"}},
    ],
)
def test_what_the_weights_would_not_fit_is_harmful(values):
    harmless, (sentence,) = compare_specs(Spec().to_dict(), Spec.from_dict(values))
    assert harmless == []
    assert "take the old value back, or another results_dir" in sentence


def test_other_differences_are_listed_with_both_values():
    old = Spec.from_dict({"ray": {"resources_per_worker": {"CPU": 2}}})
    new = Spec.from_dict({"train": {"batch_size": 3}, "tasks": ["train"]})
    assert compare_specs(old.to_dict(), new) == (
        [
            "tasks was [] and is [train]",
            "train.batch_size was 8 and is 3",
            "ray.resources_per_worker was {CPU: 2.0} and is {}",
        ],
        [],
    )

from pathlib import Path

import pytest

from rayeffdet.errors import SpecError
from rayeffdet.spec.explain import explain, surface
from rayeffdet.spec.fields import all_fields

GOLDEN = Path(__file__).parent.parent / "golden" / "spec.txt"


def test_the_surface_of_the_spec_is_the_recorded_one():
    command = "python -m rayeffdet.spec.explain > tests/golden/spec.txt"
    assert surface() == GOLDEN.read_text(), f"if the change is meant, run: {command}"


def test_every_field_is_documented():
    undocumented = [name for name, info in all_fields() if not info.description]
    assert undocumented == []


def test_a_field_is_explained_with_type_range_default_and_meaning():
    assert explain("train.num_epochs") == (
        "train.num_epochs: integer > 0 = 300\n"
        "  Epochs of the whole run, those before a resume included."
    )
    assert explain("dataset_convert.splits.any.image_dir") == (
        "dataset_convert.splits.any.image_dir: text, required\n  Folder of the images."
    )


def test_a_section_is_explained_with_its_fields():
    assert explain("train.optimizer") == (
        "train.optimizer: The optimizer.\n"
        "  name: sgd | adam = sgd\n"
        "  momentum: number >= 0 and < 1 = 0.9"
    )
    assert "\n  model: The network and its anchors.\n" in explain("")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'num_epochs'"):
        explain("train.num_epoch")

import pytest

from rayeffdet.errors import SpecError
from rayeffdet.spec.aliases import RENAMED
from rayeffdet.spec.fields import field_at, split_name
from rayeffdet.spec.load import LoadedSpec, load_spec


def loaded(tmp_path, text: str, *overrides: str) -> LoadedSpec:
    (tmp_path / "spec.yaml").write_text(text)
    return load_spec(str(tmp_path / "spec.yaml"), overrides)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_older_name_is_read_as_the_present_one_with_a_notice(tmp_path, old, new):
    values = {int: 3, float: 3.0, bool: True, str: "x.onnx"}
    info = field_at(split_name(new))
    value = "efficientdet-d3" if new == "model.name" else values[info.annotation]
    section, leaf = old.split(".")
    found = loaded(tmp_path, f"{section}:\n  {leaf}: {str(value).lower()}\n")
    target = found.spec
    for part in new.split("."):
        target = getattr(target, part)
    assert target == value
    assert f"{tmp_path}/spec.yaml:2: {old} is read as {new}" in found.notices
    assert found.origins[new] == f"{tmp_path}/spec.yaml:2"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("efficientdet_d0", "efficientdet-d0"),
        ("EfficientDet-D7x", "efficientdet-d7x"),
    ],
)
def test_a_model_name_may_be_written_with_underscore_and_capitals(tmp_path, text, name):
    found = loaded(tmp_path, f"model: {{name: {text}}}")
    assert found.spec.model.name == name
    assert found.notices == [f"{tmp_path}/spec.yaml:1: model.name: '{text}' is read as '{name}'"]


def test_a_single_path_is_a_list_of_one(tmp_path):
    found = loaded(tmp_path, "dataset: {train_tfrecords: /a/*}", "dataset.val_tfrecords=/b")
    assert found.spec.dataset.train_tfrecords == ("/a/*",)
    assert found.spec.dataset.val_tfrecords == ("/b",)
    assert len(found.notices) == 2


def test_aspect_ratios_may_be_a_list(tmp_path):
    found = loaded(tmp_path, "model: {aspect_ratios: [[1, 1], [2, 0.5]]}")
    assert found.spec.model.aspect_ratios == ((1.0, 1.0), (2.0, 0.5))
    assert "a list is read like TAO's text" in found.notices[0]


def test_both_names_of_a_field_must_agree(tmp_path):
    text = "model:\n  model_name: efficientdet-d1\n  name: efficientdet-d{}\n"
    assert loaded(tmp_path, text.format(1)).spec.model.name == "efficientdet-d1"
    with pytest.raises(SpecError, match=r"spec\.yaml:2: model\.model_name: the same field as"):
        loaded(tmp_path, text.format(2))


def test_an_override_by_an_older_name_wins_over_the_file(tmp_path):
    text = "model: {model_name: efficientdet-d1}"
    found = loaded(tmp_path, text, "model.model_name=efficientdet_d2")
    assert found.spec.model.name == "efficientdet-d2"
    assert "command line: model.model_name is read as model.name" in found.notices

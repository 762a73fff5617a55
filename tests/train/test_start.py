import re

import pytest
import torch
from checkpoints import as_effdet

from rayeffdet.errors import CheckpointError
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import architecture_of
from rayeffdet.spec.load import with_values
from rayeffdet.spec.root import Spec
from rayeffdet.train.checkpoint import Checkpoint, save_checkpoint
from rayeffdet.train.checkpoint_index import CheckpointIndex
from rayeffdet.train.start import starting_point

SPEC = with_values(Spec(), {"dataset.num_classes": 3}, where="test")


def network_filled_with(value: float, *, num_classes: int = 2) -> EfficientDet:
    network = EfficientDet(architecture_of("efficientdet-d0", num_classes=num_classes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)
    return network


def save(path, network: EfficientDet, *, epoch: int, key: str = "") -> str:
    checkpoint = Checkpoint(
        architecture=network.architecture.to_dict(),
        class_names={1: "a", 2: "b"},
        input_size=(512, 512),
        normalisation={},
        spec=SPEC.public_dict(),
        epoch=epoch,
        step=epoch * 10,
        model=network.state_dict(),
    )
    save_checkpoint(str(path), checkpoint, encryption_key=key)
    return str(path)


def first_weight(network: EfficientDet) -> float:
    return next(network.parameters()).flatten()[0].item()


def spec_with(**values) -> Spec:
    return with_values(
        SPEC, {f"train.{name}": value for name, value in values.items()}, where="test"
    )


@pytest.fixture
def files(tmp_path):
    given = {
        name: save(tmp_path / f"{name}.tlt", network_filled_with(value), epoch=epoch)
        for name, value, epoch in (("resume", 2, 7), ("pruned", 3, 0), ("pretrained", 4, 0))
    }
    own = tmp_path / "train"
    save(own / "efficientdet-d0_005.tlt", network_filled_with(1), epoch=5)
    return given, str(own)


def test_the_order_is_own_then_resume_then_pruned_then_pretrained(files):
    given, own = files
    fields = {
        "resume_training_checkpoint_path": given["resume"],
        "pruned_model_path": given["pruned"],
        "checkpoint": given["pretrained"],
    }
    CheckpointIndex.read(own).add("efficientdet-d0_005.tlt", epoch=5, step=50, metrics={})
    start = starting_point(spec_with(**fields), own)
    assert first_weight(start.network) == 1
    assert start.resumed is not None
    assert start.resumed.epoch == 5

    elsewhere = own + "_of_another_run"
    values = []
    for name in list(fields):
        values.append(first_weight(starting_point(spec_with(**fields), elsewhere).network))
        del fields[name]
    assert values == [2, 3, 4]
    assert starting_point(SPEC, elsewhere).resumed is None


def test_only_a_resumed_run_goes_on_with_epoch_and_optimizer(files):
    given, own = files
    elsewhere = own + "_of_another_run"
    resumed = starting_point(
        spec_with(resume_training_checkpoint_path=given["resume"]), elsewhere
    ).resumed
    assert resumed is not None
    assert resumed.epoch == 7
    assert starting_point(spec_with(checkpoint=given["pretrained"]), elsewhere).resumed is None
    assert starting_point(spec_with(pruned_model_path=given["pruned"]), elsewhere).resumed is None


def test_random_weights_follow_from_the_seed(tmp_path):
    one, same = (starting_point(SPEC, str(tmp_path)).network.state_dict() for _ in range(2))
    other = starting_point(spec_with(random_seed=7), str(tmp_path)).network.state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_torn_checkpoint_is_told_and_the_one_before_is_used(files):
    _, own = files
    index = CheckpointIndex.read(own).add("efficientdet-d0_005.tlt", epoch=5, step=50, metrics={})
    path = save(f"{own}/efficientdet-d0_006.tlt", network_filled_with(9), epoch=6)
    index.add("efficientdet-d0_006.tlt", epoch=6, step=60, metrics={})
    with open(path, "r+b") as file:
        file.truncate(1000)
    start = starting_point(SPEC, own)
    assert first_weight(start.network) == 1
    assert "efficientdet-d0_006.tlt" in start.notices[0]


@pytest.mark.parametrize("field", ["resume_training_checkpoint_path", "pruned_model_path"])
def test_another_number_of_classes_is_an_error_with_both_numbers(tmp_path, field):
    path = save(tmp_path / "other.tlt", network_filled_with(1, num_classes=5), epoch=1)
    words = "dataset.num_classes is 6 in the checkpoint and 3 in the spec"
    with pytest.raises(CheckpointError, match=re.escape(words)):
        starting_point(spec_with(**{field: path}), str(tmp_path / "train"))


def test_pretrained_weights_with_other_classes_leave_the_class_layer_fresh(tmp_path):
    path = save(tmp_path / "other.tlt", network_filled_with(1, num_classes=5), epoch=1)
    start = starting_point(spec_with(checkpoint=path), str(tmp_path / "train"))
    assert first_weight(start.network) == 1
    assert "class_head.predict" in start.notices[0]


@pytest.mark.parametrize("field", ["checkpoint", "pruned_model_path"])
def test_training_starts_from_a_whole_detector_of_effdet(tmp_path, field):
    path = str(tmp_path / "effdet.pth")
    torch.save(as_effdet(network_filled_with(5)), path)
    start = starting_point(spec_with(**{field: path}), str(tmp_path / "train"))
    assert first_weight(start.network) == 5
    assert start.resumed is None


def test_an_encrypted_checkpoint_needs_its_key(tmp_path):
    path = save(tmp_path / "sealed.tlt", network_filled_with(1), epoch=1, key="secret")
    with pytest.raises(CheckpointError, match="key"):
        starting_point(spec_with(checkpoint=path), str(tmp_path / "train"))
    spec = with_values(SPEC, {"train.checkpoint": path, "encryption_key": "secret"}, where="test")
    assert first_weight(starting_point(spec, str(tmp_path / "train")).network) == 1

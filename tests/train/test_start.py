import json
import re
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from checkpoints import as_effdet, renamed

from rayeffdet.errors import CheckpointError
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import architecture_of
from rayeffdet.model.weight_names import timm_names, torchvision_names
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


def save_backbone(folder, names, file: str, *, variant: str = "efficientdet-d0") -> str:
    """Writes a fresh backbone with the tensor names of another program; returns the path."""
    network = EfficientDet(architecture_of(variant, num_classes=2))
    tensors = renamed(network, names(network.architecture))
    safetensors.torch.save_file(tensors, folder / file)
    return str(folder / file)


@pytest.mark.parametrize(
    ("names", "file", "words"),
    [
        (timm_names, "tf_efficientnet_b0.safetensors", []),
        (timm_names, "efficientnet_b0.safetensors", ["epsilon 1e-05 there", "symmetric padding"]),
        (timm_names, "tf_efficientnet_b0.ap_in1k.safetensors", ["images scaled to -1..1"]),
        (timm_names, "backbone.safetensors", ["taken as a tf_efficientnet"]),
        (torchvision_names, "b0.safetensors", ["epsilon 1e-05 there", "symmetric padding"]),
    ],
)
def test_a_backbone_says_what_was_loaded_and_what_stays_different(tmp_path, names, file, words):
    path = save_backbone(tmp_path, names, file)
    notices = starting_point(spec_with(checkpoint=path), str(tmp_path / "train")).notices
    source = names.__name__.removesuffix("_names")
    assert notices[0].startswith(f"{path}: 304 of 676 tensors loaded from {source} weights")
    assert len(notices) == 1 + len(words)
    for notice, word in zip(notices[1:], words, strict=True):
        assert notice.startswith(f"{path}: ")
        assert word in notice


def test_timms_hub_says_beside_the_file_what_it_is(tmp_path):
    path = save_backbone(tmp_path, timm_names, "model.safetensors")
    config = {"architecture": "efficientnet_b0", "pretrained_cfg": {"tag": "ra_in1k"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    start = starting_point(spec_with(checkpoint=path), str(tmp_path / "train"))
    assert "epsilon 1e-05 there" in start.notices[1]


@pytest.mark.parametrize("text", ["", "[1]", '{"architecture": "bert"}', '{"pretrained_cfg": 1}'])
def test_a_config_of_something_else_beside_the_file_is_passed_over(tmp_path, text):
    path = save_backbone(tmp_path, timm_names, "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    start = starting_point(spec_with(checkpoint=path), str(tmp_path / "train"))
    assert "name model.safetensors tells" in start.notices[1]


@pytest.mark.parametrize("kind", ["checkpoint of this project", "state dict of timm"])
def test_another_variant_is_an_error_that_names_both(tmp_path, kind):
    if kind == "state dict of timm":
        path = save_backbone(tmp_path, timm_names, "b1.safetensors", variant="efficientdet-d1")
    else:
        network = EfficientDet(architecture_of("efficientdet-d1", num_classes=2))
        path = save(tmp_path / "d1.tlt", network, epoch=1)
    words = "holds the backbone of efficientdet-d1, the model is efficientdet-d0"
    with pytest.raises(CheckpointError, match=words):
        starting_point(spec_with(checkpoint=path), str(tmp_path / "train"))


def test_weights_without_one_tensor_of_the_network_are_an_error(tmp_path):
    path = str(tmp_path / "resnet18.pth")
    torch.save({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, path)
    with pytest.raises(CheckpointError, match="none of 1 tensors belongs to the model"):
        starting_point(spec_with(checkpoint=path), str(tmp_path / "train"))


def test_a_network_takes_its_images_as_the_one_that_it_starts_from(tmp_path):
    network = network_filled_with(1)
    network.architecture = replace(network.architecture, image_mean=(0.5, 0.5, 0.5))
    path = save(tmp_path / "advprop.tlt", network, epoch=1)
    start = starting_point(spec_with(checkpoint=path), str(tmp_path / "train"))
    assert start.network.architecture.image_mean == (0.5, 0.5, 0.5)
    assert any("trained on images scaled to -1..1" in text for text in start.notices)


def test_an_encrypted_checkpoint_needs_its_key(tmp_path):
    path = save(tmp_path / "sealed.tlt", network_filled_with(1), epoch=1, key="secret")
    with pytest.raises(CheckpointError, match="key"):
        starting_point(spec_with(checkpoint=path), str(tmp_path / "train"))
    spec = with_values(SPEC, {"train.checkpoint": path, "encryption_key": "secret"}, where="test")
    assert first_weight(starting_point(spec, str(tmp_path / "train")).network) == 1

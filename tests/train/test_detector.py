from dataclasses import replace

import pytest
import safetensors.torch
import torch
from checkpoints import as_effdet

from rayeffdet.errors import CheckpointError
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.train.build import build_anchors
from rayeffdet.train.checkpoint import Checkpoint, save_checkpoint
from rayeffdet.train.detector import detector_of, device_here, load_detector

CPU = torch.device("cpu")
NAMES = {1: "red", 2: "green", 3: "blue"}


@pytest.fixture
def checkpoint(make_spec, make_trainee):
    """A file's content whose averaged weights differ from the raw ones."""
    spec = make_spec({"model.input_width": 96, "encryption_key": "secret"})
    trainee = make_trainee(spec)
    ema = {
        name: value + 0.01 if value.is_floating_point() else value
        for name, value in trainee.network.state_dict().items()
    }
    return Checkpoint(
        architecture=trainee.network.architecture.to_dict(),
        class_names=NAMES,
        input_size=(64, 96),
        normalisation={},
        spec=spec.public_dict(),
        epoch=1,
        step=3,
        model=trainee.network.state_dict(),
        ema=ema,
    )


def save_tensors(path, tensors):
    if path.endswith(".pth"):
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()}, path)


def assert_weights(network, expected):
    state = network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize("key", ["", "secret"])
def test_a_file_alone_gives_a_network_ready_to_detect(tmp_path, make_spec, checkpoint, key):
    path = str(tmp_path / "a.tlt")
    save_checkpoint(path, checkpoint, encryption_key=key)
    spec_with_key = make_spec({"encryption_key": key})
    detector = load_detector(path, spec=spec_with_key, device=CPU)
    assert_weights(detector.network, checkpoint.ema)
    assert not detector.network.training
    assert (detector.input_size, detector.class_names) == ((64, 96), NAMES)
    assert torch.equal(detector.anchors_N4, build_anchors(make_spec({"model.input_width": 96})))
    logits_BNK, _ = detector.network(torch.zeros(1, 3, 64, 96))
    assert logits_BNK.shape == (1, len(detector.anchors_N4), 3)


def test_without_an_average_the_raw_weights_detect(checkpoint):
    detector = detector_of(replace(checkpoint, ema=None), device=CPU)
    assert_weights(detector.network, checkpoint.model)


def test_a_network_with_other_widths_than_the_spec_s_is_rebuilt_as_it_was(make_trainee, checkpoint):
    full = EfficientDet(detector_of(checkpoint, device=CPU).network.architecture)
    narrow = replace(full.architecture, class_head_channels=(24, 64, 40))
    network = EfficientDet(narrow)
    pruned = replace(
        checkpoint, architecture=narrow.to_dict(), model=network.state_dict(), ema=None
    )
    detector = detector_of(pruned, device=CPU)
    assert detector.network.architecture == narrow
    assert_weights(detector.network, network.state_dict())


def test_changing_the_detector_leaves_the_checkpoint_alone(checkpoint):
    detector = detector_of(checkpoint, device=CPU)
    name, parameter = next(iter(detector.network.named_parameters()))
    before = checkpoint.ema[name].clone()
    with torch.no_grad():
        parameter.zero_()
    assert torch.equal(checkpoint.ema[name], before)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_effdets_state_dict_detects_with_the_network_of_the_spec(
    tmp_path, make_spec, make_trainee, ending
):
    spec = make_spec({"model.input_width": 96})
    network = make_trainee(spec).network
    path = str(tmp_path / f"effdet{ending}")
    save_tensors(path, as_effdet(network))
    detector = load_detector(path, spec=spec, device=CPU)
    assert_weights(detector.network, network.state_dict())
    assert not detector.network.training
    assert (detector.input_size, detector.class_names) == ((64, 96), {})
    assert torch.equal(detector.anchors_N4, build_anchors(spec))


@pytest.mark.parametrize(
    ("fields", "dropped", "words"),
    [
        ({"dataset.num_classes": 7}, "", "left fresh: class_head.predict.pointwise.weight"),
        ({"model.name": "efficientdet-d2"}, "", "the file holds the backbone of efficientdet-d0"),
        ({}, "fpn.cell.1.fnode.3.combine.edge_weights", "675 of 676 tensors loaded"),
    ],
)
def test_a_state_dict_that_is_not_the_whole_network_of_the_spec_is_refused(
    tmp_path, make_spec, make_trainee, fields, dropped, words
):
    tensors = as_effdet(make_trainee(make_spec()).network)
    tensors.pop(dropped, None)
    path = str(tmp_path / "effdet.pth")
    save_tensors(path, tensors)
    with pytest.raises(CheckpointError, match=words):
        load_detector(path, spec=make_spec(fields), device=CPU)


def test_what_a_state_dict_says_of_itself_comes_with_the_detector(
    tmp_path, make_spec, make_trainee
):
    path = str(tmp_path / "tf_efficientdet_d0_ap.pth")
    save_tensors(path, as_effdet(make_trainee(make_spec()).network))
    detector = load_detector(path, spec=make_spec(), device=CPU)
    assert len(detector.notices) == 1
    assert detector.notices[0].startswith(f"{path}: trained on images scaled to -1..1")
    assert detector.network.architecture.image_mean == (0.5, 0.5, 0.5)


def test_a_missing_file_is_a_checkpoint_error(tmp_path, make_spec):
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_detector(str(tmp_path / "gone.tlt"), spec=make_spec(), device=CPU)


def test_the_device_is_a_gpu_where_there_is_one():
    assert device_here().type == ("cuda" if torch.cuda.is_available() else "cpu")

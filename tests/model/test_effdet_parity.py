"""Our network against effdet's, in float64, where a wrong padding or order cannot hide.

Where effdet is not installed, numbers it gave once stand in for it.
"""

import pytest
import torch
from checkpoints import as_effdet
from torch import Tensor, nn

from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import architecture_of
from rayeffdet.model.weights import load_matching

ODD_SIZE = (300, 420)

# What effdet 0.4.1 gives for the weights and images below at ODD_SIZE: the norm of the output, and
# its values at the start, the middle and the end.
EFFDET_CLASS_LOGITS = (
    9821.874569586666,
    -5.304873800992558,
    -5.880335842431414,
    -5.492822738032018,
)
EFFDET_BOX_DELTAS = (
    540.0837263104903,
    0.6067491155499276,
    0.5166590525058924,
    -1.2142747740534316,
)


def scrambled(count: int, *, seed: int) -> Tensor:
    """The same numbers in -1..1 on every platform and in every version, float64."""
    index = torch.arange(count) % 65521
    mixed = (index * index * 40503 + index * 30011 + seed * 977) % 65521
    return mixed.double() / 32760 - 1


def make_images(size: tuple[int, int]) -> Tensor:
    return scrambled(2 * 3 * size[0] * size[1], seed=-1).view(2, 3, *size) * 2


def make_ours(size: tuple[int, int]) -> EfficientDet:
    """A D0 in which nothing has its first value and some fusion weights are negative."""
    model = EfficientDet(architecture_of("efficientdet-d0", num_classes=90)).double()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            noise = scrambled(parameter.numel(), seed=seed).view(parameter.shape)
            if parameter.ndim > 1:
                parameter.copy_(noise * (3 / parameter[0].numel()) ** 0.5)
            else:
                parameter.add_(noise * 1.1)
        calibrate(model, make_images(size))
    return model.eval()


def calibrate(model: nn.Module, images: Tensor) -> None:
    """Takes the norms' statistics from one batch, which keeps activations finite."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(images)


def make_theirs(ours: EfficientDet, size: tuple[int, int]) -> nn.Module:
    effdet = pytest.importorskip("effdet")
    theirs = effdet.create_model(
        "tf_efficientdet_d0", pretrained=False, pretrained_backbone=False, image_size=size
    )
    theirs.double().load_state_dict(as_effdet(ours))
    return theirs.eval()


def rows_of(maps: list[Tensor], length: int) -> Tensor:
    return torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, length) for m in maps], dim=1)


def error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("size", [(256, 256), ODD_SIZE])
def test_d0_equals_effdet_at_every_stop(size: tuple[int, int]) -> None:
    ours = make_ours(size)
    theirs = make_theirs(ours, size)
    images = make_images(size)
    with torch.no_grad():
        features, their_features = ours.backbone(images), theirs.backbone(images)
        # effdet's pyramid appends to the list it is given.
        pyramid, their_pyramid = ours.neck(features), theirs.fpn(list(their_features))
        class_logits, box_deltas = ours(images)
        their_class_maps, their_box_maps = theirs(images)
    for mine, reference in zip(features + pyramid, their_features + their_pyramid, strict=True):
        assert error(mine, reference) < 1e-12
    assert error(class_logits, rows_of(their_class_maps, 90)) < 1e-12
    assert error(box_deltas, rows_of(their_box_maps, 4)) < 1e-12


def test_d0_gives_the_numbers_effdet_gave() -> None:
    with torch.no_grad():
        class_logits, box_deltas = make_ours(ODD_SIZE)(make_images(ODD_SIZE))
    for output, expected in (
        (class_logits, EFFDET_CLASS_LOGITS),
        (box_deltas, EFFDET_BOX_DELTAS),
    ):
        flat = output.flatten()
        numbers = [output.norm(), flat[0], flat[len(flat) // 2], flat[-1]]
        assert [number.item() for number in numbers] == pytest.approx(expected, rel=1e-8)


def test_a_detector_without_biases_in_front_of_norms_loads() -> None:
    effdet = pytest.importorskip("effdet")
    theirs = effdet.create_model(
        "efficientdet_d0", pretrained=False, pretrained_backbone=False, image_size=(128, 128)
    )
    ours = EfficientDet(architecture_of("efficientdet-d0", num_classes=90))
    report = load_matching(ours, theirs.state_dict())
    # Ours start at 0, which is the same.
    assert {name.rsplit(".", 1)[1] for name in report.fresh} == {"bias"}
    assert all(ours.get_parameter(name).eq(0).all() for name in report.fresh)


@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "tf_efficientnet_b1"])
def test_timm_backbones_load_whole(name: str) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name, pretrained=False)
    variant = name.replace("tf_efficientnet_b", "efficientdet-d")
    ours = EfficientDet(architecture_of(variant, num_classes=2)).eval()
    report = load_matching(ours, theirs.state_dict())
    assert report.source == "timm"
    assert not any(key.startswith("backbone.") for key in report.fresh)

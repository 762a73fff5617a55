"""Features of timm's backbones and outputs of effdet's detectors, loaded as users load their files.

Nothing is downloaded: the weights are random, the names, shapes and conventions are the files'.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

effdet = pytest.importorskip("effdet", reason="parity needs effdet: the extra named parity")
timm = pytest.importorskip("timm", reason="parity needs timm: the extra named parity")

from checkpoints import perturbed  # noqa: E402
from networks import Size, make_images, relative_difference  # noqa: E402

from rayeffdet.model.efficientdet import EfficientDet  # noqa: E402
from rayeffdet.model.scaling import VARIANTS, architecture_of  # noqa: E402
from rayeffdet.model.weights import LoadReport, load_matching  # noqa: E402

# Rounding of float64 after hundreds of layers is near 1e-13; a wrong padding, epsilon or tensor is
# above 1e-4.
FLOAT64_TOLERANCE = 1e-10

# Odd and even maps on the way down.
EVEN_SIZE: Size = (96, 130)
# Odd on every level that is halved: there symmetric padding and TensorFlow's are one.
ODD_SIZE: Size = (129, 257)

QUICK = ("efficientdet-d0", "efficientdet-lite0")


def backbone_of(variant: str) -> str:
    """timm's name of a variant's backbone, without ``tf_``."""
    others = {"d7": "b6", "d7x": "b7", "lite3x": "lite3"}
    size = variant.removeprefix("efficientdet-")
    return f"efficientnet_{others.get(size, size.replace('d', 'b'))}"


def timm_features(name: str, size: Size) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
    """What a file of timm holds, images, and P3, P4 and P5 that timm computes."""
    images = make_images(2, size).double()
    network = perturbed(timm.create_model(name).double(), images)
    extractor = timm.create_model(name, features_only=True, out_indices=(2, 3, 4)).double().eval()
    left = extractor.load_state_dict(network.state_dict(), strict=False)
    assert left.missing_keys == []
    with torch.no_grad():
        return network.state_dict(), images, extractor(images)


def load(variant: str, tensors: dict[str, Tensor], name: str) -> tuple[EfficientDet, LoadReport]:
    model = EfficientDet(architecture_of(variant, num_classes=90)).double().eval()
    return model, load_matching(model, tensors, name=name)


def largest(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(relative_difference(a, b) for a, b in zip(ours, theirs, strict=True))


def timm_difference(variant: str, *, kind: str = "tf_", size: Size = EVEN_SIZE) -> float:
    """The largest difference of P3, P4 and P5."""
    name = kind + backbone_of(variant)
    tensors, images, expected = timm_features(name, size)
    model, report = load(variant, tensors, f"/weights/{name}-0123abcd.pth")
    assert report.source == "timm"
    assert {key.split(".")[0] for key in report.fresh} == {"neck", "class_head", "box_head"}
    assert any("symmetric padding" in note for note in report.notes) == (not kind)
    with torch.no_grad():
        return largest(model.backbone(images), expected)


def native_timm_difference() -> float:
    return timm_difference("efficientdet-d0", kind="", size=ODD_SIZE)


def native_effdet_difference(size: Size = ODD_SIZE) -> float:
    """The largest difference of class logits and box deltas to effdet's ``efficientdet_d0``.

    It has PyTorch's padding everywhere and its epsilon in the backbone, and few biases.
    """
    config = effdet.get_efficientdet_config("efficientdet_d0")
    config.image_size = size
    images = make_images(2, size).double()
    theirs = perturbed(effdet.EfficientDet(config, pretrained_backbone=False).double(), images)
    model, report = load("efficientdet-d0", theirs.state_dict(), "last.pth.tar")
    assert (report.source, report.fresh) == ("effdet", ())
    with torch.no_grad():
        class_maps, box_maps = theirs(images)
        return largest(model(images), (rows_of(class_maps, 90), rows_of(box_maps, 4)))


def rows_of(maps: Sequence[Tensor], length: int) -> Tensor:
    return torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, length) for m in maps], dim=1)


VARIANT_CHECKS = (("timm", timm_difference, FLOAT64_TOLERANCE),)
CHECKS = (
    ("timm efficientnet_b0 at odd sizes", native_timm_difference, FLOAT64_TOLERANCE),
    ("effdet efficientdet_d0 at odd sizes", native_effdet_difference, FLOAT64_TOLERANCE),
)


@pytest.mark.parametrize(
    "variant",
    [v if v in QUICK else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS],
)
def test_features_equal_those_of_timms_tensorflow_backbone(variant: str) -> None:
    assert timm_difference(variant) < FLOAT64_TOLERANCE


def test_timms_own_backbone_is_equal_where_the_paddings_are() -> None:
    assert native_timm_difference() < FLOAT64_TOLERANCE


def test_effdets_own_detector_is_equal_where_the_paddings_are() -> None:
    assert native_effdet_difference() < FLOAT64_TOLERANCE


@pytest.mark.parametrize(
    "difference",
    [lambda size: timm_difference("efficientdet-d0", kind="", size=size), native_effdet_difference],
    ids=["timm", "effdet"],
)
def test_at_even_sizes_symmetric_padding_cannot_be_had(difference) -> None:
    assert difference((128, 256)) > 0.1


def test_a_tensorflow_backbone_under_another_name_is_loaded_right_and_the_guess_is_said() -> None:
    tensors, images, expected = timm_features("tf_efficientnet_b0", EVEN_SIZE)
    model, report = load("efficientdet-d0", tensors, "/downloads/model.safetensors")
    with torch.no_grad():
        assert largest(model.backbone(images), expected) < FLOAT64_TOLERANCE
    assert len(report.notes) == 1
    assert "taken as a tf_efficientnet" in report.notes[0]


@pytest.mark.parametrize("num_classes", [3, 90])
def test_effdets_detectors_load_with_their_classes_or_others(num_classes: int) -> None:
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    config.num_classes = num_classes
    tensors = effdet.EfficientDet(config, pretrained_backbone=False).state_dict()
    _, report = load("efficientdet-d0", tensors, "tf_efficientdet_d0_34-f153e0cf.pth")
    layer = "class_head.predict.pointwise"
    fresh = () if num_classes == 90 else (f"{layer}.weight", f"{layer}.bias")
    assert (report.fresh, report.notes) == (fresh, ())

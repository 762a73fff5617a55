from dataclasses import replace

import pytest

from rayeffdet.model.scaling import IMAGENET_MEAN, IMAGENET_STD, architecture_of
from rayeffdet.model.weight_origin import adopt_scaling, is_title, origin_of

TIMM, EFFDET, TORCHVISION = "timm", "effdet", "torchvision"
IMAGENET, UNIT = (IMAGENET_MEAN, IMAGENET_STD), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def origin(source: str, title: str, variant: str = "efficientdet-d0"):
    return origin_of(source, title=title, architecture=architecture_of(variant, num_classes=1))


@pytest.mark.parametrize(
    ("source", "title", "variant"),
    [
        (TIMM, "tf_efficientnet_b0_ns-c0e6a31c.pth", "efficientdet-d0"),
        (TIMM, "tf_efficientnet_b6.ns_jft_in1k", "efficientdet-d6"),
        (TIMM, "TF_EfficientNet_B0.safetensors", "efficientdet-d0"),
        (TIMM, "tf_efficientnet_lite0-0aa007d2.pth", "efficientdet-lite0"),
        (EFFDET, "tf_efficientdet_d0_34-f153e0cf.pth", "efficientdet-d0"),
        (EFFDET, "tf_efficientdet_lite3x-8404c57b.pth", "efficientdet-lite3x"),
        # Only a detector with the biases of TensorFlow's comes here.
        (EFFDET, "efficientdet_d0_best.pth", "efficientdet-d0"),
        (EFFDET, "last.pth.tar", "efficientdet-d0"),
        ("rayeffdet", "efficientnet_b0.pth", "efficientdet-d0"),
    ],
)
def test_what_came_from_tensorflow_is_taken_as_it_is(source, title, variant):
    found = origin(source, title, variant)
    assert (found.epsilon, found.notes) == (1e-3, ())


@pytest.mark.parametrize(
    ("source", "title", "variant", "epsilon"),
    [
        (TIMM, "efficientnet_b0_ra-3dd342df.pth", "efficientdet-d0", 1e-5),
        (TIMM, "efficientnet_b5.sw_in12k", "efficientdet-d5", 1e-5),
        (EFFDET, "efficientdet_d4-mine.pth", "efficientdet-d4", 1e-5),
        (TORCHVISION, "efficientnet_b4_rwightman-23ab8bcd.pth", "efficientdet-d4", 1e-5),
        (TORCHVISION, "efficientnet_b5_lukemelas-1a07897c.pth", "efficientdet-d5", 1e-3),
        (TORCHVISION, "weights.pth", "efficientdet-d7x", 1e-3),
    ],
)
def test_symmetric_padding_is_said_whatever_epsilon_goes_with_it(source, title, variant, epsilon):
    found = origin(source, title, variant)
    assert found.epsilon == epsilon
    assert len(found.notes) == 1
    assert "symmetric padding" in found.notes[0]


def test_a_timm_file_of_another_name_is_taken_as_tensorflows_and_that_is_said():
    found = origin(TIMM, "model.safetensors")
    assert found.epsilon == 1e-3
    assert len(found.notes) == 1
    assert "model.safetensors" in found.notes[0]
    assert "taken as a tf_efficientnet" in found.notes[0]


@pytest.mark.parametrize(
    ("source", "title", "variant", "scaling"),
    [
        (TIMM, "tf_efficientnet_b0_ap-f262efe1.pth", "efficientdet-d0", UNIT),
        (TIMM, "tf_efficientnet_b0.ap_in1k", "efficientdet-d0", UNIT),
        (TIMM, "efficientnet_b0.ra4_e3600_r224_in1k", "efficientdet-d0", UNIT),
        (EFFDET, "tf_efficientdet_d0_ap-d0cdbd0a.pth", "efficientdet-d0", UNIT),
        (EFFDET, "tf_efficientdet_d0_ap.pth", "efficientdet-d0", UNIT),
        (EFFDET, "tf_efficientdet_lite0-dfacfc78.pth", "efficientdet-lite0", UNIT),
        (TIMM, "tf_efficientnet_lite0-0aa007d2.pth", "efficientdet-lite0", UNIT),
        (EFFDET, "efficientdet_lite0_mine.pth", "efficientdet-lite0", UNIT),
        (TIMM, "efficientnet_lite0_ra-37913777.pth", "efficientdet-lite0", IMAGENET),
        (TIMM, "tf_efficientnet_b0_aa-827b6e33.pth", "efficientdet-d0", IMAGENET),
        (EFFDET, "efficientdet_d0_best_ap_0.34.pth", "efficientdet-d0", IMAGENET),
        (TORCHVISION, "weights.pth", "efficientdet-d0", IMAGENET),
        (TIMM, "model.safetensors", "efficientdet-d0", None),
        (EFFDET, "last.pth.tar", "efficientdet-lite0", None),
    ],
)
def test_the_scaling_of_images_goes_by_the_name(source, title, variant, scaling):
    assert origin(source, title, variant).image_scaling == scaling


def test_a_scaling_that_differs_becomes_the_architectures_and_is_said():
    before = architecture_of("efficientdet-d0", num_classes=1)
    assert adopt_scaling(before, None) == (before, [])
    assert adopt_scaling(before, IMAGENET) == (before, [])
    after, notes = adopt_scaling(before, UNIT)
    assert after == replace(before, image_mean=UNIT[0], image_std=UNIT[1])
    assert notes == ["trained on images scaled to -1..1: the network now takes them so"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tf_efficientnet_b0.ap_in1k", True),
        ("EfficientDet_d0.pth", True),
        ("model.safetensors", False),
        ("efficientdet-d0_005.pth", False),
    ],
)
def test_titles_are_told_from_other_file_names(text, expected):
    assert is_title(text) is expected

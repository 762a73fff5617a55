import json

import pytest
import torch

from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import (
    VARIANTS,
    Architecture,
    architecture_of,
    round_channels,
    round_repeats,
)


def num_parameters(name: str, *, num_classes: int) -> int:
    with torch.device("meta"):
        model = EfficientDet(architecture_of(name, num_classes=num_classes))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("efficientdet-d0", 3_880_067),
        ("efficientdet-d1", 6_625_898),
        ("efficientdet-d2", 8_097_039),
        ("efficientdet-d3", 12_032_296),
        ("efficientdet-d4", 20_723_675),
        ("efficientdet-d5", 33_653_315),
        ("efficientdet-d6", 51_871_782),
        ("efficientdet-d7", 51_871_782),
        ("efficientdet-d7x", 77_147_166),
    ],
)
def test_parameters_at_90_classes_equal_the_published_networks(name: str, expected: int) -> None:
    assert num_parameters(name, num_classes=90) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("efficientdet-d0", 3_880_652),
        ("efficientdet-d1", 6_626_699),
        ("efficientdet-d2", 8_098_056),
        ("efficientdet-d3", 12_033_745),
        ("efficientdet-d4", 20_725_700),
        ("efficientdet-d5", 33_655_916),
    ],
)
def test_parameters_at_91_classes_equal_tao(name: str, expected: int) -> None:
    assert num_parameters(name, num_classes=91) == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_an_architecture_survives_json(name: str) -> None:
    architecture = architecture_of(name, num_classes=7, num_anchors=3)
    document = json.loads(json.dumps(architecture.to_dict()))
    assert Architecture.from_dict(document) == architecture


def test_squeeze_channels_count_the_blocks_input_before_expansion() -> None:
    blocks = architecture_of("efficientdet-d0", num_classes=1).blocks
    assert [block.se_channels for block in blocks[:5]] == [8, 4, 6, 6, 10]


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("efficientdet-d0", (40, 112, 320)),
        ("efficientdet-d3", (48, 136, 384)),
        ("efficientdet-d7x", (80, 224, 640)),
    ],
)
def test_feature_channels_are_those_of_stages_3_5_and_7(
    name: str, features: tuple[int, ...]
) -> None:
    assert architecture_of(name, num_classes=1).feature_channels == features


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [(32, 1.0, 32), (24, 1.1, 24), (40, 1.1, 48), (16, 1.2, 24), (1, 1.0, 8), (112, 2.0, 224)],
)
def test_channels_round_to_eight_and_lose_at_most_a_tenth(
    channels: int, width: float, expected: int
) -> None:
    assert round_channels(channels, width) == expected


def test_repeats_round_up() -> None:
    assert [round_repeats(r, 1.1) for r in (1, 2, 3, 4)] == [2, 3, 4, 5]

import json

import pytest

from rayeffdet.model.scaling import (
    VARIANTS,
    Architecture,
    architecture_of,
    round_channels,
    round_repeats,
)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_architecture_survives_json(name: str) -> None:
    architecture = architecture_of(name, num_classes=7, num_anchors=3)
    document = json.loads(json.dumps(architecture.to_dict()))
    assert Architecture.from_dict(document) == architecture


def test_an_architecture_stored_before_the_lite_networks_is_a_plain_one() -> None:
    architecture = architecture_of("efficientdet-d1", num_classes=7)
    document = architecture.to_dict()
    for field in ("activation", "image_mean", "image_std"):
        del document[field]
    assert Architecture.from_dict(json.loads(json.dumps(document))) == architecture


@pytest.mark.parametrize("size", ["0", "1", "2", "3", "3x", "4"])
def test_lite_networks_keep_stem_and_ends_unscaled_and_do_not_squeeze(size: str) -> None:
    architecture = architecture_of(f"efficientdet-lite{size}", num_classes=1)
    stages = [block.stage for block in architecture.blocks]
    assert architecture.stem_channels == 32
    assert (stages.count(1), stages.count(7)) == (1, 1)
    assert {block.se_channels for block in architecture.blocks} == {0}
    assert (architecture.activation, architecture.fusion) == ("relu6", "sum")


def test_lite_stages_between_the_ends_grow_with_depth() -> None:
    blocks = architecture_of("efficientdet-lite4", num_classes=1).blocks
    stages = [block.stage for block in blocks]
    assert [stages.count(stage) for stage in range(1, 8)] == [1, 4, 4, 6, 6, 8, 1]


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

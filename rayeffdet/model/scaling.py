"""The paper's compound scaling as data: what each variant is, and the width of every layer."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Fusion = Literal["fastattn", "sum"]
Activation = Literal["silu", "relu6"]
Channels3 = tuple[float, float, float]

FEATURE_STAGES = (3, 5, 7)
"""Backbone stages whose output is P3, P4 and P5."""

IMAGENET_MEAN: Channels3 = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels3 = (0.229, 0.224, 0.225)
_LITE_MEAN: Channels3 = (0.5, 0.5, 0.5)
_LITE_STD: Channels3 = (0.5, 0.5, 0.5)
_SQUEEZE_RATIO = 0.25
_STEM_CHANNELS = 32


@dataclass(frozen=True)
class Variant:
    """One row of the paper's table.

    Attributes:
        name: As the spec writes it, for example ``efficientdet-d0``.
        width: Factor on the channels of EfficientNet-B0.
        depth: Factor on the block repeats of EfficientNet-B0.
        image_size: Side in pixels the published weights were trained at.
        fpn_channels: Channels of every pyramid level.
        fpn_cells: Number of BiFPN cells.
        head_convs: Separable convolutions before the predicting one, in either head.
        min_level: Finest pyramid level; its stride is 2 to that power.
        max_level: Coarsest pyramid level.
        fusion: How a BiFPN node weighs its inputs.
        anchor_scale: Side of the smallest square anchor in strides.
        drop_connect: Drop rate that the last block would approach; 0 turns it off.
        lite: For integer arithmetic: ReLU6, no squeeze-and-excite, images scaled to -1..1; stem
            and the repeats of the first and last stage are not scaled.
    """

    name: str
    width: float
    depth: float
    image_size: int
    fpn_channels: int
    fpn_cells: int
    head_convs: int
    min_level: int = 3
    max_level: int = 7
    fusion: Fusion = "fastattn"
    anchor_scale: float = 4.0
    drop_connect: float = 0.2
    lite: bool = False


def _lite(
    size: str, width: float, depth: float, image_size: int, channels: int, cells: int, convs: int,
    *, anchor_scale: float = 3.0, drop_connect: float = 0.2,
) -> Variant:  # fmt: skip
    return Variant(
        f"efficientdet-lite{size}",
        *(width, depth, image_size, channels, cells, convs),
        fusion="sum",
        anchor_scale=anchor_scale,
        drop_connect=drop_connect,
        lite=True,
    )


# The released networks; the top end departs from the paper's scaling formula.
_TABLE = (
    Variant("efficientdet-d0", 1.0, 1.0, 512, 64, 3, 3, drop_connect=0.0),
    Variant("efficientdet-d1", 1.0, 1.1, 640, 88, 4, 3),
    Variant("efficientdet-d2", 1.1, 1.2, 768, 112, 5, 3),
    Variant("efficientdet-d3", 1.2, 1.4, 896, 160, 6, 4),
    Variant("efficientdet-d4", 1.4, 1.8, 1024, 224, 7, 4),
    Variant("efficientdet-d5", 1.6, 2.2, 1280, 288, 7, 4),
    Variant("efficientdet-d6", 1.8, 2.6, 1280, 384, 8, 5, fusion="sum"),
    Variant("efficientdet-d7", 1.8, 2.6, 1536, 384, 8, 5, fusion="sum", anchor_scale=5.0),
    Variant("efficientdet-d7x", 2.0, 3.1, 1536, 384, 8, 5, max_level=8, fusion="sum"),
    _lite("0", 1.0, 1.0, 320, 64, 3, 3, drop_connect=0.0),
    _lite("1", 1.0, 1.1, 384, 88, 4, 3),
    _lite("2", 1.1, 1.2, 448, 112, 5, 3),
    _lite("3", 1.2, 1.4, 512, 160, 6, 4, anchor_scale=4.0),
    _lite("3x", 1.2, 1.4, 640, 200, 6, 4),
    _lite("4", 1.4, 1.8, 640, 224, 7, 4, anchor_scale=4.0),
)
VARIANTS = {variant.name: variant for variant in _TABLE}


@dataclass(frozen=True)
class _Stage:
    repeats: int
    kernel: int
    stride: int
    expand_ratio: int
    channels: int


# EfficientNet-B0 (Tan & Le 2019, table 1), stages 1 to 7.
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class BlockWidths:
    """Sizes of one MBConv block.

    Attributes:
        kernel: Side of the depthwise kernel.
        stride: Stride of the depthwise convolution.
        in_channels: Channels that enter.
        expand_channels: Channels of the depthwise convolution.
        se_channels: Channels between the two squeeze-and-excite convolutions; 0: there are none.
        out_channels: Channels that leave.
        stage: 1 to 7. Stage 1 has no expanding convolution; the first block of a stage has no
            residual connection. Both follow the stage, not the widths, since pruned widths may
            be equal by chance.
    """

    kernel: int
    stride: int
    in_channels: int
    expand_channels: int
    se_channels: int
    out_channels: int
    stage: int


@dataclass(frozen=True)
class Architecture:
    """Everything needed to rebuild a network, pruned or not; survives JSON.

    Attributes:
        name: Variant it started from.
        num_classes: Channels K of the class head; background is not among them.
        num_anchors: Anchors A per cell.
        stem_channels: Channels of the first convolution.
        blocks: One entry per backbone block, in order.
        fpn_channels: Channels of every pyramid level.
        fpn_cells: Number of BiFPN cells.
        class_head_channels: Output channels of each class head convolution before the last.
        box_head_channels: The same for the box head.
        min_level: Finest pyramid level.
        max_level: Coarsest pyramid level.
        fusion: How a BiFPN node weighs its inputs.
        drop_connect: Drop rate that the last block would approach.
        activation: Nonlinearity of every part.
        image_mean: Subtracted from pixels in 0..1, per channel.
        image_std: What they are then divided by.
    """

    name: str
    num_classes: int
    num_anchors: int
    stem_channels: int
    blocks: tuple[BlockWidths, ...]
    fpn_channels: int
    fpn_cells: int
    class_head_channels: tuple[int, ...]
    box_head_channels: tuple[int, ...]
    min_level: int
    max_level: int
    fusion: Fusion
    drop_connect: float
    activation: Activation = "silu"
    image_mean: Channels3 = IMAGENET_MEAN
    image_std: Channels3 = IMAGENET_STD

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        document = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in document.items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Architecture":
        """Returns the architecture that `to_dict` described."""
        lists = {key: tuple(v) for key, v in document.items() if isinstance(v, list)}
        lists["blocks"] = tuple(BlockWidths(**block) for block in document["blocks"])
        return cls(**{**document, **lists})

    @property
    def num_levels(self) -> int:
        """Number of pyramid levels."""
        return self.max_level - self.min_level + 1

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of P3, P4 and P5 as the backbone gives them."""
        last_of_stage = {block.stage: block.out_channels for block in self.blocks}
        return tuple(last_of_stage[stage] for stage in FEATURE_STAGES)


def architecture_of(name: str, *, num_classes: int, num_anchors: int = 9) -> Architecture:
    """Returns the unpruned architecture of a variant.

    Args:
        name: A key of `VARIANTS`.
        num_classes: Class channels K, background not counted.
        num_anchors: Anchors per cell: octaves times aspect ratios.
    """
    variant = VARIANTS[name]
    stem_channels = round_channels(_STEM_CHANNELS, 1.0 if variant.lite else variant.width)
    head_channels = (variant.fpn_channels,) * variant.head_convs
    return Architecture(
        name=name,
        num_classes=num_classes,
        num_anchors=num_anchors,
        stem_channels=stem_channels,
        blocks=_blocks_of(variant, stem_channels),
        fpn_channels=variant.fpn_channels,
        fpn_cells=variant.fpn_cells,
        class_head_channels=head_channels,
        box_head_channels=head_channels,
        min_level=variant.min_level,
        max_level=variant.max_level,
        fusion=variant.fusion,
        drop_connect=variant.drop_connect,
        activation="relu6" if variant.lite else "silu",
        image_mean=_LITE_MEAN if variant.lite else IMAGENET_MEAN,
        image_std=_LITE_STD if variant.lite else IMAGENET_STD,
    )


def round_channels(channels: int, width: float) -> int:
    """Returns the scaled channels as a multiple of 8, never below 90 % of the exact product."""
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def round_repeats(repeats: int, depth: float) -> int:
    """Returns the scaled number of blocks of a stage, rounded up."""
    return math.ceil(depth * repeats)


def _blocks_of(variant: Variant, stem_channels: int) -> tuple[BlockWidths, ...]:
    blocks: list[BlockWidths] = []
    in_channels = stem_channels
    for number, stage in enumerate(_STAGES, start=1):
        out_channels = round_channels(stage.channels, variant.width)
        depth = 1.0 if variant.lite and number in (1, len(_STAGES)) else variant.depth
        for repeat in range(round_repeats(stage.repeats, depth)):
            widths = BlockWidths(
                kernel=stage.kernel,
                stride=stage.stride if repeat == 0 else 1,
                in_channels=in_channels,
                expand_channels=in_channels * stage.expand_ratio,
                se_channels=0 if variant.lite else max(1, int(in_channels * _SQUEEZE_RATIO)),
                out_channels=out_channels,
                stage=number,
            )
            blocks.append(widths)
            in_channels = out_channels
    return tuple(blocks)

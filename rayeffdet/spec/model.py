"""The `model` section: the network and its anchors."""

import ast
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen
from pydantic import AfterValidator, BeforeValidator, Strict, field_serializer

from rayeffdet.spec.section import Flag, Integer, ListOf, Positive, PositiveInt, Section

ModelName = Literal[
    "efficientdet-d0",
    "efficientdet-d1",
    "efficientdet-d2",
    "efficientdet-d3",
    "efficientdet-d4",
    "efficientdet-d5",
    "efficientdet-d6",
    "efficientdet-d7",
    "efficientdet-d7x",
    "efficientdet-lite0",
    "efficientdet-lite1",
    "efficientdet-lite2",
    "efficientdet-lite3",
    "efficientdet-lite3x",
    "efficientdet-lite4",
]


def _pairs(value: object) -> object:
    """Returns the pairs that a text spells; the text is read as literals, never evaluated."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"{value!r} is not of the form '[(1.0, 1.0), (1.4, 0.7)]'") from None
    if not isinstance(value, list | tuple) or not all(map(_is_pair, value)):
        raise ValueError(f"{value!r} is not a list of (width, height) pairs of numbers > 0")
    return tuple((float(width), float(height)) for width, height in value)


def _is_pair(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(type(side) in (int, float) and 0 < side < float("inf") for side in value)


def _distinct(blocks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(blocks)))


Pair = tuple[float, float]
AspectRatios = Annotated[tuple[Pair, ...], BeforeValidator(_pairs), Strict(False), MinLen(1)]
Block = Annotated[Integer, Ge(0), Le(7)]
Side = Annotated[Integer, Ge(32)]


class ModelSection(Section):
    """The network and its anchors."""

    name: ModelName = "efficientdet-d0"
    """Size of the network, from efficientdet-d0 to efficientdet-d7x. The lite ones are for integer
    arithmetic: ReLU6, no squeeze-and-excite, images scaled to -1..1."""

    input_width: Side = 512
    """Width of the network's input in pixels; the variant's own size is not applied by itself."""

    input_height: Side = 512
    """Height of the network's input in pixels."""

    aspect_ratios: AspectRatios = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
    """Anchor shapes as (width, height) multipliers: TAO's text form or a list."""

    anchor_scale: Positive = 4.0
    """Side of the smallest anchor of a level in units of the level's stride."""

    min_level: Literal[3] = 3
    """Finest level of the feature pyramid."""

    max_level: Literal[7] = 7
    """Coarsest level of the feature pyramid."""

    num_scales: PositiveInt = 3
    """Anchor sizes per octave: 2^(i / num_scales) times the smallest."""

    freeze_bn: Flag = False
    """Keeps the backbone's batch normalisation as it was loaded."""

    freeze_blocks: Annotated[ListOf[Block], AfterValidator(_distinct)] = ()
    """Backbone parts whose convolutions are not trained: 0 the stem, 1 to 7 the stages."""

    @field_serializer("aspect_ratios")
    def _as_text(self, pairs: tuple[Pair, ...]) -> str:
        return str(list(pairs))

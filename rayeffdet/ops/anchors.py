"""Anchor boxes of a feature pyramid.

Shape suffixes: h w cells of a level, A anchors per cell, N anchors of all levels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def level_sizes(
    height: int, width: int, *, min_level: int = 3, max_level: int = 7
) -> list[tuple[int, int]]:
    """Return the (h, w) of every pyramid level from `min_level` to `max_level`.

    Each level halves the one before, rounding up, as TensorFlow's SAME padding does: sizes need not
    be divisible by 2^level.
    """
    sizes = [(height, width)]
    for _ in range(max_level):
        h, w = sizes[-1]
        sizes.append(((h - 1) // 2 + 1, (w - 1) // 2 + 1))
    return sizes[min_level:]


def make_anchors(
    *,
    height: int,
    width: int,
    min_level: int = 3,
    max_level: int = 7,
    num_scales: int = 3,
    aspect_ratios: Sequence[tuple[float, float]] = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4)),
    anchor_scale: float = 4.0,
) -> Tensor:
    """Return the anchors [N, 4], float32 xyxy in pixels, of an image of the given size.

    A cell of level l has one anchor per octave o < num_scales and aspect ratio (rx, ry), centred on
    the cell, of width anchor_scale * stride_x * 2^(o / num_scales) * rx; the height likewise
    (EfficientDet, section 4, after RetinaNet). The stride is the image size over the level's size,
    per axis, so it need not be whole. Anchors may stick out of the image.

    The order is level, row, column, octave, ratio: that of the network's outputs. Values are
    computed in float64 and rounded once, so they do not depend on the machine.
    """
    shapes_A2 = torch.tensor(
        [
            (2 ** (octave / num_scales) * rx, 2 ** (octave / num_scales) * ry)
            for octave in range(num_scales)
            for rx, ry in aspect_ratios
        ],
        dtype=torch.float64,
    )
    levels = [
        _level_anchors(
            h, w, stride_y=height / h, stride_x=width / w, sizes_A2=anchor_scale * shapes_A2
        )
        for h, w in level_sizes(height, width, min_level=min_level, max_level=max_level)
    ]
    return torch.cat(levels).float()


def _level_anchors(h: int, w: int, *, stride_y: float, stride_x: float, sizes_A2: Tensor) -> Tensor:
    """Return anchors [h * w * A, 4] of one level; sizes are (x, y) in strides."""
    strides = torch.tensor([stride_x, stride_y], dtype=torch.float64)
    y_h = torch.arange(h, dtype=torch.float64) + 0.5
    x_w = torch.arange(w, dtype=torch.float64) + 0.5
    y_hw, x_hw = torch.meshgrid(y_h, x_w, indexing="ij")
    centres_hw12 = torch.stack([x_hw, y_hw], dim=-1)[:, :, None] * strides
    halves_A2 = sizes_A2 * strides / 2
    return torch.cat([centres_hw12 - halves_A2, centres_hw12 + halves_A2], dim=-1).reshape(-1, 4)

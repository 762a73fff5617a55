"""Pictures and boxes to network inputs: where a picture goes, its pixels, its boxes.

Shapes: B images, H W pixels, G padded boxes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

SHRINKS = (8, 4, 2)
# The tolerance keeps 511.9999, a rounded 512, from losing a pixel.
_ROUNDING = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture goes: its point x lies at (x - left) * zoom of the input, mirrored or not.

    Attributes:
        zoom: Input pixels per pixel of the picture, both axes.
        left: First column of the picture that is seen.
        top: First row that is seen.
        height: Rows of the input that show the picture; the rest is padding.
        width: Columns that do.
        is_mirrored: Left and right are exchanged within ``width``.
        shrink: The picture may be decoded at 1 / shrink of its size; divides ``left`` and ``top``.
    """

    zoom: float
    left: int
    top: int
    height: int
    width: int
    is_mirrored: bool = False
    shrink: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known of one network input beside its pixels.

    Attributes:
        boxes_xyxy: float32 (n, 4) in pixels of the input, inside the picture.
        labels: int64 (n,).
        scale: Factor from pixels of the input to pixels of the original picture, both axes.
    """

    boxes_xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    scale: float


def letterbox(height: int, width: int, *, input_hw: tuple[int, int]) -> Placement:
    """Returns the placement of a whole picture, as large as it fits, at the top left.

    Args:
        height: Of the picture.
        width: Of the picture.
        input_hw: Height and width of the input.
    """
    zoom = min(input_hw[0] / height, input_hw[1] / width)
    return _place(height, width, input_hw=input_hw, zoom=zoom, can_shrink=False)


def random_placement(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    input_hw: tuple[int, int],
    hflip: bool,
    min_scale: float,
    max_scale: float,
    can_shrink: bool = False,
) -> Placement:
    """Returns a random mirror, scale and crop for training.

    The picture is resized to f times the size that just fits the input, f ~ U(min_scale,
    max_scale). What is then larger than the input is cropped at a uniform offset, what is smaller
    is padded (the scale jitter of EfficientDet, section 5.1). Four numbers are drawn from `rng`
    whatever the options.

    Args:
        height: Of the picture.
        width: Of the picture.
        rng: The only source of randomness.
        input_hw: Height and width of the input.
        hflip: Mirror left to right with probability one half.
        min_scale: Smallest f, above 0.
        max_scale: Largest f.
        can_shrink: Whether the picture can be decoded at a part of its size.
    """
    flip_draw, scale_draw, x_draw, y_draw = rng.random(4)
    fit = min(input_hw[0] / height, input_hw[1] / width)
    return _place(
        height,
        width,
        input_hw=input_hw,
        zoom=fit * (min_scale + (max_scale - min_scale) * scale_draw),
        crop_xy=(x_draw, y_draw),
        is_mirrored=bool(hflip and flip_draw < 0.5),
        can_shrink=can_shrink,
    )


def place_pixels(
    pixels_HW3: Tensor, placement: Placement, out_3HW: Tensor, *, padding_rgb: Tensor
) -> None:
    """Writes the seen part of a picture, resized with antialiasing, and the padding around it.

    Args:
        pixels_HW3: uint8, the picture at 1 / placement.shrink of its size.
        placement: Where it goes.
        out_3HW: uint8, overwritten whole.
        padding_rgb: uint8 (3,).
    """
    seen_3HW = _resize(pixels_HW3.permute(2, 0, 1), placement)
    if placement.is_mirrored:
        seen_3HW = seen_3HW.flip(2)
    out_3HW[:, : placement.height, : placement.width] = seen_3HW
    out_3HW[:, : placement.height, placement.width :] = padding_rgb[:, None, None]
    out_3HW[:, placement.height :] = padding_rgb[:, None, None]


def place_boxes(
    boxes_xyxy: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], placement: Placement
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Returns the boxes in pixels of the input, clipped to what is seen; see `clip_boxes`.

    Args:
        boxes_xyxy: float32 (n, 4) in pixels of the picture.
        labels: int64 (n,).
        placement: Where the picture goes.
    """
    corner = np.array((placement.left, placement.top) * 2, np.float32)
    placed = (boxes_xyxy - corner) * np.float32(placement.zoom)
    if placement.is_mirrored:
        placed[:, [0, 2]] = placement.width - placed[:, [2, 0]]
    return clip_boxes(placed, labels, height=placement.height, width=placement.width)


def clip_boxes(
    boxes_xyxy: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    *,
    height: int,
    width: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Returns the boxes clipped to a picture, without those that keep under a pixel of a side.

    Args:
        boxes_xyxy: float32 (n, 4) in pixels, anywhere.
        labels: int64 (n,).
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
    """
    limits = np.array((width, height, width, height), np.float32)
    clipped = np.clip(boxes_xyxy, 0, limits)
    kept = (clipped[:, 2:] - clipped[:, :2] >= 1).all(axis=1)
    return clipped[kept], labels[kept]


def pad_boxes(
    samples: Sequence[Sample], max_boxes: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], int]:
    """Returns (boxes_BG4 float32, labels_BG int64, number of boxes left out) of a batch.

    Rows without a box are zero with label -1. A sample with more than `max_boxes` = G boxes keeps
    its first G.
    """
    boxes_BG4 = np.zeros((len(samples), max_boxes, 4), np.float32)
    labels_BG = np.full((len(samples), max_boxes), -1, np.int64)
    num_truncated = 0
    for row, sample in enumerate(samples):
        count = min(len(sample.labels), max_boxes)
        boxes_BG4[row, :count] = sample.boxes_xyxy[:count]
        labels_BG[row, :count] = sample.labels[:count]
        num_truncated += len(sample.labels) - count
    return boxes_BG4, labels_BG, num_truncated


def _place(
    height: int,
    width: int,
    *,
    input_hw: tuple[int, int],
    zoom: float,
    crop_xy: tuple[float, float] = (0.0, 0.0),
    is_mirrored: bool = False,
    can_shrink: bool,
) -> Placement:
    """Cuts what does not fit (crop_xy: 0 keeps the left or top, 1 the right or bottom).

    One factor holds for both axes exactly, also where the zoomed size is not a whole number, so
    that boxes are mapped back without a rounding error.
    """
    # Never below the resolution of the input.
    shrink = next((s for s in SHRINKS if can_shrink and zoom * s <= 1), 1)
    seen_width, left = _visible(width, input_hw[1], zoom, crop_xy[0], shrink)
    seen_height, top = _visible(height, input_hw[0], zoom, crop_xy[1], shrink)
    return Placement(zoom, left, top, seen_height, seen_width, is_mirrored, shrink)


def _visible(size: int, limit: int, zoom: float, crop: float, shrink: int) -> tuple[int, int]:
    """Returns (whole input pixels seen, first picture pixel seen) along one axis."""
    whole = max(1, int(size * zoom * _ROUNDING))
    hidden = max(0.0, size - limit / zoom)
    return min(whole, limit), int(hidden * crop / shrink) * shrink


def _resize(pixels_3HW: Tensor, placement: Placement) -> Tensor:
    """Returns the seen part [3, placement.height, placement.width] of a picture."""
    zoom = placement.zoom * placement.shrink * _ROUNDING
    height, width = placement.height, placement.width
    top, left = placement.top // placement.shrink, placement.left // placement.shrink
    # At the far side the filter reaches beyond what is seen.
    reach = math.ceil(1 / zoom) + 1
    bottom, right = top + int(height / zoom) + reach, left + int(width / zoom) + reach
    seen_13HW = pixels_3HW[None, :, top:bottom, left:right]
    if abs(zoom - 1) < 1e-6:
        return seen_13HW[0, :, :height, :width]
    size: dict[str, Any] = {"scale_factor": zoom}
    if min(seen_13HW.shape[2:]) * zoom < 1:
        size = {"size": (height, width)}
    resized_13HW = F.interpolate(seen_13HW, **size, mode="bilinear", antialias=True)
    return resized_13HW[0, :, :height, :width]

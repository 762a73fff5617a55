"""Pictures and boxes to network inputs: flip, scale jitter, crop, letterbox, padding.

Shapes: B images, H W pixels, G padded boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

# The ImageNet mean in 8 bits: padding is zero once the image is normalised.
PADDING_RGB = (124, 116, 104)


@dataclass(frozen=True, slots=True)
class Sample:
    """One network input and its boxes.

    Attributes:
        image_HW3: uint8 RGB, the picture at the top left and `PADDING_RGB` around it.
        boxes_xyxy: float32 (n, 4) in pixels of `image_HW3`, inside the picture.
        labels: int64 (n,).
        scale: Factor from pixels of `image_HW3` to pixels of the original picture, both axes.
    """

    image_HW3: npt.NDArray[np.uint8]
    boxes_xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    scale: float


def train_sample(
    image: Image.Image,
    boxes_xyxy: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    hflip: bool,
    min_scale: float,
    max_scale: float,
) -> Sample:
    """Returns a randomly flipped, scaled and cropped training input.

    The picture is resized to f times the size that just fits the input, f ~ U(min_scale,
    max_scale). What is then larger than the input is cropped at a uniform offset, what is smaller
    is padded (the scale jitter of EfficientDet, section 5.1). Four numbers are drawn from `rng`
    whatever the options.

    Args:
        image: RGB.
        boxes_xyxy: float32 (n, 4) in pixels of `image`.
        labels: int64 (n,).
        rng: The only source of randomness.
        height: Input height in pixels.
        width: Input width in pixels.
        hflip: Mirror left to right with probability one half.
        min_scale: Smallest f, above 0.
        max_scale: Largest f.
    """
    flip_draw, scale_draw, x_draw, y_draw = rng.random(4)
    if hflip and flip_draw < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes_xyxy = _mirror(boxes_xyxy, width=image.width)
    fit = min(width / image.width, height / image.height)
    zoom = fit * (min_scale + (max_scale - min_scale) * scale_draw)
    return _place(
        image,
        boxes_xyxy,
        labels,
        height=height,
        width=width,
        zoom=zoom,
        crop_xy=(x_draw, y_draw),
    )


def letterbox(
    image: Image.Image,
    *,
    height: int,
    width: int,
    boxes_xyxy: npt.NDArray[np.float32] | None = None,
    labels: npt.NDArray[np.int64] | None = None,
) -> Sample:
    """Returns the whole picture, as large as it fits, at the top left of a padded input.

    Args:
        image: RGB.
        height: Input height in pixels.
        width: Input width in pixels.
        boxes_xyxy: float32 (n, 4) in pixels of `image`; none when left out.
        labels: int64 (n,), given with `boxes_xyxy`.
    """
    if boxes_xyxy is None or labels is None:
        boxes_xyxy, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    zoom = min(width / image.width, height / image.height)
    return _place(
        image, boxes_xyxy, labels, height=height, width=width, zoom=zoom, crop_xy=(0.0, 0.0)
    )


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


def _mirror(boxes_xyxy: npt.NDArray[np.float32], *, width: int) -> npt.NDArray[np.float32]:
    mirrored = boxes_xyxy.copy()
    mirrored[:, [0, 2]] = width - boxes_xyxy[:, [2, 0]]
    return mirrored


def _place(
    image: Image.Image,
    boxes_xyxy: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    *,
    height: int,
    width: int,
    zoom: float,
    crop_xy: tuple[float, float],
) -> Sample:
    """Zoom, cut what does not fit (crop_xy: 0 keeps the left or top, 1 the right or bottom), pad.

    One factor holds for both axes exactly, also where the zoomed size is not a whole number, so
    that `Sample.scale` maps boxes back without a rounding error.
    """
    seen_width, offset_x = _visible(image.width * zoom, width, crop_xy[0])
    seen_height, offset_y = _visible(image.height * zoom, height, crop_xy[1])
    source_box = (
        offset_x / zoom,
        offset_y / zoom,
        min((offset_x + seen_width) / zoom, image.width),
        min((offset_y + seen_height) / zoom, image.height),
    )
    # One call crops and resizes, and shrinks with antialiasing; centres are at half pixels.
    seen = image.resize((seen_width, seen_height), Image.Resampling.BILINEAR, box=source_box)
    offsets = np.array((offset_x, offset_y, offset_x, offset_y), np.float32)
    boxes_xyxy, labels = clip_boxes(
        boxes_xyxy * np.float32(zoom) - offsets, labels, height=seen_height, width=seen_width
    )
    return Sample(_pad(seen, height=height, width=width), boxes_xyxy, labels, scale=1 / zoom)


def _visible(zoomed: float, limit: int, crop: float) -> tuple[int, int]:
    """Returns (whole pixels seen, offset of the first) along one axis of a zoomed picture."""
    # The tolerance keeps 511.9999, a rounded 512, from losing a pixel.
    whole = max(1, int(zoomed + 1e-6))
    return min(whole, limit), int(max(0, whole - limit) * crop)


def _pad(image: Image.Image, *, height: int, width: int) -> npt.NDArray[np.uint8]:
    canvas_HW3 = np.empty((height, width, 3), np.uint8)
    padding_W3 = np.tile(np.array(PADDING_RGB, np.uint8), (width, 1))
    canvas_HW3[: image.height, : image.width] = np.asarray(image)
    canvas_HW3[: image.height, image.width :] = padding_W3[image.width :]
    canvas_HW3[image.height :] = padding_W3
    return canvas_HW3

"""Pictures and text lines of detections, for people to look at."""

import colorsys
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rayeffdet import storage
from rayeffdet.data.decode import decode_image

_GOLDEN_RATIO = 0.618033988749895
_BACKGROUND = (32, 32, 32)
_CAPTION = (235, 235, 235)
_GAP = 6

Colour = tuple[int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def draw_detections(
    image: Image.Image,
    boxes_xyxy: NDArray[Any],
    labels: Sequence[int] | NDArray[Any],
    scores: Sequence[float] | NDArray[Any] | None,
    class_names: Mapping[int, str],
) -> Image.Image:
    """Returns a copy of the picture with boxes and captions such as ``dog: 87%``.

    Lines are 2 px, more on pictures wider or higher than 1500 px; the best detections lie on top.
    A box with a coordinate that is not finite, or whose corners are crossed, is left out.

    Args:
        image: Any mode; the result is RGB.
        boxes_xyxy: ``[D, 4]`` in pixels of the picture; parts outside are not shown.
        labels: ``[D]`` keys of ``class_names``; they choose the colour.
        scores: ``[D]`` in 0..1, or None for ground truth: captions are names alone.
        class_names: A label without a name is called ``class <label>``.
    """
    picture = image.convert("RGB").copy()
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    shown = [int(i) for i in order if _is_drawable(boxes[i])]
    colours = {i: class_colour(int(labels[i])) for i in shown}
    corners = {i: _inside(boxes[i], picture.size) for i in shown}

    canvas = ImageDraw.Draw(picture)
    line_width = max(2, round(max(picture.size) / 600))
    for i in shown:
        canvas.rectangle(corners[i], outline=colours[i], width=line_width)
    for i in shown:
        name = class_names.get(int(labels[i]), f"class {int(labels[i])}")
        text = name if scores is None else f"{name}: {scores[i]:.0%}"
        _write_caption(canvas, text, corner=corners[i][:2], size=picture.size, fill=colours[i])
    return picture


def draw_file(
    path: str,
    boxes_xyxy: NDArray[Any],
    labels: Sequence[int] | NDArray[Any],
    scores: Sequence[float] | NDArray[Any] | None,
    class_names: Mapping[int, str],
) -> Image.Image:
    """Returns the picture of an image file or URI, upright, with its detections drawn.

    Raises:
        DataError: The file is not a readable image.
    """
    image = decode_image(storage.read_bytes(path), where=path)
    return draw_detections(image, boxes_xyxy, labels, scores, class_names)


def class_colour(label: int) -> Colour:
    """Returns the colour of a class; neighbouring labels are far apart on the colour wheel."""
    hue = (label * _GOLDEN_RATIO) % 1.0
    saturation = (0.85, 0.6)[label // 2 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def side_by_side(truth: Image.Image, prediction: Image.Image) -> Image.Image:
    """Returns one picture, the ground truth left and the prediction right, each with a caption."""
    font = _font(max(truth.size))
    band = _line_height(font) + _GAP
    panels = []
    for image, caption in ((truth, "truth"), (prediction, "prediction")):
        panel = Image.new("RGB", (image.width, image.height + band), _BACKGROUND)
        ImageDraw.Draw(panel).text((_GAP, _GAP // 2), caption, fill=_CAPTION, font=font)
        panel.paste(image, (0, band))
        panels.append(panel)
    return grid(panels, 2)


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Returns the pictures in rows, each centred in a cell that fits the largest.

    Args:
        images: At least one.
        columns: Most pictures in a row.
    """
    assert images, "a grid needs at least one picture"
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    size = (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    sheet = Image.new("RGB", size, _BACKGROUND)
    for position, image in enumerate(images):
        row, column = divmod(position, columns)
        left = column * (width + _GAP) + (width - image.width) // 2
        top = row * (height + _GAP) + (height - image.height) // 2
        sheet.paste(image, (left, top))
    return sheet


def kitti_lines(
    names: Sequence[str], boxes_xyxy: NDArray[Any], scores: Sequence[float] | NDArray[Any]
) -> str:
    """Returns one line of 16 KITTI columns per detection; an empty text when there are none.

    The columns are name, truncation, occlusion, angle, x1, y1, x2, y2, seven of 3-D, score; what
    a 2-D detector does not know is 0. KITTI splits at spaces, so a name's spaces become ``_``.

    Args:
        names: Class name of each of the ``D`` detections.
        boxes_xyxy: ``[D, 4]`` in pixels of the original image.
        scores: ``[D]``.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    unknown = " ".join(["0.00"] * 7)
    lines = []
    for name, box, score in zip(names, boxes, scores, strict=True):
        corners = " ".join(f"{value:.3f}" for value in box)
        word = re.sub(r"\s", "_", name) or "_"
        lines.append(f"{word} 0.00 0 0.00 {corners} {unknown} {score:.3f}\n")
    return "".join(lines)


def _is_drawable(box_xyxy: NDArray[np.float64]) -> bool:
    left, top, right, bottom = box_xyxy
    return bool(np.isfinite(box_xyxy).all() and left <= right and top <= bottom)


def _inside(box_xyxy: NDArray[np.float64], size: tuple[int, int]) -> tuple[int, int, int, int]:
    width, height = size
    left, right = np.clip(box_xyxy[[0, 2]].round(), 0, width - 1)
    top, bottom = np.clip(box_xyxy[[1, 3]].round(), 0, height - 1)
    return int(left), int(top), int(right), int(bottom)


def _write_caption(
    canvas: ImageDraw.ImageDraw,
    text: str,
    *,
    corner: tuple[int, int],
    size: tuple[int, int],
    fill: Colour,
) -> None:
    """Writes above the box's top left corner, or inside where the picture ends."""
    x, y = corner
    font = _font(max(size))
    text_width, text_height = canvas.textlength(text, font=font) + 4, _line_height(font)
    left = max(0, min(x, size[0] - text_width))
    top = y - text_height if y >= text_height else y
    canvas.rectangle((left, top, left + text_width, top + text_height), fill=fill)
    canvas.text((left + 2, top + 1), text, fill=_ink(fill), font=font)


def _font(longest_side: int) -> Font:
    return _font_of_size(max(12, round(longest_side / 50)))


@functools.cache
def _font_of_size(size: int) -> Font:
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        # Pillow's own font is always there but has no letters beyond ASCII.
        return ImageFont.load_default(size)


def _line_height(font: Font) -> int:
    return round(font.getbbox("Ag")[3]) + 3


def _ink(background: Colour) -> Colour:
    """Returns black or white, whichever reads better (luma of ITU-R BT.601)."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)

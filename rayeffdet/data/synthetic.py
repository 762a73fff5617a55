"""Pictures of coloured shapes with exact boxes, to try everything out without a data set.

Shapes: H W pixels.
"""

import colorsys
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from rayeffdet import storage

CLASS_NAMES = ("disc", "square", "triangle", "star", "ring")

_MAX_SHAPES = 6
_MIN_SHARE, _MAX_SHARE = 0.18, 0.55  # of the shorter side of the picture
_MAX_COVERED = 0.3  # of the smaller box, so that every shape stays recognisable
_PLACEMENT_TRIES = 30
# Colour tells most classes apart too, so that a few hundred steps are enough to learn them.
_HUE_SPREAD = 0.07
_SUPERSAMPLING = 4
_ROUND_CORNERS = 64

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Shape:
    class_index: int
    loops_xy: _Floats  # (1 or 2, n, 2) corners in pixels: the outline, then the hole if any

    @property
    def box_xyxy(self) -> _Floats:
        return np.concatenate([self.loops_xy[0].min(axis=0), self.loops_xy[0].max(axis=0)])


def make_synthetic_set(
    folder: str,
    *,
    num_images: int,
    seed: int,
    split: str,
    min_side: int = 200,
    max_side: int = 320,
) -> str:
    """Writes a detection set of drawn shapes and returns the path of its annotation file.

    Writes `{folder}/{split}/*.jpg` and `{folder}/annotations/instances_{split}.json` (COCO). A
    picture holds 1 to 6 shapes of `CLASS_NAMES` (category ids 1 to 5), each 18 to 55 % as large as
    the picture's shorter side and wholly inside it. Two boxes share at most 30 % of the smaller;
    boxes, areas and polygons are those of the whole shape, also where a later one covers it.

    Picture i depends on (seed, split, i) alone: the same call writes the same files, a longer set
    begins with the shorter one, and two splits share no picture.

    Args:
        folder: A local folder, made if missing.
        num_images: Number of pictures.
        seed: Any integer from 0.
        split: Names the set, e.g. "train".
        min_side: Smallest width and height of a picture in pixels.
        max_side: Largest width and height of a picture in pixels.

    Raises:
        RunError: The disk is full or refuses the write.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        rng = np.random.default_rng((seed, zlib.crc32(split.encode()), index))
        width, height = (int(side) for side in rng.integers(min_side, max_side + 1, size=2))
        shapes = _place_shapes(rng, height=height, width=width)
        name = f"{split}_{index:06d}.jpg"
        _write(Path(folder, split, name), _picture(shapes, rng, height=height, width=width))
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for shape in shapes:
            annotations.append(_annotation(shape, len(annotations) + 1, image_id=index + 1))
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASS_NAMES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path = storage.join(folder, "annotations", f"instances_{split}.json")
    storage.write_json(path, document)
    return path


def _annotation(shape: _Shape, annotation_id: int, *, image_id: int) -> dict[str, Any]:
    left, top, right, bottom = shape.box_xyxy
    # The loops one after the other are one polygon: COCO has no holes, but allows a closed slit.
    x, y = shape.loops_xy.reshape(-1, 2).T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": shape.class_index + 1,
        "bbox": [round(float(value), 2) for value in (left, top, right - left, bottom - top)],
        "area": round(float(area), 2),
        "iscrowd": 0,
        "segmentation": [shape.loops_xy.ravel().tolist()],
    }


def _place_shapes(rng: np.random.Generator, *, height: int, width: int) -> list[_Shape]:
    shapes: list[_Shape] = []
    wanted = rng.integers(1, _MAX_SHAPES + 1)
    for _ in range(_PLACEMENT_TRIES):
        if len(shapes) == wanted:
            break
        shape = _random_shape(rng, height=height, width=width)
        if all(_shared(shape.box_xyxy, other.box_xyxy) <= _MAX_COVERED for other in shapes):
            shapes.append(shape)
    return shapes


def _random_shape(rng: np.random.Generator, *, height: int, width: int) -> _Shape:
    class_index = int(rng.integers(len(CLASS_NAMES)))
    size = min(height, width) * rng.uniform(_MIN_SHARE, _MAX_SHARE)
    turn = rng.uniform(0, 2 * math.pi)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    loops_xy = _unit_loops(CLASS_NAMES[class_index]) @ rotation
    loops_xy = loops_xy - loops_xy.min(axis=(0, 1))
    loops_xy *= size / loops_xy.max()
    loops_xy += rng.uniform(0, np.array([width, height]) - loops_xy.max(axis=(0, 1)))
    return _Shape(class_index, loops_xy.round(2))


def _unit_loops(name: str) -> _Floats:
    """Returns outline and hole (1 or 2, n, 2) of a shape in a circle of radius 1 around 0."""
    match name:
        case "square":
            return _corners(np.ones(4))[None]
        case "triangle":
            return _corners(np.ones(3))[None]
        case "star":
            return _corners(np.tile([1.0, 0.45], 5))[None]
        case "ring":
            disc_xy = _corners(np.ones(_ROUND_CORNERS))
            closed_xy = np.concatenate([disc_xy, disc_xy[:1]])
            return np.stack([closed_xy, 0.55 * closed_xy[::-1]])
        case _:
            return _corners(np.ones(_ROUND_CORNERS))[None]


def _corners(radii: _Floats) -> _Floats:
    angles = 2 * math.pi * np.arange(len(radii)) / len(radii)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _shared(a_xyxy: _Floats, b_xyxy: _Floats) -> float:
    """Returns the common area of two boxes as a share of the smaller one."""
    overlap = np.minimum(a_xyxy[2:], b_xyxy[2:]) - np.maximum(a_xyxy[:2], b_xyxy[:2])
    smaller = min(np.prod(a_xyxy[2:] - a_xyxy[:2]), np.prod(b_xyxy[2:] - b_xyxy[:2]))
    return float(np.prod(overlap.clip(min=0)) / smaller)


def _picture(shapes: list[_Shape], rng: np.random.Generator, *, height: int, width: int) -> bytes:
    canvas_HW3 = _background(rng, height=height, width=width)
    for shape in shapes:
        _paint(canvas_HW3, shape, rng)
    image = Image.fromarray((canvas_HW3.clip(0, 1) * 255).round().astype(np.uint8))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=92)
    return encoded.getvalue()


def _background(rng: np.random.Generator, *, height: int, width: int) -> _Floats:
    """Returns (H, W, 3) in 0 to 1: a gradient of two muted colours, cloudy, striped and grainy."""
    y_HW, x_HW = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    turn = rng.uniform(0, 2 * math.pi)
    along_HW = x_HW * math.cos(turn) + y_HW * math.sin(turn)
    mix_HW1: _Floats = ((along_HW - along_HW.min()) / np.ptp(along_HW))[..., None]
    first, second = (
        _colour(rng, hue=(0, 1), saturation=(0.0, 0.3), value=(0.25, 0.9)) for _ in range(2)
    )
    light_HW = rng.normal(1, 0.025, (height, width))
    for cells, strength in ((3, 0.16), (9, 0.10), (40, 0.06)):
        noise = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        light_HW += strength * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    wave_x, wave_y = rng.uniform(-60, 60, 2)
    light_HW += rng.uniform(0, 0.07) * np.sin(wave_x * x_HW + wave_y * y_HW)
    return (first * (1 - mix_HW1) + second * mix_HW1) * light_HW[..., None]


def _paint(canvas_HW3: _Floats, shape: _Shape, rng: np.random.Generator) -> None:
    """Draws a shaded shape with a soft shadow onto the canvas, in place."""
    size = float((shape.box_xyxy[2:] - shape.box_xyxy[:2]).max())
    margin = 0.15 * size
    left, top = np.maximum(0, np.floor(shape.box_xyxy[:2] - margin)).astype(int)
    right, bottom = np.ceil(shape.box_xyxy[2:] + margin).astype(int)
    patch = canvas_HW3[top:bottom, left:right]  # a view
    height, width = patch.shape[:2]
    mask = _mask(shape.loops_xy - (left, top), height=height, width=width)
    shadow = Image.new("L", mask.size)
    shadow.paste(mask, (round(0.04 * size), round(0.05 * size)))
    shadow = shadow.filter(ImageFilter.GaussianBlur(0.04 * size))
    patch *= 1 - 0.45 * np.asarray(shadow)[..., None] / 255
    hue = shape.class_index / len(CLASS_NAMES)
    colour = _colour(
        rng, hue=(hue - _HUE_SPREAD, hue + _HUE_SPREAD), saturation=(0.65, 1.0), value=(0.65, 1.0)
    )
    y_HW, x_HW = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    shade_HW1 = (1.12 - 0.2 * (x_HW + y_HW))[..., None]
    opacity_HW1 = np.asarray(mask)[..., None] / 255
    patch += opacity_HW1 * (colour * shade_HW1 - patch)


def _mask(loops_xy: _Floats, *, height: int, width: int) -> Image.Image:
    """Returns the antialiased area between outline and hole, mode L."""
    fine = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    pen = ImageDraw.Draw(fine)
    for loop_xy, fill in zip(loops_xy, (255, 0), strict=False):
        # Pillow puts whole numbers at pixel centres, the loop has them at pixel edges.
        pen.polygon((loop_xy * _SUPERSAMPLING - 0.5).ravel().tolist(), fill=fill)
    return fine.reduce(_SUPERSAMPLING)


def _colour(
    rng: np.random.Generator,
    *,
    hue: tuple[float, float],
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> _Floats:
    ranges = (hue, saturation, value)
    return np.array(colorsys.hsv_to_rgb(*(rng.uniform(*limits) for limits in ranges)))


def _write(path: Path, encoded: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
    except OSError as error:
        raise storage.write_error(str(path), error) from error

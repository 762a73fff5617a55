"""Outlines of COCO annotations (polygons, run lengths) to PNG masks."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle_masks

# Rasterising takes memory in proportion to an outline's length.
_FARTHEST = 1e5


def draw_mask(segmentation: Any, *, height: int, width: int) -> NDArray[np.uint8] | None:
    """Returns the 0/1 mask [height, width] of a COCO segmentation, None when it is unusable.

    Args:
        segmentation: A list of polygons (x, y, x, y, ... in pixels), or run lengths as a dict of
            ``size`` and ``counts``, compressed or not.
        height: Of the picture, pixels.
        width: Of the picture, pixels.
    """
    if isinstance(segmentation, list):
        return _fill_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        return None
    counts = segmentation.get("counts")
    return _fill_runs(_parse_counts(counts) if isinstance(counts, str) else counts, height, width)


def mask_to_png(mask: NDArray[np.uint8]) -> bytes:
    """Returns the 0/1 mask as an 8-bit grey PNG that holds the same numbers."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def leaves_box(
    mask: NDArray[np.uint8], box_xyxy: tuple[float, float, float, float], *, slack: float = 1.0
) -> bool:
    """Tells whether the mask reaches more than ``slack`` pixels outside its box."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return False
    x1, y1, x2, y2 = box_xyxy
    return bool(
        columns[0] < x1 - slack
        or rows[0] < y1 - slack
        or columns[-1] + 1 > x2 + slack
        or rows[-1] + 1 > y2 + slack
    )


def _fill_polygons(polygons: list[Any], height: int, width: int) -> NDArray[np.uint8] | None:
    if not polygons or not all(map(_is_polygon, polygons)):
        return None
    runs = rle_masks.merge(rle_masks.frPyObjects(polygons, height, width))
    return np.asarray(rle_masks.decode(runs), np.uint8)


def _fill_runs(counts: Any, height: int, width: int) -> NDArray[np.uint8] | None:
    """Returns the mask of alternating runs of 0 and 1, column by column.

    Not left to pycocotools, which hands out uninitialised memory where runs are missing.
    """
    if not isinstance(counts, list) or not all(isinstance(c, int) and c >= 0 for c in counts):
        return None
    if sum(counts) != height * width:
        return None
    runs = np.arange(len(counts), dtype=np.uint8) % 2
    return np.repeat(runs, counts).reshape(width, height).T


def _parse_counts(text: str) -> list[int]:
    """Returns the run lengths of COCO's compressed text.

    Six bits a character from '0' up: five of the number, lowest first, and one that says that more
    follow; two's complement. From the fourth on, a number is the difference to the one before last.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - ord("0")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return counts


def _is_polygon(points: Any) -> bool:
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(isinstance(v, int | float) and abs(v) <= _FARTHEST for v in points)
    )

"""Precision and recall over COCO's thresholds, from pycocotools, and the numbers read off them.

Legend: T IoU thresholds 0.50:0.05:0.95, R recall points 0:0.01:1, K categories, A area ranges
(all, small, medium, large), M limits of detections an image (1, 10, 100).
"""

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

FloatArray = NDArray[np.float64]

_ALL_IOUS, _IOU_50, _IOU_75 = slice(None), slice(0, 1), slice(5, 6)
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
_MAX_1, _MAX_10, _MAX_100 = range(3)

_PRECISIONS = {
    "AP": (_ALL_IOUS, _ALL),
    "AP50": (_IOU_50, _ALL),
    "AP75": (_IOU_75, _ALL),
    "APs": (_ALL_IOUS, _SMALL),
    "APm": (_ALL_IOUS, _MEDIUM),
    "APl": (_ALL_IOUS, _LARGE),
}
_RECALLS = {
    "ARmax1": (_ALL, _MAX_1),
    "ARmax10": (_ALL, _MAX_10),
    "ARmax100": (_ALL, _MAX_100),
    "ARs": (_SMALL, _MAX_100),
    "ARm": (_MEDIUM, _MAX_100),
    "ARl": (_LARGE, _MAX_100),
}


class Curves(NamedTuple):
    """Precision and recall of some categories; -1 where a category has nothing to find."""

    category_ids: tuple[int, ...]
    precision_TRKAM: FloatArray
    recall_TKAM: FloatArray


def accumulate(
    objects: list[dict[str, Any]],
    found: list[dict[str, Any]],
    *,
    image_ids: list[int],
    category_ids: list[int],
) -> Curves:
    """Returns the curves of these categories over these images; pycocotools' own output is muted.

    Args:
        objects: Annotations: image_id, category_id, bbox xywh, area, iscrowd.
        found: Detections: image_id, category_id, bbox xywh, area, score.
        image_ids: Ascending; equal scores of two images rank in this order.
        category_ids: Ascending.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco_index(objects), _coco_index(found), "bbox")
        evaluation.params.imgIds = image_ids
        evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
    curves = evaluation.eval
    return Curves(tuple(category_ids), curves["precision"], curves["recall"])


def join(parts: Sequence[Curves]) -> Curves:
    """Returns the parts as one, categories ascending."""
    category_ids = [category_id for part in parts for category_id in part.category_ids]
    order = np.argsort(category_ids).astype(np.intp)
    precision_TRKAM = np.concatenate([part.precision_TRKAM for part in parts], axis=2)
    recall_TKAM = np.concatenate([part.recall_TKAM for part in parts], axis=1)
    return Curves(tuple(sorted(category_ids)), precision_TRKAM[:, :, order], recall_TKAM[:, order])


def of_category(curves: Curves, k: int) -> Curves:
    """Returns the curves of the k-th category alone."""
    only = slice(k, k + 1)
    return Curves(
        curves.category_ids[only], curves.precision_TRKAM[:, :, only], curves.recall_TKAM[:, only]
    )


def numbers_of(curves: Curves) -> dict[str, float]:
    """Returns the twelve COCO numbers by name; -1.0 where there is nothing to measure."""
    precisions = {
        name: _mean(curves.precision_TRKAM[ious, :, :, area, _MAX_100])
        for name, (ious, area) in _PRECISIONS.items()
    }
    recalls = {
        name: _mean(curves.recall_TKAM[:, :, area, limit])
        for name, (area, limit) in _RECALLS.items()
    }
    return precisions | recalls


def numbered(annotations: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the annotations with ids from 1: pycocotools reads a match with id 0 as none."""
    return [{"id": i, **one} for i, one in enumerate(annotations, start=1)]


def _coco_index(annotations: list[dict[str, Any]]) -> COCO:
    index = COCO()
    index.dataset = {"images": [], "categories": [], "annotations": numbered(annotations)}
    index.createIndex()
    return index


def _mean(values: FloatArray) -> float:
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else -1.0

"""COCO detection metrics: ground truth and detections in, named numbers out.

Legend: D detections.

Ground truth is a document of COCO's form: ``images`` (id, file_name, height, width),
``annotations`` (image_id, category_id, bbox xywh in pixels; iscrowd and area optional) and
``categories`` (id, name). Image ids may be integers or text.

Detections are float64 rows ``[D, 7]``: image number, x, y, w, h, score, category id. The image
number is the position in ``truth["images"]``: ids of any kind and size stay exact that way.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayeffdet.data.coco import CocoSet
from rayeffdet.data.example import Example
from rayeffdet.errors import DataError
from rayeffdet.evaluate.curves import (
    Curves,
    FloatArray,
    accumulate,
    join,
    numbered,
    numbers_of,
    of_category,
)

Truth = dict[str, list[dict[str, Any]]]
_CLASS_NUMBERS = ("AP", "AP50", "AP75", "ARmax100")


def truth_from_examples(
    examples: Iterable[Example], *, class_names: Mapping[int, str] | None = None
) -> Truth:
    """Returns the ground truth that the records hold, in the form of a COCO document.

    Args:
        examples: Read once, one at a time; images are not kept.
        class_names: Category id to name, for categories that the records may not show.

    Raises:
        DataError: Two records share one source id.
    """
    images: dict[int | str, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    names = dict(class_names or {})
    for example in examples:
        image_id = _json_id(example.source_id)
        if image_id in images:
            raise DataError(
                f"records: source id {example.source_id!r} is on two records"
                f" ({images[image_id]['file_name']} and {example.filename}); every image to be"
                " evaluated needs its own: list each shard once, and give the sets distinct ids"
            )
        images[image_id] = {
            "id": image_id,
            "file_name": example.filename,
            "height": example.height,
            "width": example.width,
        }
        annotations.extend(_annotations(example, image_id=image_id))
        for label, name in zip(example.labels.tolist(), example.class_names, strict=True):
            names.setdefault(label, name)
    return _document(list(images.values()), annotations, names)


def truth_from_coco(coco_set: CocoSet) -> Truth:
    """Returns the ground truth of a checked annotation file."""
    annotations = [
        {
            "image_id": _json_id(image.id),
            "category_id": one.category_id,
            "bbox": list(one.box_xywh),
            "area": one.area,
            "iscrowd": int(one.is_crowd),
        }
        for image in coco_set.images
        for one in coco_set.annotations.get(image.id, ())
    ]
    images = [
        {"id": _json_id(i.id), "file_name": i.file_name, "height": i.height, "width": i.width}
        for i in coco_set.images
    ]
    return _document(images, annotations, coco_set.categories)


def restrict_truth(truth: Truth, image_ids: Collection[int | str]) -> Truth:
    """Returns the part of the ground truth that belongs to these images, ids as int or as text.

    Image numbers are positions, so number the images of the result, not those of the whole.
    """
    wanted = {str(image_id) for image_id in image_ids}
    return {
        "images": [image for image in truth["images"] if str(image["id"]) in wanted],
        "annotations": [one for one in truth["annotations"] if str(one["image_id"]) in wanted],
        "categories": truth["categories"],
    }


def image_numbers(truth: Truth) -> dict[str, int]:
    """Returns the image number of every image by its id as text (a record's source id)."""
    return {str(image["id"]): number for number, image in enumerate(truth["images"])}


def detection_rows(
    image_number: int,
    *,
    boxes_xyxy: NDArray[Any],
    scores: NDArray[Any],
    category_ids: NDArray[Any],
) -> FloatArray:
    """Returns the detections of one image as rows ``[D, 7]``.

    Args:
        image_number: Position of the image in ``truth["images"]``.
        boxes_xyxy: ``[D, 4]`` in pixels of the original image.
        scores: ``[D]``.
        category_ids: ``[D]``, channel index + 1.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    numbers = np.full(len(boxes), image_number, dtype=np.float64)
    sizes = boxes[:, 2:] - boxes[:, :2]
    return np.column_stack([numbers, boxes[:, :2], sizes, scores, category_ids])


def detections_json(truth: Truth, detections: FloatArray) -> list[dict[str, Any]]:
    """Returns the detections in COCO's results format, image ids as they are in the truth.

    Numbers are not rounded: the document evaluates to the same metrics as the rows.
    """
    return [
        {
            "image_id": truth["images"][int(number)]["id"],
            "category_id": int(category_id),
            "bbox": [x, y, w, h],
            "score": score,
        }
        for number, x, y, w, h, score, category_id in detections.tolist()
    ]


def coco_metrics(truth: Truth, detections: FloatArray) -> dict[str, Any]:
    """Returns the twelve COCO box metrics, the main ones per class, and the counts behind them.

    The numbers are those of pycocotools. A number without anything to measure is -1.0, its
    convention: no object of that size, or no object at all. No detections is a plain 0.0.

    Args:
        truth: Ground truth of exactly the images that were processed.
        detections: ``[D, 7]`` rows; equal scores within an image rank in the order of the rows.

    Returns:
        AP, AP50, AP75, APs, APm, APl, ARmax1, ARmax10, ARmax100, ARs, ARm, ARl, ``per_class``
        (name to AP, AP50, AP75, ARmax100, num_truths, num_detections), num_images, num_truths
        (crowds not counted) and num_detections.
    """
    category_ids = [category["id"] for category in truth["categories"]]
    return summarise(truth, detections, [coco_curves(truth, detections, category_ids)])


def coco_curves(truth: Truth, detections: FloatArray, category_ids: Sequence[int]) -> Curves:
    """Returns precision and recall of these categories; parts can be computed side by side."""
    wanted = set(category_ids)
    ranks = _image_ranks(truth)
    rank_of = {image["id"]: rank for image, rank in zip(truth["images"], ranks, strict=True)}
    objects = [
        _truth_entry(one, image_id=rank_of[one["image_id"]])
        for one in truth["annotations"]
        if one["category_id"] in wanted
    ]
    found = [
        _detection_entry(row, image_id=ranks[int(row[0])])
        for row in detections.tolist()
        if row[6] in wanted
    ]
    return accumulate(objects, found, image_ids=sorted(ranks), category_ids=sorted(wanted))


def summarise(truth: Truth, detections: FloatArray, parts: Sequence[Curves]) -> dict[str, Any]:
    """Returns the metrics of ``coco_metrics`` from curves whose parts cover every category."""
    curves = join(parts)
    truths = Counter(one["category_id"] for one in truth["annotations"] if not one.get("iscrowd"))
    found = Counter(detections[:, 6].tolist())
    per_class = {}
    for k, name in enumerate(_unique_names(truth["categories"])):
        numbers = numbers_of(of_category(curves, k))
        per_class[name] = {
            **{key: numbers[key] for key in _CLASS_NUMBERS},
            "num_truths": truths[curves.category_ids[k]],
            "num_detections": found[curves.category_ids[k]],
        }
    return {
        **numbers_of(curves),
        "per_class": per_class,
        "num_images": len(truth["images"]),
        "num_truths": truths.total(),
        "num_detections": len(detections),
    }


def _document(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], names: Mapping[int, str]
) -> Truth:
    return {
        "images": images,
        "annotations": numbered(annotations),
        "categories": [{"id": i, "name": names[i]} for i in sorted(names)],
    }


def _json_id(source_id: str) -> int | str:
    """Returns the id as COCO documents have it; text that int would not give back stays text."""
    return int(source_id) if re.fullmatch("0|-?[1-9][0-9]*", source_id) else source_id


def _annotations(example: Example, *, image_id: int | str) -> Iterable[dict[str, Any]]:
    boxes_xyxy = example.boxes_xyxy.astype(np.float64)
    boxes_xywh = np.hstack([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]])
    columns = (boxes_xywh, example.labels, example.is_crowd, example.areas)
    for box_xywh, label, crowd, area in zip(*(c.tolist() for c in columns), strict=True):
        yield {
            "image_id": image_id,
            "category_id": label,
            "bbox": box_xywh,
            "area": area,
            "iscrowd": int(crowd),
        }


def _image_ranks(truth: Truth) -> list[int]:
    """Returns the rank of each image by id: equal scores of two images rank as in pycocotools."""
    ids = [image["id"] for image in truth["images"]]
    order = sorted(range(len(ids)), key=lambda number: (isinstance(ids[number], str), ids[number]))
    ranks = [0] * len(ids)
    for rank, number in enumerate(order):
        ranks[number] = rank
    return ranks


def _truth_entry(annotation: Mapping[str, Any], *, image_id: int) -> dict[str, Any]:
    x, y, w, h = (float(value) for value in annotation["bbox"])
    return {
        "image_id": image_id,
        "category_id": annotation["category_id"],
        "bbox": [x, y, w, h],
        "area": annotation.get("area", w * h),
        "iscrowd": int(annotation.get("iscrowd", 0)),
    }


def _detection_entry(row: Sequence[float], *, image_id: int) -> dict[str, Any]:
    _, x, y, w, h, score, category_id = row
    return {
        "image_id": image_id,
        "category_id": int(category_id),
        "bbox": [x, y, w, h],
        "area": w * h,
        "score": score,
    }


def _unique_names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names in the order of the ids; a name used twice carries its id."""
    uses = Counter(category["name"] for category in categories)
    ordered = sorted((category["id"], category["name"]) for category in categories)
    return [name if uses[name] == 1 else f"{name} ({number})" for number, name in ordered]

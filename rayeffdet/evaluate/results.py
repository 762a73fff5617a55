"""Detections and truths of a set of images, gathered from the parts that worked on them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayeffdet import storage
from rayeffdet.data.example import Example
from rayeffdet.errors import DataError
from rayeffdet.evaluate.coco import (
    Truth,
    coco_metrics,
    detection_rows,
    image_numbers,
    restrict_truth,
    truth_from_examples,
)
from rayeffdet.evaluate.detect import ImageDetections


@dataclass(frozen=True)
class Part:
    """What one worker or task found; small: the images themselves stay behind.

    Args:
        examples: Records without their encoded bytes.
        detections: Of each record, float64 [D,7] rows whose image number is not set yet.
        notices: What a person should know about the detector, one sentence each.
    """

    examples: tuple[Example, ...]
    detections: tuple[NDArray[np.float64], ...]
    notices: tuple[str, ...] = ()


def part_of(found: Iterable[ImageDetections]) -> Part:
    """Returns the part that holds these detections."""
    examples, detections = [], []
    for one in found:
        examples.append(replace(one.example, encoded=b"", masks=()))
        detections.append(
            detection_rows(
                0, boxes_xyxy=one.boxes_xyxy, scores=one.scores, category_ids=one.category_ids
            )
        )
    return Part(tuple(examples), tuple(detections))


def join_parts(
    parts: Iterable[Part], *, class_names: Mapping[int, str], val_json_file: str
) -> tuple[Truth, NDArray[np.float64]]:
    """Returns truth and detections of all parts.

    Args:
        parts: Each image in exactly one of them.
        class_names: Category id to name.
        val_json_file: COCO json with the truth; empty for the truth of the records.

    Raises:
        DataError: An image is there twice, or is not in ``val_json_file``.
    """
    parts = tuple(parts)
    truth = truth_from_examples(
        (example for part in parts for example in part.examples), class_names=class_names
    )
    if val_json_file:
        truth = _truth_from_json(val_json_file, truth)
    numbers = image_numbers(truth)
    rows = [np.empty((0, 7))]
    for part in parts:
        for example, found in zip(part.examples, part.detections, strict=True):
            numbered = found.copy()
            numbered[:, 0] = numbers[example.source_id]
            rows.append(numbered)
    return truth, np.concatenate(rows)


def metrics_of_parts(
    parts: Iterable[Part], *, class_names: Mapping[int, str], val_json_file: str
) -> dict[str, Any]:
    """Returns the COCO metrics of all parts together; arguments as of :func:`join_parts`."""
    truth, detections = join_parts(parts, class_names=class_names, val_json_file=val_json_file)
    return coco_metrics(truth, detections)


def _truth_from_json(path: str, records: Truth) -> Truth:
    try:
        document = storage.read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file (dataset.val_json_file)") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    _check_truth(document, path)
    truth = restrict_truth(document, [image["id"] for image in records["images"]])
    missing = {str(i["id"]) for i in records["images"]} - {str(i["id"]) for i in truth["images"]}
    if missing:
        raise DataError(
            f"{path}: no image of id {', '.join(sorted(missing)[:5])}"
            f" ({len(missing)} in all), which the validation records hold; dataset.val_json_file"
            " must be the file that they were made from"
        )
    return truth


def _check_truth(document: Any, path: str) -> None:
    """Refuses what is not a COCO instances file; warnings are the business of dataset_convert."""
    needed = {
        "images": {"id"},
        "annotations": {"image_id", "category_id", "bbox"},
        "categories": {"id", "name"},
    }
    for key, fields in needed.items():
        entries = document.get(key) if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{path}: {key}: missing or not a list; a COCO instances file has it")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not fields <= entry.keys():
                raise DataError(
                    f"{path}: {key}[{number}]: needs {', '.join(sorted(fields))}"
                    " (dataset.val_json_file)"
                )

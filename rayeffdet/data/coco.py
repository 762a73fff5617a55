"""COCO annotation files: what they list and what is wrong with them.

A bad entry is a warning and is left out; only a file that cannot be understood is an error.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayeffdet import storage
from rayeffdet.errors import DataError

# Far beyond any picture, and within float32.
_LARGEST = 1e12

BoxXywh = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class CocoWarning:
    """What was left out or doubted.

    Attributes:
        image_id: Id of the image as text; empty when the entry names none.
        annotation_id: Id of the annotation; None when the image itself is concerned.
        kind: ``image`` (left out), ``size`` (differs from the file), ``annotation`` (of no known
            image), ``category`` (unknown), ``box`` (unusable), each of which drops its subject but
            ``size``; ``mask`` (unusable or outside of its box; the object is kept).
        text: One sentence.
    """

    image_id: str
    annotation_id: int | str | None
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class CocoImage:
    """A listed image; height and width are -1 where the file does not say them."""

    id: str
    file_name: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class CocoAnnotation:
    """A listed object; the box in pixels (x, y, width, height) as written, finite."""

    id: int | str
    category_id: int
    box_xywh: BoxXywh
    area: float
    is_crowd: bool
    segmentation: Any


@dataclass(frozen=True, slots=True)
class CocoSet:
    """The usable content of an annotation file.

    Attributes:
        annotations_file: Where it was read.
        image_dir: Folder of the images.
        images: In the order of the file.
        categories: Name of each category id, ids from 1 up.
        annotations: Objects of each image id; images without any are absent.
        warnings: What was left out so far.
    """

    annotations_file: str
    image_dir: str
    images: tuple[CocoImage, ...]
    categories: Mapping[int, str]
    annotations: Mapping[str, list[CocoAnnotation]]
    warnings: tuple[CocoWarning, ...]


def read_coco(annotations_file: str, image_dir: str, *, keep_masks: bool = True) -> CocoSet:
    """Returns the checked content of a COCO instances file.

    Args:
        annotations_file: Path or URI.
        image_dir: Path or URI of the folder that ``file_name`` is relative to.
        keep_masks: Keep the segmentations, which are most of a large file's memory.

    Raises:
        DataError: The folder or the file is missing, the file is not JSON, or a key that nothing
            works without is missing or wrong; all such problems at once.
    """
    document = _load_document(annotations_file)
    problems = [] if storage.exists(image_dir) else [f"{image_dir}: no such image folder"]
    problems += [
        f"{annotations_file}: {key}: missing or not a list; a COCO instances file has it"
        for key in ("images", "annotations", "categories")
        if not isinstance(document.get(key), list)
    ]
    if problems:
        raise DataError(*problems)
    warnings: list[CocoWarning] = []
    categories = _read_categories(document["categories"], annotations_file)
    images = _read_images(document["images"], annotations_file, warnings)
    annotations = _read_annotations(
        document["annotations"], {image.id for image in images}, categories, warnings, keep_masks
    )
    return CocoSet(
        annotations_file=annotations_file,
        image_dir=image_dir,
        images=tuple(images),
        categories=_without_background(categories, annotations, annotations_file),
        annotations=annotations,
        warnings=tuple(warnings),
    )


def _load_document(path: str) -> dict[str, Any]:
    try:
        document = storage.read_json(path)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: no such annotation file, or not readable") from error
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}: column {error.colno}"
        raise DataError(f"{where}: not JSON: {error.msg}; write or download it anew") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: offset {error.start}: not JSON: not UTF-8 text") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: holds a {type(document).__name__}, not a COCO object with keys")
    return document


def _read_categories(entries: list[Any], path: str) -> dict[int, str]:
    categories: dict[int, str] = {}
    problems = [] if entries else [f"{path}: categories: is empty; list the classes"]
    for i, entry in enumerate(entries):
        category_id, name = _get(entry, "id"), _get(entry, "name")
        if type(category_id) is not int:
            problems.append(f"{path}: categories[{i}].id: {category_id!r} is not a whole number")
        elif not isinstance(name, str) or not name:
            problems.append(f"{path}: categories[{i}].name: {name!r} is not a name")
        elif categories.setdefault(category_id, name) != name:
            both = f"{categories[category_id]!r} and {name!r}"
            problems.append(f"{path}: categories[{i}].id: {category_id} is both {both}")
    names = Counter(name for category_id, name in categories.items() if category_id >= 1)
    problems += [
        f"{path}: categories: {count} ids share the name {name!r}; give each its own"
        for name, count in names.items()
        if count > 1
    ]
    if problems:
        raise DataError(*problems)
    return categories


def _read_images(entries: list[Any], path: str, warnings: list[CocoWarning]) -> list[CocoImage]:
    images: dict[str, CocoImage] = {}
    for i, entry in enumerate(entries):
        image_id, file_name = _id_text(_get(entry, "id")), _get(entry, "file_name")
        if not image_id or not isinstance(file_name, str) or not file_name:
            text = f"{path}: images[{i}]: has no usable id and file_name"
        elif image_id in images:
            text = f"{path}: images[{i}]: {file_name}: id {image_id} is taken already"
        else:
            height, width = _side(_get(entry, "height")), _side(_get(entry, "width"))
            images[image_id] = CocoImage(image_id, file_name, height, width)
            continue
        warnings.append(CocoWarning(image_id, None, "image", text))
    if not images:
        raise DataError(f"{path}: images: lists no usable image")
    return list(images.values())


def _read_annotations(
    entries: list[Any],
    image_ids: set[str],
    categories: Mapping[int, str],
    warnings: list[CocoWarning],
    keep_masks: bool,
) -> dict[str, list[CocoAnnotation]]:
    annotations: dict[str, list[CocoAnnotation]] = defaultdict(list)
    for i, entry in enumerate(entries):
        image_id, given_id = _id_text(_get(entry, "image_id")), _get(entry, "id")
        annotation_id = given_id if isinstance(given_id, int | str) else f"annotations[{i}]"
        fault = _fault(entry, image_ids, categories)
        if fault is None:
            annotation = _read_annotation(entry, annotation_id, keep_masks)
            annotations[image_id].append(annotation)
        else:
            kind, text = fault
            text = f"annotation {annotation_id}: {text}"
            warnings.append(CocoWarning(image_id, annotation_id, kind, text))
    return dict(annotations)


def _fault(
    entry: Any, image_ids: set[str], categories: Mapping[int, str]
) -> tuple[str, str] | None:
    """Returns kind and description of what makes an annotation unusable."""
    if _id_text(_get(entry, "image_id")) not in image_ids:
        return "annotation", f"no image has id {_get(entry, 'image_id')!r}"
    category_id = _get(entry, "category_id")
    if not isinstance(category_id, int | float) or category_id not in categories:
        return "category", f"no category has id {category_id!r}"
    if _box_xywh(entry) is None:
        return "box", f"bbox {_get(entry, 'bbox')!r} is not four usable numbers"
    return None


def _read_annotation(entry: Any, annotation_id: int | str, keep_masks: bool) -> CocoAnnotation:
    box_xywh = _box_xywh(entry)
    assert box_xywh is not None
    area = _number(_get(entry, "area"))
    return CocoAnnotation(
        id=annotation_id,
        category_id=int(entry["category_id"]),
        box_xywh=box_xywh,
        area=area if area and area > 0 else box_xywh[2] * box_xywh[3],
        is_crowd=bool(_get(entry, "iscrowd")),
        segmentation=_get(entry, "segmentation") if keep_masks else None,
    )


def _without_background(
    categories: Mapping[int, str], annotations: Mapping[str, list[CocoAnnotation]], path: str
) -> dict[int, str]:
    # Some exporters list an id 0 that nothing uses; dropping one in use would lose a whole class.
    used = Counter(a.category_id for objects in annotations.values() for a in objects)
    problems = [
        f"{path}: categories: id {i} ({categories[i]!r}) has {used[i]} annotations, but ids start"
        " at 1 (0 is the background); add 1 to every category id in the file"
        for i in sorted(categories)
        if i < 1 and used[i]
    ]
    if problems:
        raise DataError(*problems)
    return {i: categories[i] for i in sorted(categories) if i >= 1}


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


def _id_text(value: Any) -> str:
    # Table tools write whole numbers as 17.0.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | str) else ""


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= _LARGEST else None


def _side(value: Any) -> int:
    number = _number(value)
    return int(number) if number and number >= 1 else -1


def _box_xywh(entry: Any) -> BoxXywh | None:
    box = _get(entry, "bbox")
    if not isinstance(box, list) or len(box) != 4:
        return None
    x, y, w, h = map(_number, box)
    if x is None or y is None or w is None or h is None:
        return None
    return x, y, w, h

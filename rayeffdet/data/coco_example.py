"""One image of a COCO set to the example that is stored for it."""

import errno

import numpy as np

from rayeffdet import storage
from rayeffdet.data.coco import CocoAnnotation, CocoImage, CocoSet, CocoWarning
from rayeffdet.data.decode import decode_image
from rayeffdet.data.example import Example
from rayeffdet.data.masks import draw_mask, leaves_box, mask_to_png
from rayeffdet.errors import DataError, RunError

# A box with a shorter side than this inside the picture, in pixels, is dropped.
SMALLEST_SIDE = 1.0

_SIGNATURES = {b"\xff\xd8": "jpeg", b"\x89PNG": "png", b"BM": "bmp", b"RIFF": "webp"}

_BoxXyxy = tuple[float, float, float, float]


def make_example(
    coco_set: CocoSet, index: int, *, include_masks: bool
) -> tuple[Example | None, list[CocoWarning]]:
    """Returns the example of one image and what was left out of it; None without a usable image.

    Boxes are pixels of the upright picture (EXIF orientation applied), whose real size is stored
    whatever the annotation file says. They are stored unclipped, as TAO does.

    Args:
        coco_set: As read.
        index: Position in ``coco_set.images``.
        include_masks: Draw the segmentations too; an unusable one becomes an empty mask.

    Raises:
        RunError: The storage fails in another way than by lacking the file.
    """
    image = coco_set.images[index]
    path = storage.join(coco_set.image_dir, image.file_name)
    try:
        encoded = _read_image(path)
        width, height = decode_image(encoded, where=path).size
    except DataError as error:
        return None, [CocoWarning(image.id, None, "image", str(error))]
    objects, warnings = _usable_objects(coco_set, image, height, width)
    warnings = _size_warnings(image, height, width, path) + warnings
    masks: tuple[bytes, ...] = ()
    if include_masks:
        masks, mask_warnings = _draw_masks(image, objects, height, width)
        warnings += mask_warnings
    example = Example(
        source_id=image.id,
        filename=image.file_name,
        encoded=encoded,
        format=next(name for start, name in _SIGNATURES.items() if encoded.startswith(start)),
        height=height,
        width=width,
        boxes_xyxy=np.array([_xyxy(a) for a in objects], np.float32).reshape(-1, 4),
        labels=np.array([a.category_id for a in objects], np.int64),
        class_names=tuple(coco_set.categories[a.category_id] for a in objects),
        is_crowd=np.array([a.is_crowd for a in objects], bool),
        areas=np.array([a.area for a in objects], np.float32),
        masks=masks,
    )
    return example, warnings


def _read_image(path: str) -> bytes:
    try:
        return storage.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: no such image, or not readable") from error
    except ValueError as error:
        raise DataError(f"{path!r}: not a possible file name") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(f"{path}: not a possible file name") from error
        raise RunError(f"{path}: cannot be read: {error}; run the same command again") from error


def _size_warnings(image: CocoImage, height: int, width: int, path: str) -> list[CocoWarning]:
    if image.height in (height, -1) and image.width in (width, -1):
        return []
    text = (
        f"{path}: the upright picture is {width} x {height}, the annotation file says"
        f" {image.width} x {image.height}; boxes are taken as pixels of the picture"
    )
    return [CocoWarning(image.id, None, "size", text)]


def _usable_objects(
    coco_set: CocoSet, image: CocoImage, height: int, width: int
) -> tuple[list[CocoAnnotation], list[CocoWarning]]:
    usable, warnings = [], []
    for annotation in coco_set.annotations.get(image.id, ()):
        x1, y1, x2, y2 = _xyxy(annotation)
        inside = min(min(x2, width) - max(x1, 0.0), min(y2, height) - max(y1, 0.0))
        if inside >= SMALLEST_SIDE:
            usable.append(annotation)
            continue
        box = ", ".join(f"{value:g}" for value in annotation.box_xywh)
        text = (
            f"{image.file_name}: annotation {annotation.id}: box [{box}] (x, y, width, height) has"
            f" a side below {SMALLEST_SIDE:g} px inside the {width} x {height} picture"
        )
        warnings.append(CocoWarning(image.id, annotation.id, "box", text))
    return usable, warnings


def _draw_masks(
    image: CocoImage, objects: list[CocoAnnotation], height: int, width: int
) -> tuple[tuple[bytes, ...], list[CocoWarning]]:
    masks, warnings = [], []
    for annotation in objects:
        mask = draw_mask(annotation.segmentation, height=height, width=width)
        fault = ""
        if mask is None:
            mask, fault = np.zeros((height, width), np.uint8), "has no usable segmentation"
        elif leaves_box(mask, _xyxy(annotation)):
            fault = "has a mask that leaves its box by more than 1 px"
        if fault:
            text = f"{image.file_name}: annotation {annotation.id}: {fault}"
            warnings.append(CocoWarning(image.id, annotation.id, "mask", text))
        masks.append(mask_to_png(mask))
    return tuple(masks), warnings


def _xyxy(annotation: CocoAnnotation) -> _BoxXyxy:
    x, y, w, h = annotation.box_xywh
    return x, y, x + w, y + h

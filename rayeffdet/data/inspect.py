"""What each image of a split holds, before any training: its boxes at the network's input."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from rayeffdet import storage
from rayeffdet.data.coco import CocoSet
from rayeffdet.data.decode import decode_image, image_size
from rayeffdet.data.example import Example, decode_example
from rayeffdet.data.index import ShardIndex, category_problems
from rayeffdet.data.tfrecord import iterate_records
from rayeffdet.errors import DataError

FACTS = np.dtype(
    [
        ("content", "u8"),  # digest of the image's bytes
        ("labelled", "u8"),  # digest of id, labels and boxes; 0 without boxes
        ("num_boxes", "i4"),  # that training may use
        ("num_flat", "i4"),  # without area inside the picture
        ("num_vanishing", "i4"),  # under 1 px a side at the input
        ("num_small", "i4"),  # larger, but smaller than a cell of the finest level
        ("is_resized", "?"),  # the record gives another size than the image has
    ]
)


@dataclass(frozen=True)
class BoxLimits:
    """What boxes are measured against.

    Args:
        size_hw: Height and width of the network's input in pixels.
        cell: Side of a cell of the finest level in input pixels.
        skip_crowd: Crowd boxes are not trained on.
    """

    size_hw: tuple[int, int]
    cell: int
    skip_crowd: bool


@dataclass(frozen=True)
class ImageFacts:
    """One row an image, in the order of the records.

    Args:
        ids: Source ids.
        table: Of type :data:`FACTS`.
        broken: A sentence for each image that was decoded in vain.
    """

    ids: tuple[str, ...]
    table: NDArray[np.void]
    broken: tuple[str, ...] = ()

    def ids_where(self, rows: NDArray[np.bool_]) -> list[str]:
        """Returns the ids of the rows for which a condition holds."""
        return [self.ids[i] for i in np.flatnonzero(rows)]


def inspect_shard(path: str, *, limits: BoxLimits, decode_every: int) -> ImageFacts:
    """Returns the facts of a shard that was indexed without problems.

    Args:
        path: Path or URI.
        limits: What boxes are measured against.
        decode_every: Of so many images one is decoded; of the others only the header is read.

    Raises:
        DataError: A record cannot be read.
    """
    ids, rows = [], []
    broken: list[str] = []
    for number, (offset, payload) in enumerate(iterate_records(path)):
        where = f"{path}: offset {offset}"
        example = decode_example(payload, where=where)
        size = (example.height, example.width)
        try:
            size = image_size(example.encoded, where=where)
            if number % decode_every == 0:
                decode_image(example.encoded, where=where)
        except DataError as error:
            broken.extend(error.problems)
        ids.append(example.source_id)
        rows.append(
            (
                _digest(example.encoded),
                _labelled(example),
                *_measure(
                    example.boxes_xyxy,
                    example.is_crowd,
                    size_hw=(example.height, example.width),
                    limits=limits,
                ),
                size != (example.height, example.width),
            )
        )
    return ImageFacts(tuple(ids), np.array(rows, FACTS), tuple(broken))


def inspect_coco(coco_set: CocoSet, *, limits: BoxLimits) -> ImageFacts:
    """Returns the facts of a set that is not converted yet; the image files are not read."""
    rows = []
    for image in coco_set.images:
        objects = coco_set.annotations.get(image.id, ())
        boxes_xywh = np.array([a.box_xywh for a in objects], np.float32).reshape(-1, 4)
        boxes_xyxy = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], 1)
        is_sized = min(image.height, image.width) > 0
        measured = _measure(
            boxes_xyxy,
            np.array([a.is_crowd for a in objects], bool),
            size_hw=(image.height, image.width) if is_sized else limits.size_hw,
            limits=limits,
        )
        path = storage.join(coco_set.image_dir, image.file_name)
        rows.append((_digest(path.encode()), 0, *measured, False))
    return ImageFacts(tuple(image.id for image in coco_set.images), np.array(rows, FACTS))


def index_coco(coco_set: CocoSet, *, num_classes: int) -> ShardIndex:
    """Returns the index of a set that is not converted yet; offsets are places in its images."""
    path, objects = coco_set.annotations_file, coco_set.annotations.values()
    counts = Counter(a.category_id for annotations in objects for a in annotations)
    return ShardIndex(
        path,
        offsets=np.arange(len(coco_set.images)),
        class_counts=dict(counts),
        class_names={i: coco_set.categories[i] for i in counts},
        most_boxes=max(map(len, objects), default=0),
        problems=tuple(category_problems(path, counts, num_classes=num_classes)),
    )


def join_facts(parts: Sequence[ImageFacts]) -> ImageFacts:
    """Returns the facts of all parts in their order."""
    return ImageFacts(
        ids=tuple(image_id for part in parts for image_id in part.ids),
        table=np.concatenate([np.empty(0, FACTS), *(part.table for part in parts)]),
        broken=tuple(sentence for part in parts for sentence in part.broken),
    )


def _measure(
    boxes_xyxy: NDArray[np.float32],
    is_crowd: NDArray[np.bool_],
    *,
    size_hw: tuple[int, int],
    limits: BoxLimits,
) -> Iterable[int]:
    """Returns the numbers of boxes in all, flat, vanishing and small; letterboxed, not varied."""
    height, width = size_hw
    if limits.skip_crowd:
        boxes_xyxy = boxes_xyxy[~is_crowd]
    clipped = np.clip(boxes_xyxy, 0, np.array((width, height, width, height), np.float32))
    zoom = min(limits.size_hw[0] / height, limits.size_hw[1] / width)
    sides = (clipped[:, 2:] - clipped[:, :2]) * zoom
    flat = (sides <= 0).any(axis=1)
    vanishing = ~flat & (sides < 1).any(axis=1)
    small = ~flat & ~vanishing & (sides < limits.cell).all(axis=1)
    return len(boxes_xyxy), int(flat.sum()), int(vanishing.sum()), int(small.sum())


def _labelled(example: Example) -> int:
    if not len(example.labels):
        return 0
    size = np.array((example.width, example.height) * 2)
    # Thousandths, so that a resized copy counts as the same.
    places = np.rint(example.boxes_xyxy / size * 1000).astype(np.int32)
    return _digest(example.source_id.encode() + example.labels.tobytes() + places.tobytes())


def _digest(data: bytes | memoryview) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest())

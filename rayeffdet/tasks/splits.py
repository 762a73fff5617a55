"""One split as a check sees it: its shards or, before conversion, what they will be made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np

from rayeffdet import storage
from rayeffdet.data.coco import CocoSet, CocoWarning, read_coco
from rayeffdet.data.coco_example import make_example
from rayeffdet.data.convert import shard_name
from rayeffdet.data.doubts import some
from rayeffdet.data.example import decode_example
from rayeffdet.data.index import RecordIndex, find_shards, join_shards
from rayeffdet.data.inspect import (
    BoxLimits,
    ImageFacts,
    index_coco,
    inspect_coco,
    inspect_shard,
    join_facts,
)
from rayeffdet.data.loader import Row
from rayeffdet.data.tfrecord import read_records
from rayeffdet.distributed.scatter import scatter
from rayeffdet.errors import DataError
from rayeffdet.tasks.context import Context
from rayeffdet.tasks.dataset_convert import sources
from rayeffdet.tasks.train import index_split

# Images of a split that are decoded; of the others only the header is read.
DECODED = 256


@dataclass(frozen=True)
class Split:
    """What a split holds.

    Args:
        index: Of its records; of a split that is not converted yet, of its listed images.
        facts: Of its images.
        coco_sets: What it will be made from, by annotation file; empty once it is converted.
        warnings: What conversion will leave out.
    """

    index: RecordIndex
    facts: ImageFacts
    coco_sets: dict[str, CocoSet]
    warnings: tuple[str, ...] = ()


def read_split(context: Context, patterns: Sequence[str], *, limits: BoxLimits) -> Split:
    """Returns what the shards hold or, while there are none, what they will be made from.

    Raises:
        DataError: Shards or annotation files are missing or cannot be used.
    """
    try:
        find_shards(patterns)
    except DataError:
        coco_sets = _coco_sets(context, patterns)
        if not coco_sets:
            raise
        return _unconverted(coco_sets, limits=limits, num_classes=context.spec.dataset.num_classes)
    index = index_split(context, patterns)
    every = max(1, index.num_records // DECODED)
    calls = [{"path": s.path, "limits": limits, "decode_every": every} for s in index.shards]
    found = dict(scatter(inspect_shard, calls, num_cpus=0.5))
    return Split(index, join_facts([found[i] for i in range(len(calls))]), coco_sets={})


def read_rows(split: Split, records: Sequence[int]) -> list[Row]:
    """Returns records by number; an image that conversion would leave out is left out here too.

    Raises:
        DataError: A record cannot be read.
    """
    rows: list[Row] = []
    for position, (path, offset) in enumerate(split.index.locate(records)):
        if path in split.coco_sets:
            example, _ = make_example(split.coco_sets[path], offset, include_masks=False)
            where = f"{path}: images[{offset}]"
        else:
            where = f"{path}: offset {offset}"
            example = decode_example(read_records(path, [offset])[0], where=where)
        if example is not None:
            rows.append((where, position, example))
    return rows


def _coco_sets(context: Context, patterns: Sequence[str]) -> list[CocoSet]:
    """Reads the sets of dataset_convert whose shards the patterns would find."""
    convert, folder = context.spec.dataset_convert, context.spec.task_dir("dataset_convert")
    if not (convert.splits or convert.synthetic or convert.annotations_file):
        return []
    wanted = []
    for source in sources(context, folder):
        shard = storage.join(folder, shard_name(source.tag, 0, convert.num_shards))
        if any(pattern == folder or fnmatch(shard, pattern) for pattern in patterns):
            wanted.append(source)
    return [read_coco(s.annotations_file, s.image_dir, keep_masks=False) for s in wanted]


def _unconverted(coco_sets: list[CocoSet], *, limits: BoxLimits, num_classes: int) -> Split:
    return Split(
        index=join_shards([index_coco(one, num_classes=num_classes) for one in coco_sets]),
        facts=join_facts([inspect_coco(one, limits=limits) for one in coco_sets]),
        coco_sets={one.annotations_file: one for one in coco_sets},
        warnings=tuple(text for one in coco_sets for text in _conversion_warnings(one)),
    )


def _conversion_warnings(coco_set: CocoSet) -> list[str]:
    """Says what conversion will leave out, from all entries and a sample of the images."""
    count = min(DECODED, len(coco_set.images))
    sample = np.linspace(0, len(coco_set.images) - 1, count).round().astype(int).tolist()
    seen: list[CocoWarning] = []
    num_usable = 0
    for index in sample:
        example, warnings = make_example(coco_set, index, include_masks=False)
        num_usable += example is not None
        seen.extend(warnings)
    if not num_usable:
        raise DataError(
            f"{coco_set.annotations_file}: not one of {count} images can be used;"
            f" {seen[0].text}; is {coco_set.image_dir} the right image folder?"
        )
    entries, images = [w.text for w in coco_set.warnings], [w.text for w in seen]
    return [
        f"{coco_set.annotations_file}: {what}: {len(texts):,}: {some(texts)}"
        for texts, what in (
            (entries, "entries that cannot be used"),
            (images, f"doubts about a sample of {count} images"),
        )
        if texts
    ]

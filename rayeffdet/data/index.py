"""What is in the shards: where each record lies, its classes, and whether it can be read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rayeffdet import storage
from rayeffdet.data.example import decode_example
from rayeffdet.data.tfrecord import iterate_records
from rayeffdet.errors import DataError

# One wrong dataset.num_classes is a problem of every shard.
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class ShardIndex:
    """One shard, read once from end to end with its checksums.

    Args:
        path: Path or URI of the shard.
        offsets: int64 [records], the byte (of the uncompressed stream) where each record starts.
        class_counts: Boxes of each category id.
        class_names: Name of each category id, as far as the records say it.
        most_boxes: The largest number of boxes in one image.
        problems: What is wrong with its records, one sentence each; such a shard cannot be used.
    """

    path: str
    offsets: np.ndarray
    class_counts: dict[int, int]
    class_names: dict[int, str]
    most_boxes: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecordIndex:
    """All shards of a split; records are numbered through the shards in order."""

    shards: tuple[ShardIndex, ...]
    shard_sizes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shard_sizes", tuple(len(s.offsets) for s in self.shards))

    @property
    def num_records(self) -> int:
        """Images of the split."""
        return sum(self.shard_sizes)

    @property
    def num_boxes(self) -> int:
        """Boxes of the split, crowds included."""
        return sum(self.class_counts.values())

    @property
    def class_counts(self) -> dict[int, int]:
        """Boxes of each category id."""
        total: Counter[int] = Counter()
        for shard in self.shards:
            total.update(shard.class_counts)
        return dict(sorted(total.items()))

    @property
    def class_names(self) -> dict[int, str]:
        """Name of each category id."""
        names: dict[int, str] = {}
        for shard in self.shards:
            names.update(shard.class_names)
        return dict(sorted(names.items()))

    def locate(self, records: Sequence[int]) -> list[tuple[str, int]]:
        """Returns path and offset of each record number."""
        ends = np.cumsum(self.shard_sizes)
        numbers = np.asarray(records, np.int64)
        shards = np.searchsorted(ends, numbers, side="right")
        inside = numbers - (ends - self.shard_sizes)[shards]
        return [
            (self.shards[shard].path, int(self.shards[shard].offsets[i]))
            for shard, i in zip(shards.tolist(), inside.tolist(), strict=True)
        ]


def find_shards(patterns: Sequence[str]) -> list[str]:
    """Returns the shards that the patterns name; a folder means its ``*.tfrecord`` files.

    Raises:
        DataError: A pattern matches nothing.
    """
    shards: list[str] = []
    problems = []
    for pattern in patterns:
        found = storage.glob(pattern)
        if not any(mark in pattern for mark in "*?[") and found != [pattern]:
            found = [path for path in found if path.endswith(".tfrecord")]
        if not found:
            problems.append(f"{pattern}: no such TFRecord file; run dataset_convert first?")
        shards.extend(found)
    if problems:
        raise DataError(*problems)
    return shards


def index_shard(path: str, *, num_classes: int) -> ShardIndex:
    """Reads a shard once and returns what is in it; a fault ends up in ``problems``.

    Args:
        path: Path or URI.
        num_classes: ``dataset.num_classes``: ids 1 to num_classes - 1 are allowed.
    """
    offsets: list[int] = []
    counts: Counter[int] = Counter()
    names: dict[int, str] = {}
    most_boxes = 0
    problems: list[str] = []
    try:
        for offset, payload in iterate_records(path):
            example = decode_example(payload, where=f"{path}: offset {offset}")
            offsets.append(offset)
            labels = example.labels.tolist()
            counts.update(labels)
            names.update(zip(labels, example.class_names, strict=True))
            most_boxes = max(most_boxes, len(labels))
    except DataError as error:
        problems.extend(error.problems)
    problems += category_problems(path, counts, num_classes=num_classes)
    return ShardIndex(
        path, np.array(offsets, np.int64), dict(counts), names, most_boxes, tuple(problems)
    )


def category_problems(path: str, counts: Mapping[int, int], *, num_classes: int) -> list[str]:
    """Returns a sentence for each category id, counted in a file, that is not allowed."""
    return [
        f"{path}: category id {label} ({counts[label]} boxes) is not in 1..{num_classes - 1};"
        f" dataset.num_classes must be the largest id + 1"
        for label in sorted(counts)
        if not 1 <= label < num_classes
    ]


def join_shards(shards: Sequence[ShardIndex]) -> RecordIndex:
    """Returns the index of a split.

    Raises:
        DataError: The problems of the shards, the first of very many, or a split without records.
    """
    problems = [problem for shard in shards for problem in shard.problems]
    if len(problems) > SHOWN_PROBLEMS:
        rest = len(problems) - SHOWN_PROBLEMS
        problems[SHOWN_PROBLEMS:] = [f"and {rest} more problems like these in {len(shards)} shards"]
    if problems:
        raise DataError(*problems)
    index = RecordIndex(tuple(shards))
    if not index.num_records:
        raise DataError(f"{', '.join(s.path for s in shards)}: no records in these shards")
    return index

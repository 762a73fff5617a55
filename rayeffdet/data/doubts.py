"""What is doubtful about a data set, in sentences for people."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from rayeffdet.data.index import RecordIndex
from rayeffdet.data.inspect import BoxLimits, ImageFacts

# Names that a sentence lists.
SHOWN = 5
# A share of images without boxes, or of hardly visible boxes, that is worth a word.
MUCH = 0.2


def some(names: Sequence[object]) -> str:
    """Returns the first names and how many more there are."""
    shown = ", ".join(map(str, names[:SHOWN]))
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN:,} more"


def box_doubts(name: str, facts: ImageFacts, *, limits: BoxLimits) -> list[str]:
    """Returns sentences on images without boxes, and on boxes that cannot be learned.

    Args:
        name: Of the split.
        facts: Of its images.
        limits: What the facts were measured against.
    """
    table, (height, width) = facts.table, limits.size_hw
    total = max(1, int(table["num_boxes"].sum()))
    doubts = []

    def count(column: str, text: str, consequence: str) -> None:
        if number := int(table[column].sum()):
            ids = facts.ids_where(table[column] > 0)
            doubts.append(f"{name}: {text}: {number:,} (images {some(ids)}); {consequence}")

    empty = facts.ids_where(table["num_boxes"] == 0)
    if len(empty) > MUCH * len(facts.ids):
        doubts.append(
            f"{name}: images without boxes: {len(empty):,} of {len(facts.ids):,} ({some(empty)});"
            " they count as background"
        )
    count("num_flat", "boxes without area inside their picture", "they are left out")
    count(
        "num_vanishing",
        f"boxes with a side under 1 px at the input of {width} x {height}",
        "they are left out, a larger input keeps them",
    )
    if (small := int(table["num_small"].sum())) > MUCH * total:
        doubts.append(
            f"{name}: {small / total:.0%} of the boxes are smaller than {limits.cell} px at the"
            f" input of {width} x {height}, one cell of the finest level; such objects are hardly"
            " found: use a larger input"
        )
    count("is_resized", "records whose size is not that of their image", "boxes are misplaced")
    return doubts


def crowding_doubts(name: str, facts: ImageFacts, *, max_instances: int) -> list[str]:
    """Returns a sentence if images have more boxes than ``dataset.max_instances_per_image``."""
    numbers = facts.table["num_boxes"]
    excess = int(np.maximum(0, numbers - max_instances).sum())
    if not excess:
        return []
    ids = facts.ids_where(numbers > max_instances)
    return [
        f"{name}: images with more than dataset.max_instances_per_image {max_instances} boxes:"
        f" {len(ids):,} ({some(ids)}); of their boxes {excess:,} are left out, {numbers.max()}"
        " keeps all"
    ]


def class_doubts(
    train: RecordIndex, val: RecordIndex, *, num_classes: int, names: Mapping[int, str]
) -> list[str]:
    """Returns sentences on classes that a split does not show, and on ``dataset.num_classes``.

    Args:
        train: Training records.
        val: Validation records.
        num_classes: As in the spec, the background included.
        names: Name of every category id.
    """
    if not train.class_counts:
        return ["train: no image has a box: there is nothing to learn"]
    largest = max([*train.class_counts, *val.class_counts])
    doubts = []
    if largest < num_classes - 1:
        doubts.append(
            f"dataset.num_classes is {num_classes}, the largest category id with a box is"
            f" {largest}: {largest + 1} is enough, and no box has the ids above"
        )

    def lacking(name: str, ids: list[int], consequence: str) -> None:
        if ids:
            listed = some([f"{i} ({names[i]})" for i in ids])
            doubts.append(f"{name}: classes without boxes: {listed}; {consequence}")

    unseen = [i for i in range(1, largest + 1) if i not in train.class_counts]
    lacking("train", unseen, "the network cannot learn them")
    lacking("val", [i for i in train.class_counts if i not in val.class_counts], "they get no AP")
    return doubts


def leaked_ids(train: ImageFacts, val: ImageFacts) -> list[str]:
    """Returns the validation images that are trained on: by their bytes, or by id and boxes."""
    leaked = np.isin(val.table["content"], train.table["content"])
    labelled = val.table["labelled"]
    return val.ids_where(leaked | (labelled != 0) & np.isin(labelled, train.table["labelled"]))


def repeated_images(name: str, facts: ImageFacts) -> list[str]:
    """Returns a sentence for images that are in a split more than once, by their bytes."""
    _, first = np.unique(facts.table["content"], return_index=True)
    again = np.ones(len(facts.ids), bool)
    again[first] = False
    ids = facts.ids_where(again)
    return [f"{name}: images that repeat an earlier one: {len(ids):,} ({some(ids)})"] if ids else []


def repeated_ids(name: str, ids: Sequence[str]) -> list[str]:
    """Returns a sentence for source ids on several records, which evaluation cannot tell apart."""
    repeated = [image_id for image_id, count in Counter(ids).items() if count > 1]
    if not repeated:
        return []
    return [
        f"{name}: source ids on more than one record: {len(repeated):,} ({some(repeated)});"
        " evaluation needs each image once"
    ]

"""The part of a check that is about data: both splits, each and against each other."""

from collections.abc import Mapping, Sequence
from typing import Any

from rayeffdet import storage
from rayeffdet.data.doubts import (
    box_doubts,
    class_doubts,
    crowding_doubts,
    leaked_ids,
    repeated_ids,
    repeated_images,
    some,
)
from rayeffdet.data.inspect import BoxLimits
from rayeffdet.errors import DataError
from rayeffdet.tasks.context import Context
from rayeffdet.tasks.findings import Findings
from rayeffdet.tasks.splits import Split, read_split
from rayeffdet.train.build import input_size

# Images of a split that cannot be decoded and are named.
SHOWN_BROKEN = 20


def inspect_splits(context: Context, findings: Findings) -> dict[str, Split]:
    """Returns the splits that can be read; adds to the findings what is wrong or doubtful."""
    dataset, model = context.spec.dataset, context.spec.model
    limits = BoxLimits(
        size_hw=input_size(context.spec),
        cell=2**model.min_level,
        skip_crowd=dataset.skip_crowd_during_training,
    )
    splits: dict[str, Split] = {}
    patterns = {"train": dataset.train_tfrecords, "val": dataset.val_tfrecords}
    for name in patterns:
        with findings.collect():
            splits[name] = split = read_split(context, patterns[name], limits=limits)
            findings.facts[name] = _say_split(context, name, split)
            findings.warnings += split.warnings
            findings.warnings += box_doubts(name, split.facts, limits=limits)
            findings.warnings += repeated_images(name, split.facts)
            _refuse_broken(name, split.facts.broken)
    if "train" in splits:
        findings.warnings += crowding_doubts(
            "train", splits["train"].facts, max_instances=dataset.max_instances_per_image
        )
    with findings.collect():
        _refuse_unfit_truth(context, splits.get("val"))
    if len(splits) == len(patterns):
        _compare(context, findings, splits)
    return splits


def _say_split(context: Context, name: str, split: Split) -> dict[str, Any]:
    index, table, ids_where = split.index, split.facts.table, split.facts.ids_where
    boxes = {index.class_names[i]: count for i, count in index.class_counts.items()}
    empty, most = ids_where(table["num_boxes"] == 0), int(table["num_boxes"].max(initial=0))
    source = f"{len(index.shards)} shards"
    if split.coco_sets:
        source = f"not converted yet: read from {', '.join(split.coco_sets)}"
    listed = ", ".join(f"{label} {count:,}" for label, count in boxes.items())
    text = (
        f"{index.num_records:,} images, {index.num_boxes:,} boxes ({listed}), {len(empty):,} images"
        f" without boxes, at most {most} in one · {source}"
    )
    context.console.rows([(name, text)])
    return {
        "num_images": index.num_records,
        "num_boxes": index.num_boxes,
        "boxes_per_class": boxes,
        "most_boxes_per_image": most,
        "converted": not split.coco_sets,
        "image_ids": {
            "without_boxes": empty,
            "flat_boxes": ids_where(table["num_flat"] > 0),
            "vanishing_boxes": ids_where(table["num_vanishing"] > 0),
            "other_size_than_recorded": ids_where(table["is_resized"]),
        },
    }


def _refuse_broken(name: str, broken: Sequence[str]) -> None:
    more = len(broken) - SHOWN_BROKEN
    if broken:
        rest = [f"{name}: {more:,} more images cannot be decoded"] if more > 0 else []
        raise DataError(*broken[:SHOWN_BROKEN], *rest)


def _refuse_unfit_truth(context: Context, val: Split | None) -> None:
    """Refuses what evaluation would refuse after the first epochs."""
    path, problems = context.spec.dataset.val_json_file, []
    if path and not storage.exists(path):
        problems.append(f"{path}: there is no such file (dataset.val_json_file)")
    if val is not None:
        problems += repeated_ids("val", val.facts.ids[: context.spec.evaluate.num_samples])
    if problems:
        raise DataError(*problems)


def _compare(context: Context, findings: Findings, splits: Mapping[str, Split]) -> None:
    train, val = splits["train"], splits["val"]
    num_classes = context.spec.dataset.num_classes
    names = {i: f"class {i}" for i in range(1, num_classes)}
    names |= train.index.class_names | val.index.class_names
    findings.warnings += class_doubts(train.index, val.index, num_classes=num_classes, names=names)
    findings.facts["leaked_image_ids"] = leaked = leaked_ids(train.facts, val.facts)
    if leaked:
        findings.warnings.append(
            f"val: images that are trained on too: {len(leaked):,} of {len(val.facts.ids):,}"
            f" ({some(leaked)}), by their bytes or by id and boxes; AP will be too high"
        )

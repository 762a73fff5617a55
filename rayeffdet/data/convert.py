"""COCO sets to TFRecord shards, one shard at a time, resumable and with a full account.

:func:`convert_shard` is a pure function of its arguments and the files behind them, so that shards
can be made anywhere, in any order, and again. Next to each finished shard lies a report
(``.<shard>.json``); with it a later run takes the shard as done. Whoever has collected the reports
of all shards in a manifest removes them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from fsspec.core import url_to_fs

from rayeffdet import storage
from rayeffdet.data.coco import CocoSet, CocoWarning, read_coco
from rayeffdet.data.coco_example import make_example
from rayeffdet.data.example import encode_example
from rayeffdet.data.tfrecord import write_shard
from rayeffdet.errors import DataError


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What is in a finished shard; a JSON document through :func:`dataclasses.asdict`.

    Attributes:
        tag: Name of the set.
        shard: Number of the shard.
        num_shards: Of the set.
        name: File name of the shard.
        source: Digest of what the shard was made from; equal sources make equal shards.
        categories: Name of each category id (as text, since JSON has no other keys).
        num_images: Images in the shard, with or without objects.
        num_skipped: Images listed for it that could not be used.
        boxes_per_class: Boxes of each category id (as text); a class without any has 0.
        num_bytes: Size of the file.
        sha256: Hex digest of the file.
        warnings: What was left out; shard 0 also has those of the annotation file itself.
    """

    tag: str
    shard: int
    num_shards: int
    name: str
    source: str
    categories: dict[str, str]
    num_images: int
    num_skipped: int
    boxes_per_class: dict[str, int]
    num_bytes: int
    sha256: str
    warnings: tuple[CocoWarning, ...]


def shard_name(tag: str, shard: int, num_shards: int) -> str:
    """Returns the file name of a shard."""
    return f"{tag}-{shard:05d}-of-{num_shards:05d}.tfrecord"


def shard_pattern(tag: str) -> str:
    """Returns the glob of a tag's shards; it does not match those of a longer tag."""
    return f"{tag}-?????-of-?????.tfrecord"


def report_name(tag: str, shard: int, num_shards: int) -> str:
    """Returns the file name of a finished shard's report."""
    return f".{shard_name(tag, shard, num_shards)}.json"


def source_digest(annotations_file: str, image_dir: str, *, include_masks: bool) -> str:
    """Returns a digest of what shards are made from; images changed in place are not noticed.

    Raises:
        DataError: There is no such annotation file.
    """
    return _digest([annotations_file, image_dir, _version_of(annotations_file), include_masks])


def is_converted(manifest: dict[str, Any], folder: str, *, source: str, num_shards: int) -> bool:
    """Tells whether a manifest is of this source and its shards are all there, whole."""
    shards = manifest.get("shards", [])
    return (
        manifest.get("source") == source
        and len(shards) == num_shards
        and all(
            storage.exists(path) and storage.size(path) == shard["num_bytes"]
            for shard in shards
            for path in [storage.join(folder, shard["name"])]
        )
    )


def convert_shard(
    *,
    annotations_file: str,
    image_dir: str,
    results_dir: str,
    tag: str,
    shard: int,
    num_shards: int,
    include_masks: bool,
) -> ShardReport:
    """Writes one shard (every ``num_shards``-th image) and returns what is in it.

    A shard that an earlier run finished is not written again if annotation file (by size and time),
    image folder and masks are the same; images changed in place are not noticed.

    Args:
        annotations_file: COCO instances file, path or URI.
        image_dir: Folder of its images, path or URI.
        results_dir: Folder for the shard and its report, path or URI.
        tag: Start of the shard's name.
        shard: Number of the shard, from 0.
        num_shards: Of the set.
        include_masks: Store the segmentations as PNG masks.

    Raises:
        DataError: The annotation file or the image folder is unusable.
        RunError: An image cannot be read for now, or the shard cannot be written.
    """
    assert 0 <= shard < num_shards
    version = _version_of(annotations_file)
    source = source_digest(annotations_file, image_dir, include_masks=include_masks)
    path = storage.join(results_dir, shard_name(tag, shard, num_shards))
    report_path = storage.join(results_dir, report_name(tag, shard, num_shards))
    finished = _finished_report(path, report_path, source)
    if finished is not None:
        return finished
    coco_set = _read_once(annotations_file, image_dir, include_masks, version)
    tally = _Tally(list(coco_set.warnings) if shard == 0 else [])
    images = range(shard, len(coco_set.images), num_shards)
    written = write_shard(path, _payloads(coco_set, images, include_masks, tally))
    report = ShardReport(
        tag=tag,
        shard=shard,
        num_shards=num_shards,
        name=shard_name(tag, shard, num_shards),
        source=source,
        categories={str(i): name for i, name in coco_set.categories.items()},
        num_images=written.num_records,
        num_skipped=len(images) - written.num_records,
        boxes_per_class={str(i): tally.boxes[i] for i in coco_set.categories},
        num_bytes=written.num_bytes,
        sha256=written.sha256,
        warnings=tuple(tally.warnings),
    )
    storage.write_json(report_path, asdict(report))
    return report


def build_manifest(reports: Sequence[ShardReport]) -> dict[str, Any]:
    """Returns the account of a whole set: totals, counts per class and shard, digests.

    ``num_classes`` is what ``dataset.num_classes`` has to be: the largest category id + 1.

    Raises:
        DataError: Not one image of the set could be used.
    """
    assert reports
    reports = sorted(reports, key=lambda report: report.shard)
    categories = reports[0].categories
    num_images = sum(report.num_images for report in reports)
    if not num_images:
        first = next((w.text for r in reports for w in r.warnings if w.kind == "image"), "")
        raise DataError(f"{reports[0].tag}: not one image of the set could be used; {first}")
    boxes_per_class = {
        name: sum(report.boxes_per_class[i] for report in reports) for i, name in categories.items()
    }
    return {
        "tag": reports[0].tag,
        "source": reports[0].source,
        "num_images": num_images,
        "num_skipped": sum(report.num_skipped for report in reports),
        "num_boxes": sum(boxes_per_class.values()),
        "num_classes": max(map(int, categories), default=0) + 1,
        "categories": categories,
        "boxes_per_class": boxes_per_class,
        "digest": _digest([report.sha256 for report in reports]),
        "shards": [_shard_entry(report) for report in reports],
    }


def build_warnings(reports: Iterable[ShardReport]) -> dict[str, dict[str, Any]]:
    """Returns what was left out, per image id: ``{"box": [annotation ids], "image": text, ...}``.

    Kinds that concern annotations list their ids, as TAO does; the others hold a sentence.
    """
    found: dict[str, dict[str, Any]] = {}
    for warning in (warning for report in reports for warning in report.warnings):
        kinds = found.setdefault(warning.image_id, {})
        if warning.annotation_id is not None:
            kinds.setdefault(warning.kind, []).append(warning.annotation_id)
        else:
            kinds[warning.kind] = "; ".join(filter(None, [kinds.get(warning.kind), warning.text]))
    return found


@dataclass(slots=True)
class _Tally:
    warnings: list[CocoWarning]
    boxes: Counter[int] = field(default_factory=Counter)


def _payloads(
    coco_set: CocoSet, images: Iterable[int], include_masks: bool, tally: _Tally
) -> Iterator[bytes]:
    for index in images:
        example, warnings = make_example(coco_set, index, include_masks=include_masks)
        tally.warnings += warnings
        if example is not None:
            tally.boxes.update(example.labels.tolist())
            yield encode_example(example)


def _shard_entry(report: ShardReport) -> dict[str, Any]:
    names = report.categories
    return {
        "name": report.name,
        "num_images": report.num_images,
        "num_bytes": report.num_bytes,
        "sha256": report.sha256,
        "boxes_per_class": {names[i]: n for i, n in report.boxes_per_class.items()},
    }


def _finished_report(path: str, report_path: str, source: str) -> ShardReport | None:
    if not storage.exists(report_path) or not storage.exists(path):
        return None
    try:
        document = storage.read_json(report_path)
        warnings = tuple(CocoWarning(**warning) for warning in document["warnings"])
        report = ShardReport(**{**document, "warnings": warnings})
    except (ValueError, TypeError, KeyError):
        return None  # Written by another version: the shard is made anew.
    is_same = report.source == source and report.num_bytes == storage.size(path)
    return report if is_same else None


def _version_of(path: str) -> str:
    try:
        filesystem, inner = url_to_fs(path)
        return f"{filesystem.size(inner)} bytes, {filesystem.modified(inner)}"
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such annotation file") from error


@lru_cache(maxsize=2)
def _read_once(annotations_file: str, image_dir: str, include_masks: bool, version: str) -> CocoSet:
    # One process makes many shards of a set; another version is another key.
    return read_coco(annotations_file, image_dir, keep_masks=include_masks)


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()

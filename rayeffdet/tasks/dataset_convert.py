"""dataset_convert: COCO json and images to TFRecord shards, a Ray task for each shard."""

from dataclasses import dataclass
from typing import Any

from rayeffdet import storage
from rayeffdet.data.convert import (
    ShardReport,
    build_manifest,
    build_warnings,
    convert_shard,
    is_converted,
    shard_pattern,
    source_digest,
)
from rayeffdet.data.synthetic import make_synthetic_set
from rayeffdet.distributed.scatter import scatter
from rayeffdet.errors import SpecError
from rayeffdet.tasks.context import Context

# Warnings shown on the terminal for each set; the file has all of them.
SHOWN_WARNINGS = 5


@dataclass(frozen=True)
class Source:
    """One set of images to convert, and the first part of its shards' names."""

    tag: str
    image_dir: str
    annotations_file: str


def run(context: Context) -> dict[str, Any]:
    """Converts every set that the spec names and returns the counts of each.

    Raises:
        DataError: A file or folder is missing, or not one image of a set can be used.
        SpecError: Two sets have one tag.
    """
    journal = context.journal("dataset_convert")
    results = {}
    for source in sources(context, journal.folder):
        results[source.tag] = _convert(context, source, journal.folder)
    objects = {tag: manifest["boxes_per_class"] for tag, manifest in results.items()}
    journal.status("SUCCESS", "Conversion finished.", categorical={"num_objects": objects})
    journal.log(context.console.take_log())
    return {
        tag: {key: manifest[key] for key in ("num_images", "num_boxes", "num_classes")}
        for tag, manifest in results.items()
    }


def sources(context: Context, folder: str) -> list[Source]:
    """Returns the sets that the spec names; a synthetic one is drawn into the folder.

    Raises:
        SpecError: Two sets have one tag, or a set cannot be drawn at a URI.
    """
    convert = context.spec.dataset_convert
    found = [
        Source(tag, split.image_dir, split.annotations_file)
        for tag, split in convert.splits.items()
    ]
    if convert.annotations_file:
        stem = convert.annotations_file.rsplit("/", 1)[-1].removesuffix(".json")
        found.append(Source(convert.tag or stem, convert.image_dir, convert.annotations_file))
    if convert.synthetic is not None:
        found += _draw(context, storage.join(folder, "synthetic"))
    tags = [source.tag for source in found]
    if len(set(tags)) < len(tags):
        raise SpecError(f"dataset_convert: two sets have one tag: {', '.join(tags)}")
    return found


def _draw(context: Context, folder: str) -> list[Source]:
    """Draws the synthetic set, unless the same one is there already."""
    synthetic = context.spec.dataset_convert.synthetic
    assert synthetic is not None
    if storage.is_uri(folder):
        raise SpecError("dataset_convert.synthetic: needs a results_dir on a local disk")
    wanted, mark = synthetic.model_dump(), storage.join(folder, "drawn.json")
    is_drawn = storage.exists(mark) and storage.read_json(mark) == wanted
    counts = {"train": synthetic.num_train, "val": synthetic.num_val}
    found = []
    for tag, num_images in counts.items():
        if not is_drawn:
            make_synthetic_set(folder, num_images=num_images, seed=synthetic.seed, split=tag)
            context.console.say(f"drawn    {num_images} images in {storage.join(folder, tag)}")
        annotations = storage.join(folder, "annotations", f"instances_{tag}.json")
        found.append(Source(tag, storage.join(folder, tag), annotations))
    storage.write_json(mark, wanted)
    return found


def _convert(context: Context, source: Source, folder: str) -> dict[str, Any]:
    console, convert = context.console, context.spec.dataset_convert
    manifest_path = storage.join(folder, f"{source.tag}_manifest.json")
    digest = source_digest(
        source.annotations_file, source.image_dir, include_masks=convert.include_masks
    )
    if storage.exists(manifest_path):
        earlier: dict[str, Any] = storage.read_json(manifest_path)
        if is_converted(earlier, folder, source=digest, num_shards=convert.num_shards):
            console.say(f"{source.tag:<9}already converted: {earlier['num_images']:,} images")
            return earlier
    calls = [
        {
            "annotations_file": source.annotations_file,
            "image_dir": source.image_dir,
            "results_dir": folder,
            "tag": source.tag,
            "shard": shard,
            "num_shards": convert.num_shards,
            "include_masks": convert.include_masks,
        }
        for shard in range(convert.num_shards)
    ]
    reports: list[ShardReport] = []
    with console.progress(len(calls)) as bar:
        for _, report in scatter(convert_shard, calls):
            reports.append(report)
            bar.update(len(reports), f"{source.tag}: shard {len(reports)} of {len(calls)}")
    manifest = build_manifest(reports)
    storage.write_json(manifest_path, manifest)
    _write_warnings(context, source, folder, reports)
    _remove_leftovers(source.tag, folder, manifest)
    counts = ", ".join(f"{name} {count:,}" for name, count in manifest["boxes_per_class"].items())
    console.say(
        f"{source.tag:<9}{manifest['num_images']:,} images, {manifest['num_boxes']:,} boxes"
        f" ({counts}) in {len(reports)} shards; {manifest['num_skipped']} images left out"
    )
    return manifest


def _remove_leftovers(tag: str, folder: str, manifest: dict[str, Any]) -> None:
    """Removes shards of an earlier conversion of this tag, and the reports of finished shards."""
    kept = {shard["name"] for shard in manifest["shards"]}
    for path in storage.glob(storage.join(folder, shard_pattern(tag))):
        if path.rsplit("/", 1)[-1] not in kept:
            storage.remove(path)
    for path in storage.glob(storage.join(folder, f".{shard_pattern(tag)}.json")):
        storage.remove(path)


def _write_warnings(
    context: Context, source: Source, folder: str, reports: list[ShardReport]
) -> None:
    path = storage.join(folder, f"{source.tag}_warnings.json")
    storage.write_json(path, build_warnings(reports))
    warnings = [warning for report in reports for warning in report.warnings]
    for warning in warnings[:SHOWN_WARNINGS]:
        context.console.notice(f"{source.tag}: {warning.text}")
    if len(warnings) > SHOWN_WARNINGS:
        context.console.notice(f"{source.tag}: {len(warnings)} warnings in all, in {path}")

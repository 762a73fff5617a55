"""dataset_convert: COCO json and images to TFRecord shards, a Ray task for each shard."""

from dataclasses import dataclass
from typing import Any

from rayeffdet import storage
from rayeffdet.data.convert import (
    ShardReport,
    build_manifest,
    build_warnings,
    convert_shard,
    report_name,
)
from rayeffdet.data.synthetic import make_synthetic_set
from rayeffdet.distributed.scatter import scatter
from rayeffdet.errors import SpecError
from rayeffdet.tasks.context import Context

# Warnings shown on the terminal for each set; the file has all of them.
SHOWN_WARNINGS = 5


@dataclass(frozen=True)
class _Source:
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
    for source in _sources(context, journal.folder):
        results[source.tag] = _convert(context, source, journal.folder)
    objects = {tag: manifest["boxes_per_class"] for tag, manifest in results.items()}
    journal.status("SUCCESS", "Conversion finished.", categorical={"num_objects": objects})
    journal.log(context.console.take_log())
    return {
        tag: {key: manifest[key] for key in ("num_images", "num_boxes", "num_classes")}
        for tag, manifest in results.items()
    }


def _sources(context: Context, folder: str) -> list[_Source]:
    convert = context.spec.dataset_convert
    sources = [
        _Source(tag, split.image_dir, split.annotations_file)
        for tag, split in convert.splits.items()
    ]
    if convert.annotations_file:
        stem = convert.annotations_file.rsplit("/", 1)[-1].removesuffix(".json")
        sources.append(_Source(convert.tag or stem, convert.image_dir, convert.annotations_file))
    if convert.synthetic is not None:
        made = storage.join(folder, "synthetic")
        if storage.is_uri(made):
            raise SpecError("dataset_convert.synthetic: needs a results_dir on a local disk")
        counts = {"train": convert.synthetic.num_train, "val": convert.synthetic.num_val}
        for tag, num_images in counts.items():
            seed = convert.synthetic.seed
            annotations = make_synthetic_set(made, num_images=num_images, seed=seed, split=tag)
            sources.append(_Source(tag, storage.join(made, tag), annotations))
            context.console.say(f"drawn    {num_images} images in {storage.join(made, tag)}")
    tags = [source.tag for source in sources]
    if len(set(tags)) < len(tags):
        raise SpecError(f"dataset_convert: two sets have one tag: {', '.join(tags)}")
    return sources


def _convert(context: Context, source: _Source, folder: str) -> dict[str, Any]:
    console, convert = context.console, context.spec.dataset_convert
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
    storage.write_json(storage.join(folder, f"{source.tag}_manifest.json"), manifest)
    _write_warnings(context, source, folder, reports)
    for report in reports:
        storage.remove(
            storage.join(folder, report_name(report.tag, report.shard, report.num_shards))
        )
    counts = ", ".join(f"{name} {count:,}" for name, count in manifest["boxes_per_class"].items())
    console.say(
        f"{source.tag:<9}{manifest['num_images']:,} images, {manifest['num_boxes']:,} boxes"
        f" ({counts}) in {len(reports)} shards; {manifest['num_skipped']} images left out"
    )
    return manifest


def _write_warnings(
    context: Context, source: _Source, folder: str, reports: list[ShardReport]
) -> None:
    path = storage.join(folder, f"{source.tag}_warnings.json")
    storage.write_json(path, build_warnings(reports))
    warnings = [warning for report in reports for warning in report.warnings]
    for warning in warnings[:SHOWN_WARNINGS]:
        context.console.notice(f"{source.tag}: {warning.text}")
    if len(warnings) > SHOWN_WARNINGS:
        context.console.notice(f"{source.tag}: {len(warnings)} warnings in all, in {path}")

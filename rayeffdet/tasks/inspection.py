"""The parts of a check that need working versions: spec, data, cluster, steps, plan."""

from collections.abc import Mapping
from typing import Any

from rayeffdet import storage
from rayeffdet.console import duration
from rayeffdet.data.doubts import (
    box_doubts,
    class_doubts,
    crowding_doubts,
    leak_doubts,
    repeated_ids,
    repeated_images,
)
from rayeffdet.data.inspect import BoxLimits
from rayeffdet.data.order import records_at
from rayeffdet.distributed.cluster import WorkerPlan
from rayeffdet.distributed.trial import Trial, has_room, try_steps
from rayeffdet.errors import DataError
from rayeffdet.spec.load import validate_for
from rayeffdet.tasks.context import Context
from rayeffdet.tasks.findings import Findings
from rayeffdet.tasks.splits import Split, read_rows, read_split
from rayeffdet.tasks.train import (
    check_batches,
    compare_with_earlier,
    plan_training,
    say_plan,
    training_job,
)
from rayeffdet.train.build import build_epochs, build_shuffle, input_size
from rayeffdet.train.checkpoint_index import CheckpointIndex
from rayeffdet.train.versions import installed_versions


def inspect_run(context: Context, findings: Findings) -> None:
    """Adds to the findings what training with this spec would meet, and says the plan."""
    spec, folder = context.spec, context.spec.task_dir("train")
    done = CheckpointIndex.read(folder).last
    with findings.collect():
        validate_for(context.loaded, spec.tasks or ("train",))
    with findings.collect():
        compare_with_earlier(context, folder, resuming=done is not None)
    splits = _inspect_data(context, findings)
    plan: WorkerPlan | None = None
    with findings.collect():
        plan = plan_training(context)
        findings.warnings += _cluster_doubts(context, plan)
    if plan is None or len(splits) < 2:
        return
    with findings.collect():
        check_batches(spec, splits["train"].index, plan)
        _inspect_training(context, findings, splits, plan)


def _inspect_data(context: Context, findings: Findings) -> dict[str, Split]:
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
            if split.facts.broken:
                raise DataError(*split.facts.broken)
    with findings.collect():
        if dataset.val_json_file and not storage.exists(dataset.val_json_file):
            raise DataError(f"{dataset.val_json_file}: no such file (dataset.val_json_file)")
    if "val" in splits:
        evaluated = splits["val"].facts.ids[: context.spec.evaluate.num_samples]
        with findings.collect():
            if problems := repeated_ids("val", evaluated):
                raise DataError(*problems)
    if "train" in splits:
        findings.warnings += crowding_doubts(
            "train", splits["train"].facts, max_instances=dataset.max_instances_per_image
        )
    if len(splits) == 2:
        findings.warnings += _doubts_of_both(context, splits)
    return splits


def _doubts_of_both(context: Context, splits: Mapping[str, Split]) -> list[str]:
    train, val = splits["train"], splits["val"]
    num_classes = context.spec.dataset.num_classes
    names = {i: f"class {i}" for i in range(1, num_classes)}
    names |= train.index.class_names | val.index.class_names
    return class_doubts(train.index, val.index, num_classes=num_classes, names=names) + leak_doubts(
        train.facts, val.facts
    )


def _say_split(context: Context, name: str, split: Split) -> dict[str, Any]:
    index, numbers = split.index, split.facts.table["num_boxes"]
    names = index.class_names
    boxes = {names[i]: count for i, count in index.class_counts.items()}
    facts = {
        "num_images": index.num_records,
        "num_boxes": index.num_boxes,
        "boxes_per_class": boxes,
        "num_images_without_boxes": int((numbers == 0).sum()),
        "most_boxes_per_image": int(numbers.max(initial=0)),
        "converted": not split.coco_sets,
    }
    source = (
        f"not converted yet, read from {', '.join(split.coco_sets)}"
        if split.coco_sets
        else f"{len(index.shards)} shards"
    )
    context.console.rows(
        [
            (
                name,
                f"{index.num_records:,} images, {index.num_boxes:,} boxes"
                f" ({', '.join(f'{name} {count:,}' for name, count in boxes.items())}),"
                f" {facts['num_images_without_boxes']:,} images without boxes,"
                f" at most {facts['most_boxes_per_image']} in one · {source}",
            )
        ]
    )
    return facts


def _cluster_doubts(context: Context, plan: WorkerPlan) -> list[str]:
    cluster, doubts = context.cluster, []
    for name, has in (("CPU", cluster.num_cpus), ("GPU", cluster.num_gpus)):
        asked = plan.resources.get(name, 0.0) * plan.num_workers
        if asked > has:
            doubts.append(
                f"{plan.num_workers} workers ask for {asked:g} {name}, the cluster has {has:g} now:"
                " training waits until it has grown"
            )
    results_dir = context.spec.results_dir
    if cluster.num_nodes > 1 and not storage.is_uri(results_dir):
        doubts.append(
            f"results_dir {results_dir}: the cluster has {cluster.num_nodes} nodes, which must all"
            " see this folder; a URI such as s3://bucket/run is seen by all"
        )
    return doubts


def _inspect_training(
    context: Context, findings: Findings, splits: Mapping[str, Split], plan: WorkerPlan
) -> None:
    spec, train = context.spec, splits["train"]
    folder = spec.task_dir("train")
    job = training_job(spec, folder, train.index, splits["val"].index, plan)
    last = CheckpointIndex.read(folder).last
    epochs = build_epochs(spec, num_records=train.index.num_records, num_workers=plan.num_workers)
    findings.warnings += say_plan(context, job, last.epoch if last else spec.train.init_epoch)
    if not has_room(plan.resources):
        findings.warnings.append(
            f"no real step was taken: the cluster has no {plan.resources} free at present"
        )
        return
    positions = epochs.share(0, 0, rank=0, world_size=plan.num_workers)
    records = records_at(positions, train.index.shard_sizes, build_shuffle(spec))
    rows = read_rows(train, records)
    if not rows:
        raise DataError("train: not one image of the first batch can be used")
    trial = try_steps(job, rows, steps_per_epoch=epochs.steps)
    findings.facts["step"] = _say_trial(context, trial, len(rows), epochs.steps)
    findings.warnings += trial.notices
    here = installed_versions()
    if trial.versions != here:
        there = ", ".join(f"{k} {v}" for k, v in trial.versions.items() if here.get(k) != v)
        findings.warnings.append(f"a worker's node has other versions than this process: {there}")


def _say_trial(context: Context, trial: Trial, batch_size: int, steps: int) -> dict[str, Any]:
    # A GPU computes while the CPU decodes; on a CPU the two share the cores.
    computing, decoding = trial.seconds_per_step, trial.seconds_per_batch
    seconds = computing + decoding if trial.device == "CPU" else max(computing, decoding)
    gibibytes = trial.peak_bytes / 2**30
    of_total = f" of {trial.total_bytes / 2**30:.0f}" if trial.total_bytes else ""
    num_epochs, epoch = context.spec.train.num_epochs, seconds * steps
    context.console.rows(
        [
            (
                "step",
                f"{computing:.3g} s for {batch_size} images a worker, {decoding:.2g} s to decode"
                f" them · loss {trial.loss:.4g} · {gibibytes:.1f}{of_total} GiB on {trial.device}",
            ),
            (
                "time",
                f"about {duration(epoch)} an epoch, {duration(epoch * num_epochs)} for all"
                f" {num_epochs}, without evaluation",
            ),
        ]
    )
    return {
        "seconds_per_step": computing,
        "seconds_per_batch": decoding,
        "seconds_per_epoch": epoch,
        "peak_bytes": trial.peak_bytes,
        "loss": trial.loss,
        "device": trial.device,
    }

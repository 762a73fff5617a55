"""train: from TFRecord shards to checkpoints, on as many workers as the spec asks for."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import yaml

from rayeffdet import storage
from rayeffdet.data.index import RecordIndex, find_shards, index_shard, join_shards
from rayeffdet.distributed.cluster import WorkerPlan, plan_workers
from rayeffdet.distributed.scatter import scatter
from rayeffdet.distributed.trainer import run_training
from rayeffdet.distributed.worker import TrainingJob
from rayeffdet.errors import ClusterError, SpecError
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.spec.compare import compare_specs
from rayeffdet.spec.load import LoadedSpec
from rayeffdet.spec.root import Spec
from rayeffdet.tasks.context import Context
from rayeffdet.tasks.training_log import TrainingLog
from rayeffdet.train.build import build_architecture, build_epochs
from rayeffdet.train.checkpoint_index import CheckpointIndex

# The paper's rule: 0.08 for a global batch of 64.
PAPER_RATE_PER_IMAGE = 0.08 / 64
FAR_ABOVE = 4
READ_SECTIONS = ("dataset", "model", "train", "evaluate", "ray")


def run(context: Context) -> dict[str, Any]:
    """Trains to ``train.num_epochs`` and returns the last epoch's figures.

    Raises:
        UserError: Something in spec, data, checkpoints or cluster is wrong.
        KeyboardInterrupt: The user stopped the run.
    """
    spec, console = context.spec, context.console
    folder = spec.task_dir("train")
    done = CheckpointIndex.read(folder).last
    if done is not None and done.epoch >= spec.train.num_epochs:
        console.say(
            f"train    already finished: epoch {done.epoch} of {spec.train.num_epochs} is in"
            f" {folder}; raise train.num_epochs to go on, or choose another results_dir"
        )
        return {"epoch": done.epoch, "checkpoint": storage.join(folder, done.file), **done.metrics}
    compare_with_earlier(context, folder, resuming=done is not None)
    train_index = index_split(context, spec.dataset.train_tfrecords)
    val_index = index_split(context, spec.dataset.val_tfrecords)
    plan = plan_training(context)
    check_batches(spec, train_index, plan)

    job = training_job(spec, folder, train_index, val_index, plan)
    journal = context.journal("train")
    first_epoch = done.epoch if done is not None else spec.train.init_epoch
    for doubt in say_plan(context, job, first_epoch):
        console.notice(doubt)
    epochs = build_epochs(spec, num_records=train_index.num_records, num_workers=plan.num_workers)
    log = TrainingLog(
        console,
        journal,
        num_epochs=spec.train.num_epochs,
        steps_per_epoch=epochs.steps,
        first_epoch=first_epoch,
    )
    with log:
        run_training(
            job,
            storage_path=spec.ray.storage_path,
            max_failures=spec.ray.max_failures,
            on_event=log.on_event,
        )
    return log.result


def training_job(
    spec: Spec, folder: str, train_index: RecordIndex, val_index: RecordIndex, plan: WorkerPlan
) -> TrainingJob:
    """Returns what the workers are given."""
    return TrainingJob(
        spec=spec.to_dict(),
        folder=folder,
        train_index=train_index,
        val_index=val_index,
        class_names=class_names(spec, [train_index, val_index]),
        plan=plan,
    )


def index_split(context: Context, patterns: Sequence[str]) -> RecordIndex:
    """Returns the index of the shards that patterns name, read in parallel.

    Raises:
        DataError: A shard is missing or corrupt, or holds a category id that is not allowed.
    """
    shards = find_shards(patterns)
    calls = [{"path": p, "num_classes": context.spec.dataset.num_classes} for p in shards]
    found = dict(scatter(index_shard, calls, num_cpus=0.5))
    return join_shards([found[i] for i in range(len(shards))])


def class_names(spec: Spec, indexes: Sequence[RecordIndex]) -> dict[int, str]:
    """Returns the name of every category id from 1; an id that no record shows is numbered."""
    names = {i: f"class {i}" for i in range(1, spec.dataset.num_classes)}
    for index in indexes:
        names.update(index.class_names)
    return names


def plan_training(context: Context) -> WorkerPlan:
    """Returns how the spec's workers are laid over the cluster.

    Raises:
        ClusterError: The cluster can never give what is asked.
        SpecError: The spec asks for what only GPUs have.
    """
    ray = context.spec.ray
    wanted = ray.num_workers if ray.num_workers is not None else context.spec.num_gpus
    if isinstance(wanted, tuple):
        has = context.cluster.num_gpus or context.cluster.num_cpus
        wanted = max(wanted[0], min(wanted[1], int(has)))
    plan = plan_workers(
        context.cluster,
        num_workers=wanted,
        use_gpu=ray.use_gpu,
        resources_per_worker=ray.resources_per_worker,
        data_cpus=ray.data_cpus,
        decode=ray.decode,
    )
    if context.spec.train.sync_batch_norm and not plan.use_gpu:
        raise SpecError(
            f"{context.loaded.path}: train.sync_batch_norm: batch statistics are shared on GPUs"
            " only; set it to false or train on GPUs"
        )
    return plan


def check_batches(spec: Spec, index: RecordIndex, plan: WorkerPlan) -> None:
    """Checks that every worker has enough images in every step.

    Raises:
        ClusterError: There are more workers than images in a step.
        SpecError: Batch norm would see a single value.
    """
    epochs = build_epochs(spec, num_records=index.num_records, num_workers=plan.num_workers)
    smallest = epochs.smallest_share(plan.num_workers)
    if smallest < 1:
        raise ClusterError(
            f"ray.num_workers {plan.num_workers}: an epoch has {epochs.examples_per_epoch} images"
            f" in {epochs.steps} steps, less than one for each worker; use fewer workers"
        )
    coarsest = 2 ** build_architecture(spec).max_level
    if smallest < 2 and max(spec.model.input_height, spec.model.input_width) <= coarsest:
        raise SpecError(
            f"train.batch_size {spec.train.batch_size}: with {index.num_records} images a step has"
            " one image per worker, and the coarsest level of this input size one cell: batch norm"
            " needs two values; use batches of two or more, or a larger input"
        )


def compare_with_earlier(context: Context, folder: str, *, resuming: bool) -> None:
    """Says what changed since the run in a folder began.

    Raises:
        SpecError: The run that is resumed cannot go on with these values.
    """
    path = storage.join(folder, "spec.yaml")
    if not resuming or not storage.exists(path):
        return
    earlier = yaml.safe_load(storage.read_bytes(path))
    harmless, harmful = compare_specs(earlier, context.spec)
    for text in harmless:
        context.console.notice(f"changed since this run began: {text}")
    if harmful:
        raise SpecError(
            *(f"{context.loaded.path}: {text}" for text in harmful),
            f"{folder} holds a run with these other values; choose another results_dir, or take"
            " the values back to go on with it",
        )


def say_plan(context: Context, job: TrainingJob, first_epoch: int) -> list[str]:
    """Says what will be trained on what, and returns the doubts about it."""
    spec, console, plan = context.spec, context.console, job.plan
    train, schedule = spec.train, spec.train.lr_schedule
    epochs = build_epochs(
        spec, num_records=job.train_index.num_records, num_workers=plan.num_workers
    )
    with torch.device("meta"):
        parameters = EfficientDet(build_architecture(spec)).parameters()
        millions = sum(parameter.numel() for parameter in parameters) / 1e6
    rate = schedule.learning_rate * (plan.num_workers if spec.ray.scale_learning_rate else 1)
    each = "GPU" if plan.use_gpu else f"{plan.resources['CPU']:g} CPU, {plan.threads} threads"
    names = ", ".join(list(job.class_names.values())[:8])
    changed = " · ".join(_changes(context.loaded))
    console.rows(
        [
            (
                "model",
                f"{spec.model.name} {spec.model.input_width}x{spec.model.input_height} ·"
                f" {millions:.1f} M parameters · {spec.dataset.num_classes - 1} classes: {names}",
            ),
            (
                "data",
                f"train {job.train_index.num_records:,} images {job.train_index.num_boxes:,} boxes"
                f" · val {job.val_index.num_records:,} images",
            ),
            (
                "workers",
                f"{plan.num_workers} x {each} · global batch {epochs.global_batch} ="
                f" {plan.num_workers} x {train.batch_size} · {epochs.steps} steps per epoch ·"
                f" {train.num_epochs} epochs · {schedule.name} rate {rate:g}",
            ),
            ("ingest", _ingest_words(plan)),
            ("changed", changed or "nothing: all values are defaults"),
            (
                "resume",
                f"after epoch {first_epoch}"
                if first_epoch
                else f"none: a fresh run in {job.folder}",
            ),
        ]
    )
    return _doubts(context, job, rate, epochs.global_batch)


def _ingest_words(plan: WorkerPlan) -> str:
    if plan.decode == "data":
        return f"images are decoded by Ray Data on up to {plan.data_cpus:g} CPUs of any node"
    return f"images are decoded beside the training loop, {plan.threads} threads a worker"


def _changes(loaded: LoadedSpec) -> Iterator[str]:
    """Yields what training reads and differs from the default; the command line's are marked."""
    for name, origin in loaded.origins.items():
        section, _, rest = name.partition(".")
        if section not in READ_SECTIONS or not rest:
            continue
        value: object = loaded.spec
        usual: object = Spec()
        for part in name.split("."):
            value, usual = getattr(value, part, None), getattr(usual, part, None)
        if value != usual:
            yield f"{name} {value}" + (" (command line)" if origin == "command line" else "")


def _doubts(context: Context, job: TrainingJob, rate: float, global_batch: int) -> list[str]:
    spec, plan = context.spec, job.plan
    given, counted = spec.train.num_examples_per_epoch, job.train_index.num_records
    doubts = []
    if given is not None and given != counted:
        doubts.append(
            f"train.num_examples_per_epoch is {given:,}, the records hold {counted:,} images:"
            f" an epoch is {given / counted:.2g} passes over the data"
        )
    paper = PAPER_RATE_PER_IMAGE * global_batch
    if spec.train.optimizer.name == "sgd" and rate > FAR_ABOVE * paper:
        doubts.append(
            f"the rate {rate:g} is {rate / paper:.0f} times the paper's 0.08 per 64 images"
            f" ({paper:.3g} for this batch); if the loss rises, lower it"
        )
    if spec.ray.use_gpu == "auto" and not plan.use_gpu:
        doubts.append("no GPU in this cluster: training on CPUs")
    if spec.train.amp is True and not plan.use_gpu:
        doubts.append("train.amp: mixed precision is left out on CPUs; bf16 asks for it there too")
    if "gpu_ids" in context.loaded.origins and not context.cluster.is_local:
        doubts.append("gpu_ids has no effect on a running cluster: Ray chooses the GPUs")
    if context.cluster.num_nodes > 1 and not storage.is_uri(job.folder):
        doubts.append(
            f"{job.folder} must be on a disk that all {context.cluster.num_nodes} nodes share"
        )
    return doubts

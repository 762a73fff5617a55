"""What one training worker does: network, data, loop; runs inside Ray Train's worker group."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from rayeffdet import storage
from rayeffdet.data.index import RecordIndex
from rayeffdet.data.loader import Batch, load_batches
from rayeffdet.data.order import Epochs
from rayeffdet.distributed.cluster import WorkerPlan
from rayeffdet.distributed.ingest import stream_batches, stream_rows
from rayeffdet.distributed.validation import share_statistics, validate_together
from rayeffdet.evaluate.preview import write_preview
from rayeffdet.model.scaling import Architecture
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import (
    build_epochs,
    build_learning_rate,
    build_loop_settings,
    build_sample,
    build_shuffle,
    build_step_settings,
    build_trainee,
    input_size,
)
from rayeffdet.train.checkpoint import Checkpoint, checkpoint_name, save_checkpoint
from rayeffdet.train.checkpoint_index import CheckpointIndex
from rayeffdet.train.loop import Metrics, StepDone, train_epochs
from rayeffdet.train.meter import Meter
from rayeffdet.train.optim import flatten_optimizer, restore_optimizer
from rayeffdet.train.start import starting_point
from rayeffdet.train.step import Trainee, World

REPORT_SECONDS = 0.5

Tell = Callable[..., None]
"""Sends an event of a kind with its values to the driver."""


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker needs; plain data that travels.

    Args:
        spec: ``Spec.to_dict()`` with absolute paths.
        folder: Where checkpoints go.
        train_index: Training records.
        val_index: Validation records.
        class_names: Category id to name.
        plan: Workers and their resources.
    """

    spec: dict[str, Any]
    folder: str
    train_index: RecordIndex
    val_index: RecordIndex
    class_names: dict[int, str]
    plan: WorkerPlan


def train_worker(job: TrainingJob, mailbox: Any) -> None:
    """Trains to the last epoch; rank 0 tells the mailbox what happens.

    Raises:
        UserError: What the user can mend: a record, a checkpoint, a loss that is not finite.
    """
    spec = Spec.from_dict(job.spec)
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    torch.set_num_threads(job.plan.threads)
    torch.use_deterministic_algorithms(spec.train.deterministic)

    def tell(kind: str, **event: Any) -> None:
        if world.rank == 0:
            mailbox.put.remote({"kind": kind, **event})

    # ---- network, optimizer, average
    trainee, first_epoch = initial_state(job, spec, world, tell)

    # ---- data
    epochs = build_epochs(spec, num_records=job.train_index.num_records, num_workers=world.size)
    batches = training_batches(job, spec, trainee.network.architecture, epochs, world, first_epoch)

    # ---- loop
    meter, epoch_meter = Meter(world.size), Meter(world.size)
    for event in train_epochs(
        trainee,
        first_epoch=first_epoch,
        batches=lambda epoch: itertools.islice(batches, epochs.steps),
        learning_rate=build_learning_rate(
            spec, steps_per_epoch=epochs.steps, num_workers=world.size
        ),
        evaluate=lambda epoch: evaluate_epoch(job, spec, trainee, world, epoch=epoch, tell=tell),
        save=lambda epoch, metrics: save_epoch(
            job, spec, trainee, world, epoch=epoch, steps=epochs.steps, metrics=metrics
        ),
        settings=build_loop_settings(spec, epochs),
        step_settings=build_step_settings(spec, world.device),
        world=world,
    ):
        if isinstance(event, StepDone):
            meter.add(event)
            epoch_meter.add(event)
            if meter.seconds >= REPORT_SECONDS:
                tell("progress", epoch=event.epoch, step=event.step, **meter.take())
        else:
            tell(
                "epoch",
                epoch=event.epoch,
                step=event.step,
                means=epoch_meter.take(),
                metrics=event.metrics,
                checkpoint=event.checkpoint,
            )
            ray.train.report({"epoch": event.epoch + 1, **_scalars(event.metrics)})


def initial_state(job: TrainingJob, spec: Spec, world: World, tell: Tell) -> tuple[Trainee, int]:
    """Returns what is trained and the first epoch.

    Raises:
        CheckpointError: A file cannot be read or does not fit.
    """
    start = starting_point(spec, job.folder)
    for text in start.notices:
        tell("notice", text=text)
    trainee = build_trainee(spec, start.network, world)
    own = start.resumed
    if own is None:
        return trainee, spec.train.init_epoch
    if trainee.ema is not None and own.ema is not None:
        trainee.ema.load_state_dict(own.ema)
    restore_optimizer(trainee.optimizer, trainee.network, own.optimizer, own.optimizer_meta)
    return trainee, own.epoch


def training_batches(
    job: TrainingJob,
    spec: Spec,
    architecture: Architecture,
    epochs: Epochs,
    world: World,
    first_epoch: int,
) -> Iterator[Batch]:
    """Yields this worker's batches of all epochs that are left.

    One stream, so that the first batches of an epoch are made while the one before is evaluated.
    """
    sample, shuffle = build_sample(spec, architecture), build_shuffle(spec)
    max_instances = spec.dataset.max_instances_per_image
    shares = _shares(spec, epochs, world, first_epoch)
    data_cpus = job.plan.data_cpus / world.size
    if job.plan.decode == "data":
        batches = stream_batches(
            job.train_index,
            shares,
            sample=sample,
            size_hw=input_size(spec),
            max_instances=max_instances,
            shuffle=shuffle,
            data_cpus=data_cpus,
            prefetch=spec.dataset.loader.prefetch_size,
        )
    else:
        batches = load_batches(
            stream_rows(job.train_index, shares, shuffle=shuffle, data_cpus=data_cpus),
            sample,
            size_hw=input_size(spec),
            max_instances=max_instances,
            num_threads=job.plan.threads,
            prefetch=spec.dataset.loader.prefetch_size,
            pin_memory=job.plan.use_gpu,
        )
    if not spec.train.image_preview or first_epoch > spec.train.init_epoch or world.rank > 0:
        return batches
    first = next(batches)
    path = storage.join(job.folder, "previews", "first_batch.jpg")
    write_preview(first, job.class_names, path=path)
    return itertools.chain([first], batches)


def _shares(spec: Spec, epochs: Epochs, world: World, first_epoch: int) -> Iterator[range]:
    """Yields what this worker reads for each step that is left."""
    fake = spec.dataset.use_fake_data
    for epoch in range(first_epoch, spec.train.num_epochs):
        for step in range(epochs.steps):
            taken = (first_epoch, 0) if fake else (epoch, step)
            yield epochs.share(*taken, rank=world.rank, world_size=world.size)


def evaluate_epoch(
    job: TrainingJob, spec: Spec, trainee: Trainee, world: World, *, epoch: int, tell: Tell
) -> Metrics:
    """Returns the metrics of the averaged weights on rank 0, and nothing on the others."""
    tell("evaluating", epoch=epoch)
    share_statistics(trainee, world)
    started = time.perf_counter()
    metrics = validate_together(
        spec,
        trainee,
        world,
        index=job.val_index,
        class_names=job.class_names,
        threads=job.plan.threads,
        data_cpus=job.plan.data_cpus / world.size,
    )
    tell("evaluated", epoch=epoch, seconds=time.perf_counter() - started, metrics=metrics)
    return metrics


def save_epoch(
    job: TrainingJob,
    spec: Spec,
    trainee: Trainee,
    world: World,
    *,
    epoch: int,
    steps: int,
    metrics: Metrics,
) -> str:
    """Writes the checkpoint of a finished epoch from rank 0 and returns its path.

    Raises:
        RunError: The storage refuses the write; earlier checkpoints are whole.
    """
    file = checkpoint_name(spec.model.name, epoch + 1)
    path = storage.join(job.folder, file)
    share_statistics(trainee, world)
    if world.rank != 0:
        return path
    tensors, meta = flatten_optimizer(trainee.optimizer, trainee.network)
    architecture = trainee.network.architecture
    position = {"epoch": epoch + 1, "step": (epoch + 1) * steps}
    checkpoint = Checkpoint(
        architecture=architecture.to_dict(),
        class_names=job.class_names,
        input_size=input_size(spec),
        normalisation={"mean": architecture.image_mean, "std": architecture.image_std},
        spec=spec.public_dict(),
        model=trainee.network.state_dict(),
        metrics=metrics,
        ema=trainee.ema.state_dict() if trainee.ema is not None else None,
        optimizer=tensors,
        optimizer_meta=meta,
        extra={"ingest": {"seed": spec.train.random_seed, **position}},
        **position,
    )
    save_checkpoint(path, checkpoint, encryption_key=spec.encryption_key)
    CheckpointIndex.read(job.folder).add(file, metrics=metrics, **position)
    return path


def _scalars(metrics: Metrics) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}

"""The training loop: epochs, steps, evaluation, checkpoints; a generator of what happened."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rayeffdet.data.loader import Batch
from rayeffdet.train.step import StepResult, StepSettings, Trainee, World, train_step

Metrics = dict[str, float]


@dataclass(frozen=True)
class LoopSettings:
    """The length of a run and its intervals, in epochs and steps.

    Args:
        num_epochs: Where the run ends, counted from epoch 0 of the very first start.
        steps_per_epoch: Steps of each epoch.
        checkpoint_interval: Epochs between checkpoints; the last epoch always has one.
        validation_interval: Epochs between evaluations; the last epoch always has one.
        start_eval_epoch: First epoch, counted from 1, that may be evaluated (but for the last).
    """

    num_epochs: int
    steps_per_epoch: int
    checkpoint_interval: int
    validation_interval: int
    start_eval_epoch: int

    def is_checkpointed(self, epoch: int) -> bool:
        """Tells whether epoch (from 0) ends with a checkpoint."""
        return (epoch + 1) % self.checkpoint_interval == 0 or epoch + 1 == self.num_epochs

    def is_evaluated(self, epoch: int) -> bool:
        """Tells whether epoch (from 0) ends with an evaluation."""
        due = (epoch + 1) % self.validation_interval == 0 and epoch + 1 >= self.start_eval_epoch
        return due or epoch + 1 == self.num_epochs


@dataclass(frozen=True)
class StepDone:
    """A step was taken; ``data_wait_s`` of ``seconds`` passed before its batch was there."""

    epoch: int
    step: int
    learning_rate: float
    result: StepResult
    num_images: int
    num_truncated: int
    seconds: float
    data_wait_s: float


@dataclass(frozen=True)
class EpochDone:
    """An epoch ended; ``metrics`` is empty without evaluation, ``checkpoint`` without a save."""

    epoch: int
    step: int
    metrics: Metrics
    checkpoint: str | None


def train_epochs(
    trainee: Trainee,
    *,
    first_epoch: int,
    batches: Callable[[int], Iterator[Batch]],
    learning_rate: Callable[[int], float],
    evaluate: Callable[[int], Metrics],
    save: Callable[[int, Metrics], str],
    settings: LoopSettings,
    step_settings: StepSettings,
    world: World,
) -> Iterator[StepDone | EpochDone]:
    """Trains to the last epoch and yields every step and epoch as it is done.

    Args:
        trainee: Changed in place.
        first_epoch: Epoch to begin with, from 0.
        batches: Gives the batches of an epoch, ``steps_per_epoch`` of them.
        learning_rate: Rate of a step, counted over all epochs from 0.
        evaluate: Measures the network after an epoch.
        save: Writes a checkpoint after an epoch and returns its path.
        settings: Lengths and intervals.
        step_settings: Constants of a step.
        world: This worker's place.

    Raises:
        RunError: A loss is not finite.
        DataError: A record cannot be read.
    """
    for epoch in range(first_epoch, settings.num_epochs):
        step = epoch * settings.steps_per_epoch
        trainee.parallel.train()
        for batch, data_wait_s, started in _timed(batches(epoch)):
            rate = learning_rate(step)
            result = train_step(
                trainee,
                batch,
                step=step,
                learning_rate=rate,
                settings=step_settings,
                world=world,
            )
            step += 1
            seconds = time.perf_counter() - started
            yield StepDone(
                epoch,
                step,
                rate,
                result,
                len(batch.examples),
                batch.num_truncated,
                seconds,
                data_wait_s,
            )
        metrics = evaluate(epoch) if settings.is_evaluated(epoch) else {}
        checkpoint = save(epoch, metrics) if settings.is_checkpointed(epoch) else None
        yield EpochDone(epoch, step, metrics, checkpoint)


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float, float]]:
    """Yields each batch with the seconds waited for it and the time at which the wait began."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - started, started

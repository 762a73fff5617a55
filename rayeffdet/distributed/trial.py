"""A few real training steps on one worker's resources, before a run is started."""

import resource
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayError, WorkerCrashedError

from rayeffdet.data.loader import Batch, Row, load_batches
from rayeffdet.distributed.cluster import OPENMP
from rayeffdet.distributed.failures import user_error_in
from rayeffdet.distributed.worker import TrainingJob, initial_state
from rayeffdet.errors import ClusterError, RunError
from rayeffdet.model.scaling import Architecture
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import build_learning_rate, build_sample, build_step_settings, input_size
from rayeffdet.train.step import StepResult, Trainee, World, train_step
from rayeffdet.train.versions import installed_versions, version_problems

# The first step also allocates and tunes; the others give the time.
TIMED_STEPS = 3
TIMED_BATCHES = 3
ENOUGH_SECONDS = 5.0
ROOM_WAIT_S = 5.0


@dataclass(frozen=True)
class Trial:
    """What the steps showed.

    Args:
        device: Name of the GPU, or ``CPU``.
        loss: Of the first step.
        seconds_per_step: Forward, loss, backward and update; the median.
        seconds_per_batch: Decoding and augmentation of one batch with the worker's threads.
        peak_bytes: Memory of the GPU, or of the process on a CPU.
        total_bytes: Memory of the GPU; 0 on a CPU.
        notices: What was said about the initial weights.
        versions: Installed where the steps ran.
    """

    device: str
    loss: float
    seconds_per_step: float
    seconds_per_batch: float
    peak_bytes: int
    total_bytes: int
    notices: tuple[str, ...]
    versions: dict[str, str]


def has_room(resources: dict[str, float], *, wait_s: float = ROOM_WAIT_S) -> bool:
    """Tells whether the cluster has a worker's resources free, now or within a few seconds."""
    until = time.monotonic() + wait_s
    while True:
        free = ray.available_resources()
        if all(free.get(name, 0.0) >= amount for name, amount in resources.items()):
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.25)


def try_steps(job: TrainingJob, rows: list[Row], *, steps_per_epoch: int) -> Trial:
    """Returns what a few steps on one batch show; nothing is kept of them.

    They run as a task with the resources of one worker, with the weights that training would begin
    with, and without the other workers.

    Args:
        job: What would be trained.
        rows: The records of one worker's batch.
        steps_per_epoch: For the learning rate.

    Raises:
        CheckpointError: The initial weights cannot be read or do not fit.
        ClusterError: The memory is not enough.
        DataError: A record's image cannot be decoded.
        RunError: The versions on that node do not fit, or a loss is not finite.
    """
    task = ray.remote(**_options(job.plan.resources))(_take_steps)
    try:
        trial: Trial = ray.get(task.remote(job, rows, steps_per_epoch))
    except (WorkerCrashedError, OutOfMemoryError) as error:
        last_line = str(error).strip().splitlines()[-1]
        raise ClusterError(
            f"a training step of train.batch_size {len(rows)} was killed ({last_line}); is the"
            " memory of the machine enough? a smaller batch or input takes less"
        ) from None
    except RayError as error:
        raise (user_error_in(error) or error) from None
    return trial


def _options(resources: dict[str, float]) -> dict[str, Any]:
    others = dict(resources)
    own = {key: others.pop(name, 0.0) for name, key in (("CPU", "num_cpus"), ("GPU", "num_gpus"))}
    memory = others.pop("memory", None)
    runtime_env = {"env_vars": OPENMP}
    return {
        **own,
        "memory": memory,
        "resources": others,
        "max_retries": 0,
        "runtime_env": runtime_env,
    }


def _take_steps(job: TrainingJob, rows: list[Row], steps_per_epoch: int) -> Trial:
    spec, plan = Spec.from_dict(job.spec), job.plan
    world = World(0, 1, torch.device("cuda" if plan.use_gpu else "cpu"))
    if problems := version_problems(world.device.type):
        raise RunError(*problems)
    torch.set_num_threads(plan.threads)
    torch.use_deterministic_algorithms(spec.train.deterministic)
    notices: list[str] = []
    trainee, _ = initial_state(
        job, spec, world, lambda _kind, **event: notices.append(event["text"])
    )
    rate = build_learning_rate(spec, steps_per_epoch=steps_per_epoch, num_workers=plan.num_workers)
    batch, seconds_per_batch = _batch(spec, trainee.network.architecture, rows, plan.threads)
    try:
        results, seconds = _timed_steps(spec, trainee, batch, world, rate(0))
    except torch.OutOfMemoryError:
        height, width = input_size(spec)
        raise ClusterError(
            f"train.batch_size {len(rows)} at {width} x {height}: the GPU's"
            f" {_total_bytes(world.device) / 2**30:.0f} GiB are not enough; use a smaller batch on"
            " more workers, or a smaller input"
        ) from None
    return Trial(
        device=torch.cuda.get_device_name() if plan.use_gpu else "CPU",
        loss=results[0].loss,
        seconds_per_step=median(seconds[1:]),
        seconds_per_batch=seconds_per_batch,
        peak_bytes=_peak_bytes(world.device),
        total_bytes=_total_bytes(world.device),
        notices=tuple(notices),
        versions=installed_versions(),
    )


def _batch(
    spec: Spec, architecture: Architecture, rows: list[Row], threads: int
) -> tuple[Batch, float]:
    """Returns the batch, and the seconds that making one takes once threads and codecs are warm."""
    started = None
    batch: Batch | None = None
    for batch in load_batches(  # noqa: B007
        [rows] * (1 + TIMED_BATCHES),
        build_sample(spec, architecture),
        size_hw=input_size(spec),
        max_instances=spec.dataset.max_instances_per_image,
        num_threads=threads,
        prefetch=0,
    ):
        started = started or time.perf_counter()
    assert batch is not None
    assert started is not None
    return batch, (time.perf_counter() - started) / TIMED_BATCHES


def _timed_steps(
    spec: Spec, trainee: Trainee, batch: Batch, world: World, learning_rate: float
) -> tuple[list[StepResult], list[float]]:
    trainee.parallel.train()
    settings = build_step_settings(spec, world.device)
    results: list[StepResult] = []
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) <= TIMED_STEPS and sum(seconds) < ENOUGH_SECONDS):
        started = time.perf_counter()
        results.append(
            train_step(
                trainee,
                batch,
                step=len(seconds),
                learning_rate=learning_rate,
                settings=settings,
                world=world,
            )
        )
        seconds.append(time.perf_counter() - started)
    return results, seconds


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _total_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0

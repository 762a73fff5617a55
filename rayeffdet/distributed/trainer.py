"""Ray Train around the training worker: start, restart, and what a failure means."""

import threading
import uuid
from collections.abc import Callable
from functools import partial

import fsspec
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from rayeffdet import storage
from rayeffdet.distributed.cluster import OPENMP
from rayeffdet.distributed.events import Event, Listener
from rayeffdet.distributed.failures import user_error_in
from rayeffdet.distributed.watch import Watch
from rayeffdet.distributed.worker import TrainingJob, train_worker
from rayeffdet.errors import ClusterError, RunError

# A peer that says nothing for this long is taken for dead; Ray's own default is half an hour.
COLLECTIVE_TIMEOUT_S = 600
START_TIMEOUT_S = 300
START_ATTEMPTS = 3


def run_training(
    job: TrainingJob,
    *,
    storage_path: str,
    max_failures: int,
    on_event: Callable[[Event], None],
) -> None:
    """Trains on the cluster until the last epoch is done.

    Args:
        job: What to train on which workers.
        storage_path: Where Ray keeps its own account of the run; every node must reach it.
        max_failures: Restarts of the worker group, each from the latest checkpoint; -1 no limit.
        on_event: Called in a thread of this process with what rank 0 tells.

    Raises:
        UserError: What a worker found wrong.
        ClusterError: The workers could not be started.
        RunError: They failed too often.
        KeyboardInterrupt: The user stopped the run.
    """
    plan = job.plan
    # A fresh folder each time: going on is a matter of our own checkpoints.
    scratch = storage.join(storage_path or job.folder, f".ray-{uuid.uuid4().hex[:8]}")
    with Listener(on_event) as listener:
        trainer = TorchTrainer(
            # A partial, not train_loop_config: that one is read by the controller, which would
            # import all of training before a worker can start.
            partial(train_worker, job, listener.mailbox),
            torch_config=TorchConfig(
                backend="nccl" if plan.use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S
            ),
            scaling_config=ScalingConfig(
                num_workers=plan.num_workers,
                use_gpu=plan.use_gpu,
                resources_per_worker=plan.resources,
            ),
            run_config=RunConfig(
                name="run",
                storage_path=scratch,
                failure_config=FailureConfig(
                    max_failures=max_failures, controller_failure_limit=START_ATTEMPTS
                ),
                callbacks=[Watch(listener.mailbox, max_failures=max_failures)],
                worker_runtime_env={"env_vars": OPENMP},
            ),
        )
        try:
            _fit(trainer)
        except TrainingFailedError as error:
            raise _worded(error) from error
        finally:
            filesystem, inner = fsspec.core.url_to_fs(scratch)
            if filesystem.exists(inner):
                filesystem.rm(inner, recursive=True)


def _fit(trainer: TorchTrainer) -> None:
    """Runs the trainer; the exits by which Ray answers an interrupt become KeyboardInterrupt."""
    try:
        trainer.fit()
    except (SystemExit, RayActorError) as error:
        if threading.current_thread() is threading.main_thread() and _was_aborted(error):
            raise KeyboardInterrupt from None
        raise


def _was_aborted(error: BaseException) -> bool:
    return isinstance(error, SystemExit) or "exit_actor" in str(error) or "intended" in str(error)


def _worded(error: TrainingFailedError) -> Exception:
    mistake = user_error_in(error)
    if mistake is not None:
        return mistake
    if isinstance(error, WorkerGroupError):
        rank, failure = next(iter(error.worker_failures.items()))
        last_line = str(failure).strip().splitlines()[-1]
        return RunError(
            f"worker {rank} failed more often than ray.max_failures allows: {last_line};"
            " run the same command again to go on from the last checkpoint, or with --debug for"
            " the whole trace"
        )
    return ClusterError(
        f"the training workers could not be started: {str(error).strip().splitlines()[-1]};"
        " compare ray.num_workers and ray.resources_per_worker with `ray status`"
    )

"""The parts of a check that need working versions: spec, data, cluster, plan, a few steps."""

from typing import Any

from rayeffdet.console import duration
from rayeffdet.data.order import records_at
from rayeffdet.distributed.cluster import Cluster, WorkerPlan
from rayeffdet.distributed.trial import Trial, has_room, try_steps
from rayeffdet.distributed.worker import TrainingJob
from rayeffdet.errors import DataError
from rayeffdet.spec.load import validate_for
from rayeffdet.tasks.context import Context
from rayeffdet.tasks.findings import Findings
from rayeffdet.tasks.split_inspection import inspect_splits
from rayeffdet.tasks.splits import Split, read_rows
from rayeffdet.tasks.train import (
    check_batches,
    compare_with_earlier,
    plan_training,
    say_plan,
    training_job,
)
from rayeffdet.train.build import build_epochs, build_shuffle
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
    splits = inspect_splits(context, findings)
    plan: WorkerPlan | None = None
    with findings.collect():
        plan = plan_training(context)
        findings.warnings += _shortages(context.cluster, plan)
    if plan is None or len(splits) < 2:
        return
    train, val = splits["train"], splits["val"]
    with findings.collect():
        check_batches(spec, train.index, plan)
        job = training_job(spec, folder, train.index, val.index, plan)
        findings.warnings += say_plan(context, job, done.epoch if done else spec.train.init_epoch)
        _try_training(context, findings, job, train)


def _shortages(cluster: Cluster, plan: WorkerPlan) -> list[str]:
    has = {"CPU": cluster.num_cpus, "GPU": cluster.num_gpus}
    return [
        f"{plan.num_workers} workers ask for {amount * plan.num_workers:g} {name}, the cluster has"
        f" {has[name]:g} now: training waits until it has grown"
        for name, amount in plan.resources.items()
        if name in has and amount * plan.num_workers > has[name]
    ]


def _try_training(context: Context, findings: Findings, job: TrainingJob, train: Split) -> None:
    spec, plan = context.spec, job.plan
    if not has_room(plan.resources):
        findings.warnings.append(
            f"no real step was taken: the cluster has no {plan.resources} free at present"
        )
        return
    epochs = build_epochs(spec, num_records=train.index.num_records, num_workers=plan.num_workers)
    positions = epochs.share(0, 0, rank=0, world_size=plan.num_workers)
    records = records_at(positions, train.index.shard_sizes, build_shuffle(spec))
    rows = read_rows(train, records)
    if not rows:
        raise DataError("train: not one image of the first batch can be used")
    trial = try_steps(job, rows, steps_per_epoch=epochs.steps)
    findings.facts["step"] = _say_trial(context, trial, len(rows), epochs.steps)
    idle = 1 - trial.seconds_per_step / trial.seconds_per_batch
    if plan.use_gpu and plan.decode == "worker" and idle > 0:
        findings.warnings.append(
            f"the GPU will wait for images {idle:.0%} of the time: give each worker more CPUs, or"
            " decode on other nodes with ray.decode data"
        )
    findings.warnings += trial.notices
    here = installed_versions()
    if trial.versions != here:
        there = ", ".join(f"{k} {v}" for k, v in trial.versions.items() if here.get(k) != v)
        findings.warnings.append(f"a worker's node has other versions than this process: {there}")


def _say_trial(context: Context, trial: Trial, batch_size: int, steps: int) -> dict[str, Any]:
    # A GPU computes while the CPU decodes; on a CPU the two share the cores.
    computing, decoding = trial.seconds_per_step, trial.seconds_per_batch
    seconds = computing + decoding if trial.device == "CPU" else max(computing, decoding)
    of_total = f" of {trial.total_bytes / 2**30:.0f}" if trial.total_bytes else ""
    num_epochs, epoch = context.spec.train.num_epochs, seconds * steps
    step_text = (
        f"{computing:.3g} s for {batch_size} images a worker · loss {trial.loss:.4g} ·"
        f" {trial.peak_bytes / 2**30:.1f}{of_total} GiB on {trial.device}"
    )
    time_text = (
        f"about {duration(epoch)} an epoch, {duration(epoch * num_epochs)} for all {num_epochs},"
        " without evaluation"
    )
    ingest_text = (
        f"{batch_size / decoding:,.0f} images/s decoded by the threads of a worker, which learns"
        f" from {batch_size / computing:,.0f}"
    )
    context.console.rows([("step", step_text), ("ingest", ingest_text), ("time", time_text)])
    return {
        "seconds_per_step": computing,
        "seconds_per_batch": decoding,
        "seconds_per_epoch": epoch,
        "peak_bytes": trial.peak_bytes,
        "loss": trial.loss,
        "device": trial.device,
    }

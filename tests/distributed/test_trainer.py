"""What a failure of a training worker means, on real worker groups."""

import math
import os
import signal

import pytest
from checkpoints import save_fresh
from processes import training_workers

from rayeffdet.data.index import index_shard, join_shards
from rayeffdet.distributed.cluster import plan_workers
from rayeffdet.distributed.trainer import run_training
from rayeffdet.distributed.worker import TrainingJob
from rayeffdet.errors import CheckpointError, RunError
from rayeffdet.spec.root import Spec

SPEC = {
    "dataset": {"num_classes": 6},
    "model": {"name": "efficientdet-d0", "input_width": 96, "input_height": 96},
    "train": {"batch_size": 4, "num_epochs": 1, "image_preview": False},
}


@pytest.fixture
def train(local_ray, shards, tmp_path):
    """A function that trains on a number of workers and returns the events that were told."""

    def index(tag):
        paths = sorted(shards.glob(f"{tag}-*.tfrecord"))
        return join_shards([index_shard(str(path), num_classes=6) for path in paths])

    def run(events, *, num_workers, max_failures=3, **train_fields):
        spec = Spec.from_dict(SPEC | {"train": SPEC["train"] | train_fields})
        plan = plan_workers(
            local_ray,
            num_workers=num_workers,
            use_gpu=False,
            resources_per_worker={},
            data_cpus=None,
        )
        train_index, val_index = index("train"), index("val")
        job = TrainingJob(
            spec.to_dict(), str(tmp_path / "train"), train_index, val_index, {1: "disc"}, plan
        )
        run_training(job, storage_path="", max_failures=max_failures, on_event=events.append)

    return run


@pytest.fixture(scope="module")
def broken_weights(tmp_path_factory):
    """A checkpoint that loads well and whose loss is not a number."""
    path = tmp_path_factory.mktemp("weights") / "broken.tlt"
    return save_fresh(path, SPEC, stem_weight=math.nan)


def kinds(events):
    return [event["kind"] for event in events]


@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_users_mistake_in_a_worker_ends_the_run_at_the_first_attempt(
    train, broken_weights, num_workers, tmp_path
):
    events = []
    with pytest.raises(RunError) as caught:
        train(events, num_workers=num_workers, checkpoint=broken_weights)
    assert type(caught.value) is RunError
    (problem,) = caught.value.problems
    assert problem.startswith("step 1: not finite: loss nan")
    images = problem.partition("images ")[2].partition(";")[0].split(", ")
    assert len(set(images)) == 4 * num_workers
    # Each attempt tells what it starts from.
    assert kinds(events).count("notice") == 1
    assert "failure" not in kinds(events)
    assert os.listdir(tmp_path / "train") == []


@pytest.mark.slow
def test_the_kind_of_a_mistake_survives(train, tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.tlt: there is no such file"):
        train([], num_workers=2, checkpoint=str(tmp_path / "none.tlt"))


@pytest.mark.slow
def test_more_deaths_than_max_failures_allows_end_the_run(train):
    class Deadly(list):
        def append(self, event):
            super().append(event)
            if event["kind"] == "progress":
                for pid in training_workers(os.getpid()):
                    os.kill(pid, signal.SIGKILL)

    events = Deadly()
    with pytest.raises(RunError, match=r"failed more often than ray\.max_failures"):
        train(events, num_workers=1, max_failures=1, num_epochs=300)
    # The restart is told by an event, the end by the error alone.
    assert kinds(events).count("failure") == 1

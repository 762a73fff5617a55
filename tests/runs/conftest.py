"""Runs of the command that several tests look at."""

import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import Done, Running, rayeffdet, write_spec
from processes import training_workers


@dataclass(frozen=True)
class Run:
    """A command that has ended, and what it left."""

    spec: Path
    results: Path
    done: Done


def run_of(spec, done):
    return Run(spec, spec.parent / "results", done)


@pytest.fixture
def spec(tmp_path, shards):
    """A small spec with results in ``results`` beside it."""
    return write_spec(tmp_path, shards)


@pytest.fixture(scope="session")
def pictures(drawn, tmp_path_factory):
    """Eight images, and one that is cut off."""
    folder = tmp_path_factory.mktemp("inference") / "pictures"
    shutil.copytree(drawn / "val", folder)
    whole = (folder / "val_000000.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="session")
def straight(shards, pictures, tmp_path_factory):
    """Training on one worker from beginning to end, evaluation of its last file, inference."""
    spec = write_spec(tmp_path_factory.mktemp("straight"), shards)
    last = spec.parent / "results" / "train" / "efficientdet-d0_006.tlt"
    done = rayeffdet(
        *(spec, "train", "evaluate", "inference", "--json"),
        f"evaluate.checkpoint={last}",
        f"inference.image_dir={pictures}",
        "inference.dump_label=true",
        "inference.min_score_thresh=0.001",
    )
    return run_of(spec, done)


@pytest.fixture(scope="session")
def interrupted(shards, tmp_path_factory):
    """The straight training, stopped by Ctrl-C after its second epoch, then run again.

    Gives both commands, and what was in checkpoints.json between them.
    """
    spec = write_spec(tmp_path_factory.mktemp("interrupted"), shards)
    running = Running(spec, "train")
    running.wait_for("epoch 2: saved")
    running.press_ctrl_c()
    first = run_of(spec, running.end())
    listed = json.loads((first.results / "train" / "checkpoints.json").read_text())
    return first, listed, run_of(spec, rayeffdet(spec, "train"))


@pytest.fixture(scope="session")
def two_workers(shards, tmp_path_factory):
    """Training on two workers with the straight global batch; one is killed on the way."""
    spec = write_spec(tmp_path_factory.mktemp("two_workers"), shards)
    running = Running(spec, "train", "train.batch_size=2", "ray.num_workers=2")
    running.wait_for("epoch 2: saved")
    os.kill(training_workers(running.pid)[-1], signal.SIGKILL)
    return run_of(spec, running.end())

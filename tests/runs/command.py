"""`python -m rayeffdet.run` as people and schedulers start it: a process, its lines, its code."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import yaml

COMMAND = (sys.executable, "-m", "rayeffdet.run")
TIMEOUT_S = 240

SPEC = {
    "dataset": {"num_classes": 6, "max_instances_per_image": 20},
    "model": {"name": "efficientdet-d0", "input_width": 96, "input_height": 96},
    "train": {
        "batch_size": 4,
        "num_epochs": 6,
        "checkpoint_interval": 2,
        "moving_average_decay": 0.9,
        "lr_schedule": {"warmup_epoch": 1, "warmup_init": 0.001, "learning_rate": 0.01},
    },
}


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit code and the lines that it wrote."""

    code: int
    out: list[str]
    err: list[str]


def write_spec(folder, shards):
    """Writes a small spec on shards made before and returns its path; results go to ``results``."""
    dataset = {f"{tag}_tfrecords": [f"{shards}/{tag}-*.tfrecord"] for tag in ("train", "val")}
    spec = SPEC | {"results_dir": str(folder / "results"), "dataset": SPEC["dataset"] | dataset}
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def rayeffdet(*arguments, cwd=None):
    """Runs a command to its end."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Done(done.returncode, done.stdout.splitlines(), done.stderr.splitlines())


class Running:
    """A command under way, in a process group of its own as a shell would start it."""

    def __init__(self, *arguments):
        self._process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, start):
        """Waits until the command has written a line that starts so."""
        end = time.monotonic() + TIMEOUT_S
        while not any(line.startswith(start) for line in self.lines):
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"no line {start!r} in {self.lines}")
            time.sleep(0.02)

    def press_ctrl_c(self):
        """Sends SIGINT to every process of the group, as a terminal does."""
        os.killpg(self.pid, signal.SIGINT)

    def terminate(self):
        """Sends SIGTERM to the command alone, as a scheduler does."""
        self._process.terminate()

    def end(self):
        """Waits for the end of the command."""
        try:
            code = self._process.wait(TIMEOUT_S)
        finally:
            self._process.kill()
        self._reader.join()
        return Done(code, [], self.lines)

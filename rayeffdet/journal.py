"""What a task writes about itself: spec, environment, status and log in its results folder."""

import json
import math
import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import rayeffdet
from rayeffdet import storage
from rayeffdet.spec.load import LoadedSpec, resolved_yaml

PACKAGES = ("ray", "torch", "torchvision", "pycocotools", "pyarrow", "pillow", "numpy", "onnx")


class Journal:
    """The records of one task.

    Args:
        folder: Results folder of the task, path or URI.
        task: Name of the task.
    """

    def __init__(self, folder: str, task: str) -> None:
        self.folder = folder
        self._task = task

    def begin(self, loaded: LoadedSpec, *, hardware: dict[str, Any]) -> None:
        """Writes spec.yaml and environment.json, and the first line of status.json."""
        storage.write_atomic(self.path("spec.yaml"), resolved_yaml(loaded).encode())
        storage.write_json(self.path("environment.json"), environment(hardware))
        self.status("STARTED", f"Starting {self._task}.")

    def path(self, name: str) -> str:
        """Returns the path of a file in the folder."""
        return storage.join(self.folder, name)

    def status(self, status: str, message: str = "", **data: Any) -> None:
        """Adds a line to status.json, in the keys of TAO: date, time, status, message, kpi, ….

        Numbers that JSON cannot hold become null.
        """
        now = datetime.now()
        line = {
            **{key: _json_number(value) for key, value in data.items()},
            "date": f"{now.month}/{now.day}/{now.year}",
            "time": now.strftime("%H:%M:%S"),
            "status": status,
            "verbosity": "INFO",
            "message": message,
        }
        storage.append(self.path("status.json"), json.dumps(line, allow_nan=False) + "\n")

    def log(self, text: str) -> None:
        """Adds lines to log.txt."""
        if text:
            storage.append(self.path("log.txt"), text)


def environment(hardware: dict[str, Any]) -> dict[str, Any]:
    """Returns what a run depended on besides spec and data."""
    return {
        "rayeffdet": rayeffdet.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "hardware": hardware,
        "command": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Returns the commit of the working copy that the package runs from, if it is one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _json_number(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _json_number(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_number(inner) for inner in value]
    return value

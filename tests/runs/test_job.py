"""A job on a running cluster: `ray start --head`, `ray job submit`, the token that it asks for."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="jobs need ray[default]")

RAY = str(Path(sys.executable).parent / "ray")
START_TIMEOUT_S = 120
JOB_TIMEOUT_S = 240


@pytest.fixture(scope="module")
def dashboard():
    """The address of a cluster's dashboard on loopback, with ports and a folder of its own."""
    flags = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    ports = dict(zip(flags, unused_ports(len(flags)), strict=True))
    command = [
        *(RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
        *("--object-store-memory=100000000", f"--temp-dir={os.environ['RAY_TMPDIR']}/head"),
        *(f"--{flag}={port}" for flag, port in ports.items()),
    ]
    head = subprocess.Popen(
        command,
        env=os.environ | {"RAY_AUTH_MODE": "token"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        wait_for(address, head)
        yield address
    finally:
        head.terminate()
        head.wait(60)


def unused_ports(count):
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def wait_for(address, head):
    end = time.monotonic() + START_TIMEOUT_S
    while answer(address, os.environ["RAY_AUTH_TOKEN"]) != 200:
        assert head.poll() is None, "ray start ended"
        assert time.monotonic() < end, "the dashboard does not answer"
        time.sleep(0.5)


def answer(address, token):
    """Returns the HTTP status of the list of jobs, 0 where nobody answers."""
    request = urllib.request.Request(f"{address}/api/jobs/")
    request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.slow
def test_a_submitted_job_shows_its_progress_and_succeeds(dashboard, spec, tmp_path):
    assert answer(dashboard, "another-token-0123456789") in (401, 403)
    submitted = subprocess.run(
        [
            *(RAY, "job", "submit", f"--address={dashboard}", "--submission-id=small"),
            *("--", sys.executable, "-m", "rayeffdet.run", str(spec), "train"),
            *("train.num_epochs=2", "train.checkpoint_interval=1"),
        ],
        env=os.environ | {"RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=JOB_TIMEOUT_S,
        check=False,
    )
    said = submitted.stdout
    assert submitted.returncode == 0, said + submitted.stderr
    for part in ("workers  1 x 1 CPU", "epoch 1: saved", "epoch 2: AP ", "done     results are in"):
        assert part in said
    assert "Job 'small' succeeded" in said
    assert (tmp_path / "results" / "train" / "efficientdet-d0_002.tlt").exists()

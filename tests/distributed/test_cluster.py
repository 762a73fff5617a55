"""Connecting to a cluster, and how training is laid over what it has."""

import os
import socket

import pytest

from rayeffdet.distributed.cluster import Cluster, connected, plan_workers
from rayeffdet.errors import ClusterError


def local(cpus, gpus=0.0):
    return Cluster(address="local", num_cpus=cpus, num_gpus=gpus, num_nodes=1)


def plan(cluster, num_workers, **changes):
    wanted = {"use_gpu": "auto", "resources_per_worker": {}, "data_cpus": None} | changes
    return plan_workers(cluster, num_workers=num_workers, **wanted)


@pytest.mark.parametrize("cpus", [1.0, 2.0, 4.0, 64.0])
@pytest.mark.parametrize("num_workers", [1, 2, 7])
def test_workers_leave_a_part_of_the_cpus_for_reading(cpus, num_workers):
    made = plan(local(cpus), num_workers)
    assert made.resources["CPU"] * num_workers + 0.25 <= cpus
    assert made.data_cpus >= 0.5


def test_each_worker_gets_a_gpu_where_there_are_any():
    made = plan(local(16.0, gpus=4.0), 4)
    assert made.use_gpu
    assert made.resources["GPU"] == 1.0
    assert not plan(local(16.0, gpus=4.0), 4, use_gpu=False).use_gpu
    assert not plan(local(16.0), 4).use_gpu


def test_given_resources_win():
    made = plan(local(16.0), 2, resources_per_worker={"CPU": 6.0, "TPU": 1.0}, data_cpus=3.0)
    assert made.resources == {"CPU": 6.0, "TPU": 1.0}
    assert made.data_cpus == 3.0


@pytest.mark.parametrize(
    ("num_workers", "changes", "said"),
    [
        (3, {"use_gpu": True}, "ray.num_workers 3 with 1 GPU each: this machine has 2"),
        (2, {"resources_per_worker": {"CPU": 9.0}}, "with 9 CPU each: this machine has 16"),
        (400, {"use_gpu": False}, "ray.num_workers 400"),
    ],
)
def test_what_a_local_ray_can_never_give_is_an_error(num_workers, changes, said):
    with pytest.raises(ClusterError, match=said):
        plan(local(16.0, gpus=2.0), num_workers, **changes)


def test_a_cluster_that_can_grow_may_be_asked_for_more():
    cluster = Cluster(address="head:6379", num_cpus=4.0, num_gpus=0.0, num_nodes=1)
    assert plan(cluster, 8, use_gpu=True).num_workers == 8


@pytest.mark.parametrize(
    ("beside", "asked", "chosen"),
    [(64.0, "auto", "data"), (0.0, "auto", "worker"), (64.0, "worker", "worker"),
     (0.0, "data", "data")],
)  # fmt: skip
def test_images_are_decoded_where_there_are_cores(monkeypatch, beside, asked, chosen):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    cluster = Cluster(
        address="head:6379",
        num_cpus=8.0 + beside,
        num_gpus=8.0,
        num_nodes=1 + bool(beside),
        cpus_beside_gpus=beside,
    )
    assert plan(cluster, 8, decode=asked).decode == chosen


def test_cpus_that_train_decode_too():
    cluster = Cluster(
        address="head:6379", num_cpus=64.0, num_gpus=0.0, num_nodes=4, cpus_beside_gpus=64.0
    )
    assert plan(cluster, 4).decode == "worker"


def unused_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "no.such.host.invalid:{}"])
def test_an_address_where_nobody_listens_is_refused_at_once(form):
    address = form.format(unused_port())
    with (
        pytest.raises(ClusterError, match=f"ray.address {address}: .* is the cluster up"),
        connected(address, debug=False),
    ):
        pass

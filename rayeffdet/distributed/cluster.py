"""The Ray cluster: a local one when there is none, quiet, and what it can give."""

import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from rayeffdet.errors import ClusterError

# Read by Ray at import or forwarded by it to its workers, so they are set before the import.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # How long a thread of OpenMP spins before it sleeps. Decoder and Ray run beside them: with the
    # default, steps on two busy cores took 15 times as long; without any spinning, steps on idle
    # cores took twice as long. A local Ray inherits this.
    "GOMP_SPINCOUNT": "1000",
}
OPENMP = {"GOMP_SPINCOUNT": _ENVIRONMENT["GOMP_SPINCOUNT"]}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402

LOCAL_OBJECT_STORE_BYTES = 2 * 2**30
KNOCK_SECONDS = 10.0
# A core decodes some 600 photographs a second at 512 pixels, a fast GPU learns from 1,500.
THREADS_PER_GPU = 4


@dataclass(frozen=True)
class Cluster:
    """What is there.

    Args:
        address: ``local`` for a Ray that this process started, else the cluster's address.
        num_cpus: Logical CPUs over all nodes.
        num_gpus: GPUs over all nodes.
        num_nodes: Nodes alive.
        cpus_beside_gpus: Logical CPUs of the nodes that have no GPU.
    """

    address: str
    num_cpus: float
    num_gpus: float
    num_nodes: int
    cpus_beside_gpus: float = 0.0

    @property
    def is_local(self) -> bool:
        """Tells whether the cluster ends with this process and cannot grow."""
        return self.address == "local"


@dataclass(frozen=True)
class WorkerPlan:
    """How training is laid over a cluster.

    Args:
        num_workers: Training processes.
        use_gpu: One GPU for each, or CPUs only.
        resources: Logical resources of one worker.
        data_cpus: Logical CPUs for reading records, over all workers.
        threads: Threads of one worker for computing on CPU, and for decoding.
        decode: ``worker``: images are decoded beside the training loop; ``data``: by Ray Data.
    """

    num_workers: int
    use_gpu: bool
    resources: dict[str, float]
    data_cpus: float
    threads: int
    decode: Literal["worker", "data"] = "worker"


@contextmanager
def connected(
    address: str | None, *, debug: bool, gpu_ids: Sequence[int] | None = None
) -> Iterator[Cluster]:
    """Connects to a cluster, or starts one on this machine, for the length of a block.

    Args:
        address: ``ray.address``; None means RAY_ADDRESS, and without that a local Ray.
        debug: Keep Ray's own messages.
        gpu_ids: GPUs that a local Ray may use; None for all that are visible.

    Raises:
        ClusterError: There is no cluster at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    is_local = address in (None, "local")
    level = logging.INFO if debug else logging.ERROR
    options: dict[str, Any] = {"log_to_driver": debug, "logging_level": level}
    if is_local:
        # Ray protects a cluster that it starts by a token; one of this run only, since it would
        # otherwise leave one in the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        if gpu_ids is not None:
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", ",".join(map(str, gpu_ids)))
        options |= {
            "num_cpus": os.cpu_count(),
            "include_dashboard": False,
            "object_store_memory": LOCAL_OBJECT_STORE_BYTES,
        }
    try:
        if address is not None:
            _knock(address)
        ray.init("local" if is_local else address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"ray.address {address}: {str(error).strip().splitlines()[0]}; is the cluster up?"
            " leave ray.address empty to start a local Ray"
        ) from error
    # Ray replaces the handler of SIGTERM, by which `ray job stop` and schedulers end a run.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(level)
    try:
        total = ray.cluster_resources()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Cluster(
            address="local" if is_local else str(address),
            num_cpus=total.get("CPU", 0.0),
            num_gpus=total.get("GPU", 0.0),
            num_nodes=len(nodes),
            cpus_beside_gpus=sum(n.get("CPU", 0.0) for n in nodes if not n.get("GPU")),
        )
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError at once where nobody listens; Ray itself tries for a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def plan_workers(
    cluster: Cluster,
    *,
    num_workers: int,
    use_gpu: bool | str,
    resources_per_worker: dict[str, float],
    data_cpus: float | None,
    decode: Literal["auto", "worker", "data"] = "auto",
) -> WorkerPlan:
    """Returns how many workers get what; CPUs for reading are always left.

    Args:
        cluster: What is there.
        num_workers: ``ray.num_workers``.
        use_gpu: ``ray.use_gpu``; ``auto`` takes GPUs if the cluster has any.
        resources_per_worker: ``ray.resources_per_worker``; wins over what is derived.
        data_cpus: ``ray.data_cpus``; None for what the workers leave free.
        decode: ``ray.decode``; ``auto`` decodes beside the loop, where the fewest bytes move, if
            the GPUs have the cores for it or no other node has any.

    Raises:
        ClusterError: A local Ray can never give what is asked.
    """
    gpu = cluster.num_gpus > 0 if use_gpu == "auto" else bool(use_gpu)
    # Reading needs a CPU that no worker holds, or training would wait for it for ever.
    spare = 1.0 if cluster.num_cpus > 1 else cluster.num_cpus / 2
    cpus = max(0.05, min(1.0, (cluster.num_cpus - spare) / num_workers))
    resources = {"CPU": round(cpus, 2), **({"GPU": 1.0} if gpu else {}), **resources_per_worker}
    available = {"CPU": cluster.num_cpus, "GPU": cluster.num_gpus}
    lacking = [
        f"ray.num_workers {num_workers} with {amount:g} {name} each: this machine has"
        f" {available[name]:g}; lower ray.num_workers or ray.resources_per_worker,"
        " or give ray.address of a larger cluster"
        for name, amount in resources.items()
        if cluster.is_local and name in available and amount * num_workers > available[name] + 1e-6
    ]
    if lacking:
        raise ClusterError(*lacking)
    free = cluster.num_cpus - resources["CPU"] * num_workers
    per_node = -(-num_workers // max(1, cluster.num_nodes))
    threads = max(1, (os.cpu_count() or 1) // per_node)
    if decode == "auto":
        lacks_cores = gpu and threads < THREADS_PER_GPU
        decode = "data" if lacks_cores and cluster.cpus_beside_gpus >= num_workers else "worker"
    return WorkerPlan(
        num_workers=num_workers,
        use_gpu=gpu,
        resources=resources,
        data_cpus=data_cpus if data_cpus is not None else max(free, 0.5),
        threads=threads,
        decode=decode,
    )

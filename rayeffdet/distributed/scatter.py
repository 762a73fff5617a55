"""A function mapped over many arguments as Ray tasks, a bounded number at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from rayeffdet.distributed.failures import user_error_in

Result = TypeVar("Result")

# Enough to keep every CPU busy while results are fetched, few enough to bound memory.
IN_FLIGHT_PER_CPU = 2


def scatter(
    function: Callable[..., Result],
    calls: Sequence[Mapping[str, Any]],
    *,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> Iterator[tuple[int, Result]]:
    """Yields (index of the call, result) as the tasks finish; a task of a lost node runs again.

    Args:
        function: Importable on every node; called with the keyword arguments of each call.
        calls: Arguments.
        num_cpus: Logical CPUs of one task.
        num_gpus: GPUs of one task.

    Raises:
        UserError: The first one that a task raised; tasks under way are dropped.
    """
    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=3)(function)
    cpus = ray.cluster_resources().get("CPU", 1.0)
    in_flight = max(2, int(IN_FLIGHT_PER_CPU * cpus / max(num_cpus, 0.25)))
    waiting = iter(enumerate(calls))
    running: dict[Any, int] = {}
    while True:
        while len(running) < in_flight and (following := next(waiting, None)) is not None:
            running[remote.remote(**following[1])] = following[0]
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        index = running.pop(done[0])
        try:
            result = ray.get(done[0])
        except RayError as error:
            for reference in running:
                ray.cancel(reference)
            raise (user_error_in(error) or error) from None
        yield index, result

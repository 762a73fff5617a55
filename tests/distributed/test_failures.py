"""The user's mistake is found in every layer that Ray wraps around it."""

import pytest
import ray
from ray.exceptions import RayError, RayTaskError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from rayeffdet.distributed.failures import user_error_in
from rayeffdet.errors import CheckpointError, DataError

MISTAKE = DataError("a.tfrecord: offset 3: broken")


def chained(mistake):
    try:
        try:
            raise mistake
        except DataError as error:
            raise RuntimeError("while reading") from error
    except RuntimeError as error:
        return error


def of_a_worker(mistake):
    return WorkerGroupError("failed", {1: UserExceptionWithTraceback(mistake, "the trace")})


@pytest.mark.parametrize(
    "error",
    [
        MISTAKE,
        chained(MISTAKE),
        RayTaskError("read", "the trace", MISTAKE),
        RayTaskError("read", "the trace", RayTaskError("inner", "the trace", MISTAKE)),
        of_a_worker(MISTAKE),
        of_a_worker(RayTaskError("read", "the trace", MISTAKE)),
        ControllerError(of_a_worker(MISTAKE)),
        ControllerError(MISTAKE),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_mistake_is_found(error):
    assert user_error_in(error) is MISTAKE


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), of_a_worker(ValueError("a bug")), ControllerError(OSError("x"))]
)
def test_other_failures_hold_no_mistake(error):
    assert user_error_in(error) is None


def test_exceptions_that_name_each_other_end():
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    assert user_error_in(first) is None


@pytest.mark.usefixtures("local_ray")
def test_the_mistake_of_a_task_within_a_task_keeps_its_kind_and_problems():
    @ray.remote(num_cpus=0.25)
    def inner():
        raise CheckpointError("b.tlt: the file was cut short", "c.tlt: there is no such file")

    @ray.remote(num_cpus=0.25)
    def outer():
        return ray.get(inner.remote())

    with pytest.raises(RayError) as caught:
        ray.get(outer.remote())
    mistake = user_error_in(caught.value)
    assert type(mistake) is CheckpointError
    assert mistake.problems == ("b.tlt: the file was cut short", "c.tlt: there is no such file")

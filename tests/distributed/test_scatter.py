"""Functions mapped over calls as real Ray tasks."""

import os

import pytest

from rayeffdet.distributed.scatter import scatter
from rayeffdet.errors import DataError

pytestmark = pytest.mark.usefixtures("local_ray")


def test_every_call_gives_its_result_under_its_own_number():
    def square(number):
        return number * number

    calls = [{"number": number} for number in range(20)]
    assert dict(scatter(square, calls, num_cpus=0.5)) == {n: n * n for n in range(20)}


def test_no_calls_give_no_results():
    def never():
        raise AssertionError

    assert list(scatter(never, [])) == []


def test_only_some_calls_are_under_way_at_a_time(tmp_path):
    def touch(number):
        (tmp_path / str(number)).touch()

    next(scatter(touch, [{"number": number} for number in range(100)], num_cpus=1.0))
    assert len(list(tmp_path.iterdir())) < 20


def test_a_data_error_of_a_task_arrives_as_itself():
    def fail(number):
        if number == 3:
            raise DataError("shard.tfrecord: offset 7: broken", "another fault")
        return number

    with pytest.raises(DataError) as caught:
        list(scatter(fail, [{"number": number} for number in range(6)], num_cpus=0.5))
    assert type(caught.value) is DataError
    assert caught.value.problems == ("shard.tfrecord: offset 7: broken", "another fault")
    assert caught.value.exit_code == 3


def test_a_bug_in_a_task_is_not_taken_for_the_users_mistake():
    def fail():
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(scatter(fail, [{}]))


def test_a_task_whose_process_was_killed_runs_again(tmp_path):
    def die_once(number):
        mark = tmp_path / f"started-{number}"
        if number == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), 9)
        return number

    calls = [{"number": number} for number in range(3)]
    assert dict(scatter(die_once, calls, num_cpus=0.5)) == {0: 0, 1: 1, 2: 2}
    assert (tmp_path / "started-1").exists()

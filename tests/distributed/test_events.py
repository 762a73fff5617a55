"""Events of workers reach a function of the driver, in order."""

import pytest
import ray

from rayeffdet.distributed.events import Listener

pytestmark = pytest.mark.usefixtures("local_ray")


def test_events_of_a_worker_arrive_in_order_and_all_before_the_block_ends():
    @ray.remote(num_cpus=0)
    def work(mailbox):
        ray.get([mailbox.put.remote({"kind": "progress", "number": n}) for n in range(50)])

    taken = []
    with Listener(taken.append) as listener:
        ray.get(work.remote(listener.mailbox))
    assert [event["number"] for event in taken] == list(range(50))


def test_an_error_of_the_function_comes_out_of_the_block():
    def refuse(event):
        raise OSError(f"no room for {event}")

    listener = Listener(refuse)
    with pytest.raises(OSError, match="no room for"), listener:
        ray.get(listener.mailbox.put.remote({"kind": "epoch"}))


def test_an_error_of_the_block_itself_comes_first():
    def refuse(event):
        raise OSError("no room")

    def interrupted(listener):
        ray.get(listener.mailbox.put.remote({"kind": "epoch"}))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Listener(refuse) as listener:
        interrupted(listener)

"""What happens in Ray Train's controller when workers fail.

A module of its own: the controller imports it before any worker can start, and needs no more.
"""

from typing import Any

from ray.train import UserCallback

from rayeffdet.distributed.failures import user_error_in


class Watch(UserCallback):
    """Tells the driver of failures, and ends the run at once when a restart cannot mend one.

    An exception of a callback is not retried.

    Args:
        mailbox: Takes the events.
        max_failures: Restarts that Ray will try; -1 no limit.
    """

    def __init__(self, mailbox: Any, *, max_failures: int) -> None:
        self._mailbox = mailbox
        self._restarts_left = max_failures

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Is called by Ray with the exceptions by rank.

        Raises:
            UserError: A worker found what a restart cannot mend.
        """
        for error in worker_exceptions.values():
            mistake = user_error_in(error)
            if mistake is not None:
                raise mistake
        if self._restarts_left == 0:
            return  # The error of the run tells of this one.
        self._restarts_left -= 1
        rank, error = next(iter(worker_exceptions.items()))
        last_line = str(error).strip().splitlines()[-1:]
        self._mailbox.put.remote({"kind": "failure", "rank": rank, "text": "".join(last_line)})

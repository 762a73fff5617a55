"""What training workers tell the driver while they work: a mailbox on the driver's node."""

import threading
from collections.abc import Callable
from typing import Any

import ray

Event = dict[str, Any]
POLL_SECONDS = 0.25


@ray.remote(num_cpus=0)
class Mailbox:
    """Keeps events in order until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        """Adds an event; workers do not wait for it."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """Returns and forgets what has come since the last call."""
        events, self._events = self._events, []
        return events


class Listener:
    """Hands events to a function in a thread of the driver, in order, for the length of a block."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self.mailbox = Mailbox.remote()  # type: ignore[attr-defined]
        self.error: BaseException | None = None
        self._on_event = on_event
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="events", daemon=True)

    def __enter__(self) -> "Listener":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)
        if not any(exception) and self.error is not None:
            raise self.error

    def _listen(self) -> None:
        try:
            while not self._stop.wait(POLL_SECONDS):
                self._deliver()
            self._deliver()
        except ray.exceptions.RayError:
            return  # The cluster is gone; the training call says so itself.
        except Exception as error:
            self.error = error

    def _deliver(self) -> None:
        for event in ray.get(self.mailbox.take.remote()):
            self._on_event(event)

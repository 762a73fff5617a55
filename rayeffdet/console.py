"""The only module that writes to a terminal: for people on stderr, results on stdout."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn

# Without a terminal a line is printed this often at most.
PLAIN_LINE_SECONDS = 10.0


def duration(seconds: float) -> str:
    """Returns a time span for people: ``42 s``, ``3 min 05 s``, ``2 h 51 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Console:
    """Where a command speaks.

    Args:
        quiet: Only errors and results.
        as_json: Results as one line of JSON each on stdout.
        stream: For people; stderr unless a test listens.
    """

    def __init__(
        self, *, quiet: bool = False, as_json: bool = False, stream: TextIO | None = None
    ) -> None:
        self._quiet = quiet
        self._as_json = as_json
        # Without emoji, since `spec.yaml:100:` spells one.
        self._rich = RichConsole(
            file=stream or sys.stderr, highlight=False, soft_wrap=True, emoji=False
        )
        self._log: list[str] = []

    def say(self, text: str = "") -> None:
        """Prints a line for people."""
        self._log.append(text)
        if not self._quiet:
            self._rich.print(text, markup=False)

    def rows(self, rows: Iterable[tuple[str, str]]) -> None:
        """Prints labelled lines, the labels in a column of their own."""
        for label, text in rows:
            self.say(f"{label:<9}{text}")

    def notice(self, text: str) -> None:
        """Prints what a person should know but need not act on."""
        self.say(f"notice   {text}")

    def errors(self, problems: Sequence[str]) -> None:
        """Prints problems, one line each, also when quiet."""
        for problem in problems:
            self._log.append(problem)
            self._rich.print(problem, markup=False, style="red")

    def trace(self) -> None:
        """Prints the exception being handled with its traceback."""
        self._rich.print_exception()

    def result(self, task: str, values: dict[str, Any]) -> None:
        """Prints what a task gives, on stdout, when JSON is asked for."""
        if self._as_json:
            print(json.dumps({"task": task, **values}), flush=True)

    def take_log(self) -> str:
        """Returns and forgets the lines said so far, for log.txt."""
        lines, self._log = self._log, []
        return "".join(f"{line}\n" for line in lines)

    def progress(self, total: int, *, done: int = 0) -> "Bar":
        """Returns a bar on a terminal, and plain lines elsewhere."""
        return Bar(self, self._rich, total=total, done=done, quiet=self._quiet)


class Bar:
    """Progress of a task, to be used in a ``with`` block."""

    def __init__(
        self, console: Console, rich: RichConsole, *, total: int, done: int, quiet: bool
    ) -> None:
        self._console = console
        self._total = total
        self._last_line = 0.0
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %  {task.description}", markup=False),
            console=rich,
            transient=True,
            disable=quiet or not rich.is_terminal,
        )
        self._task: TaskID = self._progress.add_task("", total=total, completed=done)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, done: int, text: str) -> None:
        """Moves the bar; without a terminal a line now and then."""
        self._progress.update(self._task, completed=done, description=text)
        now = time.monotonic()
        if self._progress.disable and now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            self._console.say(text)

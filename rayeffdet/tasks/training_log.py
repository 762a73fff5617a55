"""Events of a training run to people and to files: metrics.csv, TensorBoard, status, plots."""

import csv
import io
import time
from typing import Any

from tensorboardX import SummaryWriter

from rayeffdet import storage
from rayeffdet.console import Bar, Console, duration
from rayeffdet.evaluate.plots import plot_training
from rayeffdet.journal import Journal

METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("ARmax1", "ARmax10", "ARmax100", "ARs", "ARm", "ARl"),
)
MEANS = (
    *("loss", "cls_loss", "box_loss", "iou_loss", "learning_rate", "gradient_norm"),
    *("images_per_second", "data_wait"),
)
COLUMNS = ("epoch", "step", *MEANS, *METRICS)


class TrainingLog:
    """Receives what rank 0 tells; to be used in a ``with`` block around the training.

    Args:
        console: For people.
        journal: The task's records.
        num_epochs: Epochs of the whole run.
        steps_per_epoch: Steps of an epoch.
        first_epoch: Where this start begins; later rows of an earlier start are dropped.
    """

    def __init__(
        self,
        console: Console,
        journal: Journal,
        *,
        num_epochs: int,
        steps_per_epoch: int,
        first_epoch: int,
    ) -> None:
        self.result: dict[str, Any] = {}
        self._console = console
        self._journal = journal
        self._num_epochs = num_epochs
        self._steps_per_epoch = steps_per_epoch
        self._rows = [row for row in self._earlier_rows() if int(row["epoch"]) <= first_epoch]
        self._epoch_started = time.monotonic()
        self._clock: tuple[int, float] | None = None
        first_step = first_epoch * steps_per_epoch
        self._bar: Bar = console.progress(num_epochs * steps_per_epoch, done=first_step)
        self._board: SummaryWriter | None = None
        if not storage.is_uri(journal.folder):
            self._board = SummaryWriter(journal.folder, write_to_disk=True)

    def __enter__(self) -> "TrainingLog":
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._bar.__exit__(kind, error, trace)
        if self._board is not None:
            self._board.close()
        if kind is None:
            self._journal.status("SUCCESS", "Training finished successfully.")
            files = plot_training(self._rows, self._journal.path("plots"))
            self._console.say(f"plots    {', '.join(files)}")
        self._journal.log(self._console.take_log())

    def on_event(self, event: dict[str, Any]) -> None:
        """Takes one event of the mailbox."""
        match event["kind"]:
            case "progress":
                self._progress(event)
            case "evaluated":
                self._evaluated(event)
            case "epoch":
                self._epoch(event)
            case "notice":
                self._console.notice(event["text"])
            case "failure":
                self._console.notice(
                    f"worker {event['rank']} failed ({event['text']}); restarting from the last"
                    " checkpoint"
                )

    def _progress(self, event: dict[str, Any]) -> None:
        seconds = self._seconds_per_step(event["step"])
        left = self._num_epochs * self._steps_per_epoch - event["step"]
        eta = f" · {duration(seconds * left)} left" if seconds else ""
        self._bar.update(
            event["step"],
            f"epoch {event['epoch'] + 1}/{self._num_epochs} step {event['step']}"
            f" · loss {event['loss']:.3f} (class {event['cls_loss']:.3f} box"
            f" {event['box_loss']:.4f}) · rate {event['learning_rate']:.4g}"
            f" · {event['images_per_second']:.1f} images/s · data {event['data_wait']:.0%}{eta}",
        )
        if self._board is not None:
            for name in ("loss", "cls_loss", "box_loss"):
                self._board.add_scalar(f"train/{name}", event[name], event["step"])
            self._board.add_scalar("lr", event["learning_rate"], event["step"])
            self._board.add_scalar("time/data", event["data_wait"], event["step"])

    def _seconds_per_step(self, step: int) -> float | None:
        """Returns the mean since the first step seen, whose own time is that of setting up."""
        now = time.monotonic()
        if self._clock is None or step <= self._clock[0]:
            self._clock = (step, now)
            return None
        return (now - self._clock[1]) / (step - self._clock[0])

    def _evaluated(self, event: dict[str, Any]) -> None:
        metrics = event["metrics"]
        self._console.say(
            f"epoch {event['epoch'] + 1}: AP {metrics['AP']:.3f} · AP50 {metrics['AP50']:.3f}"
            f" · AP75 {metrics['AP75']:.3f} · {metrics['num_images']:,} images in"
            f" {duration(event['seconds'])}"
        )

    def _epoch(self, event: dict[str, Any]) -> None:
        epoch, means, metrics = event["epoch"] + 1, event["means"], event["metrics"]
        row: dict[str, Any] = {"epoch": epoch, "step": event["step"]}
        row |= {name: means.get(name) for name in MEANS}
        row |= {name: metrics.get(name) for name in METRICS}
        # A restarted worker group repeats epochs; the latest account of one counts.
        self._rows = [one for one in self._rows if int(one["epoch"]) < epoch] + [row]
        storage.write_atomic(self._journal.path("metrics.csv"), _csv(self._rows))
        if means.get("num_truncated"):
            self._console.notice(
                f"epoch {epoch}: {means['num_truncated']:.0f} boxes beyond"
                " dataset.max_instances_per_image were left out"
            )
        now = time.monotonic()
        seconds = now - self._epoch_started
        kpi = {name: metrics[name] for name in METRICS} if metrics else {}
        self._journal.status(
            "RUNNING",
            "",
            epoch=epoch,
            max_epoch=self._num_epochs,
            time_per_epoch=duration(seconds),
            eta=duration(seconds * (self._num_epochs - epoch)),
            loss=means.get("loss"),
            learning_rate=means.get("learning_rate"),
            **({"kpi": kpi} if kpi else {}),
        )
        self._epoch_started = now
        if self._board is not None:
            for name, value in kpi.items():
                self._board.add_scalar(f"val/{name}", value, epoch)
            self._board.flush()
        if event["checkpoint"]:
            self._console.say(f"epoch {epoch}: saved {event['checkpoint']}")
        self.result = {"epoch": epoch, "step": event["step"], **kpi}
        if event["checkpoint"]:
            self.result["checkpoint"] = event["checkpoint"]
        self._journal.log(self._console.take_log())

    def _earlier_rows(self) -> list[dict[str, Any]]:
        path = self._journal.path("metrics.csv")
        if not storage.exists(path):
            return []
        text = storage.read_bytes(path).decode()
        return [
            {name: float(value) if value else None for name, value in row.items()}
            for row in csv.DictReader(io.StringIO(text))
        ]


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        values = {name: row.get(name) for name in COLUMNS}
        values |= {"epoch": int(row["epoch"]), "step": int(row["step"])}
        writer.writerow(values)
    return text.getvalue().encode()

"""The list of a run's checkpoints, and which of them to go on from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rayeffdet import storage
from rayeffdet.errors import CheckpointError
from rayeffdet.train.checkpoint import Checkpoint, load_checkpoint

INDEX_NAME = "checkpoints.json"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the index.

    Attributes:
        file: Name within the folder of the index.
        epoch: Epochs finished.
        step: Optimizer steps taken.
        metrics: What the evaluation of this checkpoint found; empty when there was none.
    """

    file: str
    epoch: int
    step: int
    metrics: dict[str, Any]


@dataclass(frozen=True)
class CheckpointIndex:
    """The checkpoints of one folder in the order of training, as ``checkpoints.json`` lists them.

    Attributes:
        folder: Path or URI.
        entries: Oldest first.
    """

    folder: str
    entries: tuple[Entry, ...] = ()

    @classmethod
    def read(cls, folder: str) -> "CheckpointIndex":
        """Returns the index of a folder; without a file it is empty.

        Raises:
            CheckpointError: The file is not what ``add`` writes.
        """
        path = storage.join(folder, INDEX_NAME)
        if not storage.exists(path):
            return cls(folder)
        try:
            listed = storage.read_json(path)["checkpoints"]
            return cls(folder, tuple(Entry(**entry) for entry in listed))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: is not an index of checkpoints ({error}); delete it to start anew, or"
                " name the file to go on from in train.resume_training_checkpoint_path"
            ) from error

    def add(
        self, file: str, *, epoch: int, step: int, metrics: Mapping[str, Any]
    ) -> "CheckpointIndex":
        """Returns the index with one more checkpoint, after writing it atomically.

        Entries as late as the new one or later leave the list: they are of a course of training
        that was given up when an earlier checkpoint was resumed. Their files stay.

        Raises:
            RunError: The storage refuses the write.
        """
        entry = Entry(file=file, epoch=epoch, step=step, metrics=dict(metrics))
        earlier = (e for e in self.entries if (e.epoch, e.step) < (epoch, step) and e.file != file)
        index = CheckpointIndex(self.folder, (*earlier, entry))
        document = {
            "checkpoints": [asdict(entry) for entry in index.entries],
            "best": index.best and index.best.file,
            "last": index.last and index.last.file,
        }
        storage.write_json(storage.join(self.folder, INDEX_NAME), document)
        return index

    @property
    def last(self) -> Entry | None:
        """The latest entry."""
        return self.entries[-1] if self.entries else None

    @property
    def best(self) -> Entry | None:
        """The entry with the highest AP, the latest of equals; None when none was evaluated."""
        evaluated = [entry for entry in self.entries if entry.metrics.get("AP") is not None]
        return max(reversed(evaluated), key=lambda entry: entry.metrics["AP"], default=None)

    def path(self, entry: Entry) -> str:
        """Returns where the file of an entry is."""
        return storage.join(self.folder, entry.file)

    def load_latest(self, *, encryption_key: str = "") -> tuple[Checkpoint | None, list[str]]:
        """Returns the latest checkpoint that can be loaded, and why later ones could not.

        An empty index gives None: there is nothing to resume.

        Raises:
            CheckpointError: There are entries and none can be loaded: one problem each.
        """
        problems: list[str] = []
        for entry in reversed(self.entries):
            try:
                return load_checkpoint(self.path(entry), encryption_key=encryption_key), problems
            except CheckpointError as error:
                problems.extend(error.problems)
        if problems:
            raise CheckpointError(*problems)
        return None, problems

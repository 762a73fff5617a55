"""What every task is given."""

from dataclasses import dataclass
from typing import Any

from rayeffdet.console import Console
from rayeffdet.distributed.cluster import Cluster
from rayeffdet.errors import CheckpointError
from rayeffdet.journal import Journal
from rayeffdet.spec.load import LoadedSpec
from rayeffdet.spec.root import Spec
from rayeffdet.train.checkpoint_index import CheckpointIndex


@dataclass(frozen=True)
class Context:
    """The spec with absolute paths, the cluster, and where to speak.

    Args:
        loaded: The spec and its origins.
        console: For people and for results.
        cluster: What there is to run on.
        debug: Show what is otherwise worded for people.
    """

    loaded: LoadedSpec
    console: Console
    cluster: Cluster
    debug: bool = False

    @property
    def spec(self) -> Spec:
        """The spec."""
        return self.loaded.spec

    def journal(self, task: str) -> Journal:
        """Returns the records of a task, begun."""
        journal = Journal(self.spec.task_dir(task), task)
        journal.begin(self.loaded, hardware=self.hardware)
        return journal

    @property
    def hardware(self) -> dict[str, Any]:
        """What the cluster has, for environment.json."""
        return {
            "cluster": self.cluster.address,
            "nodes": self.cluster.num_nodes,
            "cpus": self.cluster.num_cpus,
            "gpus": self.cluster.num_gpus,
        }

    @property
    def gpus_per_task(self) -> float:
        """GPUs of one detection task: one where there are any."""
        wanted = self.spec.ray.use_gpu
        return 1.0 if wanted is True or (wanted == "auto" and self.cluster.num_gpus) else 0.0

    def checkpoint_for(self, task: str, given: str) -> str:
        """Returns the checkpoint that a task reads: the given one, or that of the task before it.

        Raises:
            CheckpointError: None is given and neither retrain nor train has left one.
        """
        if given:
            return given
        for source in ("retrain", "train"):
            index = CheckpointIndex.read(self.spec.task_dir(source))
            entry = index.best or index.last
            if entry is not None:
                return index.path(entry)
        raise CheckpointError(
            f"{task}.checkpoint is empty and {self.spec.task_dir('train')} holds no checkpoint;"
            " run train first or name a file"
        )

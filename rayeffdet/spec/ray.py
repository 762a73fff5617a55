"""The `ray` section: where the work runs."""

from typing import Annotated, Literal

from annotated_types import Ge
from pydantic import BeforeValidator, Field

from rayeffdet.spec.section import Flag, Integer, NonNegative, Positive, Section, Text


def _workers(value: object) -> object:
    ends = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if value is None:
        return None
    if len(ends) == 2 and all(type(end) is int for end in ends) and 1 <= ends[0] <= ends[1]:
        return value if isinstance(value, int) else ends
    raise ValueError(f"{value!r} is not an integer > 0, [min, max] with 0 < min <= max, or null")


Workers = Annotated[int | tuple[int, int] | None, BeforeValidator(_workers)]


class RaySection(Section):
    """Where the work runs, and on how much of it."""

    address: Text = ""
    """Address of the cluster; null: RAY_ADDRESS, else a local Ray on this machine."""

    num_workers: Workers = None
    """Training workers; null: num_gpus; [min, max]: as many as the cluster has at the time."""

    use_gpu: Literal["auto", True, False] = "auto"
    """auto: a GPU per worker if the cluster has or can get one, else CPU with a notice."""

    resources_per_worker: dict[str, NonNegative] = Field(default_factory=dict)
    """What each worker reserves, by Ray's names, for example {CPU: 4, accelerator_type:A10G: 1}."""

    decode: Literal["auto", "worker", "data"] = "auto"
    """Where images are decoded: beside the training loop, or in Ray Data tasks on any node."""

    data_cpus: Positive | None = None
    """CPUs for decoding and augmentation; null: what the workers leave free."""

    storage_path: Text = ""
    """Path or URI that all nodes can write to; null: results_dir."""

    max_failures: Annotated[Integer, Ge(-1)] = 3
    """Restarts of the workers after a failure; -1 is unlimited, for spot nodes."""

    scale_learning_rate: Flag = False
    """Multiplies the learning rate by the number of workers."""

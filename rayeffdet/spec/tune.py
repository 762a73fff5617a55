"""The `tune` section: what a search varies, and how."""

from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import Field

from rayeffdet.spec.section import ListOf, Mapping, PositiveInt, Section

TrialTask = Literal["train", "evaluate", "prune", "retrain"]


class TuneSection(Section):
    """A search over spec fields with Ray Tune."""

    tasks: Annotated[ListOf[TrialTask], MinLen(1)] = ("train", "evaluate")
    """What one trial runs, in this order."""

    search_space: dict[str, Mapping] = Field(default_factory=dict)
    """Dotted field name to one of choice, grid: a list of values; uniform, loguniform, randint,
    lograndint: [low, high]; quniform, qloguniform, qrandint, qlograndint: [low, high, step]."""

    metric: Annotated[str, MinLen(1)] = "AP"
    """Metric by which trials are ranked."""

    mode: Literal["max", "min"] = "max"
    """Whether a large or a small metric is good."""

    num_samples: PositiveInt = 8
    """Trials; with grid, passes over the grid."""

    scheduler: Literal["asha", "pbt", "fifo"] = "asha"
    """asha stops poor trials early; pbt copies good ones and varies them; fifo runs all out."""

    search: Literal["random", "optuna"] = "random"
    """How the next trial's values are chosen."""

    max_concurrent_trials: PositiveInt | None = None
    """Trials at the same time; null: as many as fit."""

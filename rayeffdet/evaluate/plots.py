"""Plots of a run and of a data set, as PNG files. The only module that imports matplotlib."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rayeffdet import storage

_MOST_CLASSES = 40
# COCO's borders between small, medium and large objects: sides of a square of that area.
_COCO_SIDES = (32, 96)
_INK = "#333333"
_BORDER = "#e8590c"


def plot_training(rows: Sequence[Mapping[str, Any]], folder: str) -> list[str]:
    """Writes losses.png, ap.png and learning_rate.png and returns their paths.

    Args:
        rows: Rows of metrics.csv, numbers or their text; an empty, negative or not finite value
            is left out, so AP may be there in some epochs only.
        folder: Local path or URI.
    """
    figures = {
        "losses.png": _curves(
            rows, ("loss", "cls_loss", "box_loss"), title="Training loss", scale="log"
        ),
        "ap.png": _curves(
            rows, ("AP", "AP50", "AP75", "APs", "APm", "APl"), title="COCO AP of the validation set"
        ),
        "learning_rate.png": _curves(rows, ("learning_rate",), title="Learning rate"),
    }
    paths = [storage.join(folder, name) for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        _save(figure, path)
    return paths


def plot_label_statistics(counts: Mapping[str, int], box_sizes_wh: NDArray[Any], path: str) -> None:
    """Writes one picture: objects per class, and how large the objects are.

    Args:
        counts: Objects per class name; the largest 40 are shown, the rest as one bar.
        box_sizes_wh: ``[n, 2]`` width and height of boxes in pixels.
        path: Local path or URI of the PNG file.
    """
    bars = _largest(counts)
    figure = Figure(figsize=(11, max(4.5, 1.2 + 0.22 * len(bars))), layout="constrained")
    classes, sizes = figure.subplots(1, 2)
    _plot_class_counts(classes, bars)
    _plot_box_sizes(sizes, np.asarray(box_sizes_wh, dtype=np.float64).reshape(-1, 2))
    _save(figure, path)


def _curves(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, title: str, scale: str = "linear"
) -> Figure:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    for column in columns:
        points = _points(rows, column)
        if points:
            epochs, values = zip(*points, strict=True)
            axes.plot(epochs, values, label=column, marker="o" if len(points) < 30 else "")
    if not axes.lines:
        _say(axes, f"No {columns[0]} recorded yet (epochs so far: {len(rows)})")
        return figure
    axes.set_xlabel("epoch")
    axes.set_yscale(scale)
    if scale == "linear":
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _quieten(axes)
    axes.legend(frameon=False)
    return figure


def _points(rows: Sequence[Mapping[str, Any]], column: str) -> list[tuple[float, float]]:
    points = []
    for row in rows:
        value = row.get(column)
        if value in (None, ""):
            continue
        number = float(value)
        if math.isfinite(number) and number >= 0:
            points.append((float(row["epoch"]), number))
    return points


def _largest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown, rest = ordered[:_MOST_CLASSES], ordered[_MOST_CLASSES:]
    others = [(f"{len(rest)} others", sum(count for _, count in rest))] if rest else []
    return shown + others


def _plot_class_counts(axes: Axes, bars: Sequence[tuple[str, int]]) -> None:
    axes.set_title("Objects per class")
    if not bars:
        _say(axes, "No classes: the annotations name none")
        return
    names, counts = zip(*bars, strict=True)
    drawn = axes.barh(range(len(bars)), counts, height=0.75)
    axes.bar_label(drawn, padding=3, fontsize=8, color=_INK)
    # A class name with dollar signs is a name, not a formula.
    axes.set_yticks(range(len(bars)), names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    _quieten(axes)
    axes.grid(axis="y", visible=False)


def _plot_box_sizes(axes: Axes, box_sizes_wh: NDArray[np.float64]) -> None:
    usable = box_sizes_wh[(np.isfinite(box_sizes_wh) & (box_sizes_wh > 0)).all(axis=1)]
    axes.set_title(f"Sizes of {len(usable)} boxes (pixels)")
    if not len(usable):
        _say(axes, "No boxes: no annotation has an area")
        return
    low = min(usable.min(), _COCO_SIDES[0] / 2) / 1.2
    high = max(usable.max(), _COCO_SIDES[1] * 2) * 1.2
    bins = np.geomspace(low, high, 60)
    axes.hist2d(usable[:, 0], usable[:, 1], bins=(bins, bins), cmin=1, cmap="viridis")
    width = np.array([low, high])
    for side in _COCO_SIDES:
        axes.plot(width, side**2 / width, color=_BORDER, linewidth=1.2, linestyle="--")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.set(xlabel="width; dashed: COCO's small | medium | large", ylabel="height", aspect="equal")
    _quieten(axes)


def _quieten(axes: Axes) -> None:
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _say(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=_INK, transform=axes.transAxes)


def _save(figure: Figure, path: str) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    storage.write_atomic(path, picture.getvalue())

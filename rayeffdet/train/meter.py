"""Means over the steps of an interval, in the words of metrics.csv."""

from rayeffdet.train.loop import StepDone


class Meter:
    """Adds up steps of one worker; rates are scaled to all workers.

    Args:
        num_workers: Workers that take the same steps.
    """

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._steps: list[StepDone] = []

    def add(self, step: StepDone) -> None:
        """Counts a step."""
        self._steps.append(step)

    @property
    def seconds(self) -> float:
        """Time of the steps counted so far."""
        return sum(step.seconds for step in self._steps)

    def take(self) -> dict[str, float]:
        """Returns means and rates of the steps since the last call, and forgets them.

        ``data_wait`` is the share of time in 0..1 that passed before batches were there;
        ``images_per_second`` is over all workers.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return {}
        count, seconds = len(steps), sum(step.seconds for step in steps)
        return {
            "loss": sum(s.result.loss for s in steps) / count,
            "cls_loss": sum(s.result.cls_loss for s in steps) / count,
            "box_loss": sum(s.result.box_loss for s in steps) / count,
            "iou_loss": sum(s.result.iou_loss for s in steps) / count,
            "gradient_norm": sum(s.result.gradient_norm for s in steps) / count,
            "learning_rate": steps[-1].learning_rate,
            "images_per_second": self._num_workers * sum(s.num_images for s in steps) / seconds,
            "data_wait": sum(s.data_wait_s for s in steps) / seconds,
            "num_truncated": self._num_workers * sum(s.num_truncated for s in steps),
        }

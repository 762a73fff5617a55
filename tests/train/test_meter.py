import pytest

from rayeffdet.train.loop import StepDone
from rayeffdet.train.meter import Meter
from rayeffdet.train.step import StepResult


def step(number, *, loss=1.0, rate=0.1, images=2, truncated=0, seconds=0.5, wait=0.1):
    result = StepResult(
        loss=loss, cls_loss=2 * loss, box_loss=3 * loss, iou_loss=4 * loss, gradient_norm=5 * loss
    )
    return StepDone(0, number, rate, result, images, truncated, seconds, wait)


def test_losses_are_means_over_the_steps():
    meter = Meter(1)
    for number, loss in enumerate((1.0, 2.0, 6.0)):
        meter.add(step(number, loss=loss))
    found = meter.take()
    names = ("loss", "cls_loss", "box_loss", "iou_loss", "gradient_norm")
    assert [found[name] for name in names] == [3, 6, 9, 12, 15]


def test_the_rate_is_that_of_the_last_step():
    meter = Meter(1)
    for number, rate in enumerate((0.1, 0.3, 0.2)):
        meter.add(step(number, rate=rate))
    assert meter.take()["learning_rate"] == 0.2


def test_speed_and_truncated_boxes_are_those_of_all_workers():
    meter = Meter(4)
    meter.add(step(0, images=2, seconds=0.5, truncated=1))
    meter.add(step(1, images=3, seconds=1.5, truncated=2))
    found = meter.take()
    assert found["images_per_second"] == 4 * 5 / 2
    assert found["num_truncated"] == 12


def test_waiting_is_a_share_of_the_time_and_not_a_mean_of_shares():
    meter = Meter(2)
    meter.add(step(0, seconds=1.0, wait=0.9))
    meter.add(step(1, seconds=9.0, wait=0.1))
    assert meter.take()["data_wait"] == pytest.approx(0.1)


def test_taking_forgets():
    meter = Meter(1)
    meter.add(step(0, loss=100.0))
    assert meter.seconds == 0.5
    meter.take()
    assert meter.seconds == 0
    assert meter.take() == {}
    meter.add(step(1, loss=1.0))
    assert meter.take()["loss"] == 1

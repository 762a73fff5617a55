"""A run small enough to be trained in a test: 64 x 64 pixels, six pictures, batches of two."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from rayeffdet.data.example import Example
from rayeffdet.data.loader import load_batches
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.spec.load import with_values
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import build_architecture, build_sample, build_trainee
from rayeffdet.train.step import World

CPU = World(rank=0, size=1, device=torch.device("cpu"))
SMALL = {
    "model.input_width": 64,
    "model.input_height": 64,
    "dataset.num_classes": 4,
    "train.batch_size": 2,
    "train.moving_average_decay": 0.9,
    "train.lr_schedule.warmup_epoch": 0,
}
STILL = {
    "dataset.augmentation.rand_hflip": False,
    "dataset.augmentation.random_crop_min_scale": 1.0,
    "dataset.augmentation.random_crop_max_scale": 1.0,
}


@pytest.fixture
def make_spec():
    """Makes the small run's spec, with other values for some dotted fields."""
    return lambda values=(): with_values(Spec(), SMALL | dict(values), where="test")


@pytest.fixture
def make_trainee():
    """Makes what is trained, from random weights that are the spec's own."""

    def make(spec, world=CPU):
        torch.manual_seed(spec.train.random_seed)
        return build_trainee(spec, EfficientDet(build_architecture(spec)), world)

    return make


@pytest.fixture(scope="session")
def records():
    """Six noisy pictures with a bright rectangle each, of class 1, 2 or 3."""
    return [_record(number) for number in range(6)]


@pytest.fixture
def batch_of(records, make_spec):
    """Makes a batch of the pictures of these numbers, as they are."""

    def make(*numbers):
        rows = [(f"record {number}", number, records[number]) for number in numbers]
        spec = make_spec(STILL)
        sample = build_sample(spec, build_architecture(spec))
        (batch,) = load_batches(
            [rows], sample, size_hw=(64, 64), max_instances=100, num_threads=1, prefetch=0
        )
        return batch

    return make


def _record(number):
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 120, (48, 64, 3), np.uint8)
    x, y, width, height = 4 + 3 * number, 6, 18 + number, 24
    pixels[y : y + height, x : x + width, number % 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Example(
        source_id=f"picture {number}",
        filename=f"{number}.png",
        encoded=buffer.getvalue(),
        format="png",
        height=48,
        width=64,
        boxes_xyxy=np.array([[x, y, x + width, y + height]], np.float32),
        labels=np.array([1 + number % 3]),
        class_names=(("red", "green", "blue")[number % 3],),
        is_crowd=np.zeros(1, bool),
        areas=np.array([width * height], np.float32),
    )

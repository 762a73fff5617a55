from itertools import product
from zlib import crc32

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from rayeffdet.data.autoaugment import auto_color_distortion, auto_translate_xy

SEEDS = range(200)


class Dice:
    """A random generator whose next throws are given; magnitudes are drawn from 0 to 15."""

    def __init__(self, magnitude, *choices):
        self.magnitude, self.choices = magnitude, choices

    def uniform(self, low, high):
        assert (low, high) == (0, 15)
        return self.magnitude

    def integers(self, high, size=None):
        assert max(self.choices) < high
        return self.choices[0] if size is None else np.array(self.choices)


def scene(height=120, width=160):
    """Rough and coloured, neither black nor white, so that every operation shows."""
    rng = np.random.default_rng(5)
    small = Image.fromarray(rng.integers(40, 200, (40, 60, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def distorted(seed, image=None):
    return np.asarray(auto_color_distortion(image or scene(), np.random.default_rng(seed)))


def degenerates():
    image = scene()
    grey = image.convert("L")
    mean = round(np.asarray(grey).mean())
    return {
        "colour": grey.convert("RGB"),
        "contrast": Image.new("RGB", image.size, (mean, mean, mean)),
        "brightness": Image.new("RGB", image.size),
        "sharpness": image.filter(ImageFilter.SMOOTH),
    }


def explain(found):
    """The operation and factor f with found = degenerate + f (image - degenerate), clipped."""
    image = np.asarray(scene()).astype(float)
    if np.array_equal(found, np.asarray(ImageOps.equalize(scene()))):
        return "equalize", None
    for name, degenerate in degenerates().items():
        start = np.asarray(degenerate).astype(float)
        difference = image - start
        inside = (found > 0) & (found < 255)
        factor = (difference * (found - start))[inside].sum() / (difference**2)[inside].sum()
        expected = np.clip(start + factor * difference, 0, 255)
        if np.abs(expected - found).max() <= 2:
            return name, factor
    return "unknown", None


def test_every_distortion_is_one_of_five_and_all_occur():
    explained = [explain(distorted(seed)) for seed in SEEDS]
    counts = {name: [n for n, _ in explained].count(name) for name, _ in explained}
    assert set(counts) == {"equalize", "colour", "contrast", "brightness", "sharpness"}
    assert all(count >= 20 for count in counts.values())
    factors = [factor for _, factor in explained if factor is not None]
    assert 0.05 < min(factors) < 0.3
    assert 2.5 < max(factors) < 2.85
    assert np.mean(factors) == pytest.approx(1.45, abs=0.2)


@pytest.mark.parametrize("magnitude", np.linspace(0, 15, 13))
def test_the_five_distortions_are_those_of_pillow_at_every_magnitude(magnitude):
    found = {crc32(auto_color_distortion(scene(), Dice(magnitude, c)).tobytes()) for c in range(5)}
    enhanced = [
        Image.blend(degenerate, scene(), 0.18 * magnitude + 0.1)
        for degenerate in degenerates().values()
    ]
    expected = {crc32(image.tobytes()) for image in [ImageOps.equalize(scene()), *enhanced]}
    assert found == expected
    assert len(found) == (2 if magnitude == 5 else 5)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, 1),
        (0, 2),
        (0, 20),
        (0, 128),
        (0, 256),
        (60, 200),
        (100, 101),
        (100, 110),
        (128, 256),
        (250, 256),
        (255, 256),
    ],
)
def test_equalize_spreads_the_histogram_of_each_channel(low, high):
    rng = np.random.default_rng(low)
    pixels = rng.integers(low, high, (40, 60, 3), dtype=np.uint8)
    last_of_five = 4
    found = auto_color_distortion(Image.fromarray(pixels), Dice(7.5, last_of_five))
    expected = np.stack([equalized(pixels[..., channel]) for channel in range(3)], axis=-1)
    np.testing.assert_array_equal(np.asarray(found), expected)


def equalized(channel):
    """Each value becomes the number of pixels below it in steps of a 255th of all but the last."""
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (counts.sum() - counts[counts > 0][-1]) // 255
    below = np.cumsum(counts) - counts
    return ((below + step // 2) // step).clip(max=255)[channel] if step else channel


def test_a_distortion_is_decided_by_the_random_state():
    np.testing.assert_array_equal(distorted(3), distorted(3))
    assert not np.array_equal(distorted(3), distorted(4))


def test_a_distortion_leaves_its_input_as_it_is():
    image = scene()
    before = np.asarray(image).copy()
    for seed in range(20):
        distorted(seed, image)
    np.testing.assert_array_equal(np.asarray(image), before)


def test_sharpness_agrees_with_the_smoothing_kernel():
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    pixels = np.asarray(scene()).astype(float)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), axis=(0, 1))
    smooth = np.asarray(ImageEnhance.Sharpness(scene()).enhance(0)).astype(float)
    assert np.abs((windows * kernel).sum(axis=(-1, -2)) - smooth[1:-1, 1:-1]).max() <= 1


def translated(rng, boxes_xyxy, labels, image=None):
    return auto_translate_xy(image or scene(), boxes_xyxy, labels, rng)


def found_shift(moved):
    """The (x, y) of whole pixels by which the scene was moved, from the pixels alone."""
    pixels, moved = np.asarray(scene()).astype(int), np.asarray(moved).astype(int)
    height, width = pixels.shape[:2]
    for shift in range(-75, 76):
        kept = slice(max(0, shift), width + min(0, shift))
        source = slice(max(0, -shift), width - max(0, shift))
        if np.array_equal(moved[:, kept], pixels[:, source]):
            return shift, 0
        kept = slice(max(0, shift), height + min(0, shift))
        source = slice(max(0, -shift), height - max(0, shift))
        if np.array_equal(moved[kept], pixels[source]):
            return 0, shift
    raise AssertionError("not a shift of the scene")


def test_a_translation_moves_boxes_with_the_picture_along_one_axis_either_way():
    boxes_xyxy, labels = np.array([[76, 76, 84, 84]], np.float32), np.array([2])
    image = scene()
    shifts = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        moved, moved_boxes, moved_labels = translated(rng, boxes_xyxy, labels, image)
        x, y = found_shift(moved)
        expected = np.clip(boxes_xyxy + np.array((x, y, x, y)), 0, (160, 120, 160, 120))
        if (expected[0, 2:] - expected[0, :2] >= 1).all():
            np.testing.assert_array_equal(moved_boxes, expected)
            assert moved_labels.tolist() == [2]
        else:
            assert len(moved_boxes) == len(moved_labels) == 0
        shifts.append((x, y))
    signs = {(np.sign(x), np.sign(y)) for x, y in shifts}
    assert {(1, 0), (-1, 0), (0, 1), (0, -1)} <= signs
    assert 60 < np.abs(shifts).max() < 75


@pytest.mark.parametrize(
    ("magnitude", "distance"),
    [
        (0, 0),
        (0.19, 0),
        (0.2, 1),
        (1.5, 7),
        (3.1, 15),
        (4.5, 22),
        (6, 30),
        (7.5, 37),
        (9.99, 49),
        (12, 60),
        (14.99, 74),
        (15, 75),
    ],
)
def test_the_four_translations_are_those_of_pillow_at_every_magnitude(magnitude, distance):
    boxes_xyxy = np.array([[0, 50, 3, 60], [70, 50, 90.5, 70], [100, 119, 160, 120]], np.float32)
    found = [
        translated(Dice(magnitude, *choices), boxes_xyxy, np.array([7, 8, 9]))
        for choices in product((0, 1), repeat=2)
    ]
    expected = [
        expected_shift(boxes_xyxy.tolist(), x * distance, y * distance)
        for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    found = [
        (crc32(moved.tobytes()), dict(zip(labels.tolist(), boxes.tolist(), strict=True)))
        for moved, boxes, labels in found
    ]
    assert sorted(found, key=str) == sorted(expected, key=str)


def expected_shift(boxes_xyxy, x, y):
    """The checksum of the picture, and the box of each label that keeps a pixel of each side."""
    moved = scene().transform(
        (160, 120), Image.Transform.AFFINE, (1, 0, -x, 0, 1, -y), fillcolor=(128, 128, 128)
    )
    kept = {}
    for label, (x1, y1, x2, y2) in zip((7, 8, 9), boxes_xyxy, strict=True):
        left, right = max(0, x1 + x), min(160, x2 + x)
        top, bottom = max(0, y1 + y), min(120, y2 + y)
        if right - left >= 1 and bottom - top >= 1:
            kept[label] = [left, top, right, bottom]
    return crc32(moved.tobytes()), kept


def test_a_picture_smaller_than_the_shift_becomes_grey_without_boxes():
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    boxes_xyxy, labels = np.array([[0, 0, 8, 8]], np.float32), np.array([1])
    rngs = map(np.random.default_rng, range(10))
    results = [translated(rng, boxes_xyxy, labels, image) for rng in rngs]
    emptied = [(picture, left) for picture, _, left in results if not len(left)]
    assert emptied
    assert all((np.asarray(picture) == 128).all() for picture, _ in emptied)

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from rayeffdet.data.autoaugment import auto_color_distortion, auto_translate_xy

SEEDS = range(200)


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


def translated(seed, boxes_xyxy, labels, image=None):
    return auto_translate_xy(image or scene(), boxes_xyxy, labels, np.random.default_rng(seed))


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
        moved, moved_boxes, moved_labels = translated(seed, boxes_xyxy, labels, image)
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


def test_what_a_translation_uncovers_is_grey():
    moved = [np.asarray(translated(seed, *none())[0]) for seed in range(12)]
    for picture in moved:
        x, y = found_shift(picture)
        uncovered = np.ones(picture.shape[:2], bool)
        uncovered[max(0, y) : 120 + min(0, y), max(0, x) : 160 + min(0, x)] = False
        assert (picture[uncovered] == 128).all()


def none():
    return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)


def test_a_box_pushed_outside_is_dropped_and_its_neighbours_keep_their_labels():
    boxes_xyxy = np.array([[0, 50, 3, 60], [70, 50, 90, 70], [157, 50, 160, 60]], np.float32)
    seen = set()
    for seed in range(60):
        moved, moved_boxes, labels = translated(seed, boxes_xyxy, np.array([7, 8, 9]))
        x, y = found_shift(moved)
        if y:
            continue
        seen.add(np.sign(x) * (abs(x) >= 3))
        expected = [7, 8, 9]
        if x < -2:
            expected.remove(7)
        if x > 2:
            expected.remove(9)
        assert labels.tolist() == expected
        assert (moved_boxes[:, 2:] > moved_boxes[:, :2]).all()
    assert {-1, 1} <= seen


def test_a_picture_smaller_than_the_shift_becomes_grey_without_boxes():
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    boxes_xyxy, labels = np.array([[0, 0, 8, 8]], np.float32), np.array([1])
    results = [translated(seed, boxes_xyxy, labels, image) for seed in range(10)]
    emptied = [(picture, left) for picture, _, left in results if not len(left)]
    assert emptied
    assert all((np.asarray(picture) == 128).all() for picture, _ in emptied)

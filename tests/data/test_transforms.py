import io
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import photo_like
from PIL import Image

from rayeffdet.data.decode import open_image
from rayeffdet.data.transforms import (
    Sample,
    clip_boxes,
    letterbox,
    pad_boxes,
    place_boxes,
    place_pixels,
    random_placement,
)

RED, GREY = (255, 0, 0), (60, 60, 60)
PADDING_RGB = (124, 116, 104)
NO_BOXES = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)

sides = st.integers(1, 90)
seeds = st.integers(0, 2**32 - 1)
random_pictures = settings(max_examples=60, deadline=None)


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def one_box(*box):
    return np.array([box], np.float32), np.array([3])


def with_rectangle(height, width, box):
    """A grey picture, red inside the box of whole pixels."""
    image = Image.new("RGB", (width, height), GREY)
    image.paste(RED, box)
    return image


def red_extent(image_HW3):
    ys, xs = np.nonzero(image_HW3[..., 0] > (RED[0] + GREY[0]) / 2)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


class Made(NamedTuple):
    image_HW3: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    scale: float


def made(image, boxes_xyxy, labels, placement, size):
    """The input that a placement makes of a picture, over what another one left there."""
    out_3HW = torch.full((3, *size), 77, dtype=torch.uint8)
    pixels_HW3 = torch.from_numpy(np.array(image))
    place_pixels(pixels_HW3, placement, out_3HW, padding_rgb=torch.tensor(PADDING_RGB).byte())
    boxes_xyxy, labels = place_boxes(boxes_xyxy, labels, placement)
    return Made(out_3HW.permute(1, 2, 0).numpy(), boxes_xyxy, labels, 1 / placement.zoom)


def train(image, boxes_xyxy, labels, seed=0, *, size=(64, 96), hflip=True, scales=(0.1, 2.0)):
    placement = random_placement(
        image.height,
        image.width,
        np.random.default_rng(seed),
        input_hw=size,
        hflip=hflip,
        min_scale=scales[0],
        max_scale=scales[1],
    )
    return made(image, boxes_xyxy, labels, placement, size)


def fitted(image, boxes_xyxy=NO_BOXES[0], labels=NO_BOXES[1], *, size):
    placement = letterbox(image.height, image.width, input_hw=size)
    return made(image, boxes_xyxy, labels, placement, size)


@random_pictures
@given(sides, sides, sides, sides, seeds)
def test_any_picture_fills_the_input_with_boxes_inside_it(height, width, out_h, out_w, seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-20, 110, (8, 2, 2)).astype(np.float32)
    boxes_xyxy = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    image, labels = noise(height, width), np.arange(8)
    for sample in (
        train(image, boxes_xyxy, labels, seed, size=(out_h, out_w)),
        fitted(image, boxes_xyxy, labels, size=(out_h, out_w)),
    ):
        assert sample.image_HW3.shape == (out_h, out_w, 3)
        assert sample.image_HW3.dtype == np.uint8
        assert (sample.boxes_xyxy.dtype, sample.labels.dtype) == (np.float32, np.int64)
        assert (sample.boxes_xyxy >= 0).all()
        assert (sample.boxes_xyxy <= (out_w, out_h, out_w, out_h)).all()
        assert (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2] >= 1).all()
        assert len(sample.boxes_xyxy) == len(sample.labels)


@pytest.mark.parametrize("seed", range(40))
def test_a_box_stays_on_its_object_through_flip_scale_and_crop(seed):
    box = (40, 30, 90, 80)
    image = with_rectangle(120, 160, box)
    sample = train(image, *one_box(*box), seed, size=(128, 128), scales=(0.5, 2.0))
    if len(sample.labels):
        assert sample.labels.tolist() == [3]
        np.testing.assert_allclose(red_extent(sample.image_HW3), sample.boxes_xyxy[0], atol=1.01)
    else:
        assert (sample.image_HW3[..., 0] > 200).sum() < 128


def test_the_seeds_above_see_crops_pads_and_flips():
    image, (boxes_xyxy, labels) = noise(120, 160), one_box(0, 0, 40, 120)
    scales = [
        train(image, boxes_xyxy, labels, s, size=(128, 128), scales=(0.5, 2.0)).scale
        for s in range(40)
    ]
    assert min(scales) < 160 / 128 < max(scales)
    lefts = {train(image, boxes_xyxy, labels, s, scales=(1, 1)).boxes_xyxy[0, 0] for s in range(40)}
    # Mirrored within the 85 columns that show the picture, its left quarter ends at the right.
    assert sorted(lefts) == pytest.approx([0, 85 - 40 * 64 / 120])


def test_a_flip_mirrors_picture_and_boxes_exactly():
    image, (boxes_xyxy, labels) = noise(64, 96), one_box(10, 5, 30.5, 60)
    plain = np.asarray(image)
    flipped = 0
    for seed in range(20):
        sample = train(image, boxes_xyxy, labels, seed, scales=(1, 1))
        if np.array_equal(sample.image_HW3, plain[:, ::-1]):
            flipped += 1
            np.testing.assert_array_equal(sample.boxes_xyxy, [[65.5, 5, 86, 60]])
        else:
            np.testing.assert_array_equal(sample.image_HW3, plain)
            np.testing.assert_array_equal(sample.boxes_xyxy, boxes_xyxy)
    assert 5 <= flipped <= 15


def test_without_hflip_nothing_is_mirrored_and_nothing_else_changes():
    image, (boxes_xyxy, labels) = noise(50, 70), one_box(0, 0, 20, 20)
    for seed in range(20):
        plain = train(image, boxes_xyxy, labels, seed, hflip=False)
        either = train(image, boxes_xyxy, labels, seed, hflip=True)
        assert plain.scale == either.scale
    unmoved = [
        train(image, boxes_xyxy, labels, seed, hflip=False, scales=(1, 1)).boxes_xyxy[0, 0]
        for seed in range(20)
    ]
    assert set(unmoved) == {0}


def test_the_same_random_state_gives_the_same_sample():
    image, (boxes_xyxy, labels) = noise(50, 70), one_box(5, 5, 60, 40)
    first, second = (train(image, boxes_xyxy, labels, 11) for _ in range(2))
    np.testing.assert_array_equal(first.image_HW3, second.image_HW3)
    np.testing.assert_array_equal(first.boxes_xyxy, second.boxes_xyxy)


def test_the_scale_covers_the_range_that_was_asked_for():
    image = noise(40, 40)
    zooms = [1 / train(image, *NO_BOXES, seed, size=(40, 40)).scale for seed in range(300)]
    assert 0.1 <= min(zooms) < 0.15
    assert 1.95 < max(zooms) <= 2
    assert np.mean(zooms) == pytest.approx(1.05, abs=0.1)


def test_the_crop_reaches_every_corner_of_an_enlarged_picture():
    image = noise(32, 32)
    boxes_xyxy = np.array([[0, 0, 6, 6], [26, 0, 32, 6], [0, 26, 6, 32], [26, 26, 32, 32]])
    seen = set()
    for seed in range(120):
        sample = train(
            image, boxes_xyxy.astype(np.float32), np.arange(4), seed, size=(32, 32), scales=(1.5, 2)
        )
        seen |= set(sample.labels.tolist())
    assert seen == {0, 1, 2, 3}


def test_a_crop_is_the_same_as_resizing_everything_and_cutting():
    image = noise(60, 80)
    whole = np.asarray(image.resize((160, 120), Image.Resampling.BILINEAR)).astype(int)
    sample = train(image, *one_box(0, 0, 80, 60), 3, size=(40, 50), hflip=False, scales=(3.2, 3.2))
    differences = [
        np.abs(sample.image_HW3 - whole[y : y + 40, x : x + 50])[1:, 1:].max()
        for y in range(81)
        for x in range(111)
    ]
    # The first row and column lack the neighbours that were cut off.
    assert min(differences) <= 2


def test_letterbox_puts_the_largest_fitting_picture_at_the_top_left():
    sample = fitted(with_rectangle(50, 100, (0, 0, 100, 50)), size=(128, 128))
    assert (sample.image_HW3[:64] == RED).all()
    assert (sample.image_HW3[64:] == PADDING_RGB).all()
    assert sample.scale == pytest.approx(100 / 128)
    assert sample.boxes_xyxy.shape == (0, 4)
    tall = fitted(with_rectangle(100, 50, (0, 0, 50, 100)), size=(128, 128))
    assert (tall.image_HW3[:, :64] == RED).all()
    assert (tall.image_HW3[:, 64:] == PADDING_RGB).all()


def test_a_picture_of_the_input_size_is_left_as_it_is():
    image = noise(64, 96)
    sample = fitted(image, size=(64, 96))
    np.testing.assert_array_equal(sample.image_HW3, np.asarray(image))


@random_pictures
@given(st.integers(20, 400), st.integers(20, 400), st.integers(20, 200))
def test_the_scale_maps_boxes_back_to_the_picture(height, width, side):
    boxes_xyxy = np.array([[0, 0, width, height], [0, 0, width / 2, height / 2]], np.float32)
    image, labels = noise(height, width), np.array([1, 2])
    sample = fitted(image, boxes_xyxy, labels, size=(side, side))
    if 2 in sample.labels.tolist():
        half_xyxy = sample.boxes_xyxy[sample.labels == 2][0]
        np.testing.assert_allclose(half_xyxy * sample.scale, boxes_xyxy[1], rtol=1e-5)
    # At the far edge less than one pixel of the input is cut.
    lost_xyxy = boxes_xyxy[0] - sample.boxes_xyxy[:1] * sample.scale
    assert (np.abs(lost_xyxy) < sample.scale + 1e-3).all()


@pytest.mark.parametrize("side", [64, 107, 128, 512])
def test_the_longer_side_fills_the_input_to_the_last_pixel(side):
    for longer in range(1, 400):
        wide = fitted(Image.new("RGB", (longer, 1), RED), size=(1, side))
        assert longer < side or wide.image_HW3[0, -1].tolist() == list(RED)
        wide = fitted(Image.new("RGB", (longer, 1), RED), size=(side, side))
        assert wide.image_HW3[0, -1].tolist() == list(RED)


@pytest.mark.parametrize(("height", "rows"), [(33, 42), (34, 43), (100, 128)])
def test_the_shorter_side_is_cut_to_whole_pixels(height, rows):
    sample = fitted(Image.new("RGB", (100, height), RED), size=(128, 128))
    assert (sample.image_HW3[:, 0] == RED).all(axis=1).sum() == rows


def test_shrinking_averages_and_does_not_skip_pixels():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = fitted(Image.fromarray(stripes), size=(16, 16)).image_HW3
    assert (np.abs(shrunk[:, 2:-2].astype(int) - 128) < 12).all()


def test_boxes_are_clipped_and_those_outside_or_under_a_pixel_dropped():
    boxes_xyxy = np.array(
        [
            [-5, -5, 10, 10],
            [10, 10, 40, 40],
            [30, 5, 50, 9],  # right of the picture
            [5, -9, 9, 0],  # above it
            [4, 4, 4, 8],  # no width
            [29.5, 5, 40, 9],  # half a pixel is left
        ],
        np.float32,
    )
    clipped, labels = clip_boxes(boxes_xyxy, np.arange(6), height=20, width=30)
    np.testing.assert_array_equal(clipped, [[0, 0, 10, 10], [10, 10, 30, 20]])
    assert labels.tolist() == [0, 1]


def test_inputs_are_left_untouched():
    image, (boxes_xyxy, labels) = noise(40, 40), one_box(-5, -5, 50, 20)
    before = np.asarray(image).copy(), boxes_xyxy.copy(), labels.copy()
    for array in (boxes_xyxy, labels):
        array.setflags(write=False)
    for seed in range(4):
        train(image, boxes_xyxy, labels, seed)
    for found, expected in zip((np.asarray(image), boxes_xyxy, labels), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def sample_of(*labels):
    boxes_xyxy = np.array([[label] * 4 for label in labels], np.float32).reshape(-1, 4)
    return Sample(boxes_xyxy, np.array(labels, np.int64), 1.0)


def test_padding_marks_empty_rows_and_counts_what_it_leaves_out():
    samples = [sample_of(1, 2, 3, 4), sample_of(), sample_of(5), sample_of(6, 7, 8)]
    boxes_BG4, labels_BG, num_truncated = pad_boxes(samples, 2)
    assert labels_BG.tolist() == [[1, 2], [-1, -1], [5, -1], [6, 7]]
    np.testing.assert_array_equal(boxes_BG4[..., 0], [[1, 2], [0, 0], [5, 0], [6, 7]])
    assert (boxes_BG4.dtype, labels_BG.dtype) == (np.float32, np.int64)
    assert num_truncated == 3


def reference_3HW(encoded, placement):
    """What is seen of a picture, by Pillow in floating point from the picture at full size."""
    box = (
        placement.left,
        placement.top,
        min(placement.left + placement.width / placement.zoom, WIDE),
        min(placement.top + placement.height / placement.zoom, HIGH),
    )
    channels = [
        channel.convert("F").resize(
            (placement.width, placement.height), Image.Resampling.BILINEAR, box=box
        )
        for channel in Image.open(io.BytesIO(encoded)).split()
    ]
    seen_3HW = np.stack([np.asarray(channel) for channel in channels])
    return seen_3HW[:, :, ::-1] if placement.is_mirrored else seen_3HW


HIGH, WIDE = 480, 640


def test_pixels_are_those_of_a_float_reference_also_where_the_decoder_shrinks():
    encoded = photo_like(HIGH, WIDE)
    padding_rgb = torch.tensor(PADDING_RGB, dtype=torch.uint8)
    differences = {1: [], 2: [], 4: [], 8: []}
    for seed in range(120):
        placement = random_placement(
            HIGH,
            WIDE,
            np.random.default_rng(seed),
            input_hw=(256, 256),
            hflip=True,
            min_scale=0.1,
            max_scale=2.0,
            can_shrink=True,
        )
        pixels_HW3 = open_image(encoded, where="a").pixels_HW3(shrink=placement.shrink)
        out_3HW = torch.empty(3, 256, 256, dtype=torch.uint8)
        place_pixels(pixels_HW3, placement, out_3HW, padding_rgb=padding_rgb)
        seen_3HW = out_3HW[:, : placement.height, : placement.width].numpy()
        difference = np.abs(seen_3HW - reference_3HW(encoded, placement)).mean()
        differences[placement.shrink].append(difference)
    # Of 255 levels. A picture of half its size has lost detail that a filter would average away.
    assert all(len(found) >= 5 for found in differences.values())
    assert max(differences[1]) < 0.6
    assert max(max(found) for found in differences.values()) < 2.5


@pytest.mark.parametrize("can_shrink", [False, True])
def test_scales_crops_and_mirrors_are_distributed_as_the_formula_says(can_shrink):
    rng = np.random.default_rng(0)
    placements = [
        random_placement(
            HIGH,
            WIDE,
            rng,
            input_hw=(256, 256),
            hflip=True,
            min_scale=0.1,
            max_scale=2.0,
            can_shrink=can_shrink,
        )
        for _ in range(4000)
    ]
    factors = np.array([placement.zoom for placement in placements]) * WIDE / 256
    assert largest_gap(factors, low=0.1, high=2.0) < 0.03
    assert np.mean([p.is_mirrored for p in placements]) == pytest.approx(0.5, abs=0.03)
    # The share of what is hidden that lies left of the crop, and above it.
    cropped = [p for p in placements if HIGH * p.zoom > 300]
    lefts = np.array([p.left / (WIDE - 256 / p.zoom) for p in cropped])
    tops = np.array([p.top / (HIGH - 256 / p.zoom) for p in cropped])
    assert largest_gap(lefts, low=0, high=1) < 0.05
    assert largest_gap(tops, low=0, high=1) < 0.05
    assert abs(np.corrcoef(lefts, tops)[0, 1]) < 0.1


def largest_gap(found, *, low, high):
    """The statistic of Kolmogorov and Smirnov against the uniform distribution."""
    expected = (np.sort(found) - low) / (high - low)
    steps = np.arange(len(found) + 1) / len(found)
    return max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())

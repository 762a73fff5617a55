import itertools
import math

import pytest
import torch

from rayeffdet.ops.anchors import level_sizes, make_anchors

RATIOS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))


def anchors_by_loop(
    height, width, *, levels=range(3, 8), scales=3, ratios=RATIOS, anchor_scale=4.0
) -> torch.Tensor:
    rows = []
    for level in levels:
        h, w = math.ceil(height / 2**level), math.ceil(width / 2**level)
        stride_y, stride_x = height / h, width / w
        for j, i, octave, (rx, ry) in itertools.product(range(h), range(w), range(scales), ratios):
            x, y = (i + 0.5) * stride_x, (j + 0.5) * stride_y
            half_w = anchor_scale * stride_x * 2 ** (octave / scales) * rx / 2
            half_h = anchor_scale * stride_y * 2 ** (octave / scales) * ry / 2
            rows.append((x - half_w, y - half_h, x + half_w, y + half_h))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (512, 512, [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4)]),
        (300, 420, [(38, 53), (19, 27), (10, 14), (5, 7), (3, 4)]),
        (1, 9, [(1, 2), (1, 1), (1, 1), (1, 1), (1, 1)]),
    ],
)
def test_level_sizes_halve_rounding_up(height, width, expected):
    assert level_sizes(height, width) == expected


def test_level_sizes_of_d7x_reach_level_eight():
    assert level_sizes(1536, 1536, max_level=8)[-1] == (6, 6)
    assert level_sizes(1536, 1536, min_level=5, max_level=5) == [(48, 48)]


@pytest.mark.parametrize(("side", "count"), [(512, 49_104), (256, 12_276), (640, 76_725)])
def test_anchor_counts_are_the_published_ones(side, count):
    assert make_anchors(height=side, width=side).shape == (count, 4)


def test_the_first_anchor_of_d0_is_the_published_one():
    anchors = make_anchors(height=512, width=512)
    assert anchors.dtype == torch.float32
    assert anchors[0].tolist() == [-12, -12, 20, 20]


@pytest.mark.parametrize(
    ("height", "width", "settings"),
    [
        (128, 256, {}),
        (100, 75, {}),
        (64, 64, {"anchor_scale": 3.0, "ratios": ((1.0, 1.0), (2.0, 0.5))}),
        (96, 64, {"scales": 2, "levels": range(2, 5)}),
    ],
)
def test_anchors_equal_a_loop_over_levels_rows_columns_octaves_and_ratios(height, width, settings):
    levels = settings.get("levels", range(3, 8))
    anchors = make_anchors(
        height=height,
        width=width,
        min_level=levels[0],
        max_level=levels[-1],
        num_scales=settings.get("scales", 3),
        aspect_ratios=settings.get("ratios", RATIOS),
        anchor_scale=settings.get("anchor_scale", 4.0),
    )
    expected = anchors_by_loop(height, width, **settings)
    # Half a float32 step: rounded once, from float64.
    torch.testing.assert_close(anchors.double(), expected, rtol=2**-24, atol=1e-12)

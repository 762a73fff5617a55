import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayeffdet.ops.box_coder import decode_boxes, encode_boxes


def test_code_is_centre_offset_in_anchors_and_log_size_ratio():
    anchor = torch.tensor([10.0, 20, 30, 60])  # centre (20, 40), 20 wide, 40 high
    box = torch.tensor([20.0, 50, 40, 60])  # centre (30, 55), 20 wide, 10 high
    expected = torch.tensor([15 / 40, 10 / 20, math.log(10 / 40), 0])
    torch.testing.assert_close(encode_boxes(box, anchor), expected)


def test_an_anchor_has_code_zero_and_zero_decodes_to_the_anchor():
    anchors = torch.tensor([[-12.0, -12, 20, 20], [3, 5, 8, 13]])
    assert encode_boxes(anchors, anchors).abs().max() == 0
    torch.testing.assert_close(decode_boxes(torch.zeros(2, 4), anchors), anchors)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_decode_inverts_encode(seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 6, 2, generator=generator, dtype=torch.float64) * 500
    sizes = torch.rand(2, 6, 2, generator=generator, dtype=torch.float64) * 300 + 0.5
    boxes, anchors = torch.cat([corners, corners + sizes], dim=-1)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes)
    deltas = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(encode_boxes(decode_boxes(deltas, anchors), anchors), deltas)


def test_sizes_are_clamped_so_that_the_code_of_a_point_is_finite():
    point, anchor = torch.tensor([5.0, 5, 5, 5]), torch.tensor([0.0, 0, 10, 10])
    code = encode_boxes(point, anchor)
    torch.testing.assert_close(code, torch.tensor([0, 0, math.log(1e-9), math.log(1e-9)]))


def test_one_set_of_anchors_serves_a_batch():
    anchors = torch.tensor([[0.0, 0, 10, 10], [5, 5, 9, 9]])
    deltas = torch.randn(3, 2, 4)
    boxes = decode_boxes(deltas, anchors)
    assert boxes.shape == (3, 2, 4)
    torch.testing.assert_close(boxes[1], decode_boxes(deltas[1], anchors))

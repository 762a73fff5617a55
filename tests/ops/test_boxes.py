import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from rayeffdet.ops.boxes import (
    area_xyxy,
    clip_xyxy,
    pairwise_iou_xyxy,
    xywh_to_xyxy,
    xyxy_to_xywh,
)


def random_boxes(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * 100
    return torch.cat([corner, corner + torch.rand(*shape, 2, generator=generator) * 60], dim=-1)


def test_area_is_width_times_height_and_never_negative():
    boxes = torch.tensor([[1.0, 2, 4, 6], [0, 0, 0, 5], [4, 6, 1, 2]])
    assert area_xyxy(boxes).tolist() == [12, 0, 0]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_iou_equals_torchvision(seed):
    a, b = random_boxes(seed, 7), random_boxes(seed + 1, 5)
    torch.testing.assert_close(pairwise_iou_xyxy(a, b), box_iou(a, b))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_iou_is_symmetric_and_one_with_itself(seed):
    a, b = random_boxes(seed, 4) + torch.tensor([0, 0, 1, 1]), random_boxes(seed + 1, 3)
    torch.testing.assert_close(pairwise_iou_xyxy(a, b), pairwise_iou_xyxy(b, a).T)
    torch.testing.assert_close(pairwise_iou_xyxy(a, a).diagonal(), torch.ones(4))


def test_iou_broadcasts_over_leading_dimensions():
    a, b = random_boxes(0, 3, 2), random_boxes(1, 6)
    iou = pairwise_iou_xyxy(a, b)
    assert iou.shape == (3, 2, 6)
    for i in range(3):
        torch.testing.assert_close(iou[i], box_iou(a[i], b))


def test_boxes_without_area_overlap_nothing_instead_of_giving_nan():
    point, box = torch.tensor([[5.0, 5, 5, 5]]), torch.tensor([[0.0, 0, 10, 10]])
    assert pairwise_iou_xyxy(point, torch.cat([point, box])).tolist() == [[0, 0]]


def test_iou_leaves_its_inputs_alone():
    a, b = random_boxes(0, 2), random_boxes(1, 3)
    before = a.clone(), b.clone()
    pairwise_iou_xyxy(a, b)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_clip_cuts_boxes_to_the_image():
    boxes = torch.tensor([[-5.0, -6, 50, 60], [1, 2, 3, 4], [100, 100, 120, 130]])
    expected = [[0, 0, 30, 20], [1, 2, 3, 4], [30, 20, 30, 20]]
    assert clip_xyxy(boxes, height=20, width=30).tolist() == expected


def test_clip_takes_one_size_per_image():
    boxes = torch.tensor([[[0.0, 0, 99, 99]], [[0, 0, 99, 99]]])
    sizes = torch.tensor([[20, 30], [40, 50]])
    clipped = clip_xyxy(boxes, height=sizes[:, :1], width=sizes[:, 1:])
    assert clipped.tolist() == [[[0, 0, 30, 20]], [[0, 0, 50, 40]]]


def test_xywh_is_corner_and_size():
    assert xywh_to_xyxy(torch.tensor([1.0, 2, 3, 5])).tolist() == [1, 2, 4, 7]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_formats_round_trip(seed):
    boxes = random_boxes(seed, 3, 2)
    torch.testing.assert_close(xywh_to_xyxy(xyxy_to_xywh(boxes)), boxes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    boxes = random_boxes(0, 3).to(dtype)
    assert pairwise_iou_xyxy(boxes, boxes).dtype == dtype
    assert clip_xyxy(boxes, height=5, width=torch.tensor(5)).dtype == dtype

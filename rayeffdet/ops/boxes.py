"""Boxes as plain tensors: area, overlap, clipping and the two formats that meet at the edges.

Inside the package a box is xyxy: (x1, y1, x2, y2) in pixels, x to the right, y down, width x2 - x1.
COCO files speak xywh: (x1, y1, width, height).

Shape suffixes: M N boxes of one set.
"""

import torch
from torch import Tensor


def area_xyxy(boxes_xyxy: Tensor) -> Tensor:
    """Return the area [...] of boxes [..., 4] in square pixels.

    A box with a negative width or height has area 0.
    """
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)


def pairwise_iou_xyxy(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the intersection over union [..., M, N] of every box of one set with every other.

    Args:
        a_xyxy: Boxes [..., M, 4].
        b_xyxy: Boxes [..., N, 4]; leading dimensions broadcast against those of `a_xyxy`.

    Returns:
        Values in [0, 1]. A box without area overlaps nothing, not even itself.
    """
    # One contiguous plane per coordinate and sums in place: several times faster on a CPU than
    # strided views, whose gaps and fresh buffers cost more than the arithmetic.
    ax1, ay1, ax2, ay2 = a_xyxy.movedim(-1, 0).contiguous().unsqueeze(-1)
    bx1, by1, bx2, by2 = b_xyxy.movedim(-1, 0).contiguous().unsqueeze(-2)
    intersection_MN = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    intersection_MN *= torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    union_MN = area_xyxy(a_xyxy).unsqueeze(-1) + area_xyxy(b_xyxy).unsqueeze(-2)
    union_MN = union_MN.sub_(intersection_MN).clamp_(min=torch.finfo(union_MN.dtype).tiny)
    return intersection_MN.div_(union_MN)


def clip_xyxy(boxes_xyxy: Tensor, *, height: Tensor | float, width: Tensor | float) -> Tensor:
    """Return boxes [..., 4] cut to an image of the given size.

    Args:
        boxes_xyxy: Boxes [..., 4]; one that lies outside comes back without area, on the border.
        height: Image height in pixels: a number, or a tensor that broadcasts to [...].
        width: Image width, likewise.
    """
    x1, y1, x2, y2 = boxes_xyxy.clamp(min=0).unbind(-1)
    limit_x = torch.as_tensor(width, dtype=x1.dtype, device=x1.device)
    limit_y = torch.as_tensor(height, dtype=x1.dtype, device=x1.device)
    clipped = [x1.minimum(limit_x), y1.minimum(limit_y), x2.minimum(limit_x), y2.minimum(limit_y)]
    return torch.stack(clipped, dim=-1)


def xywh_to_xyxy(boxes_xywh: Tensor) -> Tensor:
    """Return boxes [..., 4] given as (x1, y1, width, height) as (x1, y1, x2, y2)."""
    corner, size = boxes_xywh.split(2, dim=-1)
    return torch.cat([corner, corner + size], dim=-1)


def xyxy_to_xywh(boxes_xyxy: Tensor) -> Tensor:
    """Return boxes [..., 4] given as (x1, y1, x2, y2) as (x1, y1, width, height)."""
    corner, opposite = boxes_xyxy.split(2, dim=-1)
    return torch.cat([corner, opposite - corner], dim=-1)

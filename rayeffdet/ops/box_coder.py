"""The box code: a box relative to an anchor as (ty, tx, th, tw), without scale factors."""

import torch
from torch import Tensor

_MIN_SIZE = 1e-8


def encode_boxes(boxes_xyxy: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Return the deltas [..., 4] = (ty, tx, th, tw) that lead from anchors to boxes.

    ty = (y - ya) / ha, tx = (x - xa) / wa, th = ln(h / ha), tw = ln(w / wa), with centres x, y
    (R-CNN, appendix C; the order is that of the EfficientDet authors).

    Args:
        boxes_xyxy: Boxes [..., 4] in pixels. Sizes below 1e-8 count as 1e-8.
        anchors_xyxy: Anchors [..., 4]; the two broadcast.
    """
    y, x, h, w = _centre_and_size(boxes_xyxy)
    ya, xa, ha, wa = _centre_and_size(anchors_xyxy)
    deltas = [(y - ya) / ha, (x - xa) / wa, torch.log(h / ha), torch.log(w / wa)]
    return torch.stack(deltas, dim=-1)


def decode_boxes(deltas: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Return the boxes [..., 4], xyxy in pixels: the exact inverse of `encode_boxes`.

    Nothing is clamped: a wild th or tw gives a huge box, up to infinity.

    Args:
        deltas: (ty, tx, th, tw) [..., 4].
        anchors_xyxy: Anchors [..., 4]; the two broadcast.
    """
    ty, tx, th, tw = deltas.unbind(-1)
    ya, xa, ha, wa = _centre_and_size(anchors_xyxy)
    y, x = ty * ha + ya, tx * wa + xa
    half_h, half_w = th.exp() * ha / 2, tw.exp() * wa / 2
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1)


def _centre_and_size(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    h, w = (y2 - y1).clamp(min=_MIN_SIZE), (x2 - x1).clamp(min=_MIN_SIZE)
    return (y1 + y2) / 2, (x1 + x2) / 2, h, w

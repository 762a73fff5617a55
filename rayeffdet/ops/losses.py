"""The losses of training: focal for classes, Huber and optionally an IoU loss for boxes.

Shape suffixes: B images, N anchors, K classes, R rows (anchors of all images).
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rayeffdet.ops.assigner import IGNORED, Targets
from rayeffdet.ops.box_coder import decode_boxes
from rayeffdet.ops.boxes import area_xyxy

IouKind = Literal["iou", "giou", "diou", "ciou"]

# How many logits the focal loss works on at once: few stay in a CPU's cache, many keep a GPU busy.
_CPU_LOGITS = 2**18
_GPU_LOGITS = 2**24


class Losses(NamedTuple):
    """The loss of a batch and its parts: scalars; the parts without their weights."""

    total: Tensor
    cls: Tensor
    box: Tensor
    iou: Tensor


def detection_loss(
    class_logits_BNK: Tensor,
    box_deltas_BN4: Tensor,
    targets: Targets,
    anchors_xyxy_N4: Tensor,
    *,
    normaliser: Tensor,
    label_smoothing: float = 0.0,
    box_loss_weight: float = 50.0,
    iou_loss_type: IouKind | Literal[""] = "",
    iou_loss_weight: float = 1.0,
) -> Losses:
    """Return the training loss of a batch (EfficientDet, section 5.1, without weight decay).

    total = cls + box_loss_weight * box + iou_loss_weight * iou, where for n = `normaliser`
    cls = focal / n, box = huber / 4n and iou = iou loss / 4n (0 when `iou_loss_type` is empty).

    Args:
        class_logits_BNK: Class logits.
        box_deltas_BN4: Predicted box code.
        targets: What `assign_targets` says.
        anchors_xyxy_N4: Anchors in pixels; only an IoU loss reads them.
        normaliser: Scalar tensor n: positive anchors of the batch + 1.
        label_smoothing: See `focal_loss`.
        box_loss_weight: Weight of `box` in `total`.
        iou_loss_type: Kind of IoU loss, or empty for none.
        iou_loss_weight: Weight of `iou` in `total`.
    """
    cls = focal_loss(class_logits_BNK, targets.class_ids_BN, label_smoothing=label_smoothing)
    cls = cls / normaliser
    box = huber_loss(box_deltas_BN4, targets.box_deltas_BN4) / (4 * normaliser)
    iou = torch.zeros_like(box)
    if iou_loss_type:
        iou = iou_loss(box_deltas_BN4, targets, anchors_xyxy_N4, kind=iou_loss_type)
        iou = iou / (4 * normaliser)
    total = cls + box_loss_weight * box + iou_loss_weight * iou
    return Losses(total=total, cls=cls, box=box, iou=iou)


def huber_loss(deltas_BN4: Tensor, target_deltas_BN4: Tensor, *, delta: float = 0.1) -> Tensor:
    """Return the sum of Huber losses over the coordinates whose target is not 0.

    Each is e^2 / 2 for |e| <= delta and delta * (|e| - delta / 2) beyond. The mask is the authors':
    by coordinate, so one of a matched anchor that happens to be exactly 0 is left out too.
    """
    loss_BN4 = F.huber_loss(
        _at_least_float32(deltas_BN4), target_deltas_BN4, reduction="none", delta=delta
    )
    return torch.where(target_deltas_BN4 != 0, loss_BN4, 0.0).sum()


def focal_loss(
    class_logits_BNK: Tensor,
    class_ids_BN: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 1.5,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the sum of sigmoid focal losses over all anchors and classes (RetinaNet, equation 5).

    For a logit z of target t = 0 or 1 with p = sigmoid(z) and smoothing s:
    (alpha t + (1 - alpha)(1 - t)) * |t - p|^gamma * cross_entropy(p, t (1 - s) + s / 2); smoothing
    does not enter the modulating factor (EfficientDet authors' code).

    Safe for logits of any size; computed in float32 at least. The class id of a row stands for a
    one-hot row that is never made, and memory beyond the logits and their gradient is a small
    block.

    Args:
        class_logits_BNK: Logits of any floating dtype.
        class_ids_BN: int64 in 0..K-1, BACKGROUND (no class) or IGNORED (adds nothing).
        alpha: Weight of the positive class.
        gamma: Focusing exponent.
        label_smoothing: s above.
    """
    logits_RK = class_logits_BNK.reshape(-1, class_logits_BNK.shape[-1])
    loss: Tensor = _FocalLoss.apply(
        logits_RK, class_ids_BN.reshape(-1), alpha, gamma, label_smoothing
    )
    return loss


class _FocalLoss(torch.autograd.Function):
    """The sum of focal losses, and its gradient by formula, block by block.

    With f(y) = sigmoid(y)^gamma * (softplus(y) - y s / 2), an entry without an object costs
    (1 - alpha) f(z) and an entry with one costs alpha f(-z).
    """

    @staticmethod
    def forward(
        ctx: Any, logits_RK: Tensor, ids_R: Tensor, alpha: float, gamma: float, smoothing: float
    ) -> Tensor:
        ctx.save_for_backward(logits_RK, ids_R)
        ctx.settings = alpha, gamma, smoothing
        loss = logits_RK.new_zeros((), dtype=torch.promote_types(logits_RK.dtype, torch.float32))
        for rows in _blocks(logits_RK):
            z_RK = logits_RK[rows].to(loss.dtype)
            background_RK = _focal_term(z_RK, gamma, smoothing)
            object_R1 = _focal_term(-_own_logit(z_RK, ids_R[rows]), gamma, smoothing)
            loss += _combine(background_RK, object_R1, ids_R[rows], alpha).sum()
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits_RK, ids_R = ctx.saved_tensors
        alpha, gamma, smoothing = ctx.settings
        grad_RK = torch.empty_like(logits_RK)
        for rows in _blocks(logits_RK):
            z_RK = logits_RK[rows].to(grad_loss.dtype)
            background_RK = _focal_slope(z_RK, gamma, smoothing)
            object_R1 = -_focal_slope(-_own_logit(z_RK, ids_R[rows]), gamma, smoothing)
            grad_RK[rows] = grad_loss * _combine(background_RK, object_R1, ids_R[rows], alpha)
        return grad_RK, None, None, None, None


def _blocks(logits_RK: Tensor) -> Iterator[slice]:
    """Yield slices of rows small enough to work on at once."""
    num_rows, num_classes = logits_RK.shape
    logits = _CPU_LOGITS if logits_RK.device.type == "cpu" else _GPU_LOGITS
    step = max(1, logits // num_classes)
    for start in range(0, num_rows, step):
        yield slice(start, start + step)


def _focal_term(y: Tensor, gamma: float, smoothing: float) -> Tensor:
    """Return f(y) = sigmoid(y)^gamma * (softplus(y) - y * smoothing / 2)."""
    return y.sigmoid() ** gamma * (F.softplus(y) - y * (smoothing / 2))


def _focal_slope(y: Tensor, gamma: float, smoothing: float) -> Tensor:
    """Return the derivative of `_focal_term`."""
    p, cross_entropy = y.sigmoid(), F.softplus(y) - y * (smoothing / 2)
    return p**gamma * (gamma * (1 - p) * cross_entropy + p - smoothing / 2)


def _own_logit(z_RK: Tensor, ids_R: Tensor) -> Tensor:
    """Return the logit [R, 1] of each row's class; any logit for rows without one."""
    return z_RK.gather(1, ids_R.clamp(min=0)[:, None])


def _combine(background_RK: Tensor, object_R1: Tensor, ids_R: Tensor, alpha: float) -> Tensor:
    """Return background values with each row's class replaced, weighted; overwrites its input."""
    ids_R1 = ids_R[:, None]
    background_RK *= (1 - alpha) * (ids_R1 != IGNORED).to(background_RK.dtype)
    index_R1 = ids_R1.clamp(min=0)
    own_R1 = torch.where(ids_R1 >= 0, alpha * object_R1, background_RK.gather(1, index_R1))
    return background_RK.scatter_(1, index_R1, own_R1)


def iou_loss(
    deltas_BN4: Tensor, targets: Targets, anchors_xyxy_N4: Tensor, *, kind: IouKind
) -> Tensor:
    """Return the sum over matched anchors of 1 - the overlap of predicted and true box.

    Args:
        deltas_BN4: Predicted box code.
        targets: What `assign_targets` says.
        anchors_xyxy_N4: Anchors in pixels.
        kind: "iou", "giou" (Rezatofighi et al. 2019), "diou" or "ciou" (Zheng et al. 2020).
    """
    is_matched_BN = targets.class_ids_BN >= 0
    # Elsewhere both boxes become the anchor: an overflow there must not reach the gradient as NaN.
    deltas_BN4 = torch.where(is_matched_BN[..., None], _at_least_float32(deltas_BN4), 0.0)
    predicted_xyxy_BN4 = decode_boxes(deltas_BN4, anchors_xyxy_N4)
    true_xyxy_BN4 = decode_boxes(targets.box_deltas_BN4, anchors_xyxy_N4)
    overlap_BN = _overlap(predicted_xyxy_BN4, true_xyxy_BN4, kind)
    return torch.where(is_matched_BN, 1 - overlap_BN, 0.0).sum()


def _overlap(a_xyxy: Tensor, b_xyxy: Tensor, kind: IouKind) -> Tensor:
    """Return the IoU variant [...] of boxes [..., 4], one by one.

    The formulas of torchvision.ops, whose own functions wait for the device.
    """
    eps = 1e-7
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a_xyxy.unbind(-1), b_xyxy.unbind(-1)
    common_w = (ax2.minimum(bx2) - ax1.maximum(bx1)).clamp(min=0)
    common_h = (ay2.minimum(by2) - ay1.maximum(by1)).clamp(min=0)
    union = area_xyxy(a_xyxy) + area_xyxy(b_xyxy) - common_w * common_h
    iou = common_w * common_h / (union + eps)
    if kind == "iou":
        return iou
    hull_w, hull_h = ax2.maximum(bx2) - ax1.minimum(bx1), ay2.maximum(by2) - ay1.minimum(by1)
    if kind == "giou":
        hull = hull_w * hull_h
        return iou - (hull - union) / (hull + eps)
    distance = ((ax1 + ax2 - bx1 - bx2) ** 2 + (ay1 + ay2 - by1 - by2) ** 2) / 4
    diou = iou - distance / (hull_w**2 + hull_h**2 + eps)
    if kind == "diou":
        return diou
    angle = torch.atan2(bx2 - bx1, by2 - by1) - torch.atan2(ax2 - ax1, ay2 - ay1)
    shape = 4 / math.pi**2 * angle**2
    with torch.no_grad():
        weight = shape / (1 - iou + shape + eps)
    return diou - weight * shape


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))

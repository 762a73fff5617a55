"""What the network should answer at every anchor: the targets of training.

Shape suffixes: B images, G padded truths of an image, N anchors.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rayeffdet.ops.box_coder import encode_boxes
from rayeffdet.ops.boxes import pairwise_iou_xyxy

BACKGROUND = -1
IGNORED = -2

_POSITIVE_IOU = 0.5
# How many IoU values exist at once, four float32 planes of them: few stay in a CPU's cache, many
# keep a GPU busy.
_CPU_CELLS = 2**20
_GPU_CELLS = 2**26


class Targets(NamedTuple):
    """The training targets of a batch.

    Attributes:
        class_ids_BN: int64: the class channel 0..K-1, BACKGROUND, or IGNORED (no class loss).
        box_deltas_BN4: float32 box code of each anchor's truth; 0 for anchors without one.
        num_positives_B: float32 number of anchors of each image that have a truth.
    """

    class_ids_BN: Tensor
    box_deltas_BN4: Tensor
    num_positives_B: Tensor


@torch.no_grad()
def assign_targets(anchors_xyxy_N4: Tensor, boxes_xyxy_BG4: Tensor, labels_BG: Tensor) -> Targets:
    """Return the training targets of a batch: which truth, if any, each anchor stands for.

    An anchor stands for the truth that it overlaps most (of equals: the first) if their IoU is at
    least 0.5 and is background otherwise; there is no band between. Then each truth also takes the
    anchor that overlaps it most (of equals: the first), whatever their IoU and whoever had it; an
    anchor that several truths take goes to the first of them (EfficientDet authors' code).

    One deviation from that code: a truth that overlaps no anchor, for lack of area or far outside
    the canvas, stays unmatched. The original gives it anchor 0, with deltas in the hundreds.

    On an accelerator nothing waits for a value, hence all G columns are computed: keep G tight.

    Args:
        anchors_xyxy_N4: Anchors in pixels.
        boxes_xyxy_BG4: Truths in pixels; rows of padding may hold anything.
        labels_BG: int64 class channels; negative marks a row of padding.
    """
    on_cpu = labels_BG.device.type == "cpu"
    cells_per_image = max(1, labels_BG.shape[1] * len(anchors_xyxy_N4))
    images_at_once = max(1, (_CPU_CELLS if on_cpu else _GPU_CELLS) // cells_per_image)
    chunks = zip(boxes_xyxy_BG4.split(images_at_once), labels_BG.split(images_at_once), strict=True)
    parts = [_assign(anchors_xyxy_N4.float(), *_used_columns(*chunk)) for chunk in chunks]
    return Targets(*map(torch.cat, zip(*parts, strict=True)))


def _used_columns(boxes_xyxy_BG4: Tensor, labels_BG: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns up to the last truth (on a GPU: all), but at least one."""
    num_images, num_columns = labels_BG.shape
    if num_columns == 0:
        return boxes_xyxy_BG4.new_zeros(num_images, 1, 4), labels_BG.new_full((num_images, 1), -1)
    if labels_BG.device.type == "cpu":
        # Reading a value is free here, and images hold far fewer truths than there is room for.
        last_used = int(((labels_BG >= 0) * torch.arange(num_columns)).amax())
        return boxes_xyxy_BG4[:, : last_used + 1], labels_BG[:, : last_used + 1]
    return boxes_xyxy_BG4, labels_BG


def _assign(anchors_xyxy_N4: Tensor, boxes_xyxy_BG4: Tensor, labels_BG: Tensor) -> Targets:
    # Without area, a row of padding overlaps nothing and needs no further care.
    boxes_xyxy_BG4 = torch.where(labels_BG[..., None] >= 0, boxes_xyxy_BG4.float(), 0.0)
    truth_BN = _matched_truth(anchors_xyxy_N4, boxes_xyxy_BG4)
    is_positive_BN = truth_BN >= 0
    index_BN = truth_BN.clamp(min=0)
    boxes_xyxy_BN4 = boxes_xyxy_BG4.gather(1, index_BN[..., None].expand(-1, -1, 4))
    deltas_BN4 = encode_boxes(boxes_xyxy_BN4, anchors_xyxy_N4)
    return Targets(
        class_ids_BN=torch.where(is_positive_BN, labels_BG.gather(1, index_BN), BACKGROUND),
        box_deltas_BN4=torch.where(is_positive_BN[..., None], deltas_BN4, 0.0),
        num_positives_B=is_positive_BN.sum(1).float(),
    )


def _matched_truth(anchors_xyxy_N4: Tensor, boxes_xyxy_BG4: Tensor) -> Tensor:
    """Return the index [B, N] of the truth that each anchor stands for, -1 for background."""
    num_truths = boxes_xyxy_BG4.shape[1]
    iou_BGN = pairwise_iou_xyxy(boxes_xyxy_BG4, anchors_xyxy_N4)
    best_iou_BN, best_truth_BN = iou_BGN.max(dim=1)
    matched_BN = torch.where(best_iou_BN >= _POSITIVE_IOU, best_truth_BN, -1)

    best_iou_BG, best_anchor_BG = iou_BGN.max(dim=2)
    nobody = num_truths
    claim_BG = torch.arange(num_truths, device=iou_BGN.device).where(best_iou_BG > 0, nobody)
    claimed_BN = torch.full_like(matched_BN, nobody)
    claimed_BN.scatter_reduce_(1, best_anchor_BG, claim_BG, reduce="amin")
    return torch.where(claimed_BN < nobody, claimed_BN, matched_BN)

"""From the network's outputs to detections in the original image.

Shape suffixes: B images, N anchors, K classes, T candidates before NMS, D detections.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from rayeffdet.ops.box_coder import decode_boxes
from rayeffdet.ops.boxes import area_xyxy, clip_xyxy, pairwise_iou_xyxy

_SOFT_NMS_MIN_SCORE = 0.001
_OUT = -1.0  # the score of a box that is not or no longer in the race


class Detections(NamedTuple):
    """The detections of a batch: in each row the best first, then padding.

    Attributes:
        boxes_xyxy_BD4: Pixels of the original image, inside it; padding 0.
        scores_BD: In 0..1, descending; padding 0.
        labels_BD: int64 class channel; padding -1.
        num_B: int64 number of detections of each image.
    """

    boxes_xyxy_BD4: Tensor
    scores_BD: Tensor
    labels_BD: Tensor
    num_B: Tensor


@torch.no_grad()
def postprocess(
    class_logits_BNK: Tensor,
    box_deltas_BN4: Tensor,
    anchors_xyxy_N4: Tensor,
    *,
    scales_B: Tensor,
    sizes_B2: Tensor,
    max_nms_inputs: int = 5000,
    max_detections: int = 100,
    min_score: float = 0.0,
    nms: Literal["hard", "soft"] = "hard",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
) -> Detections:
    """Return the detections of a batch, in pixels of the original images.

    The best (anchor, class) pairs by logit are decoded, scaled, clipped to their image (a box
    that this leaves without area is dropped), and thinned by NMS within each class. All in the
    precision of the anchors.

    Args:
        class_logits_BNK: Class logits of any floating dtype.
        box_deltas_BN4: Predicted box code of any floating dtype.
        anchors_xyxy_N4: Anchors in pixels of the network's input.
        scales_B: Factor from the network's pixels to the original's, per image.
        sizes_B2: Original (height, width), per image.
        max_nms_inputs: How many pairs go into NMS, at most.
        max_detections: D.
        min_score: Lowest score of a detection, after the decay of soft NMS.
        nms: "hard" drops a box that overlaps a better one by more than `iou_threshold`; "soft"
            multiplies its score by exp(-iou^2 / sigma) and drops it below 0.001 (Bodla et al.
            2017).
        iou_threshold: Of hard NMS.
        sigma: Of soft NMS.
    """
    assert nms in ("hard", "soft"), nms
    logits_BT, anchors_BT, labels_BT = _best_pairs(class_logits_BNK, max_nms_inputs)
    anchors_xyxy_BT4 = anchors_xyxy_N4[anchors_BT]
    deltas_BT4 = box_deltas_BN4.gather(1, anchors_BT[..., None].expand(-1, -1, 4))
    boxes_xyxy_BT4 = decode_boxes(deltas_BT4.to(anchors_xyxy_BT4.dtype), anchors_xyxy_BT4)
    boxes_xyxy_BT4 = boxes_xyxy_BT4 * scales_B[:, None, None]
    height_B1, width_B1 = sizes_B2.split(1, dim=1)
    boxes_xyxy_BT4 = clip_xyxy(boxes_xyxy_BT4, height=height_B1, width=width_B1)
    lowest = max(min_score, _SOFT_NMS_MIN_SCORE) if nms == "soft" else min_score
    scores_BT = logits_BT.to(anchors_xyxy_BT4.dtype).sigmoid()
    is_candidate_BT = (scores_BT >= lowest) & (area_xyxy(boxes_xyxy_BT4) > 0)
    scores_BT = torch.where(is_candidate_BT, scores_BT, _OUT)

    apart_BT4 = _classes_apart(boxes_xyxy_BT4, labels_BT)
    if nms == "hard":
        picks_BD, scores_BD = _hard_nms(apart_BT4, scores_BT, max_detections, iou_threshold)
    else:
        picks_BD, scores_BD = _soft_nms(apart_BT4, scores_BT, max_detections, sigma)
    is_kept_BD = scores_BD >= lowest
    boxes_xyxy_BD4 = boxes_xyxy_BT4.gather(1, picks_BD[..., None].expand(-1, -1, 4))
    return Detections(
        boxes_xyxy_BD4=torch.where(is_kept_BD[..., None], boxes_xyxy_BD4, 0.0),
        scores_BD=torch.where(is_kept_BD, scores_BD, 0.0),
        labels_BD=torch.where(is_kept_BD, labels_BT.gather(1, picks_BD), -1),
        num_B=is_kept_BD.sum(1),
    )


def _best_pairs(class_logits_BNK: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return logit, anchor and class [B, T] of the best T = min(limit, N * K) pairs, descending.

    Equal to a top-k over all N * K logits, which is several times slower: a pair among the best T
    belongs to one of the T anchors with the best maxima, for each better anchor brings a better
    pair of its own. Equal logits come in the order of (anchor, class); which of the pairs that tie
    for the last place are in is up to torch.topk.
    """
    num_anchors, num_classes = class_logits_BNK.shape[1:]
    best_anchors_BT = (
        class_logits_BNK.amax(dim=2).topk(min(limit, num_anchors), sorted=False).indices
    )
    rows_BTK = class_logits_BNK.gather(1, best_anchors_BT[..., None].expand(-1, -1, num_classes))
    flat_BT = rows_BTK.flatten(1).topk(min(limit, num_anchors * num_classes), sorted=False).indices
    anchors_BT = best_anchors_BT.gather(1, flat_BT // num_classes)
    pairs_BT = (anchors_BT * num_classes + flat_BT % num_classes).sort(dim=1).values
    logits_BT = class_logits_BNK.flatten(1).gather(1, pairs_BT)
    logits_BT, order_BT = logits_BT.sort(dim=1, descending=True, stable=True)
    pairs_BT = pairs_BT.gather(1, order_BT)
    return logits_BT, pairs_BT // num_classes, pairs_BT % num_classes


def _classes_apart(boxes_xyxy_BT4: Tensor, labels_BT: Tensor) -> Tensor:
    """Return the boxes moved so that those of different classes cannot overlap.

    In float64, because the distance would cost float32 boxes their last digits.
    """
    boxes_xyxy_BT4 = boxes_xyxy_BT4.double()
    return boxes_xyxy_BT4 + labels_BT[..., None] * (boxes_xyxy_BT4.nan_to_num().amax() + 1)


def _hard_nms(
    boxes_xyxy_BT4: Tensor, scores_BT: Tensor, max_detections: int, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """Return the index into T and the score [B, D] of the boxes that survive, best first."""
    picks_BD = torch.zeros_like(scores_BT[:, :1], dtype=torch.long).repeat(1, max_detections)
    scores_BD = torch.full_like(picks_BD, _OUT, dtype=scores_BT.dtype)
    for image, (boxes_T4, scores_T) in enumerate(zip(boxes_xyxy_BT4, scores_BT, strict=True)):
        rest = (scores_T > _OUT).nonzero()[:, 0]
        kept = rest[_first_kept(boxes_T4[rest], scores_T[rest], max_detections, iou_threshold)]
        picks_BD[image, : len(kept)] = kept
        scores_BD[image, : len(kept)] = scores_T[kept]
    return picks_BD, scores_BD


def _first_kept(
    boxes_xyxy_T4: Tensor, scores_T: Tensor, num_wanted: int, iou_threshold: float
) -> Tensor:
    """Return the first `num_wanted` indices that NMS keeps of boxes sorted by descending score.

    What NMS keeps of a prefix is a prefix of what it keeps of all, so a short one often suffices.
    """
    length = 4 * num_wanted
    while True:
        kept = torchvision_nms(
            boxes_xyxy_T4[:length], scores_T[:length].to(boxes_xyxy_T4.dtype), iou_threshold
        )
        if len(kept) >= num_wanted or length >= len(boxes_xyxy_T4):
            first: Tensor = kept[:num_wanted]
            return first
        length *= 4


def _soft_nms(
    boxes_xyxy_BT4: Tensor, scores_BT: Tensor, max_detections: int, sigma: float
) -> tuple[Tensor, Tensor]:
    """Return the index into T and the decayed score [B, D] of the best boxes, best first.

    All images at once, one pick of each at a time: scores only fall, so the picks come in
    descending order and the first D are the best D.
    """
    picks, scores = [], []
    for _ in range(max_detections):
        score_B1, pick_B1 = scores_BT.max(dim=1, keepdim=True)
        picks.append(pick_B1)
        scores.append(score_B1)
        box_xyxy_B14 = boxes_xyxy_BT4.gather(1, pick_B1[..., None].expand(-1, -1, 4))
        iou_BT = pairwise_iou_xyxy(box_xyxy_B14, boxes_xyxy_BT4)[:, 0]
        decay_BT = torch.exp(iou_BT.square() / -sigma).to(scores_BT.dtype)
        scores_BT = (scores_BT * decay_BT).scatter(1, pick_B1, _OUT)
    return torch.cat(picks, dim=1), torch.cat(scores, dim=1)

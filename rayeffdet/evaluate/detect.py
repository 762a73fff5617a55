"""The network over batches of images: boxes, scores and category ids in original pixels.

Legend: B images, N anchors, K classes, D detections.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rayeffdet.data.example import Example
from rayeffdet.data.loader import Batch
from rayeffdet.model.efficientdet import EfficientDet, normalise
from rayeffdet.ops.postprocess import postprocess


@dataclass(frozen=True)
class PostprocessSettings:
    """What evaluation and inference share: fields of the ``evaluate`` section.

    Args:
        max_nms_inputs: Best (anchor, class) pairs that enter suppression.
        max_detections: Detections kept of an image.
        min_score: Detections below are dropped.
        nms: ``hard`` or ``soft``.
        sigma: Width of the Gaussian of soft suppression.
    """

    max_nms_inputs: int
    max_detections: int
    min_score: float
    nms: Literal["hard", "soft"]
    sigma: float


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image, best first.

    Args:
        example: The record; its truth is in original pixels too.
        boxes_xyxy: float32 [D,4], original pixels, inside the image.
        scores: float32 [D].
        category_ids: int64 [D], from 1.
    """

    example: Example
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray


@torch.inference_mode()
def detect(
    network: EfficientDet,
    batches: Iterable[Batch],
    *,
    anchors_N4: Tensor,
    settings: PostprocessSettings,
    amp_dtype: torch.dtype | None = None,
) -> Iterator[ImageDetections]:
    """Yields the detections of every image, in order.

    Args:
        network: In evaluation mode, on the device of the anchors.
        batches: Letterboxed images.
        anchors_N4: Anchors of the input size, xyxy.
        settings: Suppression and limits.
        amp_dtype: Precision of the forward pass, or None for float32.
    """
    device = anchors_N4.device
    for batch in batches:
        images_B3HW = normalise(
            batch.images_B3HW.to(device, non_blocking=True), network.architecture
        )
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            class_logits_BNK, box_deltas_BN4 = network(images_B3HW)
        found = postprocess(
            class_logits_BNK.float(),
            box_deltas_BN4.float(),
            anchors_N4,
            scales_B=batch.scales_B.to(device),
            sizes_B2=batch.sizes_B2.to(device),
            max_nms_inputs=settings.max_nms_inputs,
            max_detections=settings.max_detections,
            min_score=settings.min_score,
            nms=settings.nms,
            sigma=settings.sigma,
        )
        boxes_BD4, scores_BD, labels_BD = (
            tensor.cpu().numpy()
            for tensor in (found.boxes_xyxy_BD4, found.scores_BD, found.labels_BD)
        )
        for i, (example, count) in enumerate(
            zip(batch.examples, found.num_B.tolist(), strict=True)
        ):
            yield ImageDetections(
                example, boxes_BD4[i, :count], scores_BD[i, :count], labels_BD[i, :count] + 1
            )

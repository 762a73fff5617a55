"""The detector: EfficientNet, BiFPN, class head and box head.

Shapes: B images, H W pixels, N all anchors, K classes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rayeffdet.model.bifpn import BiFPN
from rayeffdet.model.efficientnet import EfficientNet
from rayeffdet.model.heads import PredictionHead
from rayeffdet.model.scaling import Architecture

_FIRST_FOREGROUND_PROBABILITY = 0.01


class EfficientDet(nn.Module):
    """EfficientDet (Tan, Pang and Le 2020) for images of any size.

    Args:
        architecture: Sizes of every layer.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = EfficientNet(
            architecture.stem_channels,
            architecture.blocks,
            drop_connect=architecture.drop_connect,
            activation=architecture.activation,
        )
        self.neck = BiFPN(
            architecture.feature_channels,
            channels=architecture.fpn_channels,
            num_cells=architecture.fpn_cells,
            num_levels=architecture.num_levels,
            fusion=architecture.fusion,
            activation=architecture.activation,
        )
        self.class_head = PredictionHead(
            architecture.fpn_channels,
            architecture.class_head_channels,
            num_levels=architecture.num_levels,
            num_anchors=architecture.num_anchors,
            num_outputs=architecture.num_classes,
            bias=-math.log(1 / _FIRST_FOREGROUND_PROBABILITY - 1),
            activation=architecture.activation,
        )
        self.box_head = PredictionHead(
            architecture.fpn_channels,
            architecture.box_head_channels,
            num_levels=architecture.num_levels,
            num_anchors=architecture.num_anchors,
            num_outputs=4,
            activation=architecture.activation,
        )

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class logits and box deltas of every anchor.

        Args:
            images_B3HW: Float images as `normalise` gives them, of any height and width.

        Returns:
            class_logits_BNK and box_deltas_BN4 (ty, tx, th, tw). Anchors are ordered by level from
            the finest, then row, column, octave and aspect ratio.
        """
        pyramid = self.neck(self.backbone(images_B3HW))
        return self.class_head(pyramid), self.box_head(pyramid)


def normalise(images_B3HW: Tensor, architecture: Architecture) -> Tensor:
    """Returns images less the network's mean over its standard deviation.

    Args:
        images_B3HW: RGB, uint8 or float, 0 to 255.
        architecture: Of the network that the images are for.

    Returns:
        float32 [B, 3, H, W], channels last in memory, which the convolutions like best.
    """
    # Without waiting: a blocking copy would drain the GPU's queue at every step.
    mean, std = (
        torch.tensor(values).mul_(255).view(3, 1, 1).to(images_B3HW.device, non_blocking=True)
        for values in (architecture.image_mean, architecture.image_std)
    )
    images_B3HW = images_B3HW.to(torch.float32, memory_format=torch.channels_last)
    return images_B3HW.sub(mean).div_(std)


def freeze_batch_norm(model: EfficientDet) -> None:
    """Fixes statistics and affine terms of the backbone's batch norms for the model's life."""
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    model.backbone.norms_frozen = True
    model.backbone.train(model.backbone.training)


def freeze_blocks(model: EfficientDet, blocks: Sequence[int]) -> None:
    """Fixes the convolutions of backbone parts; their batch norms still learn.

    Args:
        model: The detector.
        blocks: 0 is the stem, 1 to 7 are the stages; squeeze-and-excite counts as convolution.
    """
    backbone = model.backbone
    parts: list[nn.Module] = [backbone.stem] if 0 in blocks else []
    parts += [
        block
        for block, stage in zip(backbone.blocks, backbone.stages, strict=True)
        if stage in blocks
    ]
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                module.requires_grad_(False)

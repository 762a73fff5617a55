"""EfficientNet as a feature extractor.

Shapes: B images, H W pixels, C channels, h w cells of a level.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from rayeffdet.model.blocks import ACTIVATIONS, ConvNorm, MBConv
from rayeffdet.model.scaling import FEATURE_STAGES, Activation, BlockWidths


class EfficientNet(nn.Module):
    """The backbone: P3, P4 and P5 are the outputs of stages 3, 5 and 7.

    Each is taken after the last residual addition of its stage.

    Args:
        stem_channels: Channels of the first convolution.
        blocks: Sizes of every block, in order.
        drop_connect: Block i of n drops its residual branch at rate ``drop_connect * i / n``.
        activation: Nonlinearity of the stem and the blocks.
    """

    def __init__(
        self,
        stem_channels: int,
        blocks: Sequence[BlockWidths],
        *,
        drop_connect: float = 0.0,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[activation]
        self.stages = tuple(block.stage for block in blocks)
        self.norms_frozen = False
        self.stem = ConvNorm(3, stem_channels, 3, stride=2)
        self.blocks = nn.ModuleList(
            MBConv(
                widths,
                residual=index > 0 and blocks[index - 1].stage == widths.stage,
                drop_rate=drop_connect * index / len(blocks),
                activation=activation,
            )
            for index, widths in enumerate(blocks)
        )
        self._reset_parameters()

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """Returns P3, P4 and P5, each float [B, C, h, w], finest first."""
        features: list[Tensor] = []
        maps_BChw = self.activate(self.stem(images_B3HW))
        for block, stage, next_stage in zip(
            self.blocks, self.stages, (*self.stages[1:], None), strict=True
        ):
            maps_BChw = block(maps_BChw)
            if stage != next_stage and stage in FEATURE_STAGES:
                features.append(maps_BChw)
        return features

    def train(self, mode: bool = True) -> "EfficientNet":
        """Sets the mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.norms_frozen:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def _reset_parameters(self) -> None:
        """Draws kernels from a normal of variance 2 / fan-out, as EfficientNet's authors do."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

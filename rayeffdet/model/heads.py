"""The class and the box head: the same convolutions on every level, batch norms of their own.

Shapes: B images, C channels, h w cells of a level, N all anchors.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rayeffdet.model.blocks import ACTIVATIONS, SeparableConv, batch_norm
from rayeffdet.model.scaling import Activation

# Standard deviation of a unit normal cut at two standard deviations.
_TRUNCATED_STD = 0.87962566103423978


class PredictionHead(nn.Module):
    """Predicts a vector for every anchor of every level.

    Args:
        in_channels: Channels of the pyramid.
        channels: Output channels of each convolution before the predicting one.
        num_levels: Levels of the pyramid; each has its own batch norm per convolution.
        num_anchors: Anchors per cell.
        num_outputs: Length of the vector: classes, or the 4 box deltas.
        bias: First value of the predicting convolution's bias.
        activation: Nonlinearity after every convolution before the predicting one.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        *,
        num_levels: int,
        num_anchors: int,
        num_outputs: int,
        bias: float = 0.0,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[activation]
        self.num_outputs = num_outputs
        widths = (in_channels, *channels)
        self.convs = nn.ModuleList(
            SeparableConv(before, after) for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(batch_norm(width) for _ in range(num_levels)) for width in channels
        )
        self.predict = SeparableConv(widths[-1], num_anchors * num_outputs)
        self._reset_parameters(bias)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Returns float [B, N, outputs], ordered by level, row, column and anchor."""
        return torch.cat([self._level(maps, level) for level, maps in enumerate(pyramid)], dim=1)

    def _level(self, maps_BChw: Tensor, level: int) -> Tensor:
        for conv, norms in zip(self.convs, self.norms, strict=True):
            assert isinstance(norms, nn.ModuleList)
            maps_BChw = self.activate(norms[level](conv(maps_BChw)))
        predictions_BhwC: Tensor = self.predict(maps_BChw).permute(0, 2, 3, 1)
        return predictions_BhwC.reshape(maps_BChw.shape[0], -1, self.num_outputs)

    def _reset_parameters(self, bias: float) -> None:
        """Draws kernels from a truncated normal of variance 1 / fan-in; inner biases are 0.

        Fan-in of a depthwise kernel counts all channels, as Keras does and so the paper's code.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.in_channels * module.kernel_size[0] ** 2
                std = 1 / math.sqrt(fan_in) / _TRUNCATED_STD
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.predict.pointwise.bias, bias)  # type: ignore[arg-type]

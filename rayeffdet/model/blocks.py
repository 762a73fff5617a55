"""Layers that the backbone, the BiFPN and the heads are made of.

Shapes: B images, C channels, h w cells of a feature map.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from rayeffdet.model.scaling import Activation, BlockWidths

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu6": F.relu6}
"""The function that an architecture's activation names."""


class SameConv2d(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) cells for any input size.

    Padding is TensorFlow's "SAME", which every published weight was trained with: an odd total puts
    the extra row and column at the bottom and right, so stride 2 on an even size pads less at the
    top left than a symmetric padding would.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=bias)

    def forward(self, maps_BChw: Tensor) -> Tensor:  # noqa: D102
        kernel, stride = self.kernel_size[0], self.stride[0]
        h, w = maps_BChw.shape[-2:]
        pad_h, pad_w = _total_padding(h, kernel, stride), _total_padding(w, kernel, stride)
        padding = (pad_h // 2, pad_w // 2)
        if pad_h % 2 or pad_w % 2:
            left_right = (pad_w // 2, pad_w - pad_w // 2)
            maps_BChw = F.pad(maps_BChw, (*left_right, pad_h // 2, pad_h - pad_h // 2))
            padding = (0, 0)
        return F.conv2d(maps_BChw, self.weight, self.bias, self.stride, padding, groups=self.groups)


def max_pool_same(maps_BChw: Tensor) -> Tensor:
    """Returns the 3x3 stride 2 maximum with SAME padding, (n - 1) // 2 + 1 cells per axis.

    Padding before is 1 for an odd size and 0 for an even one; rounding up lets the last window hang
    over the edge, which is the padding after.
    """
    h, w = maps_BChw.shape[-2:]
    return F.max_pool2d(maps_BChw, 3, stride=2, padding=(h % 2, w % 2), ceil_mode=True)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Returns the batch norm of all published EfficientDets: epsilon 1e-3, momentum 0.01."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class ConvNorm(nn.Module):
    """Convolution and batch norm, without activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv = SameConv2d(
            in_channels, out_channels, kernel, stride=stride, groups=groups, bias=bias
        )
        self.norm = batch_norm(out_channels)

    def forward(self, maps_BChw: Tensor) -> Tensor:  # noqa: D102
        normed: Tensor = self.norm(self.conv(maps_BChw))
        return normed


class SeparableConv(nn.Module):
    """A 3x3 depthwise and a 1x1 convolution with bias, nothing between them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = SameConv2d(in_channels, in_channels, 3, groups=in_channels)
        self.pointwise = SameConv2d(in_channels, out_channels, 1, bias=True)

    def forward(self, maps_BChw: Tensor) -> Tensor:  # noqa: D102
        mixed: Tensor = self.pointwise(self.depthwise(maps_BChw))
        return mixed


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the mean of all channels."""

    def __init__(self, channels: int, se_channels: int) -> None:
        super().__init__()
        self.reduce = SameConv2d(channels, se_channels, 1, bias=True)
        self.expand = SameConv2d(se_channels, channels, 1, bias=True)

    def forward(self, maps_BChw: Tensor) -> Tensor:  # noqa: D102
        mean_BC11 = maps_BChw.mean((2, 3), keepdim=True)
        gate_BC11: Tensor = self.expand(F.silu(self.reduce(mean_BC11))).sigmoid()
        return maps_BChw * gate_BC11


class MBConv(nn.Module):
    """Inverted residual block with squeeze-and-excite (EfficientNet, section 4).

    Args:
        widths: Sizes of the block.
        residual: Whether the input is added to the output.
        drop_rate: Probability that a sample's residual branch is dropped while training.
        activation: Nonlinearity after the first two convolutions.
    """

    def __init__(
        self,
        widths: BlockWidths,
        *,
        residual: bool,
        drop_rate: float,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[activation]
        expanded = widths.expand_channels
        expands = widths.stage > 1
        self.expand = ConvNorm(widths.in_channels, expanded, 1) if expands else None
        self.depthwise = ConvNorm(
            expanded, expanded, widths.kernel, stride=widths.stride, groups=expanded
        )
        self.squeeze_excite = (
            SqueezeExcite(expanded, widths.se_channels) if widths.se_channels else None
        )
        self.project = ConvNorm(expanded, widths.out_channels, 1)
        self.residual = residual
        self.drop_rate = drop_rate

    def forward(self, maps_BChw: Tensor) -> Tensor:  # noqa: D102
        expanded = maps_BChw if self.expand is None else self.activate(self.expand(maps_BChw))
        filtered = self.activate(self.depthwise(expanded))
        if self.squeeze_excite is not None:
            filtered = self.squeeze_excite(filtered)
        branch: Tensor = self.project(filtered)
        if not self.residual:
            return branch
        if self.training and self.drop_rate > 0:
            branch = drop_connect(branch, rate=self.drop_rate)
        return maps_BChw + branch


def drop_connect(maps_BChw: Tensor, *, rate: float) -> Tensor:
    """Returns the maps with whole samples zeroed at random; the rest grow to keep the mean."""
    keep = 1 - rate
    gate_B111 = maps_BChw.new_empty((maps_BChw.shape[0], 1, 1, 1)).bernoulli_(keep) / keep
    return maps_BChw * gate_B111


def _total_padding(size: int, kernel: int, stride: int) -> int:
    return max((-(-size // stride) - 1) * stride + kernel - size, 0)

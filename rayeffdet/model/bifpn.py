"""The bidirectional feature pyramid (EfficientDet, section 3).

Shapes: B images, C channels, h w cells of a level.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayeffdet.model.blocks import (
    ACTIVATIONS,
    ConvNorm,
    SeparableConv,
    batch_norm,
    max_pool_same,
)
from rayeffdet.model.scaling import Activation, Fusion

_FUSION_EPSILON = 1e-4


class NodeInputs(NamedTuple):
    """Where a BiFPN node takes its inputs from.

    Maps of a cell are numbered in order of appearance: first the cell's inputs, finest level first,
    then the nodes' outputs.

    Attributes:
        level: Index of the node's level, 0 is the finest.
        own: Numbers of the maps of the same level.
        neighbour: Number of the map of the level above or below.
        top_down: Whether the neighbour is the coarser level.
    """

    level: int
    own: tuple[int, ...]
    neighbour: int
    top_down: bool


def node_graph(num_levels: int) -> tuple[NodeInputs, ...]:
    """Returns the nodes of a cell in order of computation: down to the finest level, then up."""
    maps_of_level = [[level] for level in range(num_levels)]
    nodes: list[NodeInputs] = []
    downward = [(level, level + 1) for level in reversed(range(num_levels - 1))]
    upward = [(level, level - 1) for level in range(1, num_levels)]
    for level, other in downward + upward:
        own = tuple(maps_of_level[level])
        nodes.append(NodeInputs(level, own, maps_of_level[other][-1], other > level))
        maps_of_level[level].append(num_levels + len(nodes) - 1)
    return tuple(nodes)


class FusionNode(nn.Module):
    """Weighs and adds maps of one level and a resampled one, then activates and convolves.

    Args:
        channels: Channels of the pyramid.
        num_inputs: Maps to fuse, 2 or 3.
        top_down: Whether the last map comes from the coarser level (else from the finer one).
        fusion: ``fastattn``: weights relu(v) / (sum relu(v) + 1e-4); ``sum``: no weights.
        lateral_channels: Channels of the first map when it comes from the backbone: it then gets
            a 1x1 convolution of its own. None: it has the pyramid's channels.
        activation: Nonlinearity before the convolution.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_inputs: int,
        top_down: bool,
        fusion: Fusion,
        lateral_channels: int | None,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[activation]
        self.top_down = top_down
        self.lateral = (
            None if lateral_channels is None else ConvNorm(lateral_channels, channels, 1, bias=True)
        )
        self.weights = nn.Parameter(torch.ones(num_inputs)) if fusion == "fastattn" else None
        self.conv = SeparableConv(channels, channels)
        self.norm = batch_norm(channels)

    def forward(self, own: Sequence[Tensor], neighbour: Tensor) -> Tensor:  # noqa: D102
        first, *others = own
        if self.lateral is not None:
            first = self.lateral(first)
        fused = self._fuse([first, *others], neighbour)
        normed: Tensor = self.norm(self.conv(self.activate(fused)))
        return normed

    def _fuse(self, own: list[Tensor], neighbour: Tensor) -> Tensor:
        size = own[0].shape[-2:]
        if self.weights is None:
            resampled = _upsample(neighbour, size) if self.top_down else max_pool_same(neighbour)
            return sum(own[1:], own[0]) + resampled
        weights = F.relu(self.weights)
        *own_weights, last_weight = (weights / (weights.sum() + _FUSION_EPSILON)).unbind()
        # The neighbour is weighed where it has the fewer cells.
        if self.top_down:
            fused = _upsample(neighbour * last_weight, size)
        else:
            fused = max_pool_same(neighbour) * last_weight
        for maps_BChw, weight in zip(own, own_weights, strict=True):
            fused = torch.addcmul(fused, maps_BChw, weight)
        return fused


class BiFPNCell(nn.Module):
    """One pass down and one pass up the pyramid.

    Args:
        channels: Channels of the pyramid.
        num_levels: Levels of the pyramid.
        fusion: How a node weighs its inputs.
        activation: Nonlinearity of every node.
        feature_channels: Channels of the backbone's maps among the inputs, finest first; empty for
            every cell but the first.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_levels: int,
        fusion: Fusion,
        activation: Activation = "silu",
        feature_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.graph = node_graph(num_levels)
        lateral_channels = dict(enumerate(feature_channels))
        self.nodes = nn.ModuleList(
            FusionNode(
                channels,
                num_inputs=len(node.own) + 1,
                top_down=node.top_down,
                fusion=fusion,
                lateral_channels=lateral_channels.get(node.own[0]),
                activation=activation,
            )
            for node in self.graph
        )

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:  # noqa: D102
        maps = list(pyramid)
        outputs = list(pyramid)
        for node, inputs in zip(self.nodes, self.graph, strict=True):
            maps.append(node([maps[number] for number in inputs.own], maps[inputs.neighbour]))
            outputs[inputs.level] = maps[-1]
        return outputs


class BiFPN(nn.Module):
    """Extends the backbone's maps by coarser levels and passes the pyramid through all cells.

    Args:
        feature_channels: Channels of P3, P4 and P5.
        channels: Channels of the pyramid.
        num_cells: Number of cells.
        num_levels: Levels of the pyramid; those beyond P5 are pooled.
        fusion: How a node weighs its inputs.
        activation: Nonlinearity of every node.
    """

    def __init__(
        self,
        feature_channels: Sequence[int],
        *,
        channels: int,
        num_cells: int,
        num_levels: int,
        fusion: Fusion,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.p6 = ConvNorm(feature_channels[-1], channels, 1, bias=True)
        self.cells = nn.ModuleList(
            BiFPNCell(
                channels,
                num_levels=num_levels,
                fusion=fusion,
                activation=activation,
                feature_channels=feature_channels if cell == 0 else (),
            )
            for cell in range(num_cells)
        )
        self._reset_parameters()

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Returns one float [B, C, h, w] map per level, finest first."""
        pyramid = [*features, max_pool_same(self.p6(features[-1]))]
        while len(pyramid) < self.num_levels:
            pyramid.append(max_pool_same(pyramid[-1]))
        for cell in self.cells:
            pyramid = cell(pyramid)
        return pyramid

    def _reset_parameters(self) -> None:
        """Draws kernels from Glorot's uniform distribution; biases are 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _upsample(maps_BChw: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps_BChw, size=list(size), mode="nearest")

"""What other projects call the parts of the network.

Every function maps our module names (or, for fusion weights, tensor names) to theirs.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

from rayeffdet.model.bifpn import node_graph
from rayeffdet.model.scaling import Architecture

T = TypeVar("T")

_LEVELS_FIRST = re.compile(r"((?:class|box)_net\.bn_rep)\.(\d+)\.(\d+)\.(\w+)$")

_TIMM_BLOCK = {
    "expand.conv": "conv_pw",
    "expand.norm": "bn1",
    "depthwise.conv": "conv_dw",
    "depthwise.norm": "bn2",
    "squeeze_excite.reduce": "se.conv_reduce",
    "squeeze_excite.expand": "se.conv_expand",
    "project.conv": "conv_pwl",
    "project.norm": "bn3",
}
_TIMM_FIRST_STAGE = _TIMM_BLOCK | {
    "depthwise.norm": "bn1",
    "project.conv": "conv_pw",
    "project.norm": "bn2",
}
_TORCHVISION_BLOCK = {
    "expand.conv": "0.0",
    "expand.norm": "0.1",
    "depthwise.conv": "1.0",
    "depthwise.norm": "1.1",
    "squeeze_excite.reduce": "2.fc1",
    "squeeze_excite.expand": "2.fc2",
    "project.conv": "3.0",
    "project.norm": "3.1",
}
_TORCHVISION_FIRST_STAGE = {
    "depthwise.conv": "0.0",
    "depthwise.norm": "0.1",
    "squeeze_excite.reduce": "1.fc1",
    "squeeze_excite.expand": "1.fc2",
    "project.conv": "2.0",
    "project.norm": "2.1",
}


def timm_names(architecture: Architecture) -> dict[str, str]:
    """Names of timm's ``tf_efficientnet_*`` and ``efficientnet_*``; the backbone alone."""
    names = {"backbone.stem.conv": "conv_stem", "backbone.stem.norm": "bn1"}
    for ours, stage, repeat in _backbone_blocks(architecture):
        parts = _TIMM_FIRST_STAGE if stage == 1 else _TIMM_BLOCK
        for part, theirs in parts.items():
            names[f"{ours}.{part}"] = f"blocks.{stage - 1}.{repeat}.{theirs}"
    return names


def torchvision_names(architecture: Architecture) -> dict[str, str]:
    """Names of torchvision's ``efficientnet_b*``; the backbone alone."""
    names = {"backbone.stem.conv": "features.0.0", "backbone.stem.norm": "features.0.1"}
    for ours, stage, repeat in _backbone_blocks(architecture):
        parts = _TORCHVISION_FIRST_STAGE if stage == 1 else _TORCHVISION_BLOCK
        for part, theirs in parts.items():
            names[f"{ours}.{part}"] = f"features.{stage}.{repeat}.block.{theirs}"
    return names


def effdet_names(architecture: Architecture) -> dict[str, str]:
    """Names of effdet's ``tf_efficientdet_*`` and ``efficientdet_*``; the whole detector."""
    backbone = timm_names(architecture).items()
    names = {ours: f"backbone.{theirs}" for ours, theirs in backbone} | _effdet_neck(architecture)
    for head, widths in (
        ("class", architecture.class_head_channels),
        ("box", architecture.box_head_channels),
    ):
        ours, theirs = f"{head}_head", f"{head}_net"
        names |= _separable(f"{ours}.predict", f"{theirs}.predict")
        for repeat in range(len(widths)):
            names |= _separable(f"{ours}.convs.{repeat}", f"{theirs}.conv_rep.{repeat}")
            for level in range(architecture.num_levels):
                norm = f"{theirs}.bn_rep.{repeat}.{level}.bn"
                names[f"{ours}.norms.{repeat}.{level}"] = norm
    return names


def repeats_first(tensors: Mapping[str, T]) -> dict[str, T]:
    """Returns an effdet state dict whose head norms are numbered by repeat, then by level.

    effdet numbers them the other way round in some networks, and then without ``.bn``; other names
    stay as they are.
    """
    return {_LEVELS_FIRST.sub(r"\1.\3.\2.bn.\4", key): value for key, value in tensors.items()}


def _effdet_neck(architecture: Architecture) -> dict[str, str]:
    names = {
        "neck.p6.conv": "fpn.resample.3.conv.conv",
        "neck.p6.norm": "fpn.resample.3.conv.bn",
    }
    for cell in range(architecture.fpn_cells):
        for index, node in enumerate(node_graph(architecture.num_levels)):
            ours = f"neck.cells.{cell}.nodes.{index}"
            theirs = f"fpn.cell.{cell}.fnode.{index}"
            lateral = f"{theirs}.combine.resample.{node.own[0]}.conv"
            names |= {
                f"{ours}.weights": f"{theirs}.combine.edge_weights",
                f"{ours}.lateral.conv": f"{lateral}.conv",
                f"{ours}.lateral.norm": f"{lateral}.bn",
                f"{ours}.norm": f"{theirs}.after_combine.conv.bn",
            } | _separable(f"{ours}.conv", f"{theirs}.after_combine.conv")
    return names


def _separable(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.depthwise": f"{theirs}.conv_dw", f"{ours}.pointwise": f"{theirs}.conv_pw"}


def _backbone_blocks(architecture: Architecture) -> Iterator[tuple[str, int, int]]:
    """Yields our name, the stage 1 to 7 and the place within the stage of every block."""
    stages = [block.stage for block in architecture.blocks]
    for index, stage in enumerate(stages):
        yield f"backbone.blocks.{index}", stage, index - stages.index(stage)

"""The same network twice: effdet's with random weights, and ours, loaded from it as users do.

Random weights find more mistakes than trained ones when nothing keeps its first value: kernels,
biases and affine terms are drawn, statistics of norms are those of a batch, and some fusion weights
are negative.
"""

import dataclasses
from typing import NamedTuple

import effdet
import torch
from torch import Tensor, nn

from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import architecture_of
from rayeffdet.model.weights import load_matching

Size = tuple[int, int]

SQUARE: Size = (128, 128)


class Pair(NamedTuple):
    """Two networks with equal weights; training one leaves the other as it is."""

    ours: EfficientDet
    theirs: nn.Module


def make_pair(
    variant: str,
    *,
    size: Size = SQUARE,
    num_classes: int = 90,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Pair:
    """Returns both networks in evaluation mode, effdet's for images of one (height, width).

    Two things that only training sees are made equal, for they are decisions and not arithmetic:
    neither network drops branches at random, and effdet's backbone gets the momentum of the
    published networks' norms, 0.01, where it would keep PyTorch's 0.1.
    """
    theirs = _build_theirs(variant, size, num_classes).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in theirs.named_parameters():
            _draw(parameter, name)
        _take_statistics(theirs, size)
    ours = EfficientDet(
        dataclasses.replace(architecture_of(variant, num_classes=num_classes), drop_connect=0.0)
    )
    report = load_matching(ours, theirs.state_dict(), name=f"{theirs.config.name}.pth")
    assert report.fresh == (), report.describe()
    return Pair(ours.to(dtype).eval(), theirs.to(dtype).eval())


def for_size(theirs: nn.Module, size: Size) -> nn.Module:
    """Returns effdet's network for images of another size, which it fixes when it is built.

    The tensors are shared.
    """
    variant = theirs.config.name.removeprefix("tf_").replace("_", "-")
    other = _build_theirs(variant, size, theirs.config.num_classes)
    other.load_state_dict(theirs.state_dict(), assign=True)
    return other.eval()


def make_images(batch: int, size: Size, *, seed: int = 1) -> Tensor:
    """Returns float32 [B, 3, H, W]: blots of colour under noise, of the spread of real images.

    Noise alone would average out on the way to the coarse levels.
    """
    source = torch.Generator().manual_seed(seed)
    blots = torch.randn(batch, 3, 6, 6, generator=source)
    noise = torch.randn(batch, 3, *size, generator=source)
    return nn.functional.interpolate(blots, size, mode="bilinear") + 0.5 * noise


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Returns the norm of the difference over the norm of the reference."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def _build_theirs(variant: str, size: Size, num_classes: int) -> nn.Module:
    config = effdet.get_efficientdet_config(f"tf_{variant.replace('-', '_')}")
    config.image_size = size
    config.num_classes = num_classes
    config.backbone_args.drop_path_rate = 0.0
    with torch.device("meta"):
        network = effdet.EfficientDet(config, pretrained_backbone=False)
    for norm in _norms(network):
        norm.momentum = 0.01
    return network


def _norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def _draw(parameter: Tensor, name: str) -> None:
    if parameter.ndim > 1:
        parameter.normal_(std=parameter[0].numel() ** -0.5)
    elif name.endswith("edge_weights"):
        # Half of the nodes lose one input; without any, a node would be a constant.
        parameter.uniform_(0.2, 2.0)
        if torch.rand(()) < 0.5:
            parameter[torch.randint(len(parameter), ())] *= -1
    else:
        parameter.normal_(mean=1.0 if name.endswith("weight") else 0.0, std=0.4)


def _take_statistics(network: nn.Module, size: Size) -> None:
    """Gives the norms the statistics of images, without which maps would grow or die out.

    The images are twice as large as those the network is for: there the coarsest maps are all
    border, and with their statistics maps would grow at any other size.
    """
    twice = (2 * size[0], 2 * size[1])
    larger = for_size(network, twice)
    for norm in _norms(larger):
        norm.reset_running_stats()
        norm.momentum = 1.0
    larger.train()(make_images(4, twice))

"""Checkpoints and weights without training: fresh ones, renamed ones, drawn ones."""

import torch
from torch import Tensor, nn

from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.weight_names import effdet_names
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import build_architecture, input_size
from rayeffdet.train.checkpoint import Checkpoint, save_checkpoint


def save_fresh(path, fields, *, encryption_key="", stem_weight=None):
    """Writes the network of a spec's fields; a given number takes the place of its stem's weights.

    Returns the path.
    """
    spec = Spec.from_dict(fields)
    network = EfficientDet(build_architecture(spec))
    if stem_weight is not None:
        with torch.no_grad():
            next(network.parameters()).fill_(stem_weight)
    checkpoint = Checkpoint(
        architecture=network.architecture.to_dict(),
        class_names={1: "disc"},
        input_size=input_size(spec),
        normalisation={},
        spec=spec.public_dict(),
        epoch=1,
        step=1,
        model=network.state_dict(),
    )
    save_checkpoint(str(path), checkpoint, encryption_key=encryption_key)
    return str(path)


def renamed(network: EfficientDet, names: dict[str, str]) -> dict[str, Tensor]:
    """Returns the network's tensors under other names; those without one are left out."""
    result: dict[str, Tensor] = {}
    for key, tensor in network.state_dict().items():
        module, _, leaf = key.rpartition(".")
        if key in names:
            result[names[key]] = tensor
        elif module in names:
            result[f"{names[module]}.{leaf}"] = tensor
    return result


def as_effdet(network: EfficientDet) -> dict[str, Tensor]:
    """Returns the whole network's tensors as effdet names them."""
    return renamed(network, effdet_names(network.architecture))


def perturbed(network: nn.Module, images: Tensor) -> nn.Module:
    """Draws every tensor anew and returns the network in evaluation mode.

    Nothing keeps its first value, where a mistake could hide; the norms' statistics are those of
    the images, without which maps would grow or die from block to block.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.uniform_(0.1, 1.0)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        network.train()(images)
    return network.eval()

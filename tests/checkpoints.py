"""Checkpoint files of a small fresh network, without training one."""

import torch

from rayeffdet.model.efficientdet import EfficientDet
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

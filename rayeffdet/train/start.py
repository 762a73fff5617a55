"""What training starts from: the run's own checkpoint, a given one, a pruned network, weights."""

from dataclasses import dataclass, replace

import torch

from rayeffdet.errors import CheckpointError
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import Architecture
from rayeffdet.model.weight_origin import adopt_scaling
from rayeffdet.model.weights import load_matching
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import build_architecture
from rayeffdet.train.checkpoint import Checkpoint, is_state_dict, load_checkpoint
from rayeffdet.train.checkpoint_index import CheckpointIndex
from rayeffdet.train.detector import load_state_dict_file, load_whole_network


@dataclass(frozen=True)
class Start:
    """A network with its first weights, on the CPU.

    Args:
        network: Raw weights.
        resumed: The checkpoint whose average, optimizer and epoch go on; None for a new run.
        notices: What a person should know, one sentence each.
    """

    network: EfficientDet
    resumed: Checkpoint | None
    notices: tuple[str, ...]


def starting_point(spec: Spec, folder: str) -> Start:
    """Returns where training starts: the first that there is.

    1. The latest checkpoint of the run's own folder,
    2. ``train.resume_training_checkpoint_path``,
    3. ``train.pruned_model_path``,
    4. ``train.checkpoint``,
    5. random weights.

    Raises:
        CheckpointError: A file cannot be read or does not fit the spec.
    """
    key = spec.encryption_key
    own, skipped = CheckpointIndex.read(folder).load_latest(encryption_key=key)
    notices = [f"{problem}; an earlier checkpoint is used" for problem in skipped]
    given = spec.train.resume_training_checkpoint_path
    if own is None and given:
        own = load_checkpoint(given, encryption_key=key)
        notices.append(f"{given}: goes on after epoch {own.epoch}")
    if own is not None:
        return Start(_network_of(own, spec, name=given or folder), own, tuple(notices))
    if spec.train.pruned_model_path:
        network, remarks = _pruned_network(spec)
        return Start(network, None, (*notices, *remarks))
    torch.manual_seed(spec.train.random_seed)
    network = EfficientDet(build_architecture(spec))
    if spec.train.checkpoint:
        notices += load_pretrained(network, spec.train.checkpoint, encryption_key=key)
    return Start(network, None, tuple(notices))


def load_pretrained(network: EfficientDet, path: str, *, encryption_key: str) -> list[str]:
    """Loads what a file has of the network's tensors and returns sentences on it.

    Args:
        network: Changed in place.
        path: A checkpoint of this project, or a state dict of timm, torchvision or effdet.
        encryption_key: Key of an encrypted checkpoint.

    Raises:
        CheckpointError: Nothing matches, or the backbone is another variant's.
    """
    if is_state_dict(path):
        report = load_state_dict_file(network, path)
    else:
        checkpoint = load_checkpoint(path, encryption_key=encryption_key)
        report = load_matching(network, checkpoint.ema or checkpoint.model, name=path)
        theirs = Architecture.from_dict(checkpoint.architecture)
        network.architecture, about_images = adopt_scaling(
            network.architecture, (theirs.image_mean, theirs.image_std)
        )
        report = replace(report, notes=(*report.notes, *about_images))
    return [f"{path}: {text}" for text in (report.describe(), *report.notes)]


def _pruned_network(spec: Spec) -> tuple[EfficientDet, tuple[str, ...]]:
    path = spec.train.pruned_model_path
    if is_state_dict(path):
        return load_whole_network(path, spec)
    checkpoint = load_checkpoint(path, encryption_key=spec.encryption_key)
    return _network_of(checkpoint, spec, name=path), ()


def _network_of(checkpoint: Checkpoint, spec: Spec, *, name: str) -> EfficientDet:
    """Returns the checkpoint's network, whose widths may be pruned ones."""
    architecture, asked = Architecture.from_dict(checkpoint.architecture), build_architecture(spec)
    misfits = [
        f"{name}: {words} is {has} in the checkpoint and {wants} in the spec; take the same, or"
        " start a new run with train.checkpoint"
        for words, has, wants in (
            ("model.name", architecture.name, asked.name),
            ("dataset.num_classes", architecture.num_classes + 1, asked.num_classes + 1),
            ("the number of anchors per cell", architecture.num_anchors, asked.num_anchors),
        )
        if has != wants
    ]
    if misfits:
        raise CheckpointError(*misfits)
    network = EfficientDet(architecture)
    network.load_state_dict(checkpoint.model)
    return network

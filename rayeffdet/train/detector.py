"""A trained network ready to detect, from a checkpoint or from a state dict of effdet."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rayeffdet import storage
from rayeffdet.errors import CheckpointError
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import Architecture
from rayeffdet.model.weights import load_matching, parse_state_dict
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import build_anchors, build_architecture, input_size
from rayeffdet.train.checkpoint import Checkpoint, is_state_dict, load_checkpoint


@dataclass(frozen=True)
class Detector:
    """A network in evaluation mode and what its outputs mean.

    Args:
        network: Averaged weights where the checkpoint has them.
        anchors_N4: xyxy, on the network's device.
        input_size: Height and width in pixels.
        class_names: Category id to name; empty where the file knows of none.
    """

    network: EfficientDet
    anchors_N4: Tensor
    input_size: tuple[int, int]
    class_names: dict[int, str]


def load_detector(path: str, *, spec: Spec, device: torch.device) -> Detector:
    """Returns the detector of a checkpoint file.

    Args:
        path: A checkpoint of this project, which describes its own network, or the state dict of
            a whole effdet detector, whose network the spec describes.
        spec: Gives the encryption key, and for a state dict the network, anchors and input size.
        device: Where the detector works.

    Raises:
        CheckpointError: The file cannot be read, or the state dict is not the spec's network.
    """
    if is_state_dict(path):
        return _detector(load_whole_network(path, spec), spec, class_names={}, device=device)
    return detector_of(load_checkpoint(path, encryption_key=spec.encryption_key), device=device)


def detector_of(checkpoint: Checkpoint, *, device: torch.device) -> Detector:
    """Returns the detector that a checkpoint holds; anchors follow from the spec inside it."""
    network = EfficientDet(Architecture.from_dict(checkpoint.architecture))
    network.load_state_dict(checkpoint.ema or checkpoint.model)
    spec = Spec.from_dict(checkpoint.spec)
    return _detector(network, spec, class_names=checkpoint.class_names, device=device)


def load_whole_network(path: str, spec: Spec) -> EfficientDet:
    """Returns the spec's network with every tensor from a state dict, on the CPU.

    Raises:
        CheckpointError: The file cannot be read, or a tensor is missing or has another shape.
    """
    network = EfficientDet(build_architecture(spec))
    tensors = parse_state_dict(storage.read_bytes(path), name=path)
    report = load_matching(network, tensors, name=path)
    if report.fresh:
        raise CheckpointError(
            f"{path}: {report.describe()}; a whole detector is needed here: set model and"
            " dataset.num_classes to the network that the file holds, or train from it with"
            " train.checkpoint"
        )
    return network


def _detector(
    network: EfficientDet, spec: Spec, *, class_names: dict[int, str], device: torch.device
) -> Detector:
    return Detector(
        network=network.to(memory_format=torch.channels_last).to(device).eval(),
        anchors_N4=build_anchors(spec).to(device),
        input_size=input_size(spec),
        class_names=class_names,
    )


def device_here() -> torch.device:
    """Returns the GPU that this process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

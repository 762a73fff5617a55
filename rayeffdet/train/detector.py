"""A trained network ready to detect, from a checkpoint alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import Architecture
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import build_anchors, input_size
from rayeffdet.train.checkpoint import Checkpoint, load_checkpoint


@dataclass(frozen=True)
class Detector:
    """A network in evaluation mode and what its outputs mean.

    Args:
        network: Averaged weights where the checkpoint has them.
        anchors_N4: xyxy, on the network's device.
        input_size: Height and width in pixels.
        class_names: Category id to name.
    """

    network: EfficientDet
    anchors_N4: Tensor
    input_size: tuple[int, int]
    class_names: dict[int, str]


def load_detector(path: str, *, encryption_key: str, device: torch.device) -> Detector:
    """Returns the detector of a checkpoint file.

    Raises:
        CheckpointError: The file cannot be read.
    """
    return detector_of(load_checkpoint(path, encryption_key=encryption_key), device=device)


def detector_of(checkpoint: Checkpoint, *, device: torch.device) -> Detector:
    """Returns the detector that a checkpoint holds; anchors follow from the spec inside it."""
    spec = Spec.from_dict(checkpoint.spec)
    network = EfficientDet(Architecture.from_dict(checkpoint.architecture))
    network.load_state_dict(checkpoint.ema or checkpoint.model)
    network = network.to(memory_format=torch.channels_last).to(device).eval()
    return Detector(
        network=network,
        anchors_N4=build_anchors(spec).to(device),
        input_size=input_size(spec),
        class_names=checkpoint.class_names,
    )


def device_here() -> torch.device:
    """Returns the GPU that this process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

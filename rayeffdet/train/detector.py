"""A trained network ready to detect, from a checkpoint or from a state dict of effdet."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rayeffdet import storage
from rayeffdet.errors import CheckpointError
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import Architecture
from rayeffdet.model.weight_files import parse_state_dict
from rayeffdet.model.weight_origin import is_title
from rayeffdet.model.weights import LoadReport, load_matching
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
        notices: What a person should know about the weights, one sentence each.
    """

    network: EfficientDet
    anchors_N4: Tensor
    input_size: tuple[int, int]
    class_names: dict[int, str]
    notices: tuple[str, ...] = ()


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
        network, notices = load_whole_network(path, spec)
        detector = _detector(network, spec, class_names={}, device=device)
        return replace(detector, notices=notices)
    return detector_of(load_checkpoint(path, encryption_key=spec.encryption_key), device=device)


def detector_of(checkpoint: Checkpoint, *, device: torch.device) -> Detector:
    """Returns the detector that a checkpoint holds; anchors follow from the spec inside it."""
    network = EfficientDet(Architecture.from_dict(checkpoint.architecture))
    network.load_state_dict(checkpoint.ema or checkpoint.model)
    spec = Spec.from_dict(checkpoint.spec)
    return _detector(network, spec, class_names=checkpoint.class_names, device=device)


def load_state_dict_file(network: EfficientDet, path: str) -> LoadReport:
    """Loads what a state dict of timm, torchvision or effdet has of the network's tensors.

    Args:
        network: Changed in place.
        path: The file. Beside it may be the ``config.json`` of timm's hub, whose files all have
            one name.

    Raises:
        CheckpointError: The file cannot be read, nothing matches, or it is another variant's.
    """
    tensors = parse_state_dict(storage.read_bytes(path), name=path)
    return load_matching(network, tensors, name=path, title=_title_of(path))


def _title_of(path: str) -> str:
    file = path.rsplit("/", 1)[-1]
    if is_title(file):
        return file
    try:
        config = storage.read_json(path.removesuffix(file) + "config.json")
        title = f"{config['architecture']}.{config['pretrained_cfg']['tag']}"
    except (OSError, ValueError, KeyError, TypeError):  # missing, or of another program
        return file
    return title if is_title(title) else file


def load_whole_network(path: str, spec: Spec) -> tuple[EfficientDet, tuple[str, ...]]:
    """Returns the spec's network with every tensor from a state dict, on the CPU, and notices.

    Raises:
        CheckpointError: The file cannot be read, or a tensor is missing or has another shape.
    """
    network = EfficientDet(build_architecture(spec))
    report = load_state_dict_file(network, path)
    if report.fresh:
        raise CheckpointError(
            f"{path}: {report.describe()}; a whole detector is needed here: set model and"
            " dataset.num_classes to the network that the file holds, or train from it with"
            " train.checkpoint"
        )
    return network, tuple(f"{path}: {note}" for note in report.notes)


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

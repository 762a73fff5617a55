"""Pretrained weights of effdet detectors and of timm and torchvision backbones."""

import argparse
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rayeffdet.errors import CheckpointError
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import VARIANTS, Architecture, architecture_of
from rayeffdet.model.weight_names import effdet_names, timm_names, torchvision_names

# Keys that training scripts nest the tensors under; averaged weights are the better ones.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
# What wrapping modules put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# One tensor that every state dict of the source holds.
_SIGNS = {
    "rayeffdet": "backbone.stem.conv.weight",
    "effdet": "backbone.conv_stem.weight",
    "timm": "conv_stem.weight",
    "torchvision": "features.0.0.weight",
}
# Where the source keeps the blocks of stages 1 to 7.
_BLOCKS = {
    "rayeffdet": ("backbone.blocks.",),
    "effdet": ("backbone.blocks.",),
    "timm": ("blocks.",),
    "torchvision": tuple(f"features.{stage}." for stage in range(1, 8)),
}
_NAMES = {"effdet": effdet_names, "timm": timm_names, "torchvision": torchvision_names}
_CLASS_LAYER = "class_head.predict.pointwise."
_STEP_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """What `load_matching` did.

    Attributes:
        source: Whose names the tensors had: rayeffdet, effdet, timm or torchvision.
        matched: Number of the model's tensors that were loaded.
        total: Number of the model's tensors; the step counters of batch norms are not counted.
        fresh: Names of the model's tensors that were left as they are.
    """

    source: str
    matched: int
    total: int
    fresh: tuple[str, ...]

    def describe(self) -> str:
        """Returns one line for people; more than four fresh tensors are counted per part."""
        text = f"{self.matched} of {self.total} tensors loaded from {self.source} weights"
        if not self.fresh:
            return text
        if len(self.fresh) <= 4:
            return f"{text}; left fresh: {', '.join(self.fresh)}"
        parts = [name.split(".")[0] for name in self.fresh]
        counts = ", ".join(f"{part} ({parts.count(part)})" for part in dict.fromkeys(parts))
        return f"{text}; left fresh: {counts}"


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors or ``.pth`` file of this machine.

    Raises:
        CheckpointError: The file cannot be read, holds no tensors or wants to run code.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_state_dict(content, name=str(path))


def parse_state_dict(content: bytes, *, name: str) -> dict[str, Tensor]:
    """Returns the tensors in the bytes of a safetensors or ``.pth`` file, wrappers taken off.

    The kind is told by content. Nothing in a ``.pth`` file is executed.

    Args:
        content: The whole file.
        name: The file's name for messages.

    Raises:
        CheckpointError: The bytes are damaged, hold no tensors or want to run code.
    """
    document = (
        _load_safetensors(content, name) if _is_safetensors(content) else _load_pth(content, name)
    )
    for wrapper in _WRAPPERS:
        if isinstance(document, Mapping) and isinstance(document.get(wrapper), Mapping):
            document = document[wrapper]
            break
    tensors = dict(document) if isinstance(document, Mapping) else {}
    tensors = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{name}: holds no named tensors; a state dict is needed")
    return tensors


def load_matching(
    model: EfficientDet, state_dict: Mapping[str, Tensor], *, name: str = "the weights"
) -> LoadReport:
    """Loads every tensor of the state dict that the model has, whoever named it.

    A class layer with another number of classes is left as it is, and so is what the state dict
    does not hold beyond the backbone. The model is untouched when an error is raised.

    Weights trained with symmetric padding (torchvision, timm without ``tf_``) fit by shape and are
    a start for training, but their maps come out shifted: nothing in the tensors tells.

    Args:
        model: The detector to load into.
        state_dict: Tensors by the names of rayeffdet, effdet, timm or torchvision.
        name: The file's name for messages.

    Raises:
        CheckpointError: No name is known, the backbone is another variant's or not whole, or a
            tensor outside the class layer has another shape.
    """
    tensors = _without_prefixes(state_dict)
    source = _source_of(tensors, name)
    ours = _shapes_of(model)
    theirs = _their_names(ours, model.architecture, source)
    problem = _backbone_problem(ours, theirs, source, tensors)
    if problem:
        raise CheckpointError(f"{name}: {problem}{_variant_hint(model, source, tensors)}")
    found = {key: tensors[their] for key, their in theirs.items() if their in tensors}
    for key in list(found):
        if found[key].shape == ours[key]:
            continue
        if not key.startswith(_CLASS_LAYER):
            raise CheckpointError(f"{name}: {_shape_problem(theirs[key], found[key], ours[key])}")
        del found[key]
    model.load_state_dict(found, strict=False)
    fresh = tuple(key for key in ours if key not in found)
    return LoadReport(source=source, matched=len(found), total=len(ours), fresh=fresh)


def _is_safetensors(content: bytes) -> bool:
    return content[8:9] == b"{"


def _load_safetensors(content: bytes, name: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{name}: damaged safetensors file: {error}") from error


def _load_pth(content: bytes, name: str) -> Any:
    try:
        # Training scripts leave their arguments in the file: plain values, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what a foreign pickle raises has no common type
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{name}: neither a safetensors file nor a PyTorch file of plain tensors: {reason}"
        ) from error


def _without_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = dict(state_dict)
    while prefix := next((p for p in _PREFIXES if any(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def _source_of(tensors: Mapping[str, Tensor], name: str) -> str:
    for source, sign in _SIGNS.items():
        if sign in tensors:
            return source
    raise CheckpointError(
        f"{name}: none of {len(tensors)} tensors belongs to the model; give the weights of an"
        f" EfficientNet of timm or torchvision, or of an EfficientDet of effdet"
        f" (found {', '.join(list(tensors)[:3])}, ...)"
    )


def _shapes_of(model: EfficientDet) -> dict[str, torch.Size]:
    tensors = model.state_dict()
    return {key: t.shape for key, t in tensors.items() if not key.endswith(_STEP_COUNTER)}


def _their_names(ours: Iterable[str], architecture: Architecture, source: str) -> dict[str, str]:
    """Returns our tensor name -> the source's, for the tensors that the source can have."""
    if source == "rayeffdet":
        return {key: key for key in ours}
    modules = _NAMES[source](architecture)
    names: dict[str, str] = {}
    for key in ours:
        module, _, tensor = key.rpartition(".")
        if key in modules:
            names[key] = modules[key]
        elif module in modules:
            names[key] = f"{modules[module]}.{tensor}"
    return names


def _backbone_problem(
    ours: Mapping[str, torch.Size],
    theirs: Mapping[str, str],
    source: str,
    tensors: Mapping[str, Tensor],
) -> str | None:
    """Returns what keeps the state dict's backbone from being the model's, if anything does."""
    for key, shape in ours.items():
        if not key.startswith("backbone."):
            continue
        if theirs[key] not in tensors:
            return f"{theirs[key]}, which the model's backbone needs, is missing"
        if tensors[theirs[key]].shape != shape:
            return _shape_problem(theirs[key], tensors[theirs[key]], shape)
    known = set(theirs.values())
    for key in tensors:
        if key.startswith(_BLOCKS[source]) and key not in known and _STEP_COUNTER not in key:
            return f"{key} has no place in the model's backbone"
    return None


def _shape_problem(key: str, tensor: Tensor, shape: torch.Size) -> str:
    return f"{key} is {_by(tensor.shape)}, the model needs {_by(shape)}"


def _by(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _variant_hint(model: EfficientDet, source: str, tensors: Mapping[str, Tensor]) -> str:
    """Words which variant the backbone belongs to, when it is one of the table."""
    for variant in VARIANTS:
        with torch.device("meta"):
            candidate = EfficientDet(architecture_of(variant, num_classes=1))
        ours = _shapes_of(candidate)
        theirs = _their_names(ours, candidate.architecture, source)
        if _backbone_problem(ours, theirs, source, tensors) is None:
            return f"; the file holds the backbone of {variant}, the model is {_title(model)}"
    return f"; the model is {_title(model)}"


def _title(model: EfficientDet) -> str:
    """Returns the variant's name, and says so when layers were pruned."""
    architecture = model.architecture
    whole = architecture_of(
        architecture.name,
        num_classes=architecture.num_classes,
        num_anchors=architecture.num_anchors,
    )
    return architecture.name if architecture.blocks == whole.blocks else f"a pruned {whole.name}"

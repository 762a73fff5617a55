"""Adapters for the weights of others: effdet detectors, timm and torchvision backbones."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rayeffdet.errors import CheckpointError
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import VARIANTS, Architecture, architecture_of
from rayeffdet.model.weight_names import (
    effdet_names,
    repeats_first,
    timm_names,
    torchvision_names,
)
from rayeffdet.model.weight_origin import adopt_epsilon, adopt_scaling, origin_of

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
        notes: What was changed or assumed to make the weights fit, and what makes this network
            compute otherwise than the source's, a sentence each.
    """

    source: str
    matched: int
    total: int
    fresh: tuple[str, ...]
    notes: tuple[str, ...] = ()

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


def load_matching(
    model: EfficientDet,
    state_dict: Mapping[str, Tensor],
    *,
    name: str = "the weights",
    title: str = "",
) -> LoadReport:
    """Loads every tensor of the state dict that the model has, whoever named it.

    A class layer with another number of classes is left as it is, and so is what the state dict
    does not hold beyond the backbone. The model is untouched when an error is raised.

    This network pads as TensorFlow and has its batch norm epsilon, 1e-3. Weights trained with
    another epsilon are scaled to give equal outputs; the scaling of images that the weights were
    trained with becomes the architecture's; symmetric padding cannot be made up for. The report's
    notes say each.

    Args:
        model: The detector to load into.
        state_dict: Tensors by the names of rayeffdet, effdet, timm or torchvision.
        name: The file's name for messages.
        title: What timm or effdet call the weights; empty: the last part of `name`. Padding and
            epsilon of timm's backbones follow from nothing else.

    Raises:
        CheckpointError: No name is known, the backbone is another variant's or not whole, or a
            tensor outside the class layer has another shape.
    """
    tensors = repeats_first(_without_prefixes(state_dict))
    source = _source_of(tensors, name)
    ours = _shapes_of(model)
    theirs = _their_names(ours, model.architecture, source)
    problem = _backbone_problem(ours, theirs, source, tensors) or _rest_problem(
        ours, theirs, tensors
    )
    if problem:
        raise CheckpointError(f"{name}: {problem}{_variant_hint(model, source, tensors)}")
    found = {
        key: tensors[their]
        for key, their in theirs.items()
        if their in tensors and tensors[their].shape == ours[key]
    }
    unneeded = _unneeded_biases(theirs, tensors)
    found |= {key: torch.zeros(ours[key]) for key in unneeded}
    notes = [f"{len(unneeded)} biases that the file does without are 0"] if unneeded else []
    origin = origin_of(
        source,
        title=title or name.rsplit("/", 1)[-1],
        architecture=model.architecture,
        without_biases=bool(unneeded),
    )
    notes += adopt_epsilon(found, theirs=origin.epsilon, ours=model.backbone.stem.norm.eps)
    model.architecture, about_images = adopt_scaling(model.architecture, origin.image_scaling)
    model.load_state_dict(found, strict=False)
    return LoadReport(
        source=source,
        matched=len(found),
        total=len(ours),
        fresh=tuple(key for key in ours if key not in found),
        notes=(*notes, *about_images, *origin.notes),
    )


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


def _rest_problem(
    ours: Mapping[str, torch.Size],
    theirs: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    *,
    any_shape: str = _CLASS_LAYER,
) -> str | None:
    """Returns which tensor has another shape, if any outside of the layer has."""
    for key, their in theirs.items():
        if any_shape not in key and their in tensors and tensors[their].shape != ours[key]:
            return _shape_problem(their, tensors[their], ours[key])
    return None


def _shape_problem(key: str, tensor: Tensor, shape: torch.Size) -> str:
    return f"{key} is {_by(tensor.shape)}, the model needs {_by(shape)}"


def _by(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _variant_hint(model: EfficientDet, source: str, tensors: Mapping[str, Tensor]) -> str:
    """Words which variant the weights belong to, when it is one of the table."""
    title = _title(model)
    for variant in VARIANTS:
        with torch.device("meta"):
            candidate = EfficientDet(architecture_of(variant, num_classes=1))
        ours = _shapes_of(candidate)
        theirs = _their_names(ours, candidate.architecture, source)
        if variant != title and not (
            _backbone_problem(ours, theirs, source, tensors)
            or _rest_problem(ours, theirs, tensors, any_shape=".predict.")
        ):
            return f"; the file holds the backbone of {variant}, the model is {title}"
    return f"; the model is {title}"


def _title(model: EfficientDet) -> str:
    """Returns the variant's name, and says so when layers were pruned."""
    architecture = model.architecture
    whole = architecture_of(
        architecture.name,
        num_classes=architecture.num_classes,
        num_anchors=architecture.num_anchors,
    )
    return architecture.name if architecture.blocks == whole.blocks else f"a pruned {whole.name}"


def _unneeded_biases(theirs: Mapping[str, str], tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns the biases in front of batch norms, if a whole detector does without all of them."""
    biases = [
        key
        for key in theirs
        if key.endswith((".conv.bias", ".pointwise.bias")) and ".predict." not in key
    ]
    layers = [theirs[key].removesuffix("bias") for key in biases]
    without = all(f"{layer}weight" in tensors and f"{layer}bias" not in tensors for layer in layers)
    return biases if without else []

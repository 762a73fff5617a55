"""What weights of others were trained with, where their tensors alone do not tell.

Two conventions fit every EfficientNet by shape. TensorFlow's: padding "SAME", batch norms with
epsilon 1e-3, as here; timm's and effdet's ``tf_*`` follow it. PyTorch's: symmetric padding, epsilon
1e-5; timm's ``efficientnet_*``, effdet's ``efficientdet_d0`` to ``d3`` and torchvision follow it,
except that torchvision's B5 to B7 are TensorFlow's weights, with its epsilon, padded symmetrically.
"""

import re
from dataclasses import dataclass, replace

from torch import Tensor

from rayeffdet.model.scaling import IMAGENET_MEAN, IMAGENET_STD, Architecture, Channels3

_TF_EPSILON, _PYTORCH_EPSILON = 1e-3, 1e-5
_TITLE = re.compile(r"efficient(net|det)_")
# effdet's d4 and d5 keep the biases by which the other detectors with such a backbone are told.
_PYTORCH_TITLE = re.compile(r"(?<!tf_)(efficientnet_|efficientdet_d[45])")
# AdvProp, and timm's recipe of 2024.
_UNIT_IMAGES_TITLE = re.compile(r"_[bd]\d[._](ap|ra4_e3600)([._-]|$)")
_UNIT: Channels3 = (0.5, 0.5, 0.5)
_TORCHVISION_FROM_TF = ("efficientdet-d5", "efficientdet-d6", "efficientdet-d7", "efficientdet-d7x")


@dataclass(frozen=True)
class Origin:
    """How the program that the weights are from computes with them.

    Attributes:
        epsilon: Of its backbone's batch norms.
        image_scaling: Mean and standard deviation of its images; None where nothing tells them.
        notes: Sentences on what remains different here, and on what had to be assumed.
    """

    epsilon: float
    image_scaling: tuple[Channels3, Channels3] | None = None
    notes: tuple[str, ...] = ()


def is_title(text: str) -> bool:
    """Tells whether a text has the name of a network as timm or effdet writes it."""
    return _TITLE.search(text.lower()) is not None


def origin_of(
    source: str, *, title: str, architecture: Architecture, without_biases: bool = False
) -> Origin:
    """Returns the origin of weights.

    Args:
        source: Whose names the tensors have: rayeffdet, effdet, timm or torchvision.
        title: What the source calls them, ``tf_efficientnet_b0.ap_in1k`` or a file of that name.
        architecture: Of the network they are for.
        without_biases: There are no biases in front of batch norms.
    """
    title = title.lower()
    if source == "rayeffdet":
        return Origin(_TF_EPSILON)
    if source == "torchvision":
        from_tf = architecture.name in _TORCHVISION_FROM_TF
        symmetric, epsilon = True, _TF_EPSILON if from_tf else _PYTORCH_EPSILON
    else:
        symmetric = without_biases or _PYTORCH_TITLE.search(title) is not None
        epsilon = _PYTORCH_EPSILON if symmetric else _TF_EPSILON
    notes: list[str] = []
    if source == "timm" and not is_title(title):
        notes.append(
            f"nothing in the name {title} tells which convention the weights follow: taken as a"
            " tf_efficientnet (SAME padding, epsilon 1e-3); keep timm's name if it is another"
        )
    if symmetric:
        notes.append(
            "the backbone was trained with symmetric padding and is run with SAME: at even sizes"
            " its maps shift by up to a cell, so that these weights are a start for training, and"
            " results of the network that they are from are not reached without it"
        )
    scaling = None
    if source == "torchvision" or is_title(title):
        lite_of_tf = architecture.activation == "relu6" and not symmetric
        is_unit = lite_of_tf or _UNIT_IMAGES_TITLE.search(title)
        scaling = (_UNIT, _UNIT) if is_unit else (IMAGENET_MEAN, IMAGENET_STD)
    return Origin(epsilon, scaling, tuple(notes))


def adopt_epsilon(found: dict[str, Tensor], *, theirs: float, ours: float) -> list[str]:
    """Scales the backbone's batch norms so that another epsilon gives the same outputs.

    A channel of variance v is divided by sqrt(v + epsilon); its weight makes up for the difference.
    Outputs are equal in evaluation, and in training as far as a batch varies like the data. Moving
    the variance instead would fail where it is below the difference, and training would undo it.

    Args:
        found: Tensors by our names; changed in place, the tensors themselves are not.
        theirs: Epsilon that the tensors were trained with.
        ours: Epsilon that they will be used with.

    Returns:
        A sentence on it, if there is anything to say.
    """
    if theirs == ours:
        return []
    for key in list(found):
        module, _, tensor = key.rpartition(".")
        if tensor == "running_var" and module.startswith("backbone."):
            variance = found[key].double()
            factor = ((variance + ours) / (variance + theirs)).sqrt()
            found[f"{module}.weight"] = found[f"{module}.weight"].double() * factor
    return [
        f"batch norms of the backbone have epsilon {theirs:g} there and {ours:g} here; their"
        " weights were scaled so that the outputs are equal"
    ]


def adopt_scaling(
    architecture: Architecture, scaling: tuple[Channels3, Channels3] | None
) -> tuple[Architecture, list[str]]:
    """Returns the architecture with the scaling of images that weights expect, and a sentence.

    There is no sentence where nothing changes.
    """
    if scaling in (None, (architecture.image_mean, architecture.image_std)):
        return architecture, []
    assert scaling is not None
    mean, std = scaling
    words = "to -1..1" if mean == _UNIT else "by ImageNet's mean and deviation"
    return replace(architecture, image_mean=mean, image_std=std), [
        f"trained on images scaled {words}: the network now takes them so"
    ]

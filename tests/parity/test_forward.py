"""Class logits and box deltas of every level against effdet's, for every variant."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("effdet", reason="parity needs effdet: the extra named parity")

from checkpoints import as_effdet
from networks import (
    SQUARE,
    Pair,
    for_size,
    make_images,
    make_pair,
    relative_difference,
)

from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import VARIANTS
from rayeffdet.ops.anchors import level_sizes

# Not divisible by 128, unequal sides, and odd and even maps on the way down. effdet pools only
# where both sides shrink, so no side may reach one cell before the last level of D7x, the eighth.
OBLONG = (132, 164)

# Rounding in float64 is below 1e-14 after all layers of any variant. What mistakes cost in D0: the
# epsilon of the fusion left out, 9e-4; edges padded on the wrong side, 1.3.
FLOAT64_TOLERANCE = 1e-10
# effdet itself moves by 3e-6 when only the threads, the batch or the memory layout change.
FLOAT32_TOLERANCE = 2e-5
# A running mean is one reduction and one weighted sum per pass.
STATISTICS_TOLERANCE = 1e-12

QUICK = ("efficientdet-d0", "efficientdet-lite0")
EVERY_VARIANT = [
    variant if variant in QUICK else pytest.param(variant, marks=pytest.mark.slow)
    for variant in VARIANTS
]


@contextmanager
def features_of(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collects P3, P4 and P5 of the passes made inside."""
    features: list[Tensor] = []
    # effdet's pyramid appends to the list it is given, so the maps are taken out of it.
    hook = network.backbone.register_forward_hook(lambda _module, _in, maps: features.extend(maps))
    yield features
    hook.remove()


def our_outputs(network: EfficientDet, images: Tensor) -> dict[str, Tensor]:
    with features_of(network) as features, torch.no_grad():
        class_logits, box_deltas = network(images)
    architecture = network.architecture
    cells = level_sizes(*images.shape[-2:], max_level=architecture.max_level)
    rows = [h * w * architecture.num_anchors for h, w in cells]
    return named(features, class_logits.split(rows, dim=1), box_deltas.split(rows, dim=1))


def their_outputs(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    with features_of(network) as features, torch.no_grad():
        class_maps, box_maps = network(images)
    classes = [rows_of(maps, network.config.num_classes) for maps in class_maps]
    return named(features, classes, [rows_of(maps, 4) for maps in box_maps])


def rows_of(maps: Tensor, length: int) -> Tensor:
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, length)


def named(
    features: Sequence[Tensor], classes: Sequence[Tensor], boxes: Sequence[Tensor]
) -> dict[str, Tensor]:
    kinds = {"features": features, "class logits": classes, "box deltas": boxes}
    return {
        f"{kind} of P{level}": tensor
        for kind, tensors in kinds.items()
        for level, tensor in enumerate(tensors, start=3)
    }


def differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    assert ours.keys() == theirs.keys()
    return {place: relative_difference(ours[place], theirs[place]) for place in ours}


def above(tolerance: float, by_place: Mapping[str, float]) -> dict[str, float]:
    """What is not below the tolerance; a NaN is not."""
    return {place: value for place, value in by_place.items() if not value < tolerance}


@functools.lru_cache(maxsize=1)
def forward_differences(variant: str) -> dict[torch.dtype, dict[str, float]]:
    """Every output at both sizes in both precisions; the networks are built once."""
    pair = make_pair(variant, dtype=torch.float32)
    oblong = for_size(pair.theirs, OBLONG)
    result: dict[torch.dtype, dict[str, float]] = {}
    for dtype in (torch.float32, torch.float64):
        result[dtype] = {}
        pair.ours.to(dtype)
        for theirs, batch, size in ((pair.theirs, 2, SQUARE), (oblong, 1, OBLONG)):
            images = make_images(batch, size).to(dtype)
            by_place = differences(
                our_outputs(pair.ours, images), their_outputs(theirs.to(dtype), images)
            )
            result[dtype] |= {f"{place} at {size}": d for place, d in by_place.items()}
    return result


def float64_difference(variant: str) -> float:
    return max(forward_differences(variant)[torch.float64].values())


def float32_difference(variant: str) -> float:
    return max(forward_differences(variant)[torch.float32].values())


def channels_last_differences(variant: str) -> dict[str, float]:
    """Ours with the memory layout of training against effdet's plain one."""
    pair = make_pair(variant, dtype=torch.float32)
    images = make_images(2, SQUARE)
    theirs = their_outputs(pair.theirs, images)
    ours = pair.ours.to(memory_format=torch.channels_last)
    return differences(
        our_outputs(ours, images.contiguous(memory_format=torch.channels_last)), theirs
    )


def channels_last_difference() -> float:
    return max(max(channels_last_differences(variant).values()) for variant in QUICK)


def statistics_differences() -> dict[str, float]:
    """Running means and variances of D0's norms after three passes in training mode."""
    pair = Pair(*(network.train() for network in make_pair("efficientdet-d0")))
    for step in range(3):
        images = make_images(4, SQUARE, seed=10 + step).double() * (1 + step)
        with torch.no_grad():
            pair.ours(images)
            pair.theirs(images)
    ours, theirs = as_effdet(pair.ours), pair.theirs.state_dict()
    names = [name for name in theirs if "running" in name]
    return {name: relative_difference(ours[name], theirs[name]) for name in names}


def statistics_difference() -> float:
    return max(statistics_differences().values())


VARIANT_CHECKS = (
    ("float64", float64_difference, FLOAT64_TOLERANCE),
    ("float32", float32_difference, FLOAT32_TOLERANCE),
)
CHECKS = (
    ("forward, channels last, D0 and lite0", channels_last_difference, FLOAT32_TOLERANCE),
    ("running statistics, 3 passes, D0", statistics_difference, STATISTICS_TOLERANCE),
)


@pytest.mark.parametrize("variant", EVERY_VARIANT)
def test_every_level_equals_effdets(variant: str) -> None:
    by_dtype = forward_differences(variant)
    assert above(FLOAT64_TOLERANCE, by_dtype[torch.float64]) == {}
    assert above(FLOAT32_TOLERANCE, by_dtype[torch.float32]) == {}


@pytest.mark.parametrize("variant", QUICK)
def test_channels_last_memory_equals_effdets_plain_one(variant: str) -> None:
    assert above(FLOAT32_TOLERANCE, channels_last_differences(variant)) == {}


def test_running_statistics_equal_effdets_after_three_passes() -> None:
    by_name = statistics_differences()
    assert len(by_name) == 2 * 108
    assert above(STATISTICS_TOLERANCE, by_name) == {}

"""Parameters and multiplications of every variant against the published figures."""

import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import VARIANTS, architecture_of

# Of the networks with 90 classes that the published weights belong to.
PUBLISHED_PARAMETERS = {
    "efficientdet-d0": 3_880_067,
    "efficientdet-d1": 6_625_898,
    "efficientdet-d2": 8_097_039,
    "efficientdet-d3": 12_032_296,
    "efficientdet-d4": 20_723_675,
    "efficientdet-d5": 33_653_315,
    "efficientdet-d6": 51_871_782,
    "efficientdet-d7": 51_871_782,
    "efficientdet-d7x": 77_147_166,
    "efficientdet-lite0": 3_243_470,
    "efficientdet-lite1": 4_248_318,
    "efficientdet-lite2": 5_252_334,
    "efficientdet-lite3": 8_350_862,
    "efficientdet-lite3x": 9_280_862,
    "efficientdet-lite4": 15_130_894,
}

# Of NVIDIA TAO with 91 classes, its count of COCO's with background.
TAO_PARAMETERS = {
    "efficientdet-d0": 3_880_652,
    "efficientdet-d1": 6_626_699,
    "efficientdet-d2": 8_098_056,
    "efficientdet-d3": 12_033_745,
    "efficientdet-d4": 20_725_700,
    "efficientdet-d5": 33_655_916,
}

# Billions, at the published image size. The authors call multiply-adds FLOPs. D5 is the paper's:
# their README says 130, which is less than the network's convolutions alone.
PUBLISHED_FLOPS = {
    "efficientdet-d0": 2.54,
    "efficientdet-d1": 6.10,
    "efficientdet-d2": 11.0,
    "efficientdet-d3": 24.9,
    "efficientdet-d4": 55.2,
    "efficientdet-d5": 135,
    "efficientdet-d6": 226,
    "efficientdet-d7": 325,
    "efficientdet-d7x": 410,
}

# Billions of multiply-adds of the convolutions of effdet's networks at the published image size.
MEASURED_MACS = {
    "efficientdet-d0": "2.49",
    "efficientdet-d1": "6.00",
    "efficientdet-d3": "24.6",
    "efficientdet-d5": "134.1",
    "efficientdet-d6": "224",
    "efficientdet-d7x": "408",
    "efficientdet-lite0": "0.97",
    "efficientdet-lite1": "1.97",
    "efficientdet-lite2": "3.37",
    "efficientdet-lite3": "7.48",
    "efficientdet-lite3x": "13.98",
    "efficientdet-lite4": "20.2",
}

# The authors' profiler also counts what is done per element (norms, activations, sums), which is
# 0.5 % of the largest network and 2 % of the smallest.
MACS_TOLERANCE = 0.02


@functools.cache
def make_empty(variant: str, *, num_classes: int = 90) -> EfficientDet:
    """A network of shapes without numbers."""
    with torch.device("meta"):
        return EfficientDet(architecture_of(variant, num_classes=num_classes)).eval()


def num_parameters(network: EfficientDet) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@functools.cache
def billion_macs(variant: str) -> float:
    """Multiply-adds of all convolutions for one image; PyTorch counts each as two operations."""
    side = VARIANTS[variant].image_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        make_empty(variant)(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / 2e9


def parameters_difference(variant: str) -> float:
    return abs(num_parameters(make_empty(variant)) - PUBLISHED_PARAMETERS[variant])


def macs_difference(variant: str) -> float:
    """How much of the published operations is not a convolution's; a lite's were measured so."""
    published = PUBLISHED_FLOPS.get(variant) or float(MEASURED_MACS[variant])
    return abs(1 - billion_macs(variant) / published)


VARIANT_CHECKS = (
    ("parameters", parameters_difference, 0),
    ("MACs", macs_difference, MACS_TOLERANCE),
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_at_90_classes_equal_the_published_networks(variant: str) -> None:
    assert parameters_difference(variant) == 0


@pytest.mark.parametrize("variant", TAO_PARAMETERS)
def test_parameters_at_91_classes_equal_tao(variant: str) -> None:
    assert num_parameters(make_empty(variant, num_classes=91)) == TAO_PARAMETERS[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_macs_equal_the_published_operations_but_for_those_per_element(variant: str) -> None:
    assert macs_difference(variant) < MACS_TOLERANCE
    if variant in PUBLISHED_FLOPS:
        assert billion_macs(variant) < PUBLISHED_FLOPS[variant]


@pytest.mark.parametrize("variant", MEASURED_MACS)
def test_macs_equal_effdets_to_the_last_printed_digit(variant: str) -> None:
    decimals = len(MEASURED_MACS[variant].partition(".")[2])
    assert f"{billion_macs(variant):.{decimals}f}" == MEASURED_MACS[variant]

"""Numbers that effdet gave once, for where it is not installed; tests/parity asks effdet itself.

In float64, where a wrong padding or order cannot hide.
"""

import pytest
import torch
from torch import Tensor, nn

from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import architecture_of

# Not divisible by 128, with odd and even maps.
SIZE = (300, 420)

# What effdet 0.4.1 gives for the weights and images below, class logits and box deltas: the norm of
# the output, and its values at the start, the middle and the end.
EFFDET = {
    "efficientdet-d0": (
        (9821.874569586666, -5.304873800992558, -5.880335842431414, -5.492822738032018),
        (540.0837263104903, 0.6067491155499276, 0.5166590525058924, -1.2142747740534316),
    ),
    "efficientdet-lite0": (
        (10024.307866076519, -2.4228176356558784, -3.0719860542036943, -1.6943224879079546),
        (507.7690164862095, -0.44103344726338317, -0.3527269954017084, -0.15629070695683978),
    ),
}


def scrambled(count: int, *, seed: int) -> Tensor:
    """The same numbers in -1..1 on every platform and in every version, float64."""
    index = torch.arange(count) % 65521
    mixed = (index * index * 40503 + index * 30011 + seed * 977) % 65521
    return mixed.double() / 32760 - 1


def make_images() -> Tensor:
    return scrambled(2 * 3 * SIZE[0] * SIZE[1], seed=-1).view(2, 3, *SIZE) * 2


def make_ours(variant: str) -> EfficientDet:
    """A network in which nothing has its first value and some fusion weights are negative."""
    model = EfficientDet(architecture_of(variant, num_classes=90)).double()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            noise = scrambled(parameter.numel(), seed=seed).view(parameter.shape)
            if parameter.ndim > 1:
                parameter.copy_(noise * (3 / parameter[0].numel()) ** 0.5)
            else:
                parameter.add_(noise * 1.1)
        take_statistics(model)
    return model.eval()


def take_statistics(model: nn.Module) -> None:
    """Gives the norms the statistics of the images, which keeps activations finite."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(make_images())


@pytest.mark.parametrize("variant", EFFDET)
def test_the_network_gives_the_numbers_effdet_gave(variant: str) -> None:
    with torch.no_grad():
        outputs = make_ours(variant)(make_images())
    for output, expected in zip(outputs, EFFDET[variant], strict=True):
        flat = output.flatten()
        numbers = [output.norm(), flat[0], flat[len(flat) // 2], flat[-1]]
        # Other processors add up in another order, which hundreds of layers enlarge.
        assert [number.item() for number in numbers] == pytest.approx(expected, rel=1e-8)

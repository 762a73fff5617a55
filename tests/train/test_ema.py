import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rayeffdet.errors import CheckpointError
from rayeffdet.train.ema import Ema


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def change(model, step):
    """Changes weights and batch statistics as a training step would."""
    generator = torch.Generator().manual_seed(step)
    model.train()
    model(torch.randn(2, 3, 6, 6, generator=generator).to(model[0].weight.dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1


def copy_of(state):
    return {name: value.clone() for name, value in state.items()}


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


def test_the_average_starts_from_the_weights_and_does_not_share_them():
    model = network()
    before = copy_of(model.state_dict())
    ema = Ema(model, 0.9)
    change(model, 1)
    assert_same(ema.state_dict(), before)


def test_past_the_ramp_it_is_the_average_of_torch():
    model = network()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=False)
    averaged.update_parameters(model)
    ema = Ema(model, 0.9)
    for step in range(1000, 1008):
        change(model, step)
        averaged.update_parameters(model)
        ema.update(model, step)
    state = ema.state_dict()
    for name, expected in averaged.module.named_parameters():
        assert torch.equal(state[name], expected), name


def test_the_ramp_and_the_batch_statistics_follow_the_formula():
    model = network().double()
    ema = Ema(model, 0.35)
    expected = copy_of(model.state_dict())
    for step in range(1, 9):
        change(model, step)
        ema.update(model, step)
        decay = min(0.35, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in ema.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14)


# Steps taken to the weight of the past, for a decay of 0.9998. (1 + n) / (10 + n) is that number
# itself at n = 44990.
DECAYS = {
    0: 1 / 10,
    1: 2 / 11,
    2: 1 / 4,
    3: 4 / 13,
    8: 1 / 2,
    17: 2 / 3,
    80: 9 / 10,
    890: 99 / 100,
    8990: 999 / 1000,
    44989: 44990 / 44999,
    44990: 0.9998,
    44991: 0.9998,
    10**9: 0.9998,
}


@pytest.mark.parametrize(("step", "decay"), DECAYS.items())
def test_the_past_gains_weight_with_the_steps_up_to_the_decay(step, decay):
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    ema = Ema(model, 0.9998)
    nn.init.zeros_(model.weight)
    ema.update(model, step)
    assert ema.state_dict()["weight"].item() == pytest.approx(decay, rel=1e-12)


def test_updating_never_asks_the_device_for_a_value():
    model = network().to("meta")
    ema = Ema(model, 0.9)
    ema.update(model, 1)
    with ema.applied_to(model):
        assert all(value.is_meta for value in ema.state_dict().values())


def test_counters_are_copied_so_that_the_average_is_a_whole_state():
    model = network()
    ema = Ema(model, 0.9)
    for step in range(1, 4):
        change(model, step)
        ema.update(model, step)
    assert ema.state_dict()["1.num_batches_tracked"].item() == 3
    network(seed=1).load_state_dict(ema.state_dict())


def test_the_network_wears_the_average_inside_the_block_only():
    model = network()
    ema = Ema(model, 0.9)
    change(model, 1)
    ema.update(model, 1)
    own, average = copy_of(model.state_dict()), copy_of(ema.state_dict())
    with ema.applied_to(model):
        assert_same(model.state_dict(), average)
        change(model, 2)
    assert_same(model.state_dict(), own)
    assert_same(ema.state_dict(), average)


def test_the_own_weights_return_when_the_block_fails():
    model = network()
    ema = Ema(model, 0.9)
    change(model, 1)
    own = copy_of(model.state_dict())

    def fail():
        with ema.applied_to(model):
            raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError, match="evaluation failed"):
        fail()
    assert_same(model.state_dict(), own)


def test_a_restored_average_goes_on_bit_for_bit():
    model = network()
    ema = Ema(model, 0.99)
    for step in range(1, 4):
        change(model, step)
        ema.update(model, step)
    restored = Ema(network(seed=1), 0.99)
    restored.load_state_dict(copy_of(ema.state_dict()))
    change(model, 4)
    ema.update(model, 4)
    restored.update(model, 4)
    assert_same(restored.state_dict(), ema.state_dict())


def test_loading_copies_the_tensors():
    model = network()
    ema = Ema(model, 0.9)
    given = copy_of(network(seed=1).state_dict())
    kept = copy_of(given)
    ema.load_state_dict(given)
    ema.update(model, 1)
    assert_same(given, kept)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_an_average_of_another_network_is_refused(fault):
    ema = Ema(network(), 0.9)
    tensors = copy_of(ema.state_dict())
    weight = tensors.pop("0.weight")
    if fault == "extra":
        tensors |= {"0.weight": weight, "7.weight": weight}
    elif fault == "shape":
        tensors["0.weight"] = weight[:2]
    with pytest.raises(CheckpointError, match=r"[07]\.weight"):
        ema.load_state_dict(tensors)

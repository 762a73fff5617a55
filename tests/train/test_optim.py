import math

import pytest
import torch
from torch import nn

from rayeffdet.errors import CheckpointError
from rayeffdet.train.optim import (
    build_optimizer,
    clip_gradients_,
    flatten_optimizer,
    l1_penalty,
    restore_optimizer,
)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def take_steps(model, optimizer, first, last, rate=0.05):
    for group in optimizer.param_groups:
        group["lr"] = rate
    for step in range(first, last):
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images.to(next(model.parameters()).dtype)).square().mean().backward()
        optimizer.step()


def state_of(optimizer, model):
    tensors, _ = flatten_optimizer(optimizer, model)
    return {name: tensor.clone() for name, tensor in tensors.items()}


def decayed_names(model, optimizer):
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    return [name for name, p in model.named_parameters() if id(p) in decayed]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_only_convolution_kernels_decay(name):
    model = network()
    optimizer = build_optimizer(model, name=name, momentum=0.9, l2_weight_decay=4e-5)
    assert decayed_names(model, optimizer) == ["0.weight", "3.weight"]


def test_frozen_parameters_are_left_out():
    model = network()
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, name="sgd", momentum=0.9, l2_weight_decay=1.0)
    held = sum(len(group["params"]) for group in optimizer.param_groups)
    assert held == len(list(model.parameters())) - 2
    assert decayed_names(model, optimizer) == ["3.weight"]


def test_sgd_follows_plain_momentum_with_coupled_decay_over_many_steps():
    model = network().double()
    optimizer = build_optimizer(model, name="sgd", momentum=0.9, l2_weight_decay=0.01)
    twin = network().double()
    velocity = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for step in range(5):
        take_steps(model, optimizer, step, step + 1)
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step)).double()
        twin.zero_grad()
        twin(images).square().mean().backward()
        with torch.no_grad():
            for name, p in twin.named_parameters():
                decay = 0.01 if p.ndim > 1 else 0.0
                velocity[name] = 0.9 * velocity[name] + p.grad + decay * p
                p -= 0.05 * velocity[name]
    for own, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-14)


def test_adam_takes_the_momentum_as_beta1():
    optimizer = build_optimizer(network(), name="adam", momentum=0.8, l2_weight_decay=0.0)
    assert all(group["betas"][0] == 0.8 for group in optimizer.param_groups)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="'lamb' is neither"):
        build_optimizer(network(), name="lamb", momentum=0.9, l2_weight_decay=0.0)


def test_the_l1_penalty_is_half_the_absolute_sum_of_kernels_and_can_be_differentiated():
    model = network().double()
    penalty = l1_penalty(model)
    kernels = [model[0].weight, model[3].weight]
    assert penalty.item() == pytest.approx(sum(0.5 * k.abs().sum().item() for k in kernels))
    penalty.backward()
    for kernel in kernels:
        torch.testing.assert_close(kernel.grad, 0.5 * kernel.detach().sign())
    assert model[0].bias.grad is None


def test_frozen_kernels_are_not_penalised():
    model = network()
    model[0].requires_grad_(False)
    assert l1_penalty(model).item() == pytest.approx(0.5 * model[3].weight.abs().sum().item())


def parameters_with(gradients):
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1e6])
def test_clipping_cuts_each_gradient_and_then_all_together(max_norm):
    generator = torch.Generator().manual_seed(1)
    gradients = [
        torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        for shape, scale in [((4, 3, 3, 3), 5.0), ((7,), 0.1), ((1,), 2.0), ((2, 2), 1.0)]
    ]
    parameters = parameters_with(gradients)
    norm = clip_gradients_([*parameters, nn.Parameter(torch.zeros(3))], max_norm)

    assert norm.item() == pytest.approx(sum(g.square().sum().item() for g in gradients) ** 0.5)
    cut = [g * min(1.0, max_norm / g.norm().item()) for g in gradients]
    total = sum(g.square().sum().item() for g in cut) ** 0.5
    for parameter, gradient in zip(parameters, cut, strict=True):
        expected = gradient * min(1.0, max_norm / total)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-12, atol=0)


# Norms of two gradients to what a limit of 10 leaves of them. After the cut of each by itself, both
# shrink by 10 over the root of the sum of their squares.
CLIPPED_AT_10 = {
    (0, 0): (0, 0),
    (0, 1e-12): (0, 1e-12),
    (3, 4): (3, 4),
    (6, 8): (6, 8),
    (0, 10): (0, 10),
    (8, 8): (50**0.5, 50**0.5),
    (7.5, 10): (6, 8),
    (7.5, 20): (6, 8),
    (0, 10.5): (0, 10),
    (1, 1000): (10 / 101**0.5, 100 / 101**0.5),
    (11, 1e9): (50**0.5, 50**0.5),
    (1e-12, 1e30): (1e-12, 10),
    (1e30, 1e30): (50**0.5, 50**0.5),
}


@pytest.mark.parametrize(("norms", "left"), CLIPPED_AT_10.items())
def test_a_limit_cuts_single_gradients_first(norms, left):
    directions = [torch.tensor(d, dtype=torch.float64) for d in ([[0.6], [-0.8]], [0.28, 0, 0.96])]
    parameters = parameters_with([n * d for n, d in zip(norms, directions, strict=True)])
    assert clip_gradients_(parameters, 10).item() == pytest.approx(math.hypot(*norms), rel=1e-12)
    for parameter, direction, norm in zip(parameters, directions, left, strict=True):
        torch.testing.assert_close(parameter.grad, norm * direction, rtol=1e-12, atol=0)


def test_one_gradient_is_clipped_as_torch_does_it():
    gradient = torch.randn(50, dtype=torch.float64)
    ours, theirs = parameters_with([gradient]), parameters_with([gradient])
    norm = clip_gradients_(ours, 0.5)
    expected_norm = nn.utils.clip_grad_norm_(theirs, 0.5)
    torch.testing.assert_close(norm, expected_norm)
    torch.testing.assert_close(ours[0].grad, theirs[0].grad, rtol=1e-5, atol=0)


def test_clipping_leaves_gradients_within_the_limit_untouched():
    gradients = [torch.tensor([0.3, 0.4]), torch.zeros(3)]
    parameters = parameters_with(gradients)
    clip_gradients_(parameters, 1.0)
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, gradients, strict=True))


def test_a_limit_of_zero_only_measures():
    parameters = parameters_with([torch.tensor([3.0, 4.0])])
    assert clip_gradients_(parameters, 0).item() == 5.0
    assert parameters[0].grad.tolist() == [3.0, 4.0]


def test_a_gradient_that_is_not_finite_shows_in_the_norm():
    parameters = parameters_with([torch.tensor([1.0, float("nan")]), torch.ones(2)])
    assert not clip_gradients_(parameters, 1.0).isfinite()


def test_clipping_never_asks_the_device_for_a_value():
    parameters = parameters_with([torch.ones(3, device="meta"), torch.ones(2, 2, device="meta")])
    assert clip_gradients_(parameters, 1.0).is_meta


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name):
    model = network()
    optimizer = build_optimizer(model, name=name, momentum=0.9, l2_weight_decay=1e-3)
    take_steps(model, optimizer, 0, 4)
    saved, meta = state_of(optimizer, model), flatten_optimizer(optimizer, model)[1]
    other = network(seed=1)
    other.load_state_dict(model.state_dict())
    restored = build_optimizer(other, name=name, momentum=0.9, l2_weight_decay=1e-3)
    restore_optimizer(restored, other, saved, meta)

    take_steps(model, optimizer, 4, 8)
    take_steps(other, restored, 4, 8)
    for own, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(own, expected)
    ours, theirs = state_of(restored, other), state_of(optimizer, model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_state_is_named_after_its_parameter():
    model = network()
    optimizer = build_optimizer(model, name="sgd", momentum=0.9, l2_weight_decay=0.0)
    take_steps(model, optimizer, 0, 1)
    assert set(state_of(optimizer, model)) == {
        f"{name}.momentum_buffer" for name, _ in model.named_parameters()
    }


def test_restoring_copies_and_follows_the_memory_format_of_the_parameters():
    model = network().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, name="sgd", momentum=0.9, l2_weight_decay=0.0)
    buffer = torch.randn(4, 3, 3, 3)
    restore_optimizer(optimizer, model, {"0.weight.momentum_buffer": buffer}, {"name": "SGD"})
    restored = optimizer.state[model[0].weight]["momentum_buffer"]
    assert torch.equal(restored, buffer)
    assert restored.stride() == model[0].weight.stride()
    assert restored.data_ptr() != buffer.data_ptr()


def test_restoring_keeps_the_decay_and_momentum_of_the_new_spec():
    model = network()
    old = build_optimizer(model, name="sgd", momentum=0.9, l2_weight_decay=1e-3)
    take_steps(model, old, 0, 2)
    new = build_optimizer(model, name="sgd", momentum=0.5, l2_weight_decay=1e-2)
    restore_optimizer(new, model, *flatten_optimizer(old, model))
    assert [group["weight_decay"] for group in new.param_groups] == [1e-2, 0.0]
    assert all(group["momentum"] == 0.5 for group in new.param_groups)


def test_the_state_of_another_optimizer_is_refused():
    model = network()
    adam = build_optimizer(model, name="adam", momentum=0.9, l2_weight_decay=0.0)
    sgd = build_optimizer(model, name="sgd", momentum=0.9, l2_weight_decay=0.0)
    with pytest.raises(CheckpointError, match="holds the state of SGD"):
        restore_optimizer(adam, model, *flatten_optimizer(sgd, model))


@pytest.mark.parametrize(
    ("name", "shape"), [("0.weight", (4, 3, 1, 1)), ("9.weight", (4,)), ("1.running_mean", (4,))]
)
def test_state_that_fits_no_trained_parameter_is_refused(name, shape):
    model = network()
    optimizer = build_optimizer(model, name="sgd", momentum=0.9, l2_weight_decay=0.0)
    tensors = {f"{name}.momentum_buffer": torch.zeros(shape)}
    with pytest.raises(CheckpointError, match=name):
        restore_optimizer(optimizer, model, tensors, {"name": "SGD"})

from dataclasses import replace

import pytest
import torch

from rayeffdet.errors import RunError
from rayeffdet.model.efficientdet import normalise
from rayeffdet.ops.assigner import assign_targets
from rayeffdet.ops.losses import detection_loss
from rayeffdet.train.build import build_step_settings
from rayeffdet.train.optim import flatten_optimizer, l1_penalty
from rayeffdet.train.step import World, train_step

CPU = World(rank=0, size=1, device=torch.device("cpu"))
PLAIN = {
    "train.optimizer.momentum": 0.0,
    "train.l2_weight_decay": 0.0,
    "train.clip_gradients_norm": 0.0,
}
INF = float("inf")


def take(trainee, batch, spec, *, step=0, rate=0.01, world=CPU, **changes):
    settings = replace(build_step_settings(spec, CPU.device), **changes)
    return train_step(trainee, batch, step=step, learning_rate=rate, settings=settings, world=world)


def weights(trainee):
    return {name: p.detach().clone() for name, p in trainee.network.named_parameters()}


def everything(trainee):
    """Weights, average and momentum; batch statistics move with every forward pass."""
    tensors, _ = flatten_optimizer(trainee.optimizer, trainee.network)
    state = weights(trainee) | {f"ema.{n}": t for n, t in trainee.ema.state_dict().items()}
    return {name: tensor.clone() for name, tensor in (state | tensors).items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def loss_by_hand(trainee, batch):
    images_B3HW = normalise(batch.images_B3HW, trainee.network.architecture)
    logits_BNK, deltas_BN4 = trainee.network(images_B3HW)
    targets = assign_targets(trainee.anchors_N4, batch.boxes_BG4, batch.labels_BG)
    normaliser = targets.num_positives_B.sum() + 1
    return detection_loss(
        logits_BNK, deltas_BN4, targets, trainee.anchors_N4, normaliser=normaliser
    )


def test_a_step_of_plain_sgd_is_the_rate_times_the_gradient(make_spec, make_trainee, batch_of):
    spec = make_spec(PLAIN)
    batch, twin, trainee = batch_of(0, 1), make_trainee(spec), make_trainee(spec)
    losses = loss_by_hand(twin, batch)
    losses.total.backward()
    before = weights(trainee)

    result = take(trainee, batch, spec, rate=0.01)

    assert result.loss == losses.total.item()
    assert (result.cls_loss, result.box_loss) == (losses.cls.item(), losses.box.item())
    assert result.loss == pytest.approx(result.cls_loss + 50 * result.box_loss)
    gradients = {name: p.grad for name, p in twin.network.named_parameters()}
    norm = sum(g.double().square().sum() for g in gradients.values()).sqrt().item()
    assert result.gradient_norm == pytest.approx(norm, rel=1e-5)
    for name, weight in weights(trainee).items():
        torch.testing.assert_close(weight, before[name] - 0.01 * gradients[name])


def test_the_loss_falls_when_one_batch_is_repeated(make_spec, make_trainee, batch_of):
    spec = make_spec()
    trainee, batch = make_trainee(spec), batch_of(0, 1)
    losses = [take(trainee, batch, spec, step=step).loss for step in range(8)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_rate_of_zero_moves_no_weight(make_spec, make_trainee, batch_of):
    spec = make_spec()
    trainee = make_trainee(spec)
    before = weights(trainee)
    take(trainee, batch_of(0, 1), spec, rate=0.0)
    assert_equal(weights(trainee), before)


def test_the_loss_is_divided_by_the_positives_of_the_batch_and_one(
    make_spec, make_trainee, batch_of
):
    # Twice the same images: the same batch statistics, twice the sums, 2 P + 1 for P + 1.
    spec = make_spec()
    once, twice = batch_of(0, 1), batch_of(0, 1, 0, 1)
    anchors_N4 = make_trainee(spec).anchors_N4
    positives = assign_targets(anchors_N4, once.boxes_BG4, once.labels_BG).num_positives_B.sum()
    ratio = (2 * (positives + 1) / (2 * positives + 1)).item()
    assert ratio > 1.005
    a, b = (take(make_trainee(spec), batch, spec) for batch in (once, twice))
    assert b.cls_loss == pytest.approx(ratio * a.cls_loss, rel=1e-4)
    assert b.box_loss == pytest.approx(ratio * a.box_loss, rel=1e-4)


def test_padding_rows_change_no_bit(make_spec, make_trainee, batch_of):
    spec, batch = make_spec(), batch_of(0, 1)
    tight = replace(batch, boxes_BG4=batch.boxes_BG4[:, :1], labels_BG=batch.labels_BG[:, :1])
    a, b = make_trainee(spec), make_trainee(spec)
    assert take(a, batch, spec) == take(b, tight, spec)
    assert_equal(everything(a), everything(b))


def test_an_image_without_objects_is_background(make_spec, make_trainee, batch_of):
    spec, batch = make_spec(), batch_of(0, 1)
    empty = replace(batch, labels_BG=torch.full_like(batch.labels_BG, -1))
    result = take(make_trainee(spec), empty, spec)
    assert result.box_loss == 0
    assert result.cls_loss > 0


def test_the_average_follows_the_new_weights(make_spec, make_trainee, batch_of):
    spec = make_spec({"train.moving_average_decay": 0.5})
    trainee = make_trainee(spec)
    before = weights(trainee)
    take(trainee, batch_of(0, 1), spec, step=100)
    averaged = trainee.ema.state_dict()
    for name, weight in weights(trainee).items():
        torch.testing.assert_close(averaged[name], (before[name] + weight) / 2)


def test_a_run_without_an_average_trains_too(make_spec, make_trainee, batch_of):
    spec = make_spec({"train.moving_average_decay": 0})
    trainee = make_trainee(spec)
    assert trainee.ema is None
    take(trainee, batch_of(0, 1), spec)


def test_the_l1_penalty_joins_the_loss(make_spec, make_trainee, batch_of):
    spec, batch = make_spec(), batch_of(0, 1)
    trainee = make_trainee(spec)
    penalty = 0.001 * l1_penalty(trainee.network).item()
    with_l1 = take(trainee, batch, spec, l1_weight_decay=0.001)
    without = take(make_trainee(spec), batch, spec)
    assert with_l1.loss - without.loss == pytest.approx(penalty, rel=1e-3)
    assert with_l1.cls_loss == without.cls_loss


def test_an_overlap_loss_joins_the_loss_on_request(make_spec, make_trainee, batch_of):
    spec = make_spec({"train.iou_loss_type": "ciou", "train.iou_loss_weight": 2.0})
    result = take(make_trainee(spec), batch_of(0, 1), spec)
    assert result.iou_loss > 0
    expected = result.cls_loss + 50 * result.box_loss + 2 * result.iou_loss
    assert result.loss == pytest.approx(expected)


def test_random_layers_follow_seed_step_and_rank(make_spec, make_trainee, batch_of):
    batch = batch_of(0, 1)
    spec = make_spec({"model.name": "efficientdet-d1"})

    def loss(seed=1, step=0, rank=0):
        trainee = make_trainee(spec)
        torch.seed()  # What else has drawn numbers must not matter.
        world = World(rank=rank, size=1, device=CPU.device)
        return take(trainee, batch, spec, seed=seed, step=step, world=world).loss

    losses = [loss(), loss(seed=2), loss(step=1), loss(rank=1)]
    assert len(set(losses)) == 4
    assert loss() == losses[0]


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_fault_stops_with_step_and_images_and_touches_nothing(
    make_spec, make_trainee, batch_of, fault
):
    spec = make_spec()
    trainee = make_trainee(spec)
    take(trainee, batch_of(0, 1), spec)
    before = everything(trainee)
    changes = {}
    if fault == "loss":
        changes = {"loss": {"box_loss_weight": INF}}
    else:
        trainee.network.backbone.stem.conv.weight.register_hook(lambda gradient: gradient * INF)
    with pytest.raises(RunError) as caught:
        take(trainee, batch_of(2, 5), spec, step=41, **changes)
    (problem,) = caught.value.problems
    assert problem.startswith("step 42: not finite: loss ")
    assert "images picture 2, picture 5;" in problem
    assert "inf" in problem or "nan" in problem
    assert "\n" not in problem
    assert_equal(everything(trainee), before)


def test_weights_that_are_not_finite_are_found_in_the_loss(make_spec, make_trainee, batch_of):
    spec = make_spec()
    trainee = make_trainee(spec)
    with torch.no_grad():
        trainee.network.backbone.stem.conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(RunError, match="step 1: not finite: loss nan"):
        take(trainee, batch_of(0, 1), spec)


def test_a_scaled_gradient_that_overflows_skips_the_update_and_lowers_the_scale(
    make_spec, make_trainee, batch_of
):
    spec = make_spec()
    trainee = make_trainee(spec)
    trainee.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    hook = trainee.network.backbone.stem.conv.weight.register_hook(lambda g: g * INF)
    before = weights(trainee)
    take(trainee, batch_of(0, 1), spec)
    assert_equal(weights(trainee), before)
    assert trainee.scaler.get_scale() == 512
    hook.remove()
    take(trainee, batch_of(0, 1), spec, step=1)
    with pytest.raises(AssertionError):
        assert_equal(weights(trainee), before)


def test_a_loss_scale_changes_no_gradient(make_spec, make_trainee, batch_of):
    spec = make_spec()
    plain, scaled = make_trainee(spec), make_trainee(spec)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    a, b = (take(trainee, batch_of(0, 1), spec) for trainee in (plain, scaled))
    assert b.gradient_norm == pytest.approx(a.gradient_norm, rel=1e-4)
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=1e-4, atol=1e-6)


def test_bfloat16_gives_nearly_the_loss_of_float32(make_spec, make_trainee, batch_of):
    spec = make_spec()
    exact = take(make_trainee(spec), batch_of(0, 1), spec)
    trainee = make_trainee(spec)
    rounded = take(trainee, batch_of(0, 1), spec, amp_dtype=torch.bfloat16)
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.05)
    assert {p.dtype for p in trainee.network.parameters()} == {torch.float32}

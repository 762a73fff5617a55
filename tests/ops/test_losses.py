import pytest
import torch
import torchvision.ops as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from rayeffdet.ops import losses
from rayeffdet.ops.anchors import make_anchors
from rayeffdet.ops.assigner import BACKGROUND, IGNORED, Targets, assign_targets
from rayeffdet.ops.box_coder import decode_boxes
from rayeffdet.ops.losses import detection_loss, focal_loss, huber_loss, iou_loss

ANCHORS = make_anchors(height=64, width=64)
IOU_KINDS = ["iou", "giou", "diou", "ciou"]


def one_hot_targets(ids_BN, num_classes):
    return (ids_BN[..., None] == torch.arange(num_classes)).double()


def focal_by_formula(logits_BNK, ids_BN, *, alpha=0.25, gamma=1.5, label_smoothing=0.0):
    """RetinaNet's equation 5 as it is printed, dense, in float64."""
    z, t = logits_BNK.double(), one_hot_targets(ids_BN, logits_BNK.shape[-1])
    p = z.sigmoid()
    smoothed = t * (1 - label_smoothing) + label_smoothing / 2
    cross_entropy = binary_cross_entropy_with_logits(z, smoothed, reduction="none")
    weight = (t * alpha + (1 - t) * (1 - alpha)) * (t - p).abs() ** gamma
    return (weight * cross_entropy)[ids_BN != IGNORED].sum()


def random_logits_and_ids(seed, *, images=2, anchors=7, classes=4, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(images, anchors, classes, generator=generator)
    return logits, torch.randint(-2, classes, (images, anchors), generator=generator)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    alpha=st.floats(0, 1),
    gamma=st.floats(0, 5),
    smoothing=st.floats(0, 0.5),
)
def test_focal_loss_and_gradient_equal_the_dense_formula(seed, alpha, gamma, smoothing):
    logits, ids = random_logits_and_ids(seed)
    options = {"alpha": alpha, "gamma": gamma, "label_smoothing": smoothing}
    ours, theirs = (logits.double().requires_grad_() for _ in range(2))
    loss, expected = focal_loss(ours, ids, **options), focal_by_formula(theirs, ids, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_focal_loss_equals_torchvision(seed):
    logits, ids = random_logits_and_ids(seed)
    ids = ids.clamp(min=BACKGROUND)
    expected = tv.sigmoid_focal_loss(
        logits, one_hot_targets(ids, 4).float(), alpha=0.25, gamma=1.5, reduction="sum"
    )
    torch.testing.assert_close(focal_loss(logits, ids), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_passes_gradcheck(smoothing):
    logits, ids = random_logits_and_ids(0)
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: focal_loss(z, ids, label_smoothing=smoothing) / 3, logits
    )


@pytest.mark.parametrize("logit", [-1e4, -100.0, -90.0, 0.0, 90.0, 100.0, 1e4])
@pytest.mark.parametrize("class_id", [0, BACKGROUND])
def test_focal_loss_of_extreme_logits_is_right_in_float32(logit, class_id):
    logits, ids = torch.full((1, 1, 1), logit, requires_grad=True), torch.tensor([[class_id]])
    loss = focal_loss(logits, ids)
    loss.backward()
    torch.testing.assert_close(loss, focal_by_formula(logits, ids).float())
    reference = logits.detach().double().requires_grad_()
    focal_by_formula(reference, ids).backward()
    torch.testing.assert_close(logits.grad, reference.grad.float())


def test_a_badly_missed_object_costs_its_logit():
    loss = focal_loss(torch.full((1, 1, 1), -90.0), torch.tensor([[0]]))
    assert loss.item() == pytest.approx(0.25 * 90)


def test_ignored_anchors_cost_nothing_and_get_no_gradient():
    logits, _ = random_logits_and_ids(0)
    logits.requires_grad_()
    loss = focal_loss(logits, torch.full((2, 7), IGNORED))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_the_block_size_does_not_change_the_focal_loss(monkeypatch):
    logits, ids = random_logits_and_ids(0, images=3)
    results = []
    for size in (1, 14, 2**18):
        monkeypatch.setattr(losses, "_CPU_LOGITS", size)
        z = logits.clone().requires_grad_()
        loss = focal_loss(z, ids)
        loss.backward()
        results.append((loss, z.grad))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_half_precision_logits_give_a_float32_loss_and_gradients_of_their_own_type():
    logits, ids = random_logits_and_ids(0)
    logits = logits.bfloat16().requires_grad_()
    loss = focal_loss(logits, ids)
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.double(), focal_by_formula(logits, ids), rtol=1e-5, atol=0)


def test_focal_loss_takes_logits_of_any_memory_layout_and_leaves_them_alone():
    logits, ids = random_logits_and_ids(0)
    strided = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    loss = focal_loss(strided, ids)
    loss.backward()
    torch.testing.assert_close(loss, focal_loss(logits, ids))
    assert torch.equal(strided, logits)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_huber_loss_equals_the_formula_over_targets_that_are_not_zero(seed):
    generator = torch.Generator().manual_seed(seed)
    deltas = 0.2 * torch.randn(2, 5, 4, generator=generator)
    targets = 0.2 * torch.randn(2, 5, 4, generator=generator)
    targets = targets * (torch.rand(2, 5, 4, generator=generator) > 0.4)
    expected = 0.0
    for delta, target in zip(deltas.flatten().tolist(), targets.flatten().tolist(), strict=True):
        error = abs(delta - target)
        if target != 0:
            expected += error**2 / 2 if error <= 0.1 else 0.1 * error - 0.1**2 / 2
    assert huber_loss(deltas, targets).item() == pytest.approx(expected, rel=1e-5)


def test_huber_loss_leaves_out_single_coordinates_of_a_matched_anchor():
    deltas = torch.full((1, 1, 4), 5.0, requires_grad=True)
    huber_loss(deltas, torch.tensor([[[0.0, 1.0, 0.0, -1.0]]])).backward()
    assert (deltas.grad != 0).tolist() == [[[False, True, False, True]]]


def scene(seed=0):
    """Targets of two images, the second without objects, and predictions near them."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[[4.0, 6, 40, 44], [30, 8, 60, 28]], [[0.0] * 4] * 2])
    targets = assign_targets(ANCHORS, boxes, torch.tensor([[1, 0], [-1, -1]]))
    noise = 0.3 * torch.randn(targets.box_deltas_BN4.shape, generator=generator)
    logits = torch.randn(2, len(ANCHORS), 3, generator=generator) - 3
    return targets, targets.box_deltas_BN4 + noise, logits


def iou_loss_by_torchvision(deltas, targets, kind):
    """The sum over matched anchors, one by one."""
    total = torch.zeros((), dtype=deltas.dtype)
    for image, anchor in (targets.class_ids_BN >= 0).nonzero().tolist():
        predicted = decode_boxes(deltas[image, anchor], ANCHORS[anchor])[None]
        true = decode_boxes(targets.box_deltas_BN4[image, anchor], ANCHORS[anchor])[None]
        if kind == "iou":
            total = total + 1 - tv.box_iou(predicted, true).squeeze()
        else:
            name = {"giou": "generalized", "diou": "distance", "ciou": "complete"}[kind]
            total = total + getattr(tv, f"{name}_box_iou_loss")(predicted, true, reduction="sum")
    return total


@pytest.mark.parametrize("shift", [0, 0.8, 4], ids=["over each other", "touching", "apart"])
@pytest.mark.parametrize("kind", IOU_KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_iou_losses_and_gradients_equal_torchvision(kind, shift, seed):
    targets, deltas, _ = scene(seed)
    targets = targets._replace(box_deltas_BN4=targets.box_deltas_BN4.double())
    deltas[..., :2] += shift  # in anchor sizes
    ours, theirs = (deltas.double().requires_grad_() for _ in range(2))
    loss = iou_loss(ours, targets, ANCHORS, kind=kind)
    expected = iou_loss_by_torchvision(theirs, targets, kind)
    loss.backward()
    expected.backward()
    # torchvision's plain IoU lacks the 1e-7 px^2 that its other losses, and ours, add to a union.
    rtol, atol = (1e-8, 1e-9) if kind == "iou" else (1e-12, 1e-13)
    precision = {"rtol": rtol, "atol": atol}
    torch.testing.assert_close(loss, expected, **precision)
    torch.testing.assert_close(ours.grad, theirs.grad, **precision)


@pytest.mark.parametrize("kind", IOU_KINDS)
def test_iou_loss_of_a_perfect_prediction_is_zero(kind):
    targets, _, _ = scene()
    loss = iou_loss(targets.box_deltas_BN4, targets, ANCHORS, kind=kind)
    assert loss.item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("kind", IOU_KINDS)
def test_a_wild_prediction_at_a_background_anchor_does_not_reach_the_iou_gradient(kind):
    targets, deltas, _ = scene()
    deltas = torch.where((targets.class_ids_BN >= 0)[..., None], deltas, 1e3).requires_grad_()
    loss = iou_loss(deltas, targets, ANCHORS, kind=kind)
    loss.backward()
    assert loss.isfinite()
    assert deltas.grad.isfinite().all()
    assert (deltas.grad[1] == 0).all()


@pytest.mark.parametrize("kind", ["", "ciou"])
def test_detection_loss_is_the_weighted_sum_of_its_normalised_parts(kind):
    targets, deltas, logits = scene()
    normaliser = targets.num_positives_B.sum() + 1
    result = detection_loss(
        logits,
        deltas,
        targets,
        ANCHORS,
        normaliser=normaliser,
        label_smoothing=0.1,
        box_loss_weight=20.0,
        iou_loss_type=kind,
        iou_loss_weight=3.0,
    )
    n = normaliser.item()
    cls = focal_by_formula(logits, targets.class_ids_BN, label_smoothing=0.1).item() / n
    box = huber_loss(deltas, targets.box_deltas_BN4).item() / (4 * n)
    iou = iou_loss_by_torchvision(deltas, targets, kind).item() / (4 * n) if kind else 0
    assert result.cls.item() == pytest.approx(cls, rel=1e-5)
    assert result.box.item() == pytest.approx(box, rel=1e-5)
    assert result.iou.item() == pytest.approx(iou, rel=1e-5)
    assert result.total.item() == pytest.approx(cls + 20 * box + 3 * iou, rel=1e-5)


def test_defaults_are_the_papers():
    targets, deltas, logits = scene()
    result = detection_loss(logits, deltas, targets, ANCHORS, normaliser=torch.tensor(2.0))
    torch.testing.assert_close(result.total, result.cls + 50 * result.box)
    expected = focal_by_formula(logits, targets.class_ids_BN, alpha=0.25, gamma=1.5) / 2
    torch.testing.assert_close(result.cls, expected.float())


def test_a_batch_without_objects_has_a_finite_loss_and_no_box_gradient():
    ids = torch.full((2, len(ANCHORS)), BACKGROUND)
    targets = Targets(ids, torch.zeros(2, len(ANCHORS), 4), torch.zeros(2))
    deltas = torch.randn(2, len(ANCHORS), 4, requires_grad=True)
    logits = torch.zeros(2, len(ANCHORS), 3, requires_grad=True)
    result = detection_loss(
        logits, deltas, targets, ANCHORS, normaliser=torch.tensor(1.0), iou_loss_type="giou"
    )
    result.total.backward()
    assert result.total.isfinite()
    assert result.box == 0
    assert (deltas.grad == 0).all()
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("kind", ["", *IOU_KINDS])
def test_nothing_waits_for_the_device(kind):
    # Tensors of the meta device have no values: reading one back, as a sync does, is an error.
    targets, deltas, logits = scene()
    targets = Targets(*(part.to("meta") for part in targets))
    deltas, logits = (tensor.to("meta").requires_grad_() for tensor in (deltas, logits))
    normaliser = targets.num_positives_B.sum() + 1
    result = detection_loss(
        logits, deltas, targets, ANCHORS.to("meta"), normaliser=normaliser, iou_loss_type=kind
    )
    result.total.backward()
    assert logits.grad.shape == logits.shape

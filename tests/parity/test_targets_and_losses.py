"""Targets, losses and the gradient of every weight against effdet's training bench.

Where TAO or the paper knows more than effdet (overlap losses, other anchors), the field of the spec
that selects it is judged by effdet's loss plus torchvision's.
"""

from collections.abc import Callable
from functools import cache, partial
from itertools import product

import pytest
import torch
import torchvision
from torch import Tensor, nn

effdet = pytest.importorskip("effdet", reason="parity needs effdet: the extra named parity")

from networks import Size, make_images, make_pair, relative_difference  # noqa: E402

from rayeffdet.model.efficientdet import EfficientDet  # noqa: E402
from rayeffdet.model.scaling import VARIANTS  # noqa: E402
from rayeffdet.model.weight_names import effdet_names  # noqa: E402
from rayeffdet.ops.anchors import make_anchors  # noqa: E402
from rayeffdet.ops.assigner import BACKGROUND, IGNORED, Targets, assign_targets  # noqa: E402
from rayeffdet.ops.boxes import clip_xyxy, pairwise_iou_xyxy  # noqa: E402
from rayeffdet.ops.losses import Losses, detection_loss  # noqa: E402
from rayeffdet.spec.load import with_values  # noqa: E402
from rayeffdet.spec.root import Spec  # noqa: E402
from rayeffdet.train.build import build_anchors, build_step_settings  # noqa: E402

Differences = dict[str, float]

CPU = torch.device("cpu")
NUM_CLASSES = 5
RATIOS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))

# --- Targets ---

CANVASES = ((128, 128), (96, 160), (100, 210))
ROWS = 100
KINDS = ("none", "hundred", "tiny", "border", "one anchor", "identical", "slivers", "few")
SCENES_OF_A_KIND = 10  # times 8 kinds and 3 canvases: 240 scenes


def random_boxes(generator: torch.Generator, count: int, size: Size, sides: Size) -> Tensor:
    """Returns boxes [count, 4], xyxy, around points of the canvas and cut to it."""
    height, width = size
    smallest, largest = sides
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    halves = smallest * (largest / smallest) ** torch.rand(count, 2, generator=generator) / 2
    return clip_xyxy(torch.cat([centres - halves, centres + halves], 1), height=height, width=width)


def boxes_of(kind: str, generator: torch.Generator, size: Size) -> Tensor:
    draw = partial(random_boxes, generator, size=size)
    if kind == "none":
        return torch.zeros(0, 4)
    if kind == "hundred":
        return draw(ROWS, sides=(4, 120))
    if kind == "tiny":
        return draw(8, sides=(0.5, 3))
    if kind == "border":
        boxes = draw(8, sides=(10, 100))
        boxes[0::2, 0], boxes[1::2, 3] = 0, size[0]
        return boxes
    if kind == "one anchor":  # of two small boxes inside each other, both overlap one anchor most
        outer = draw(4, sides=(3, 4))
        return torch.cat([outer, outer + torch.tensor([0.5, 0.5, -0.5, -0.5])])
    if kind == "identical":
        return draw(4, sides=(10, 100)).repeat(2, 1)
    if kind == "slivers":
        boxes = draw(4, sides=(60, 90))
        boxes[:, 3] = boxes[:, 1] + 2
        return boxes
    return draw(int(torch.randint(1, 7, (), generator=generator)), sides=(8, 120))


def draw_scene(kind: str, seed: int, size: Size) -> tuple[Tensor, Tensor]:
    """Returns boxes [G, 4] and labels [G]; rows of padding stand between the truths."""
    generator = torch.Generator().manual_seed(seed)
    found = boxes_of(kind, generator, size)
    rows = torch.randperm(ROWS, generator=generator)[: len(found)].sort().values
    boxes, labels = torch.zeros(ROWS, 4), torch.full((ROWS,), -1)
    boxes[rows] = found
    labels[rows] = torch.randint(0, NUM_CLASSES, (len(found),), generator=generator)
    return boxes, labels


@cache
def draw_scenes(size: Size) -> tuple[Tensor, Tensor]:
    scenes = [draw_scene(k, seed, size) for seed, k in enumerate(KINDS * SCENES_OF_A_KIND)]
    boxes_BG4, labels_BG = map(torch.stack, zip(*scenes, strict=True))
    return boxes_BG4, labels_BG


def effdet_anchors(
    size: Size, *, scale: float = 4.0, ratios=RATIOS, num_scales: int = 3, max_level: int = 7
) -> nn.Module:
    return effdet.anchors.Anchors(3, max_level, num_scales, list(ratios), scale, size)


def their_labels(labels_BG: Tensor) -> Tensor:
    """Returns classes from 1, as effdet counts them; -1 is padding on both sides."""
    return torch.where(labels_BG >= 0, labels_BG + 1, -1)


def effdet_targets(anchors: nn.Module, boxes_xyxy_BG4: Tensor, labels_BG: Tensor) -> Targets:
    """Returns what effdet's labeler says, in float32, which is all that it takes.

    It adds 1e-7 px to every width and height before it codes a box, where ours only keeps them
    from being 0. That constant is taken out.
    """
    labeler = effdet.anchors.AnchorLabeler(anchors, NUM_CLASSES)
    labeler.target_assigner._box_coder.eps = 0.0
    ids, codes, positives = labeler.batch_label_anchors(
        boxes_xyxy_BG4[..., [1, 0, 3, 2]], their_labels(labels_BG)
    )
    deltas_BN4 = torch.cat([level.reshape(len(level), -1, 4) for level in codes], dim=1)
    return Targets(torch.cat([level.flatten(1) for level in ids], dim=1), deltas_BN4, positives)


@cache
def target_differences(size: Size) -> Differences:
    boxes_BG4, labels_BG = draw_scenes(size)
    ours = assign_targets(make_anchors(height=size[0], width=size[1]), boxes_BG4, labels_BG)
    theirs = effdet_targets(effdet_anchors(size), boxes_BG4, labels_BG)
    return {
        "anchors of another class": (ours.class_ids_BN != theirs.class_ids_BN).sum().item(),
        "number of positives": _largest(ours.num_positives_B - theirs.num_positives_B),
        "box codes": _largest(ours.box_deltas_BN4 - theirs.box_deltas_BN4),
    }


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item()


TARGET_TOLERANCES = {
    "anchors of another class": 0,
    "number of positives": 0,
    # Both round centres of up to 210 px to steps of 1.5e-5, in another way, and divide by sides of
    # 22 px and more.
    "box codes": 1e-6,
}


@pytest.mark.parametrize("size", CANVASES)
def test_the_scenes_hold_the_hard_cases(size):
    boxes_BG4, labels_BG = draw_scenes(size)
    is_truth_BG = labels_BG >= 0
    iou_BGN = pairwise_iou_xyxy(boxes_BG4, make_anchors(height=size[0], width=size[1]))
    best_BG, anchor_BG = iou_BGN.max(dim=2)
    assert (is_truth_BG.sum(1) == 0).any()
    assert (is_truth_BG.sum(1) == ROWS).any()
    assert ((best_BG < 0.5) & is_truth_BG).sum() > 100
    assert (best_BG[is_truth_BG] > 0).all()
    contested = sum(
        len(anchors) - len(anchors.unique())
        for anchors in (a[t] for a, t in zip(anchor_BG, is_truth_BG, strict=True))
    )
    assert contested > 100


@pytest.mark.parametrize("box", [[900.0, 900, 950, 950], [40.0, 40, 40, 60]])
def test_a_truth_that_overlaps_no_anchor_gets_none_where_effdet_gives_it_the_first(box):
    size, boxes, labels = (128, 128), torch.tensor([[box]]), torch.tensor([[2]])
    ours = assign_targets(make_anchors(height=128, width=128), boxes, labels)
    theirs = effdet_targets(effdet_anchors(size), boxes, labels)
    assert (ours.class_ids_BN == BACKGROUND).all()
    assert ours.num_positives_B == 0
    assert theirs.class_ids_BN[0, 0] == 2
    assert theirs.num_positives_B == 1
    assert torch.equal(ours.class_ids_BN[0, 1:], theirs.class_ids_BN[0, 1:])


# --- Losses of the same outputs ---

LOSS_SIZE = (64, 96)


def maps_of(rows_BNC: Tensor, anchors: nn.Module) -> list[Tensor]:
    """Returns rows of anchors as effdet's heads put them out: a map [B, A*C, h, w] a level."""
    shapes = anchors.feat_sizes[anchors.min_level :]
    counts = [h * w * anchors.get_anchors_per_location() for h, w in shapes]
    return [
        rows.reshape(len(rows), h, w, -1).permute(0, 3, 1, 2)
        for rows, (h, w) in zip(rows_BNC.split(counts, dim=1), shapes, strict=True)
    ]


def label_maps(targets: Targets, anchors: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the targets as effdet's loss wants them: [B, h, w, A] and [B, h, w, A*4] a level."""
    ids = maps_of(targets.class_ids_BN[..., None], anchors)
    codes = maps_of(targets.box_deltas_BN4, anchors)
    ids, codes = ([level.permute(0, 2, 3, 1) for level in levels] for levels in (ids, codes))
    return ids, codes


def in_float64(function: Callable[..., object], *args: object) -> object:
    """Calls effdet's code, which casts to float32 by ``.float()``, with that made to double."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return function(*args)


@cache
def make_outputs() -> tuple[Tensor, Tensor, Targets]:
    """Returns logits, deltas near and far from the truth, and effdet's targets, in float64."""
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(generator, 12, LOSS_SIZE, (6, 60)).view(2, 6, 4)
    labels = torch.randint(-1, NUM_CLASSES, (2, 6), generator=generator)
    targets = effdet_targets(effdet_anchors(LOSS_SIZE), boxes, labels)
    ids_BN = targets.class_ids_BN.clone()
    ids_BN[:, ::50] = torch.where(ids_BN[:, ::50] < 0, IGNORED, ids_BN[:, ::50])
    codes_BN4 = targets.box_deltas_BN4.double()
    codes_BN4[:, ::3, 0] = 0  # the Huber loss leaves out single coordinates that are exactly 0
    noise = torch.randn(codes_BN4.shape, generator=generator, dtype=torch.float64)
    far = 4 * (torch.rand(ids_BN.shape, generator=generator) < 0.3)  # anchor sizes away: disjoint
    deltas = codes_BN4 + 0.3 * noise + far[..., None]
    logits = torch.randn(*ids_BN.shape, NUM_CLASSES, generator=generator, dtype=torch.float64)
    return 3 * logits - 2, deltas, Targets(ids_BN, codes_BN4, targets.num_positives_B.double())


def their_overlap_loss(deltas_BN4: Tensor, targets: Targets, anchors: nn.Module, kind: str):
    """Returns torchvision's loss of the boxes as effdet decodes them, over 4n."""
    matched = (targets.class_ids_BN >= 0).flatten()
    boxes_yxyx = anchors.boxes.double().repeat(len(deltas_BN4), 1)[matched]
    predicted, true = (
        effdet.anchors.decode_box_outputs(rows.reshape(-1, 4)[matched], boxes_yxyx, True)
        for rows in (deltas_BN4, targets.box_deltas_BN4)
    )
    if kind == "iou":
        loss = (1 - torchvision.ops.box_iou(predicted, true).diagonal()).sum()
    else:
        name = {"giou": "generalized", "diou": "distance", "ciou": "complete"}[kind]
        loss = getattr(torchvision.ops, f"{name}_box_iou_loss")(predicted, true, reduction="sum")
    return loss / (4 * (targets.num_positives_B.sum() + 1))


def their_total(
    logits: Tensor, deltas: Tensor, *, iou_loss_type="", iou_loss_weight=1.0, **settings
) -> Tensor:
    """Returns effdet's loss with these settings of its config, plus torchvision's overlap loss."""
    targets, anchors = make_outputs()[2], effdet_anchors(LOSS_SIZE)
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    config.update(num_classes=NUM_CLASSES, **settings)
    maps = maps_of(logits, anchors), maps_of(deltas, anchors), *label_maps(targets, anchors)
    loss = effdet.bench.DetectionLoss(config)
    total, _, _ = in_float64(loss, *maps, targets.num_positives_B)
    if not iou_loss_type:
        return total
    overlap = their_overlap_loss(deltas, targets, anchors, iou_loss_type)
    return total + iou_loss_weight * overlap


def _with_gradients(ours: Tensor, theirs: Tensor, leaves: list[tuple[Tensor, Tensor]]) -> float:
    ours.backward()
    theirs.backward()
    pairs = [(ours, theirs), *((mine.grad, reference.grad) for mine, reference in leaves)]
    return max(relative_difference(*pair) for pair in pairs)


def _twice(tensor: Tensor) -> tuple[Tensor, Tensor]:
    return tensor.clone().requires_grad_(), tensor.clone().requires_grad_()


def spec_loss_difference(fields: dict[str, object]) -> float:
    """Returns the largest relative difference of total loss and its gradients by the outputs.

    Args:
        fields: Those of ``train`` that differ from their defaults.
    """
    logits, deltas, targets = make_outputs()
    spec = with_values(Spec(), {f"train.{k}": v for k, v in fields.items()}, where="test")
    (z, their_z), (d, their_d) = _twice(logits), _twice(deltas)
    ours = detection_loss(
        z,
        d,
        targets,
        make_anchors(height=LOSS_SIZE[0], width=LOSS_SIZE[1]).double(),
        normaliser=targets.num_positives_B.sum() + 1,
        **build_step_settings(spec, CPU).loss,
    )
    theirs = their_total(their_z, their_d, **fields)
    return _with_gradients(ours.total, theirs, [(z, their_z), (d, their_d)])


def legacy_loss_difference() -> float:
    """Returns the same for effdet's older focal loss, which has no smoothing."""
    logits, deltas, targets = make_outputs()
    (z, their_z), (d, their_d) = _twice(logits), _twice(deltas)
    ours = detection_loss(z, d, targets, None, normaliser=targets.num_positives_B.sum() + 1)
    theirs = their_total(their_z, their_d, legacy_focal=True)
    return _with_gradients(ours.total, theirs, [(z, their_z), (d, their_d)])


# Float64 all through: sums of 20 thousand terms round at 1e-14.
LOSS_TOLERANCE = 1e-12
# torchvision's plain IoU lacks the 1e-7 px^2 that its own other losses, and ours, add to a union,
# here of more than 30 px^2.
PLAIN_IOU_TOLERANCE = 1e-8

SPEC_FIELDS = {
    "defaults of the spec": ({}, LOSS_TOLERANCE),
    "label_smoothing 0.1": ({"label_smoothing": 0.1}, LOSS_TOLERANCE),
    "box_loss_weight 20": ({"box_loss_weight": 20.0}, LOSS_TOLERANCE),
    "2.5 iou": ({"iou_loss_type": "iou", "iou_loss_weight": 2.5}, PLAIN_IOU_TOLERANCE),
    "2.5 giou": ({"iou_loss_type": "giou", "iou_loss_weight": 2.5}, LOSS_TOLERANCE),
    "2.5 diou": ({"iou_loss_type": "diou", "iou_loss_weight": 2.5}, LOSS_TOLERANCE),
    "2.5 ciou": ({"iou_loss_type": "ciou", "iou_loss_weight": 2.5}, LOSS_TOLERANCE),
    "ciou alone": ({"box_loss_weight": 0.0, "iou_loss_type": "ciou"}, LOSS_TOLERANCE),
}


@pytest.mark.parametrize("fields", [fields for fields, _ in SPEC_FIELDS.values() if fields])
def test_every_field_of_the_loss_moves_it_by_more_than_its_tolerance(fields):
    logits, deltas, _ = make_outputs()
    difference = relative_difference(
        their_total(logits, deltas), their_total(logits, deltas, **fields)
    )
    assert difference > 1e-3


def test_a_badly_missed_object_costs_its_logit_where_effdet_s_older_loss_is_zero():
    logits, targets = torch.full((1, 1, 1, 1), -100.0), torch.ones(1, 1, 1, 1)
    older = effdet.loss.focal_loss_legacy(logits, targets, 0.25, 1.5, 1.0)
    newer = effdet.loss.new_focal_loss(logits, targets, 0.25, 1.5, 1.0, 0.0)
    empty = Targets(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 4), torch.ones(1))
    ours = detection_loss(logits[0], torch.zeros(1, 1, 4), empty, None, normaliser=torch.ones(()))
    assert older == 0
    assert ours.cls.item() == pytest.approx(newer.item(), rel=1e-6) == pytest.approx(25, rel=1e-6)


# --- The gradient of every weight ---

TRAINED = ("efficientdet-d0", "efficientdet-lite0")
TRAIN_SIZE = (96, 160)


@cache
def training_differences(
    variant: str, dtype: torch.dtype, legacy_focal: bool = False, label_smoothing: float = 0.0
) -> Differences:
    """Returns differences of one forward and backward pass in training mode.

    In float32 each side makes its own targets. effdet's labeler takes nothing else, so in float64
    both sides get its targets.
    """
    pair = make_pair(variant, size=TRAIN_SIZE, num_classes=NUM_CLASSES, dtype=dtype)
    images_B3HW, truths = make_images(3, TRAIN_SIZE).to(dtype), make_truths()
    scale = VARIANTS[variant].anchor_scale
    theirs = effdet_targets(effdet_anchors(TRAIN_SIZE, scale=scale), *truths)
    theirs = theirs._replace(box_deltas_BN4=theirs.box_deltas_BN4.to(dtype))
    anchors_N4 = make_anchors(height=TRAIN_SIZE[0], width=TRAIN_SIZE[1], anchor_scale=scale)
    ours = theirs if dtype is torch.float64 else assign_targets(anchors_N4, *truths)
    losses = our_losses(pair.ours, images_B3HW, ours, label_smoothing)
    bench = effdet.DetBenchTrain(pair.theirs, create_labeler=dtype is torch.float32)
    bench.loss_fn.legacy_focal = legacy_focal
    bench.loss_fn.label_smoothing = label_smoothing
    reference = their_losses(bench, images_B3HW, truths, theirs)
    losses.total.backward()
    reference["loss"].backward()
    gradients = gradient_differences(pair.ours, pair.theirs)
    return {
        "losses": max(
            relative_difference(losses.total, reference["loss"]),
            relative_difference(losses.cls, reference["class_loss"]),
            relative_difference(losses.box, reference["box_loss"]),
        ),
        "gradients": max(gradients.values()),
        "median gradient": sorted(gradients.values())[len(gradients) // 2],
    }


def make_truths() -> tuple[Tensor, Tensor]:
    """Returns boxes [3, 6, 4] and labels [3, 6] of images with six, some and no truths."""
    generator = torch.Generator().manual_seed(5)
    boxes = random_boxes(generator, 18, TRAIN_SIZE, (6, 90)).view(3, 6, 4)
    labels = torch.randint(0, NUM_CLASSES, (3, 6), generator=generator)
    labels[1, 2:], labels[2] = -1, -1
    return boxes, labels


def our_losses(
    network: EfficientDet, images_B3HW: Tensor, targets: Targets, label_smoothing: float
) -> Losses:
    normaliser = targets.num_positives_B.sum() + 1
    assert normaliser > 20
    return detection_loss(
        *network.train()(images_B3HW),
        targets,
        None,  # anchors, which only an overlap loss reads
        normaliser=normaliser,
        label_smoothing=label_smoothing,
    )


def their_losses(
    bench: nn.Module, images_B3HW: Tensor, truths: tuple[Tensor, Tensor], targets: Targets
) -> dict[str, Tensor]:
    bench.train()
    if bench.anchor_labeler is not None:
        bench.anchor_labeler.target_assigner._box_coder.eps = 0.0
        boxes, labels = truths
        return bench(images_B3HW, {"bbox": boxes[..., [1, 0, 3, 2]], "cls": their_labels(labels)})
    ids, codes = label_maps(targets, bench.anchors)
    given = {f"label_cls_{level}": tensor for level, tensor in enumerate(ids)}
    given |= {f"label_bbox_{level}": tensor for level, tensor in enumerate(codes)}
    return in_float64(bench, images_B3HW, given | {"label_num_positives": targets.num_positives_B})


def gradient_differences(ours: EfficientDet, theirs: nn.Module) -> Differences:
    """Returns how far the gradient of each parameter is off, by effdet's name.

    In units of the gradient's norm or of a thousandth of the norm of all gradients together, the
    larger: a bias in front of a norm has a true gradient of 0 and holds nothing but rounding.
    """
    names = effdet_names(ours.architecture)
    mine = {_their_name(name, names): p.grad for name, p in ours.named_parameters()}
    reference = {name: p.grad for name, p in theirs.named_parameters()}
    assert mine.keys() == reference.keys()
    floor = 1e-3 * torch.stack([g.norm() for g in reference.values()]).norm()
    return {
        name: ((mine[name] - gradient).norm() / gradient.norm().maximum(floor)).item()
        for name, gradient in reference.items()
    }


def _their_name(name: str, names: dict[str, str]) -> str:
    module, _, leaf = name.rpartition(".")
    return names.get(name) or f"{names[module]}.{leaf}"


TRAINING_TOLERANCES = {
    # effdet's own gradients move by 3e-5 in the median, its losses by 3e-6, when only the threads
    # or the memory layout change; 1e-3 of the floor is the 1e-6 of all gradients that those whose
    # true value is 0 need.
    torch.float32: {"losses": 1e-5, "gradients": 1e-3, "median gradient": 1e-4},
    # Hundreds of layers forward and backward: rounding is near 1e-13.
    torch.float64: {"losses": 1e-12, "gradients": 1e-10},
}

# --- Anchors of the spec ---

ROOT_2 = 2**0.5
ANCHOR_SPECS = {
    "the defaults": ({}, {}),
    "ratios 1, 2 and 1/2": (
        {"aspect_ratios": [[1, 1], [ROOT_2, 1 / ROOT_2], [1 / ROOT_2, ROOT_2]]},
        {"ratios": (1.0, 2.0, 0.5)},
    ),
    "anchor_scale 3": ({"anchor_scale": 3.0}, {"scale": 3.0}),
    "num_scales 2": ({"num_scales": 2}, {"num_scales": 2}),
    "level 8": ({"name": "efficientdet-d7x"}, {"max_level": 8}),
}


def anchor_difference(fields: dict[str, object], settings: dict[str, object]) -> float:
    """Returns the largest distance in pixels between the spec's anchors and effdet's."""
    size = {"input_height": 300, "input_width": 420}
    values = {f"model.{field}": value for field, value in (size | fields).items()}
    anchors_N4 = build_anchors(with_values(Spec(), values, where="test"))
    theirs = effdet_anchors((300, 420), **settings).boxes[:, [1, 0, 3, 2]]
    return _largest(anchors_N4 - theirs)


def entry(what: str, measure: Callable[..., Differences], *args: object) -> float:
    return measure(*args)[what]


PASSES = (
    *(product(TRAINED, TRAINING_TOLERANCES)),
    ("efficientdet-d0", torch.float64, False, 0.1),
    ("efficientdet-d0", torch.float64, True, 0.0),
)


def words_of(variant: str, dtype: torch.dtype, legacy=False, label_smoothing=0.0) -> str:
    words = f"{variant.removeprefix('efficientdet-')} {str(dtype).removeprefix('torch.')}"
    return f"{words}{', legacy' * legacy}{', smoothed' * (label_smoothing > 0)}"


CHECKS = (
    *(
        (f"targets {size[0]}x{size[1]}: {what}", partial(entry, what, target_differences, size), t)
        for size, (what, t) in product(CANVASES, TARGET_TOLERANCES.items())
    ),
    *(
        (f"anchors of the spec, {what}", partial(anchor_difference, *settings), 0)
        for what, settings in ANCHOR_SPECS.items()
    ),
    *(
        (f"loss, {words}", partial(spec_loss_difference, fields), tolerance)
        for words, (fields, tolerance) in SPEC_FIELDS.items()
    ),
    ("loss, effdet's older focal loss", legacy_loss_difference, LOSS_TOLERANCE),
    *(
        (f"training, {words_of(*one)}: {what}", partial(entry, what, training_differences, *one), t)
        for one in PASSES
        for what, t in TRAINING_TOLERANCES[one[1]].items()
    ),
)


@pytest.mark.parametrize(
    ("measure", "tolerance"), [check[1:] for check in CHECKS], ids=[check[0] for check in CHECKS]
)
def test_the_difference_is_within_its_tolerance(measure, tolerance):
    assert measure() <= tolerance

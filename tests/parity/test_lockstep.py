"""Ten training steps beside effdet's, in float64: the same weights, batches and recipe.

Ours is ``train_step`` itself, on what ``build_trainee`` makes of a spec. Theirs is effdet's
network, labeler and losses; rate, clipping, optimizer and average are written out here.

Levelled first, since none of it is a step of training:

- The pair of networks drops no paths, and effdet's backbone has TensorFlow's momentum of norms.
- Where either code says ``float()`` or ``float32``, it gets float64 while a step lasts. effdet
  refuses boxes of another type, and both make their targets in float32.
- effdet adds 1e-7 to the sides of boxes in its box code; the authors and we clamp them at 1e-8.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

effdet = pytest.importorskip("effdet", reason="parity needs effdet: the extra named parity")

from checkpoints import as_effdet  # noqa: E402
from networks import make_images, make_pair  # noqa: E402

from rayeffdet.data.loader import Batch  # noqa: E402
from rayeffdet.model.efficientdet import EfficientDet, normalise  # noqa: E402
from rayeffdet.model.weight_names import effdet_names  # noqa: E402
from rayeffdet.spec.load import with_values  # noqa: E402
from rayeffdet.spec.root import Spec  # noqa: E402
from rayeffdet.train.build import (  # noqa: E402
    build_architecture,
    build_learning_rate,
    build_step_settings,
    build_trainee,
)
from rayeffdet.train.optim import flatten_optimizer  # noqa: E402
from rayeffdet.train.step import World, train_step  # noqa: E402

CPU = World(rank=0, size=1, device=torch.device("cpu"))
HEIGHT, WIDTH = 96, 128
BATCH, CLASSES = 2, 5
EPOCH, WARMUP, STEPS = 2, 4, 10
DECAY, L2, MOMENTUM = 0.4, 1e-3, 0.9
FROZEN_STAGES = (1, 2, 3)
STEP_WITHOUT_BOXES = 6

COMMON = {
    "model.input_height": HEIGHT,
    "model.input_width": WIDTH,
    "dataset.num_classes": CLASSES + 1,
    "train.num_epochs": STEPS // EPOCH,
    "train.lr_schedule.warmup_epoch": WARMUP // EPOCH,
    "train.moving_average_decay": DECAY,
    "train.l2_weight_decay": L2,
    "train.optimizer.momentum": MOMENTUM,
}
# The rate that the warm-up starts from, the rate that it reaches, the limit of gradient norms.
RECIPES = {"SGD": (1e-5, 1e-4, 140.0), "Adam, partly frozen": (1e-6, 1e-4, 130.0)}


@dataclass
class Run:
    """What ten steps leave, under effdet's names; losses are (total, class, box) of each step."""

    losses: list[Tensor] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    largest_norms: list[float] = field(default_factory=list)
    start: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)


@cache
def runs(recipe: str) -> tuple[Run, Run]:
    """Returns ours and theirs."""
    pair = make_pair("efficientdet-d0", size=(HEIGHT, WIDTH), num_classes=CLASSES)
    with torch.no_grad():
        # Most anchors are background, as to any trained network: losses and steps of usual size.
        pair.ours.class_head.predict.pointwise.bias.sub_(4.6)
        pair.theirs.class_net.predict.conv_pw.bias.sub_(4.6)
    with float_means_double():
        return our_run(recipe, pair.ours), their_run(recipe, pair.theirs)


def spec_of(recipe: str) -> Spec:
    low, high, limit = RECIPES[recipe]
    values = COMMON | {
        "train.optimizer.name": "adam" if "Adam" in recipe else "sgd",
        "train.clip_gradients_norm": limit,
        "train.lr_schedule.warmup_init": low,
        "train.lr_schedule.learning_rate": high,
    }
    if "frozen" in recipe:
        values |= {"model.freeze_bn": True, "model.freeze_blocks": [0, *FROZEN_STAGES]}
    return with_values(Spec(), values, where="test")


@contextmanager
def float_means_double() -> Iterator[None]:
    with (
        patch.object(torch.Tensor, "float", torch.Tensor.double),
        patch.object(torch, "float32", torch.float64),
    ):
        yield


def batches() -> Iterator[Batch]:
    """Yields two images a step with up to six boxes, of any size; some have none."""
    rng = np.random.default_rng(3)
    for step in range(STEPS):
        images_B3HW = make_images(BATCH, (HEIGHT, WIDTH), seed=step) * 60 + 120
        sides = np.exp(rng.uniform(math.log(3), math.log(WIDTH), (BATCH, 6, 2)))
        centres = rng.uniform((0, 0), (WIDTH, HEIGHT), (BATCH, 6, 2))
        boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=-1)
        labels = rng.integers(0, CLASSES, (BATCH, 6))
        counts = rng.integers(1, 7, BATCH) * (step != STEP_WITHOUT_BOXES)
        counts[step % BATCH] *= step % 2
        labels[np.arange(6) >= counts[:, None]] = -1
        yield Batch(
            images_B3HW=images_B3HW.clamp(0, 255).byte(),
            boxes_BG4=torch.from_numpy(boxes.clip(0, (WIDTH, HEIGHT) * 2).astype(np.float32)),
            labels_BG=torch.from_numpy(labels),
            scales_B=torch.ones(BATCH),
            examples=(),
            num_truncated=0,
        )


def our_run(recipe: str, network: EfficientDet) -> Run:
    spec = spec_of(recipe)
    trainee = build_trainee(spec, network, CPU)
    settings = build_step_settings(spec, CPU.device)
    rate = build_learning_rate(spec, steps_per_epoch=EPOCH, num_workers=1)
    trainee.network.train()
    run = Run(start=copies(as_effdet(network)))
    for step, batch in enumerate(batches()):
        found = train_step(
            trainee, batch, step=step, learning_rate=rate(step), settings=settings, world=CPU
        )
        losses = [found.loss, found.cls_loss, found.box_loss]
        run.losses.append(torch.tensor(losses, dtype=torch.float64))
        run.norms.append(found.gradient_norm)
    run.state = copies(as_effdet(network))
    with trainee.ema.applied_to(network):
        run.average = copies(as_effdet(network))
    theirs = effdet_names(network.architecture)
    for name, tensor in flatten_optimizer(trainee.optimizer, network)[0].items():
        parameter, _, key = name.rpartition(".")
        module, _, leaf = parameter.rpartition(".")
        run.moments[f"{theirs.get(parameter) or f'{theirs[module]}.{leaf}'}.{key}"] = tensor
    return run


def their_run(recipe: str, network: nn.Module) -> Run:
    low, high, limit = RECIPES[recipe]
    bench = effdet.DetBenchTrain(network, create_labeler=True).double().train()
    bench.anchor_labeler.target_assigner._box_coder.eps = 0.0
    if "frozen" in recipe:
        freeze(network.backbone)
    optimizer = their_optimizer(recipe, network)
    run = Run(start=copies(network.state_dict()), average=copies(network.state_dict()))
    for step, batch in enumerate(batches()):
        # What is compared starts with the tensor that enters the network.
        images_B3HW = normalise(batch.images_B3HW, build_architecture(spec_of(recipe)))
        losses = bench(images_B3HW, their_targets(batch))
        optimizer.zero_grad()
        losses["loss"].backward()
        norms = clip_by_hand(network.parameters(), limit)
        for group in optimizer.param_groups:
            group["lr"] = their_rate(step, low, high)
        optimizer.step()
        taken = step + 1
        decay = min(DECAY, (1 + taken) / (10 + taken))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                run.average[name] = decay * run.average[name] + (1 - decay) * value
        run.losses.append(
            torch.stack([losses[key].detach() for key in ("loss", "class_loss", "box_loss")])
        )
        run.norms.append(norms.norm().item())
        run.largest_norms.append(norms.max().item())
    run.state = copies(network.state_dict())
    run.moments = {
        f"{name}.{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return run


def freeze(backbone: nn.Module) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    for part in (backbone.conv_stem, *(backbone.blocks[stage - 1] for stage in FROZEN_STAGES)):
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                module.requires_grad_(False)


def their_optimizer(recipe: str, network: nn.Module) -> torch.optim.Optimizer:
    kernels = {id(m.weight) for m in network.modules() if isinstance(m, nn.Conv2d)}
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in kernels], "weight_decay": L2},
        {"params": [p for p in trained if id(p) not in kernels], "weight_decay": 0.0},
    ]
    if "Adam" in recipe:
        return torch.optim.Adam(groups, betas=(MOMENTUM, 0.999), foreach=False)
    return torch.optim.SGD(groups, momentum=MOMENTUM, foreach=False)


def their_targets(batch: Batch) -> dict[str, list[Tensor]]:
    """Returns the truth as effdet wants it: yxyx boxes and classes from 1, per image."""
    kept = [labels >= 0 for labels in batch.labels_BG]
    boxes_yxyx_BG4 = batch.boxes_BG4.double()[..., [1, 0, 3, 2]]
    return {
        "bbox": [boxes[keep] for boxes, keep in zip(boxes_yxyx_BG4, kept, strict=True)],
        "cls": [labels[k].double() + 1 for labels, k in zip(batch.labels_BG, kept, strict=True)],
    }


def their_rate(step: int, low: float, high: float) -> float:
    """A line up over the warm-up, half a cosine down over the rest."""
    if step < WARMUP:
        return low + step / WARMUP * (high - low)
    return high / 2 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def clip_by_hand(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Cuts each gradient's norm to the limit, then that of all; returns the norms before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([gradient.norm() for gradient in gradients])
    for gradient, norm in zip(gradients, norms.tolist(), strict=True):
        if norm > limit:
            gradient *= limit / norm
    total = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
    if total > limit:
        for gradient in gradients:
            gradient *= limit / total
    return norms


def copies(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def losses_difference(recipe: str) -> float:
    ours, theirs = (torch.stack(run.losses) for run in runs(recipe))
    return ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max().item()


def weights_difference(recipe: str) -> float:
    return largest_difference(*(run.state for run in runs(recipe)), statistics=False)


def statistics_difference(recipe: str) -> float:
    return largest_difference(*(run.state for run in runs(recipe)), statistics=True)


def average_difference(recipe: str) -> float:
    return largest_difference(*(run.average for run in runs(recipe)))


def moments_difference(recipe: str) -> float:
    return largest_difference(*(run.moments for run in runs(recipe)))


def largest_difference(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], *, statistics: bool | None = None
) -> float:
    """Returns the largest distance of two entries, in units of its tensor's largest or of 1."""
    assert ours.keys() == theirs.keys()
    # Theirs has counted the batch that its first statistics are of, too.
    names = [n for n in ours if not n.endswith("num_batches_tracked")]
    if statistics is not None:
        names = [n for n in names if ("running" in n) is statistics]
    return max(
        ((ours[n] - theirs[n]).abs().max() / theirs[n].abs().max().clamp(min=1)).item()
        for n in names
    )


# Rounding differs since sums are taken in other orders; every step hands it to the next one through
# divisions by batch deviations that may be small.
MEASURES: tuple[tuple[str, Callable[[str], float], float], ...] = (
    ("losses", losses_difference, 1e-8),
    ("weights", weights_difference, 1e-7),
    ("statistics", statistics_difference, 1e-7),
    ("moving average", average_difference, 1e-7),
    ("optimizer state", moments_difference, 1e-7),
)
CHECKS = tuple(
    (f"{STEPS} steps of {recipe}: {part}", partial(measure, recipe), tolerance)
    for recipe in RECIPES
    for part, measure, tolerance in MEASURES
)


@pytest.mark.parametrize(("name", "difference", "tolerance"), CHECKS, ids=[c[0] for c in CHECKS])
def test_a_run_stays_in_step_with_effdet(name, difference, tolerance):
    assert difference() < tolerance


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_steps_differ_in_what_they_exercise(recipe):
    ours, theirs = runs(recipe)
    limit = RECIPES[recipe][-1]
    norms = list(zip(theirs.largest_norms, theirs.norms, strict=True))
    assert any(total <= limit for _, total in norms)
    assert any(largest <= limit < total for largest, total in norms)
    assert any(limit < largest for largest, _ in norms)
    assert ours.norms == pytest.approx(theirs.norms, rel=1e-7)
    assert theirs.losses[STEP_WITHOUT_BOXES][2] == 0 < theirs.losses[0][2]
    assert largest_difference(ours.state, ours.start, statistics=False) > 1e-4

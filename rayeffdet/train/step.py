"""One optimisation step: to device, forward, loss, backward, clip, finite check, update.

Legend: B images, H W pixels, N anchors, K classes.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rayeffdet.data.loader import Batch
from rayeffdet.errors import RunError
from rayeffdet.model.efficientdet import EfficientDet, normalise
from rayeffdet.ops.assigner import assign_targets
from rayeffdet.ops.losses import detection_loss
from rayeffdet.train.ema import Ema
from rayeffdet.train.optim import clip_gradients_, l1_penalty


@dataclass(frozen=True)
class World:
    """Where this process stands among the training workers."""

    rank: int
    size: int
    device: torch.device


@dataclass(frozen=True)
class StepSettings:
    """What one step needs to know, as plain numbers.

    Args:
        loss: Keyword arguments of :func:`rayeffdet.ops.losses.detection_loss`.
        clip_norm: Limit of each gradient's norm and of their common norm; 0 switches it off.
        l1_weight_decay: Factor of half the sum of absolute kernel weights.
        amp_dtype: Precision of the forward pass, or None for float32.
        seed: Together with step and rank it seeds drop-connect, so that no generator state has to
            be saved.
    """

    loss: dict[str, Any]
    clip_norm: float
    l1_weight_decay: float
    amp_dtype: torch.dtype | None
    seed: int


@dataclass
class Trainee:
    """What changes while training.

    Args:
        network: The network itself.
        parallel: The network, or its data-parallel wrapper.
        anchors_N4: Anchors of the input size, xyxy, on the device.
        scaler: Loss scale of float16; disabled otherwise.
    """

    network: EfficientDet
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    anchors_N4: Tensor
    scaler: torch.amp.GradScaler


@dataclass(frozen=True)
class StepResult:
    """Losses of the global batch before the update; ``box_loss`` is unweighted."""

    loss: float
    cls_loss: float
    box_loss: float
    iou_loss: float
    gradient_norm: float


def train_step(
    trainee: Trainee,
    batch: Batch,
    *,
    step: int,
    learning_rate: float,
    settings: StepSettings,
    world: World,
) -> StepResult:
    """Updates the weights and their moving average with one batch.

    The losses are divided by the positives of the whole global batch, so that the gradient does
    not depend on how the batch is spread over workers.

    Args:
        trainee: Changed in place.
        batch: This worker's share.
        step: Steps taken before, over all epochs.
        learning_rate: Rate of this step.
        settings: Constants of the run.
        world: This worker's place.

    Raises:
        RunError: A loss or gradient is not finite; the weights are not updated.
    """
    torch.manual_seed(settings.seed * 1_000_003 + step * 4096 + world.rank)
    for group in trainee.optimizer.param_groups:
        group["lr"] = learning_rate
    images_B3HW = normalise(
        batch.images_B3HW.to(world.device, non_blocking=True), trainee.network.architecture
    )
    targets = assign_targets(
        trainee.anchors_N4,
        batch.boxes_BG4.to(world.device, non_blocking=True),
        batch.labels_BG.to(world.device, non_blocking=True),
    )
    normaliser = _positives_per_worker(targets.num_positives_B.sum(), world)
    with torch.autocast(
        world.device.type, dtype=settings.amp_dtype, enabled=settings.amp_dtype is not None
    ):
        class_logits_BNK, box_deltas_BN4 = trainee.parallel(images_B3HW)
    losses = detection_loss(
        class_logits_BNK,
        box_deltas_BN4,
        targets,
        trainee.anchors_N4,
        normaliser=normaliser,
        **settings.loss,
    )
    total = losses.total
    if settings.l1_weight_decay:
        total = total + settings.l1_weight_decay * l1_penalty(trainee.network)

    trainee.optimizer.zero_grad(set_to_none=True)
    trainee.scaler.scale(total).backward()
    trainee.scaler.unscale_(trainee.optimizer)
    gradient_norm = clip_gradients_(trainee.network.parameters(), settings.clip_norm)
    own = torch.stack([total.detach(), losses.cls, losses.box, losses.iou, gradient_norm])
    # The one synchronisation of host and device in a step: the update must not happen on a fault.
    result = StepResult(*_mean_over_workers(own, world).tolist())
    if not _is_finite(result, check_gradient=not trainee.scaler.is_enabled()):
        raise _not_finite(result, step, _suspects(own[:4], batch, world))

    trainee.scaler.step(trainee.optimizer)
    trainee.scaler.update()
    if trainee.ema is not None:
        trainee.ema.update(trainee.network, step + 1)
    return result


def _positives_per_worker(num_positives: Tensor, world: World) -> Tensor:
    """(positives of the global batch + 1) / workers; gradients are averaged over workers later."""
    if world.size == 1:
        return num_positives + 1
    num_positives = num_positives.clone()
    dist.all_reduce(num_positives)
    return (num_positives + 1) / world.size


def _mean_over_workers(numbers: Tensor, world: World) -> Tensor:
    if world.size == 1:
        return numbers
    mean = numbers / world.size
    dist.all_reduce(mean)
    return mean


def _is_finite(result: StepResult, *, check_gradient: bool) -> bool:
    losses = (result.loss, result.cls_loss, result.box_loss, result.iou_loss)
    return all(map(math.isfinite, losses)) and (
        math.isfinite(result.gradient_norm) or not check_gradient
    )


def _suspects(own_losses: Tensor, batch: Batch, world: World) -> list[str]:
    """Returns the images of the workers whose loss is not finite; of all if only a gradient is."""
    mine = (bool(own_losses.isfinite().all()), batch.source_ids)
    shares = [mine] * world.size
    if world.size > 1:
        dist.all_gather_object(shares, mine)
    found = [ids for is_finite, ids in shares if not is_finite] or [ids for _, ids in shares]
    return [one for ids in found for one in ids]


def _not_finite(result: StepResult, step: int, source_ids: list[str]) -> RunError:
    found = (
        f"loss {result.loss:g} (class {result.cls_loss:g}, box {result.box_loss:g}),"
        f" gradient norm {result.gradient_norm:g}"
    )
    return RunError(
        f"step {step + 1}: not finite: {found}; images {', '.join(source_ids)}; the weights of the"
        " last checkpoint are intact: lower train.lr_schedule.learning_rate or look at these images"
    )

"""From the spec to the parts of training: one builder a part, the only readers of these fields."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rayeffdet.data.loader import Augmentation, MakeSample, training_sample
from rayeffdet.data.order import Epochs, Shuffle
from rayeffdet.model.efficientdet import EfficientDet, freeze_batch_norm, freeze_blocks
from rayeffdet.model.scaling import Architecture, architecture_of
from rayeffdet.ops.anchors import make_anchors
from rayeffdet.spec.root import Spec
from rayeffdet.train.ema import Ema
from rayeffdet.train.loop import LoopSettings
from rayeffdet.train.optim import build_optimizer
from rayeffdet.train.schedule import learning_rate
from rayeffdet.train.step import StepSettings, Trainee, World


def build_architecture(spec: Spec) -> Architecture:
    """Returns the network's description; TAO's count of classes includes the background."""
    return architecture_of(
        spec.model.name,
        num_classes=spec.dataset.num_classes - 1,
        num_anchors=spec.model.num_scales * len(spec.model.aspect_ratios),
    )


def input_size(spec: Spec) -> tuple[int, int]:
    """Returns height and width of the network's input in pixels."""
    return spec.model.input_height, spec.model.input_width


def build_anchors(spec: Spec) -> Tensor:
    """Returns float32 [N,4] xyxy, in the order of the network's outputs."""
    height, width = input_size(spec)
    return make_anchors(
        height=height,
        width=width,
        min_level=spec.model.min_level,
        max_level=build_architecture(spec).max_level,
        num_scales=spec.model.num_scales,
        aspect_ratios=spec.model.aspect_ratios,
        anchor_scale=spec.model.anchor_scale,
    )


def build_trainee(spec: Spec, network: EfficientDet, world: World) -> Trainee:
    """Returns the network on its device with all that changes beside it.

    Args:
        spec: The run.
        network: With its initial weights, on the CPU.
        world: Where this process stands; a process group exists when its size is above one.
    """
    train = spec.train
    network = network.to(memory_format=torch.channels_last).to(world.device)
    if spec.model.freeze_bn:
        freeze_batch_norm(network)
    freeze_blocks(network, spec.model.freeze_blocks)
    if train.sync_batch_norm and world.size > 1 and world.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    optimizer = build_optimizer(
        network,
        name=train.optimizer.name,
        momentum=train.optimizer.momentum,
        l2_weight_decay=train.l2_weight_decay,
    )
    dtype = amp_dtype(spec, world.device)
    return Trainee(
        network=network,
        parallel=_data_parallel(network, world),
        optimizer=optimizer,
        ema=Ema(network, train.moving_average_decay) if train.moving_average_decay else None,
        anchors_N4=build_anchors(spec).to(world.device),
        scaler=torch.amp.GradScaler(world.device.type, enabled=dtype is torch.float16),
    )


def _data_parallel(network: EfficientDet, world: World) -> nn.Module:
    if world.size == 1:
        return network
    # Batch statistics stay each worker's own while training; their mean is evaluated and saved.
    return DistributedDataParallel(
        network,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        static_graph=True,
    )


def amp_dtype(spec: Spec, device: torch.device) -> torch.dtype | None:
    """Returns the precision of the forward pass; None for float32.

    ``true`` means what the GPU does best, and nothing on a CPU; a precision that is named is used
    on both.
    """
    amp = spec.train.amp
    if amp in ("bf16", "fp16"):
        return torch.bfloat16 if amp == "bf16" else torch.float16
    if not amp or device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def build_step_settings(spec: Spec, device: torch.device) -> StepSettings:
    """Returns the constants of a step."""
    train = spec.train
    return StepSettings(
        loss={
            "label_smoothing": train.label_smoothing,
            "box_loss_weight": train.box_loss_weight,
            "iou_loss_type": train.iou_loss_type,
            "iou_loss_weight": train.iou_loss_weight,
        },
        clip_norm=train.clip_gradients_norm,
        l1_weight_decay=train.l1_weight_decay,
        amp_dtype=amp_dtype(spec, device),
        seed=train.random_seed,
    )


def build_epochs(spec: Spec, *, num_records: int, num_workers: int) -> Epochs:
    """Returns the division of the data into epochs and steps."""
    return Epochs(
        examples_per_epoch=spec.train.num_examples_per_epoch or num_records,
        global_batch=spec.train.batch_size * num_workers,
    )


def build_loop_settings(spec: Spec, epochs: Epochs) -> LoopSettings:
    """Returns lengths and intervals; an interval beyond the last epoch means the last epoch."""
    train = spec.train
    checkpoint_interval = min(train.checkpoint_interval, train.num_epochs)
    return LoopSettings(
        num_epochs=train.num_epochs,
        steps_per_epoch=epochs.steps,
        checkpoint_interval=checkpoint_interval,
        validation_interval=train.validation_interval or checkpoint_interval,
        start_eval_epoch=spec.evaluate.start_eval_epoch,
    )


def build_learning_rate(
    spec: Spec, *, steps_per_epoch: int, num_workers: int
) -> Callable[[int], float]:
    """Returns the rate as a function of the step; the only place where epochs become steps."""
    schedule = spec.train.lr_schedule
    factor = num_workers if spec.ray.scale_learning_rate else 1
    return partial(
        learning_rate,
        name=schedule.name,
        base=schedule.learning_rate * factor,
        warmup_init=schedule.warmup_init * factor,
        warmup_steps=int(schedule.warmup_epoch * steps_per_epoch),
        total_steps=spec.train.num_epochs * steps_per_epoch,
        annealing_steps=int(schedule.annealing_epoch * steps_per_epoch),
    )


def build_augmentation(spec: Spec) -> Augmentation:
    """Returns what may happen to a training image."""
    chosen = spec.dataset.augmentation
    return Augmentation(
        hflip=chosen.rand_hflip,
        min_scale=chosen.random_crop_min_scale,
        max_scale=chosen.random_crop_max_scale,
        color_distortion=chosen.auto_color_distortion,
        translate_xy=chosen.auto_translate_xy,
    )


def padding_rgb(architecture: Architecture) -> Tensor:
    """Returns uint8 (3,), the colour that is nearest to zero once it is normalised."""
    return torch.tensor(architecture.image_mean).mul(255).round().to(torch.uint8)


def build_sample(spec: Spec, architecture: Architecture) -> MakeSample:
    """Returns the function that makes a training sample of a record for a network."""
    return partial(
        training_sample,
        augmentation=build_augmentation(spec),
        padding_rgb=padding_rgb(architecture),
        seed=spec.train.random_seed,
        skip_crowd=spec.dataset.skip_crowd_during_training,
    )


def build_shuffle(spec: Spec) -> Shuffle:
    """Returns the order of the training records."""
    loader = spec.dataset.loader
    return Shuffle(
        seed=spec.train.random_seed,
        shuffle_file=loader.shuffle_file,
        shuffle_buffer=loader.shuffle_buffer,
        cycle_length=loader.cycle_length,
        block_length=loader.block_length,
    )

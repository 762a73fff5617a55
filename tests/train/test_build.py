import pytest
import torch

from rayeffdet.data.loader import Augmentation
from rayeffdet.data.order import Epochs, Shuffle
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.spec.load import with_values
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import (
    amp_dtype,
    build_anchors,
    build_architecture,
    build_augmentation,
    build_epochs,
    build_learning_rate,
    build_loop_settings,
    build_sample,
    build_shuffle,
    build_step_settings,
    input_size,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def spec_with(**values):
    return with_values(
        Spec(), {name.replace("__", "."): value for name, value in values.items()}, where="test"
    )


def test_the_network_has_a_channel_for_each_class_but_the_background():
    architecture = build_architecture(spec_with(dataset__num_classes=91))
    assert (architecture.name, architecture.num_classes) == ("efficientdet-d0", 90)


@pytest.mark.parametrize(
    ("name", "width", "height", "scales", "ratios"),
    [
        ("efficientdet-d0", 64, 64, 3, [[1, 1], [1.4, 0.7], [0.7, 1.4]]),
        ("efficientdet-d0", 100, 210, 2, [[1, 1]]),
        ("efficientdet-d1", 33, 64, 1, [[1, 1], [2, 0.5]]),
        ("efficientdet-d7x", 256, 64, 3, [[1, 1], [1.4, 0.7]]),
    ],
)
def test_there_is_an_anchor_for_every_output_of_the_network(name, width, height, scales, ratios):
    spec = spec_with(
        model__name=name,
        model__input_width=width,
        model__input_height=height,
        model__num_scales=scales,
        model__aspect_ratios=ratios,
        dataset__num_classes=3,
    )
    assert input_size(spec) == (height, width)
    with torch.device("meta"):
        network = EfficientDet(build_architecture(spec)).eval()
        logits_BNK, deltas_BN4 = network(torch.empty(1, 3, height, width))
    anchors_N4 = build_anchors(spec)
    assert anchors_N4.shape == deltas_BN4.shape[1:]
    assert logits_BNK.shape == (1, len(anchors_N4), 2)


def test_anchors_follow_the_spec():
    small = build_anchors(spec_with(model__anchor_scale=4.0))
    large = build_anchors(spec_with(model__anchor_scale=8.0))
    torch.testing.assert_close(large[:, 2:] - large[:, :2], 2 * (small[:, 2:] - small[:, :2]))


def test_what_is_trained_is_ready_for_its_device(make_spec, make_trainee):
    trainee = make_trainee(make_spec())
    weight = trainee.network.backbone.stem.conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert trainee.parallel is trainee.network
    assert isinstance(trainee.optimizer, torch.optim.SGD)
    assert not trainee.scaler.is_enabled()
    assert torch.equal(trainee.anchors_N4, build_anchors(make_spec()))


def test_the_optimizer_and_its_fields_come_from_the_spec(make_spec, make_trainee):
    spec = make_spec(
        {
            "train.optimizer.name": "adam",
            "train.optimizer.momentum": 0.7,
            "train.l2_weight_decay": 0.125,
        }
    )
    optimizer = make_trainee(spec).optimizer
    assert isinstance(optimizer, torch.optim.Adam)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.125, 0]
    assert optimizer.param_groups[0]["betas"][0] == 0.7


def test_frozen_parts_are_not_trained(make_spec, make_trainee):
    spec = make_spec({"model.freeze_bn": True, "model.freeze_blocks": [0, 1]})
    trainee = make_trainee(spec)
    trained = {id(p) for group in trainee.optimizer.param_groups for p in group["params"]}
    backbone = trainee.network.backbone
    assert id(backbone.stem.conv.weight) not in trained
    assert id(backbone.stem.norm.weight) not in trained
    later = next(p for p in backbone.blocks[-1].parameters() if p.ndim > 1)
    assert id(later) in trained
    assert id(trainee.network.class_head.norms[0][0].weight) in trained


def test_a_decay_of_zero_means_no_average(make_spec, make_trainee):
    assert make_trainee(make_spec({"train.moving_average_decay": 0})).ema is None


def test_half_precision_scales_its_loss(make_spec, make_trainee):
    assert make_trainee(make_spec({"train.amp": "fp16"})).scaler.is_enabled()
    assert not make_trainee(make_spec({"train.amp": "bf16"})).scaler.is_enabled()


@pytest.mark.parametrize(
    ("amp", "device", "expected"),
    [
        (False, CPU, None),
        (False, GPU, None),
        (True, CPU, None),
        ("bf16", CPU, torch.bfloat16),
        ("fp16", CPU, torch.float16),
        ("bf16", GPU, torch.bfloat16),
        ("fp16", GPU, torch.float16),
    ],
)
def test_a_named_precision_is_used_and_true_means_gpus_only(amp, device, expected):
    assert amp_dtype(spec_with(train__amp=amp), device) is expected


def test_step_settings_take_the_spec_s_numbers():
    spec = spec_with(
        train__label_smoothing=0.1,
        train__box_loss_weight=20.0,
        train__iou_loss_type="giou",
        train__iou_loss_weight=3.0,
        train__clip_gradients_norm=0.0,
        train__l1_weight_decay=0.25,
        train__random_seed=9,
    )
    settings = build_step_settings(spec, CPU)
    assert settings.loss == {
        "label_smoothing": 0.1,
        "box_loss_weight": 20.0,
        "iou_loss_type": "giou",
        "iou_loss_weight": 3.0,
    }
    assert (settings.clip_norm, settings.l1_weight_decay, settings.seed) == (0, 0.25, 9)
    assert settings.amp_dtype is None


def test_an_epoch_is_the_records_unless_the_spec_says_otherwise():
    spec = spec_with(train__batch_size=4)
    assert build_epochs(spec, num_records=100, num_workers=3) == Epochs(100, 12)
    spec = spec_with(train__batch_size=4, train__num_examples_per_epoch=30)
    assert build_epochs(spec, num_records=100, num_workers=1) == Epochs(30, 4)


@pytest.mark.parametrize(
    ("num_epochs", "checkpoint", "validation", "expected"),
    [(20, 5, None, (5, 5)), (20, 5, 2, (5, 2)), (3, 10, None, (3, 3)), (3, 10, 8, (3, 8))],
)
def test_without_a_validation_interval_that_of_checkpoints_counts(
    num_epochs, checkpoint, validation, expected
):
    spec = spec_with(
        train__num_epochs=num_epochs,
        train__checkpoint_interval=checkpoint,
        train__validation_interval=validation,
        train__lr_schedule__warmup_epoch=1,
        evaluate__start_eval_epoch=2,
    )
    settings = build_loop_settings(spec, Epochs(30, 4))
    assert (settings.checkpoint_interval, settings.validation_interval) == expected
    assert (settings.num_epochs, settings.steps_per_epoch) == (num_epochs, 8)
    assert settings.start_eval_epoch == 2


def rate_of(num_workers=1, **values):
    spec = spec_with(train__num_epochs=10, train__lr_schedule__learning_rate=0.5, **values)
    return build_learning_rate(spec, steps_per_epoch=20, num_workers=num_workers)


def test_the_warm_up_lasts_its_epochs_and_the_fall_ends_with_the_run():
    rate = rate_of(train__lr_schedule__warmup_epoch=2, train__lr_schedule__warmup_init=0.1)
    assert rate(0) == 0.1
    assert rate(20) == pytest.approx(0.3)
    assert rate(40) == 0.5
    assert rate(199) < 0.001


def test_soft_annealing_starts_at_its_epoch():
    rate = rate_of(
        train__lr_schedule__name="soft_anneal",
        train__lr_schedule__warmup_epoch=1,
        train__lr_schedule__annealing_epoch=6,
    )
    assert rate(20) == rate(60) == rate(119) == 0.5
    assert rate(121) < 0.5


def test_the_rate_is_scaled_by_the_workers_on_request_only():
    values = {"train__lr_schedule__warmup_epoch": 1, "train__lr_schedule__warmup_init": 0.01}
    as_written = rate_of(num_workers=4, **values)
    scaled = rate_of(num_workers=4, ray__scale_learning_rate=True, **values)
    for step in (0, 7, 20, 100):
        assert scaled(step) == pytest.approx(4 * as_written(step))
    assert as_written(20) == 0.5


def test_augmentation_and_shuffling_take_the_spec_s_fields():
    spec = spec_with(
        dataset__augmentation__rand_hflip=False,
        dataset__augmentation__random_crop_min_scale=0.5,
        dataset__augmentation__random_crop_max_scale=1.5,
        dataset__augmentation__auto_color_distortion=True,
        dataset__loader__shuffle_file=False,
        dataset__loader__shuffle_buffer=12,
        dataset__loader__cycle_length=3,
        dataset__loader__block_length=4,
        train__random_seed=9,
    )
    assert build_augmentation(spec) == Augmentation(
        hflip=False, min_scale=0.5, max_scale=1.5, color_distortion=True, translate_xy=False
    )
    assert build_shuffle(spec) == Shuffle(9, False, 12, 3, 4)


NO_CROP = {
    "dataset.augmentation.rand_hflip": False,
    "dataset.augmentation.random_crop_min_scale": 1.0,
    "dataset.augmentation.random_crop_max_scale": 1.0,
}


def test_samples_are_padded_with_what_the_network_takes_for_zero(make_spec, records):
    for name, grey in (("efficientdet-d0", (124, 116, 104)), ("efficientdet-lite0", (128,) * 3)):
        image_3HW = torch.empty(3, 64, 96, dtype=torch.uint8)
        spec = make_spec({**NO_CROP, "model.name": name, "model.input_width": 96})
        build_sample(spec, build_architecture(spec))(("record 0", 0, records[0]), image_3HW)
        assert image_3HW[:, 0, -1].tolist() == list(grey)

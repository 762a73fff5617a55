import dataclasses

import pytest
import torch

from rayeffdet.model.efficientdet import (
    EfficientDet,
    freeze_batch_norm,
    freeze_blocks,
    normalise,
)
from rayeffdet.model.scaling import architecture_of

ARCHITECTURE = architecture_of("efficientdet-d0", num_classes=3)


def make_model(**changes: object) -> EfficientDet:
    torch.manual_seed(0)
    return EfficientDet(dataclasses.replace(ARCHITECTURE, fpn_cells=1, **changes))


@pytest.mark.parametrize(
    ("height", "width", "cells"),
    [
        (128, 128, 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2 + 1),
        (100, 150, 13 * 19 + 7 * 10 + 4 * 5 + 2 * 3 + 1 * 2),
    ],
)
def test_every_anchor_of_any_image_size_gets_logits_and_deltas(
    height: int, width: int, cells: int
) -> None:
    class_logits, box_deltas = make_model()(torch.randn(2, 3, height, width))
    assert class_logits.shape == (2, cells * 9, 3)
    assert box_deltas.shape == (2, cells * 9, 4)


def test_six_levels_and_sum_fusion_build_as_d7x_does() -> None:
    model = make_model(max_level=8, fusion="sum").eval()
    class_logits, _ = model(torch.randn(1, 3, 128, 128))
    assert class_logits.shape[1] == (16 * 16 + 8 * 8 + 4 * 4 + 2 * 2 + 1 + 1) * 9


def test_untrained_scores_are_near_one_percent() -> None:
    class_logits, _ = make_model()(torch.randn(2, 3, 128, 128))
    assert class_logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.2)


def test_memory_layout_does_not_change_the_result() -> None:
    model = make_model().double().eval()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    plain = model(images)
    last = model.to(memory_format=torch.channels_last)(
        images.contiguous(memory_format=torch.channels_last)
    )
    for a, b in zip(plain, last, strict=True):
        torch.testing.assert_close(a, b)


def test_heads_of_unequal_widths_build_as_a_pruned_network_needs() -> None:
    model = make_model(class_head_channels=(24, 16), box_head_channels=(8,)).eval()
    assert model(torch.randn(1, 3, 64, 64))[0].shape[-1] == 3


def test_every_parameter_gets_a_gradient() -> None:
    model = make_model()
    class_logits, box_deltas = model(torch.randn(2, 3, 64, 64))
    (class_logits.square().sum() + box_deltas.square().sum()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []


def test_every_batch_norm_is_the_published_one() -> None:
    norms = [m for m in make_model().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def test_one_export_serves_every_batch_size() -> None:
    model = make_model().eval()
    images = torch.randn(2, 3, 64, 64)
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(model, (images,), dynamic_shapes=(batch,)).module()
    images = torch.randn(3, 3, 64, 64)
    for ours, expected in zip(exported(images), model(images), strict=True):
        torch.testing.assert_close(ours, expected)


def test_normalise_is_imagenets_and_keeps_channels_last() -> None:
    images = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    images[1] = torch.tensor([255, 128, 0])[:, None, None]
    result = normalise(images, ARCHITECTURE)
    assert result.shape == (2, 3, 4, 6)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = [(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, -0.406 / 0.225]
    torch.testing.assert_close(result[1, :, 3, 5], torch.tensor(expected))


def test_lite_networks_take_images_from_minus_one_to_one() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = normalise(images, architecture_of("efficientdet-lite0", num_classes=1))
    torch.testing.assert_close(result.flatten(), torch.tensor([-1.0, -0.6, 1.0]))


def test_normalise_leaves_float_images_untouched() -> None:
    images = torch.full((1, 3, 2, 2), 9.0)
    normalise(images, ARCHITECTURE)
    assert images.eq(9).all()


def test_frozen_batch_norm_survives_train_and_spares_neck_and_heads() -> None:
    model = make_model()
    freeze_batch_norm(model)
    model.eval()
    model.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(2, 3, 64, 64) + 3)
    changed = {
        name.split(".")[0]
        for name, value in model.named_buffers()
        if "running" in name and not torch.equal(value, before[name])
    }
    assert changed == {"neck", "class_head", "box_head"}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name for name, _ in model.backbone.named_parameters(prefix="backbone") if ".norm." in name
    }


def test_frozen_blocks_keep_their_convolutions_and_train_their_norms() -> None:
    model = make_model()
    freeze_blocks(model, [0, 2])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.rsplit(".", 2)[0] for name in frozen} == {
        "backbone.stem",
        *(
            f"backbone.blocks.{index}.{part}"
            for index in (1, 2)
            for part in ("expand", "depthwise", "squeeze_excite", "project")
        ),
    }
    assert not any(".norm." in name for name in frozen)
    assert "backbone.blocks.1.squeeze_excite.reduce.bias" in frozen


def test_freezing_no_blocks_freezes_nothing() -> None:
    model = make_model()
    freeze_blocks(model, [])
    assert all(parameter.requires_grad for parameter in model.parameters())

import dataclasses

import torch

from rayeffdet.model.efficientnet import EfficientNet
from rayeffdet.model.scaling import BlockWidths, architecture_of


def tiny_blocks() -> tuple[BlockWidths, ...]:
    """All seven stages at width 8, two blocks in the last."""
    plan = [(1, 1), (2, 2), (3, 2), (4, 2), (5, 1), (6, 2), (7, 1), (7, 1)]
    return tuple(
        BlockWidths(
            kernel=3,
            stride=stride,
            in_channels=8,
            expand_channels=8 if stage == 1 else 16,
            se_channels=2,
            out_channels=8,
            stage=stage,
        )
        for stage, stride in plan
    )


def test_features_have_strides_8_16_and_32() -> None:
    features = EfficientNet(8, tiny_blocks())(torch.randn(1, 3, 100, 161))
    assert [tuple(maps.shape[-2:]) for maps in features] == [(13, 21), (7, 11), (4, 6)]


def test_only_repeated_blocks_have_a_residual_even_at_equal_widths() -> None:
    backbone = EfficientNet(8, tiny_blocks())
    assert [block.residual for block in backbone.blocks] == [False] * 7 + [True]


def test_p5_is_taken_after_the_last_residual_addition() -> None:
    backbone = EfficientNet(8, tiny_blocks()).eval()
    last = backbone.blocks[-1]
    images = torch.randn(1, 3, 64, 64)
    p5 = backbone(images)[-1]
    last.residual = False
    branch = backbone(images)[-1]
    last.residual = True
    entered: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0]))
    backbone(images)
    torch.testing.assert_close(p5, branch + entered[0])


def test_drop_rate_grows_with_depth_from_zero() -> None:
    architecture = architecture_of("efficientdet-d1", num_classes=1)
    with torch.device("meta"):
        backbone = EfficientNet(architecture.stem_channels, architecture.blocks, drop_connect=0.2)
    rates = [block.drop_rate for block in backbone.blocks]
    assert rates[0] == 0
    assert rates == sorted(rates)
    assert rates[-1] == 0.2 * 22 / 23


def test_a_pruned_width_rebuilds() -> None:
    blocks = list(tiny_blocks())
    blocks[1] = dataclasses.replace(blocks[1], expand_channels=8, se_channels=1)
    backbone = EfficientNet(8, blocks)
    assert backbone.blocks[1].expand.conv.weight.shape == (8, 8, 1, 1)
    backbone(torch.randn(2, 3, 32, 32))


def test_kernels_start_with_the_authors_variance() -> None:
    torch.manual_seed(0)
    architecture = architecture_of("efficientdet-d0", num_classes=1)
    block = EfficientNet(architecture.stem_channels, architecture.blocks).blocks[-1]
    depthwise, project = block.depthwise.conv.weight, block.project.conv.weight
    torch.testing.assert_close(depthwise.std().item(), (2 / 9) ** 0.5, rtol=0.03, atol=0)
    torch.testing.assert_close(project.std().item(), (2 / 320) ** 0.5, rtol=0.03, atol=0)

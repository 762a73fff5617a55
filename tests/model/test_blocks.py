import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from rayeffdet.model.blocks import MBConv, SameConv2d, drop_connect, max_pool_same
from rayeffdet.model.scaling import BlockWidths

sizes = st.integers(1, 17)


def padded_like_tensorflow(
    maps: torch.Tensor, *, kernel: int, stride: int, value: float
) -> torch.Tensor:
    """The rule as TensorFlow documents it, written out for one axis at a time."""
    pads: list[int] = []
    for size in (maps.shape[-1], maps.shape[-2]):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(maps, pads, value=value)


@settings(max_examples=60, deadline=None)
@given(h=sizes, w=sizes, kernel=st.sampled_from([1, 3, 5]), stride=st.sampled_from([1, 2]))
def test_convolution_pads_like_tensorflow(h: int, w: int, kernel: int, stride: int) -> None:
    conv = SameConv2d(2, 3, kernel, stride=stride).double()
    maps = torch.randn(1, 2, h, w, dtype=torch.float64)
    padded = padded_like_tensorflow(maps, kernel=kernel, stride=stride, value=0)
    expected = functional.conv2d(padded, conv.weight, stride=stride)
    torch.testing.assert_close(conv(maps), expected)


@settings(max_examples=60, deadline=None)
@given(h=sizes, w=sizes)
def test_max_pool_pads_like_tensorflow(h: int, w: int) -> None:
    maps = torch.randn(1, 2, h, w)
    padded = padded_like_tensorflow(maps, kernel=3, stride=2, value=-torch.inf)
    assert torch.equal(max_pool_same(maps), functional.max_pool2d(padded, 3, stride=2))


def test_even_stride_2_convolution_starts_at_the_first_cell() -> None:
    conv = SameConv2d(1, 1, 3, stride=2)
    torch.nn.init.ones_(conv.weight)
    sums = conv(torch.arange(16.0).view(1, 1, 4, 4))
    assert sums[0, 0, 0, 0] == 0 + 1 + 2 + 4 + 5 + 6 + 8 + 9 + 10


def widths(*, stage: int, se_channels: int = 1) -> BlockWidths:
    expanded = 4 if stage == 1 else 24
    return BlockWidths(
        kernel=3,
        stride=1,
        in_channels=4,
        expand_channels=expanded,
        se_channels=se_channels,
        out_channels=4,
        stage=stage,
    )


def test_only_the_first_stage_does_not_expand_even_at_equal_widths() -> None:
    assert MBConv(widths(stage=1), residual=True, drop_rate=0).expand is None
    assert MBConv(widths(stage=2), residual=True, drop_rate=0).expand is not None


def test_a_block_without_squeeze_channels_has_no_tensors_for_them() -> None:
    block = MBConv(widths(stage=2, se_channels=0), residual=True, drop_rate=0)
    assert not any(name.startswith("squeeze_excite") for name in block.state_dict())
    block(torch.randn(2, 4, 5, 5))


def test_relu6_bounds_what_enters_the_projection() -> None:
    block = MBConv(
        widths(stage=2, se_channels=0), residual=True, drop_rate=0, activation="relu6"
    ).eval()
    entered: list[torch.Tensor] = []
    for layer in (block.depthwise, block.project):
        layer.register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0]))
    block(torch.randn(2, 4, 9, 9) * 1e3)
    assert [(maps.min().item(), maps.max().item()) for maps in entered] == [(0, 6), (0, 6)]


def test_residual_is_added_only_when_asked_for() -> None:
    with_input = MBConv(widths(stage=2), residual=True, drop_rate=0).eval()
    without = MBConv(widths(stage=2), residual=False, drop_rate=0).eval()
    without.load_state_dict(with_input.state_dict())
    maps = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(with_input(maps), without(maps) + maps)


def test_drop_connect_zeroes_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = drop_connect(torch.ones(4000, 2, 1, 1), rate=0.25)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)


def test_drop_connect_is_off_in_evaluation() -> None:
    block = MBConv(widths(stage=2), residual=True, drop_rate=0.9).eval()
    maps = torch.randn(8, 4, 3, 3)
    assert torch.equal(block(maps), block(maps))

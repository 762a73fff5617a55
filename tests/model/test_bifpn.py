import pytest
import torch

from rayeffdet.model.bifpn import BiFPN, FusionNode, node_graph


def test_nodes_of_five_levels_are_the_papers() -> None:
    inputs = [(node.level + 3, (*node.own, node.neighbour)) for node in node_graph(5)]
    assert inputs == [
        (6, (3, 4)),
        (5, (2, 5)),
        (4, (1, 6)),
        (3, (0, 7)),
        (4, (1, 7, 8)),
        (5, (2, 6, 9)),
        (6, (3, 5, 10)),
        (7, (4, 11)),
    ]


def test_six_levels_have_ten_nodes() -> None:
    assert len(node_graph(6)) == 10


def make_node(*, top_down: bool) -> FusionNode:
    return FusionNode(4, num_inputs=2, top_down=top_down, fusion="fastattn", lateral_channels=None)


def test_negative_fusion_weight_cuts_its_input_off() -> None:
    node = make_node(top_down=True).eval()
    with torch.no_grad():
        node.weights.copy_(torch.tensor([1.0, -0.5]))
    own, coarse = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 3, 3)
    assert torch.equal(node([own], coarse), node([own], coarse + 1))
    assert not torch.equal(node([own], coarse), node([own + 1], coarse))


@pytest.mark.parametrize("top_down", [True, False])
def test_fast_attention_is_the_normalised_sum(top_down: bool) -> None:
    node = make_node(top_down=top_down)
    with torch.no_grad():
        node.weights.copy_(torch.tensor([0.5, 1.5]))
    own = torch.randn(2, 4, 5, 5)
    other = torch.full((2, 4, 3, 3) if top_down else (2, 4, 9, 9), 7.0)
    fused = node._fuse([own], other)
    torch.testing.assert_close(fused, (0.5 * own + 1.5 * 7.0) / (2 + 1e-4))


def test_plain_sum_has_no_weights() -> None:
    node = FusionNode(4, num_inputs=3, top_down=False, fusion="sum", lateral_channels=None)
    assert node.weights is None
    own = [torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)]
    fused = node._fuse(own, torch.full((1, 4, 8, 8), 2.0))
    torch.testing.assert_close(fused, own[0] + own[1] + 2.0)


@pytest.mark.parametrize(("h", "w"), [(38, 53), (9, 16), (4, 4)])
def test_levels_halve_rounding_up_for_any_size(h: int, w: int) -> None:
    neck = BiFPN((3, 5, 7), channels=8, num_cells=2, num_levels=6, fusion="fastattn")
    sizes = [(h, w)]
    for _ in range(5):
        sizes.append(tuple((n - 1) // 2 + 1 for n in sizes[-1]))
    features = [torch.randn(2, c, *size) for c, size in zip((3, 5, 7), sizes, strict=False)]
    assert [tuple(maps.shape) for maps in neck(features)] == [(2, 8, *size) for size in sizes]


def test_laterals_exist_even_when_a_pruned_backbone_has_the_pyramids_width() -> None:
    neck = BiFPN((8, 8, 8), channels=8, num_cells=2, num_levels=5, fusion="fastattn")
    laterals = [node.lateral is not None for node in neck.cells[0].nodes]
    assert laterals == [False, True, True, True, True, True, False, False]
    assert all(node.lateral is None for node in neck.cells[1].nodes)

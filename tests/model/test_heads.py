import torch

from rayeffdet.model.heads import PredictionHead


def make_head(**changes: object) -> PredictionHead:
    arguments = {"num_levels": 2, "num_anchors": 3, "num_outputs": 5} | changes
    return PredictionHead(8, (8, 6), **arguments)  # type: ignore[arg-type]


def test_rows_are_ordered_by_level_row_column_and_anchor() -> None:
    head = make_head().eval()
    seen: list[torch.Tensor] = []
    head.predict.register_forward_hook(lambda _module, _inputs, maps: seen.append(maps))
    rows = head([torch.randn(2, 8, 3, 4), torch.randn(2, 8, 2, 2)])
    assert rows.shape == (2, (3 * 4 + 2 * 2) * 3, 5)
    row, column, anchor, output = 2, 1, 1, 4
    first_level_index = (row * 4 + column) * 3 + anchor
    channel = anchor * 5 + output
    assert torch.equal(rows[:, first_level_index, output], seen[0][:, channel, row, column])
    assert torch.equal(rows[:, 3 * 4 * 3 + 2, 0], seen[1][:, 2 * 5, 0, 0])


def test_convolutions_are_shared_and_norms_are_not() -> None:
    head = make_head().train()
    maps = torch.randn(2, 8, 3, 3)
    head([maps, maps + 5])
    for norms in head.norms:
        assert not torch.equal(norms[0].running_mean, norms[1].running_mean)
    shared = sum(p.numel() for conv in head.convs for p in conv.parameters())
    assert shared == (8 * 9 + 8 * 8 + 8) + (8 * 9 + 8 * 6 + 6)


def test_bias_starts_where_it_is_told() -> None:
    assert make_head(bias=-4.0).predict.pointwise.bias.eq(-4).all()
    assert make_head().predict.pointwise.bias.eq(0).all()

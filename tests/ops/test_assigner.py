import math

import pytest
import torch

from rayeffdet.ops import assigner
from rayeffdet.ops.anchors import make_anchors
from rayeffdet.ops.assigner import BACKGROUND, assign_targets

ANCHORS = make_anchors(height=96, width=128)
INSIDE_AN_ANCHOR = [16.0, 16.0, 48.0, 48.0]  # a 32 px square: IoU about 1 with several anchors


def iou_by_formula(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union


def code_by_formula(box, anchor):
    (height, width), (anchor_height, anchor_width) = (
        (b[3] - b[1], b[2] - b[0]) for b in (box, anchor)
    )
    return [
        ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / anchor_height,
        ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / anchor_width,
        math.log(height / anchor_height),
        math.log(width / anchor_width),
    ]


def assign_by_loop(anchors, boxes, labels):
    """The rules of the reference, one anchor and one truth at a time.

    In float32 like the code under test, because a small truth overlaps several anchors of one size
    equally but for rounding.
    """
    truths = [g for g, label in enumerate(labels) if label >= 0]
    overlaps = {g: [iou_by_formula(boxes[g], anchor) for anchor in anchors] for g in truths}
    matched = [None] * len(anchors)
    for n in range(len(anchors)):
        best = max(truths, key=lambda g: overlaps[g][n], default=None)
        if best is not None and overlaps[best][n] >= 0.5:
            matched[n] = best
    for g in reversed(truths):  # backwards, so that the lower index has the last word
        highest = max(overlaps[g])
        if highest > 0:
            matched[overlaps[g].index(highest)] = g
    ids = [BACKGROUND if g is None else labels[g] for g in matched]
    codes = [
        [0.0] * 4 if g is None else code_by_formula(boxes[g], anchors[n])
        for n, g in enumerate(matched)
    ]
    return ids, codes


def assign_one(boxes, labels):
    targets = assign_targets(
        ANCHORS, torch.tensor([boxes]).reshape(1, -1, 4), torch.tensor([labels])
    )
    return targets.class_ids_BN[0], targets.box_deltas_BN4[0], int(targets.num_positives_B[0])


def random_scene(seed, num_rows=6):
    """Boxes of 2 to 90 px with a random number of padding rows, somewhere, holding nonsense."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(num_rows, 2, generator=generator) * torch.tensor([128.0, 96.0])
    halves = 1 + 44 * torch.rand(num_rows, 2, generator=generator) ** 2
    labels = torch.randint(-2, 5, (num_rows,), generator=generator).clamp(min=-1)
    boxes = torch.cat([centres - halves, centres + halves], dim=1)
    return torch.where(labels[:, None] >= 0, boxes, torch.nan), labels


@pytest.mark.parametrize("first_seed", range(0, 24, 4))
def test_assignment_equals_a_loop_over_anchors_and_truths(first_seed):
    scenes = [random_scene(seed) for seed in range(first_seed, first_seed + 4)]
    boxes_BG4, labels_BG = map(torch.stack, zip(*scenes, strict=True))
    targets = assign_targets(ANCHORS, boxes_BG4, labels_BG)
    for image, (boxes, labels) in enumerate(scenes):
        ids, codes = assign_by_loop(list(ANCHORS.numpy()), list(boxes.numpy()), labels.tolist())
        assert targets.class_ids_BN[image].tolist() == ids
        torch.testing.assert_close(
            targets.box_deltas_BN4[image], torch.tensor(codes), rtol=1e-5, atol=1e-5
        )
        assert targets.num_positives_B[image] == sum(label >= 0 for label in ids)


def test_types_are_those_that_the_losses_expect():
    targets = assign_targets(ANCHORS, torch.zeros(2, 3, 4), torch.full((2, 3), -1))
    assert targets.class_ids_BN.dtype == torch.int64
    assert targets.box_deltas_BN4.dtype == torch.float32
    assert targets.num_positives_B.dtype == torch.float32
    assert targets.class_ids_BN.shape == (2, len(ANCHORS))


@pytest.mark.parametrize("num_rows", [0, 1, 4])
def test_an_image_without_truths_is_all_background(num_rows):
    ids, deltas, num_positives = assign_one([[0.0] * 4] * num_rows, [-1] * num_rows)
    assert num_positives == 0
    assert (ids == BACKGROUND).all()
    assert (deltas == 0).all()


def test_of_two_identical_truths_the_first_gets_everything():
    ids, _, num_positives = assign_one([INSIDE_AN_ANCHOR, INSIDE_AN_ANCHOR], [3, 1])
    assert set(ids.tolist()) == {BACKGROUND, 3}
    assert num_positives > 1


def test_a_truth_too_small_for_any_anchor_still_gets_exactly_one():
    ids, deltas, num_positives = assign_one([[50.0, 50.0, 52.0, 53.0]], [2])
    assert num_positives == 1
    anchor = int((ids == 2).nonzero())
    expected = code_by_formula([50.0, 50.0, 52.0, 53.0], ANCHORS[anchor].tolist())
    torch.testing.assert_close(deltas[anchor], torch.tensor(expected))


def test_a_forced_match_overrules_a_better_overlap_with_an_earlier_truth():
    anchors = torch.tensor([[0.0, 0, 32, 32], [0, 0, 32, 31]])
    large, tiny = [0.0, 0, 32, 31.4], [10.0, 31, 12, 32]  # the tiny one overlaps anchor 0 alone
    alone = assign_targets(anchors, torch.tensor([[large]]), torch.tensor([[0]]))
    assert alone.class_ids_BN.tolist() == [[0, 0]]
    both = assign_targets(anchors, torch.tensor([[large, tiny]]), torch.tensor([[0, 1]]))
    assert both.class_ids_BN.tolist() == [[1, 0]]


def test_a_contested_anchor_goes_to_the_first_of_the_forced_truths():
    tiny, tinier = [31.0, 31.0, 33.0, 33.0], [31.5, 31.5, 32.5, 32.5]
    assert set(assign_one([tiny, tinier], [1, 4])[0].tolist()) == {BACKGROUND, 1}
    assert set(assign_one([tinier, tiny], [4, 1])[0].tolist()) == {BACKGROUND, 4}


@pytest.mark.parametrize("box", [[900.0, 900.0, 950.0, 950.0], [40.0, 40.0, 40.0, 60.0]])
def test_a_truth_that_overlaps_no_anchor_stays_unmatched(box):
    ids, deltas, num_positives = assign_one([box], [0])
    assert num_positives == 0
    assert (ids == BACKGROUND).all()
    assert (deltas == 0).all()


def test_an_iou_of_exactly_one_half_is_positive():
    anchors = torch.tensor([[0.0, 0, 10, 20], [0, 0, 10, 10], [0, 0, 10, 9.99]])
    truth = anchors[:1]
    targets = assign_targets(anchors, truth[None], torch.tensor([[2]]))
    assert targets.class_ids_BN.tolist() == [[2, 2, BACKGROUND]]


def test_images_do_not_depend_on_their_batch_or_on_the_memory_bound(monkeypatch):
    scenes = [random_scene(seed) for seed in range(5)]
    boxes_BG4, labels_BG = map(torch.stack, zip(*scenes, strict=True))
    whole = assign_targets(ANCHORS, boxes_BG4, labels_BG)
    monkeypatch.setattr(assigner, "_CPU_CELLS", 2 * 6 * len(ANCHORS))
    for part, expected in zip(assign_targets(ANCHORS, boxes_BG4, labels_BG), whole, strict=True):
        assert torch.equal(part, expected)
    alone = assign_targets(ANCHORS, boxes_BG4[3:4], labels_BG[3:4])
    for part, expected in zip(alone, whole, strict=True):
        assert torch.equal(part[0], expected[3])


def test_nothing_waits_for_the_device():
    # Tensors of the meta device have no values: reading one back, as a sync does, is an error.
    boxes, labels = torch.zeros(3, 7, 4), torch.zeros(3, 7, dtype=torch.int64)
    targets = assign_targets(*(tensor.to("meta") for tensor in (ANCHORS, boxes, labels)))
    assert targets.box_deltas_BN4.shape == (3, len(ANCHORS), 4)


def test_inputs_are_left_alone():
    boxes, labels = torch.tensor([[INSIDE_AN_ANCHOR, [9.0] * 4]]), torch.tensor([[2, -1]])
    before = boxes.clone()
    assign_targets(ANCHORS, boxes, labels)
    assert torch.equal(boxes, before)
    assert labels.tolist() == [[2, -1]]

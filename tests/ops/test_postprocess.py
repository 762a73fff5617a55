import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms, box_iou

from rayeffdet.ops.anchors import make_anchors
from rayeffdet.ops.box_coder import decode_boxes, encode_boxes
from rayeffdet.ops.postprocess import _best_pairs, postprocess

ANCHORS = make_anchors(height=64, width=64)
NUM_CLASSES = 3
NEVER = -20.0  # the logit of a class that is not there


def random_outputs(seed, *, images=2):
    """Outputs of a network whose boxes overlap a lot, as those of a trained one do."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, len(ANCHORS), NUM_CLASSES, generator=generator) - 2
    return logits, 0.3 * torch.randn(images, len(ANCHORS), 4, generator=generator)


def whole_images(images=2, *, scale=1.0, height=64.0, width=64.0):
    return {
        "scales_B": torch.full((images,), scale),
        "sizes_B2": torch.tensor([[height, width]]).repeat(images, 1),
    }


def candidates_by_definition(logits_NK, deltas_N4, *, scale, height, width, limit):
    """Boxes, scores and labels of the best pairs: a plain top-k, decoded, scaled and clipped."""
    logits, pairs = logits_NK.flatten().topk(min(limit, logits_NK.numel()))
    anchors, labels = pairs // NUM_CLASSES, pairs % NUM_CLASSES
    boxes = decode_boxes(deltas_N4[anchors], ANCHORS[anchors]) * scale
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
    real = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero()[:, 0]
    return boxes[real], logits.sigmoid()[real], labels[real]


def soft_nms_by_loop(boxes, scores, labels, *, sigma, lowest):
    """Bodla et al. 2017 as written: class by class, one box at a time."""
    result = []
    for label in labels.unique().tolist():
        rest = [[s, box] for s, box, c in zip(scores, boxes, labels, strict=True) if c == label]
        while rest:
            best = max(rest, key=lambda entry: entry[0])
            rest = [entry for entry in rest if entry is not best]
            result.append((best[0].item(), label, best[1]))
            for entry in rest:
                iou = box_iou(best[1][None], entry[1][None]).item()
                entry[0] = entry[0] * math.exp(-(iou**2) / sigma)
            rest = [entry for entry in rest if entry[0] >= lowest]
    return sorted(result, key=lambda row: -row[0])


def put_box(logits, deltas, *, anchor, box, label, logit, image=0):
    logits[image, anchor, label] = logit
    deltas[image, anchor] = encode_boxes(torch.tensor(box), ANCHORS[anchor])


def empty_outputs(images=1):
    logits = torch.full((images, len(ANCHORS), NUM_CLASSES), NEVER)
    return logits, torch.zeros(images, len(ANCHORS), 4)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    limit=st.integers(1, 80),
    anchors=st.integers(1, 30),
    ties=st.booleans(),
)
def test_two_stage_selection_equals_a_top_k_over_all_pairs(seed, limit, anchors, ties):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, anchors, 4, generator=generator)
    if ties:
        logits = logits.round()
    values, anchor, label = _best_pairs(logits, limit)
    expected = logits.flatten(1).topk(min(limit, anchors * 4)).values
    assert torch.equal(values, expected)
    for image in range(2):
        pairs = list(zip(anchor[image].tolist(), label[image].tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
        assert [logits[image, a, k].item() for a, k in pairs] == values[image].tolist()
        keyed = [(-v, pair) for v, pair in zip(values[image].tolist(), pairs, strict=True)]
        assert keyed == sorted(keyed)


@pytest.mark.parametrize("limit", [50, 400, 5000])
@pytest.mark.parametrize("max_detections", [1, 10, 100, 1000])
def test_hard_nms_equals_torchvision_per_class(limit, max_detections):
    logits, deltas = random_outputs(limit)
    frame = {"scale": 1.5, "height": 90.0, "width": 80.0}
    result = postprocess(
        logits,
        deltas,
        ANCHORS,
        **whole_images(**frame),
        max_nms_inputs=limit,
        max_detections=max_detections,
    )
    for image in range(2):
        boxes, scores, labels = candidates_by_definition(
            logits[image], deltas[image], limit=limit, **frame
        )
        keep = batched_nms(boxes, scores, labels, 0.5)[:max_detections]
        n = int(result.num_B[image])
        assert n == len(keep)
        torch.testing.assert_close(result.boxes_xyxy_BD4[image, :n], boxes[keep])
        torch.testing.assert_close(result.scores_BD[image, :n], scores[keep])
        assert torch.equal(result.labels_BD[image, :n], labels[keep])


@pytest.mark.parametrize("sigma", [0.2, 0.5])
def test_soft_nms_equals_a_loop(sigma):
    logits, deltas = random_outputs(1)
    result = postprocess(
        logits,
        deltas,
        ANCHORS,
        **whole_images(),
        max_nms_inputs=60,
        max_detections=70,
        nms="soft",
        sigma=sigma,
    )
    for image in range(2):
        candidates = candidates_by_definition(
            logits[image], deltas[image], scale=1.0, height=64, width=64, limit=60
        )
        expected = soft_nms_by_loop(*candidates, sigma=sigma, lowest=0.001)
        n = int(result.num_B[image])
        assert n == len(expected)
        torch.testing.assert_close(
            result.scores_BD[image, :n], torch.tensor([row[0] for row in expected])
        )
        assert result.labels_BD[image, :n].tolist() == [row[1] for row in expected]
        boxes = torch.stack([row[2] for row in expected])
        torch.testing.assert_close(result.boxes_xyxy_BD4[image, :n], boxes)


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_detections_are_sorted_padded_and_inside_the_image(nms):
    logits, deltas = random_outputs(2)
    result = postprocess(
        logits, deltas * 5, ANCHORS, **whole_images(height=40.0, width=70.0), nms=nms
    )
    assert result.boxes_xyxy_BD4.shape == (2, 100, 4)
    assert (result.scores_BD.diff(dim=1) <= 0).all()
    for image, n in enumerate(result.num_B.tolist()):
        assert 0 < n <= 100
        x1, y1, x2, y2 = result.boxes_xyxy_BD4[image, :n].unbind(1)
        assert ((x1 >= 0) & (x1 < x2) & (x2 <= 70)).all()
        assert ((y1 >= 0) & (y1 < y2) & (y2 <= 40)).all()
        assert (result.boxes_xyxy_BD4[image, n:] == 0).all()
        assert (result.scores_BD[image, n:] == 0).all()
        assert (result.labels_BD[image, n:] == -1).all()


def test_detections_behind_a_crowd_of_duplicates_are_found():
    logits, deltas = empty_outputs()
    for anchor in range(300):
        put_box(logits, deltas, anchor=anchor, box=[10.0, 10, 30, 30], label=0, logit=3.0)
    for anchor, x in ((400, 40.0), (500, 50.0)):
        put_box(logits, deltas, anchor=anchor, box=[x, x, x + 5, x + 5], label=0, logit=2.0)
    result = postprocess(
        logits, deltas, ANCHORS, **whole_images(1), max_detections=3, min_score=0.5
    )
    torch.testing.assert_close(
        result.boxes_xyxy_BD4[0, :, 0], torch.tensor([10.0, 40.0, 50.0]), rtol=0, atol=1e-4
    )


def test_boxes_come_back_in_original_pixels():
    logits, deltas = empty_outputs()
    put_box(logits, deltas, anchor=300, box=[10.0, 12, 30, 40], label=2, logit=3.0)
    result = postprocess(
        logits,
        deltas,
        ANCHORS,
        **whole_images(1, scale=2.5, height=100.0, width=160.0),
        min_score=0.5,
    )
    assert result.num_B.tolist() == [1]
    assert result.labels_BD[0, 0] == 2
    assert result.scores_BD[0, 0].item() == pytest.approx(1 / (1 + math.exp(-3)))
    torch.testing.assert_close(
        result.boxes_xyxy_BD4[0, 0], torch.tensor([25.0, 30, 75, 100]), rtol=1e-5, atol=1e-4
    )


def test_boxes_are_clipped_before_nms():
    logits, deltas = empty_outputs()
    # Apart in the padding right of x = 20, the same in the image.
    put_box(logits, deltas, anchor=300, box=[10.0, 10, 30, 30], label=0, logit=3.0)
    put_box(logits, deltas, anchor=301, box=[10.0, 10, 60, 30], label=0, logit=2.0)
    inside = postprocess(logits, deltas, ANCHORS, **whole_images(1, width=20.0), min_score=0.5)
    assert inside.num_B.tolist() == [1]
    outside = postprocess(logits, deltas, ANCHORS, **whole_images(1), min_score=0.5)
    assert outside.num_B.tolist() == [2]


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_a_box_that_lies_in_the_padding_is_no_detection(nms):
    logits, deltas = empty_outputs()
    put_box(logits, deltas, anchor=300, box=[30.0, 10, 40, 30], label=0, logit=3.0)
    result = postprocess(
        logits, deltas, ANCHORS, **whole_images(1, width=20.0), min_score=0.5, nms=nms
    )
    assert result.num_B.tolist() == [0]


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_classes_do_not_suppress_each_other(nms):
    logits, deltas = empty_outputs()
    box = [10.0, 10, 30, 30]
    put_box(logits, deltas, anchor=300, box=box, label=0, logit=3.0)
    put_box(logits, deltas, anchor=300, box=box, label=1, logit=2.0)
    put_box(logits, deltas, anchor=301, box=box, label=0, logit=1.0)
    result = postprocess(logits, deltas, ANCHORS, **whole_images(1), min_score=0.5, nms=nms)
    assert result.labels_BD[0, :2].tolist() == [0, 1]
    assert result.num_B.tolist() == [2]


def test_images_do_not_suppress_each_other_and_keep_their_own_frame():
    logits, deltas = empty_outputs(2)
    for image in range(2):
        put_box(logits, deltas, anchor=300, box=[10.0, 10, 30, 30], label=0, logit=3.0, image=image)
    result = postprocess(
        logits,
        deltas,
        ANCHORS,
        scales_B=torch.tensor([1.0, 2.0]),
        sizes_B2=torch.tensor([[64, 64], [128, 50]]),
        min_score=0.5,
    )
    assert result.num_B.tolist() == [1, 1]
    expected = torch.tensor([[10.0, 10, 30, 30], [20, 20, 50, 60]])
    torch.testing.assert_close(result.boxes_xyxy_BD4[:, 0], expected, rtol=1e-5, atol=1e-4)


def test_equal_scores_come_in_the_order_of_the_anchors():
    logits, deltas = empty_outputs()
    for anchor in (400, 90, 250):
        x = anchor / 10
        put_box(logits, deltas, anchor=anchor, box=[x, x, x + 4, x + 4], label=1, logit=2.0)
    result = postprocess(logits, deltas, ANCHORS, **whole_images(1), min_score=0.5)
    assert result.num_B.tolist() == [3]
    torch.testing.assert_close(
        result.boxes_xyxy_BD4[0, :3, 0], torch.tensor([9.0, 25.0, 40.0]), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_infinite_boxes_fill_the_image_and_nan_boxes_are_dropped(nms):
    logits, deltas = empty_outputs()
    logits[0, 300, 0], logits[0, 301, 1] = 3.0, 2.0
    deltas[0, 300] = torch.tensor([0.0, 0.0, 1e3, 1e3])
    deltas[0, 301] = torch.nan
    result = postprocess(logits, deltas, ANCHORS, **whole_images(1), min_score=0.5, nms=nms)
    assert result.num_B.tolist() == [1]
    assert result.boxes_xyxy_BD4[0, 0].tolist() == [0, 0, 64, 64]


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_half_precision_outputs_give_float32_detections(nms):
    logits, deltas = random_outputs(3)
    result = postprocess(logits.bfloat16(), deltas.bfloat16(), ANCHORS, **whole_images(), nms=nms)
    assert result.boxes_xyxy_BD4.dtype == torch.float32
    assert result.scores_BD.dtype == torch.float32
    assert result.labels_BD.dtype == torch.int64

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from rayeffdet.data.example import Example
from rayeffdet.data.loader import evaluation_sample, load_batches
from rayeffdet.evaluate.build import build_postprocess
from rayeffdet.evaluate.detect import PostprocessSettings, detect
from rayeffdet.model.scaling import architecture_of
from rayeffdet.ops.anchors import make_anchors
from rayeffdet.ops.assigner import assign_targets
from rayeffdet.spec.load import with_values
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import padding_rgb

SIZE_HW = (64, 96)
ANCHORS_N4 = make_anchors(height=64, width=96)
NUM_CLASSES = 3
ARCHITECTURE = architecture_of("efficientdet-d0", num_classes=NUM_CLASSES)
# Original width and height, objects (xyxy in original pixels, category id).
PICTURES = [
    ((96, 64), [((8, 8, 40, 40), 1), ((50, 20, 90, 60), 3)]),
    ((192, 64), [((20, 4, 90, 60), 2)]),
    ((40, 200), [((4, 30, 36, 120), 2)]),
    ((300, 200), []),
    ((48, 32), [((2, 2, 30, 30), 1)]),
]


def example(number):
    (width, height), objects = PICTURES[number]
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 20, 200)).save(buffer, "PNG")
    labels = np.array([label for _, label in objects], np.int64)
    return Example(
        source_id=f"picture {number}",
        filename="",
        encoded=buffer.getvalue(),
        format="png",
        height=height,
        width=width,
        boxes_xyxy=np.array([box for box, _ in objects], np.float32).reshape(-1, 4),
        labels=labels,
        class_names=tuple(map(str, labels)),
        is_crowd=np.zeros(len(labels), bool),
        areas=np.ones(len(labels), np.float32),
    )


def batches(numbers, *, batch_size=2):
    rows = [("", number, example(number)) for number in numbers]
    return load_batches(
        (rows[start : start + batch_size] for start in range(0, len(rows), batch_size)),
        partial(evaluation_sample, padding_rgb=padding_rgb(ARCHITECTURE)),
        size_hw=SIZE_HW,
        max_instances=1,
        num_threads=1,
        prefetch=0,
    )


class AnswerKey(torch.nn.Module):
    """A network that knows the objects of the pictures it is shown, in this order."""

    def __init__(self, numbers, *, logit=6.0):
        super().__init__()
        self.architecture = ARCHITECTURE
        self._numbers = iter(numbers)
        self._logit = logit
        self.inputs = []

    def forward(self, images_B3HW):
        self.inputs.append(images_B3HW)
        answers = [self._answer(next(self._numbers)) for _ in images_B3HW]
        return tuple(map(torch.cat, zip(*answers, strict=True)))

    def _answer(self, number):
        (width, height), objects = PICTURES[number]
        zoom = min(SIZE_HW[1] / width, SIZE_HW[0] / height)
        boxes_1G4 = torch.tensor([[box for box, _ in objects]]).reshape(1, -1, 4) * zoom
        labels_1G = torch.tensor([[label - 1 for _, label in objects]], dtype=torch.int64)
        targets = assign_targets(ANCHORS_N4, boxes_1G4, labels_1G)
        logits_1NK = torch.full((1, len(ANCHORS_N4), NUM_CLASSES), -20.0)
        for n in (targets.class_ids_BN[0] >= 0).nonzero()[:, 0]:
            logits_1NK[0, n, targets.class_ids_BN[0, n]] = self._logit
        return logits_1NK, targets.box_deltas_BN4


def found_by(network, numbers, *, batch_size=2, **changes):
    values = {
        "max_nms_inputs": 5000,
        "max_detections": 100,
        "min_score": 0.5,
        "nms": "hard",
        "sigma": 0.5,
    }
    return list(
        detect(
            network,
            batches(numbers, batch_size=batch_size),
            anchors_N4=ANCHORS_N4,
            settings=PostprocessSettings(**(values | changes)),
        )
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_objects_are_found_in_original_pixels_with_their_category_ids(batch_size):
    numbers = [2, 0, 3, 1, 4]
    found = found_by(AnswerKey(numbers), numbers, batch_size=batch_size)
    assert [one.example.source_id for one in found] == [f"picture {n}" for n in numbers]
    for one in found:
        order = np.lexsort((one.boxes_xyxy[:, 0],))
        np.testing.assert_allclose(one.boxes_xyxy[order], one.example.boxes_xyxy, atol=0.01)
        assert one.category_ids[order].tolist() == one.example.labels.tolist()
        np.testing.assert_allclose(one.scores, 1 / (1 + np.exp(-6)), rtol=1e-5)


def test_an_image_without_detections_comes_back_empty():
    (one,) = found_by(AnswerKey([3]), [3])
    assert (one.boxes_xyxy.shape, one.scores.shape, one.category_ids.shape) == ((0, 4), (0,), (0,))


def test_the_settings_reach_the_postprocessor():
    assert len(found_by(AnswerKey([0]), [0])[0].scores) == 2
    assert len(found_by(AnswerKey([0]), [0], max_detections=1)[0].scores) == 1
    assert len(found_by(AnswerKey([0]), [0], max_nms_inputs=1)[0].scores) == 1
    assert len(found_by(AnswerKey([0], logit=1.0), [0], min_score=0.8)[0].scores) == 0
    soft = found_by(AnswerKey([0]), [0], nms="soft", min_score=0.0)[0]
    assert len(soft.scores) > 2
    wide = found_by(AnswerKey([0]), [0], nms="soft", min_score=0.0, sigma=5.0)[0]
    assert wide.scores.sum() > soft.scores.sum()


def test_the_network_sees_normalised_letterboxed_images():
    network = AnswerKey([1])
    found_by(network, [1])
    (image_13HW,) = network.inputs
    assert (image_13HW.shape, image_13HW.dtype) == ((1, 3, *SIZE_HW), torch.float32)
    # 192 x 64 fits as 96 x 32: below is padding, the ImageNet mean.
    assert image_13HW[0, :, 32:].abs().max() < 0.01
    colour = (torch.tensor([90, 20, 200]) / 255 - torch.tensor([0.485, 0.456, 0.406])) / (
        torch.tensor([0.229, 0.224, 0.225])
    )
    torch.testing.assert_close(image_13HW[0, :, 10, 10], colour)


def test_no_gradient_is_kept():
    network = AnswerKey([0])
    network.scale = torch.nn.Parameter(torch.ones(()))
    network.register_forward_hook(lambda _, __, out: (out[0] * network.scale, out[1]))
    assert len(found_by(network, [0])) == 1
    assert network.scale.grad is None


def test_no_batches_are_no_detections():
    assert found_by(AnswerKey([]), []) == []


def test_the_postprocessor_of_evaluation_is_that_of_the_spec():
    values = {
        "evaluate.max_nms_inputs": 77,
        "evaluate.max_detections_per_image": 9,
        "evaluate.nms": "soft",
        "evaluate.sigma": 0.3,
    }
    assert build_postprocess(with_values(Spec(), values, where="test")) == PostprocessSettings(
        max_nms_inputs=77, max_detections=9, min_score=0.0, nms="soft", sigma=0.3
    )

import io
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from rayeffdet.data.example import Example
from rayeffdet.data.loader import (
    PADDING_STEP,
    Augmentation,
    evaluation_sample,
    load_batches,
    training_sample,
)
from rayeffdet.data.transforms import Sample
from rayeffdet.errors import DataError

PADDING_RGB = torch.tensor([124, 116, 104], dtype=torch.uint8)
NONE = Augmentation(
    hflip=False, min_scale=1.0, max_scale=1.0, color_distortion=False, translate_xy=False
)
ALL = Augmentation(
    hflip=True, min_scale=0.5, max_scale=2.0, color_distortion=True, translate_xy=True
)


def example(number=0, *, boxes=((8, 4, 40, 20),), labels=(3,), crowd=None, size=(64, 32)):
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, "PNG")
    return Example(
        source_id=str(number),
        filename=f"{number}.png",
        encoded=buffer.getvalue(),
        format="png",
        height=size[1],
        width=size[0],
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        class_names=tuple(map(str, labels)),
        is_crowd=np.array(crowd if crowd is not None else [False] * len(labels), bool),
        areas=np.ones(len(labels), np.float32),
    )


def row(number=0, **changes):
    return f"shard: offset {number}", number, example(number, **changes)


def sample_into(one, out_3HW, *, augmentation=NONE, seed=1, skip_crowd=True):
    return training_sample(
        one,
        out_3HW,
        augmentation=augmentation,
        padding_rgb=PADDING_RGB,
        seed=seed,
        skip_crowd=skip_crowd,
    )


def sample_of(one, **options):
    """The pixels of a training sample and the rest."""
    out_3HW = torch.empty(3, 32, 32, dtype=torch.uint8)
    return out_3HW, sample_into(one, out_3HW, **options)


def batches(rows, sample=sample_into, *, max_instances=100, num_threads=2, prefetch=2):
    return load_batches(
        rows,
        sample,
        size_hw=(32, 32),
        max_instances=max_instances,
        num_threads=num_threads,
        prefetch=prefetch,
    )


def blank(num_boxes):
    boxes = np.array([[0, 0, 4, 4]] * num_boxes, np.float32).reshape(-1, 4)
    return Sample(boxes, np.ones(num_boxes, np.int64), 1.0)


def test_a_training_batch_holds_images_boxes_channels_and_records():
    rows = [row(0), row(1, boxes=[[0, 0, 64, 32], [2, 2, 10, 10]], labels=[1, 7])]
    (batch,) = batches([rows])
    assert (batch.images_B3HW.dtype, batch.images_B3HW.shape) == (torch.uint8, (2, 3, 32, 32))
    assert batch.boxes_BG4.dtype == torch.float32
    assert batch.labels_BG.dtype == torch.int64
    # 64 x 32 fits a 32 x 32 input at half its size.
    assert batch.boxes_BG4[0, 0].tolist() == [4, 2, 20, 10]
    assert batch.boxes_BG4[1, :2].tolist() == [[0, 0, 32, 16], [1, 1, 5, 5]]
    assert batch.labels_BG[:, :2].tolist() == [[2, -1], [0, 6]]
    assert (batch.labels_BG[:, 2:] == -1).all()
    assert batch.scales_B.tolist() == [2, 2]
    assert batch.source_ids == ("0", "1")
    assert batch.sizes_B2.tolist() == [[32, 64], [32, 64]]
    assert batch.num_truncated == 0


@pytest.mark.parametrize(
    ("most", "limit", "columns", "truncated"),
    [(0, 100, 16, 0), (16, 100, 16, 0), (17, 100, 32, 0), (90, 100, 96, 0), (99, 100, 100, 0),
     (9, 4, 4, 5), (0, 1, 1, 0)],
)  # fmt: skip
def test_boxes_are_padded_in_steps_up_to_the_limit_and_the_rest_is_counted(
    most, limit, columns, truncated
):
    assert PADDING_STEP == 16
    samples = [blank(0), blank(most)]
    rows = [[("", number, example(number)) for number in range(2)]]
    (batch,) = batches(rows, lambda one, _: samples[one[1]], max_instances=limit)
    assert batch.boxes_BG4.shape == (2, columns, 4)
    assert (batch.labels_BG >= 0).sum(1).tolist() == [0, most - truncated]
    assert batch.num_truncated == truncated


def test_batches_come_in_order_whatever_the_threads_do():
    rows = [[row(3 * number + k) for k in range(3)] for number in range(8)]
    gate = threading.Event()

    def sample(one, out_3HW):
        # The very first image is done last of all that are under way.
        if one[1] == 0:
            gate.wait(10)
        elif one[1] >= 8:
            gate.set()
        return sample_into(one, out_3HW)

    found = [batch.source_ids for batch in batches(rows, sample, num_threads=4, prefetch=3)]
    assert found == [tuple(str(3 * number + k) for k in range(3)) for number in range(8)]


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_just_so_many_batches_are_asked_for_ahead(prefetch):
    asked = []

    def rows():
        for number in range(6):
            asked.append(number)
            yield [row(number)]

    loader = batches(rows(), prefetch=prefetch)
    for taken in (1, 2):
        next(loader)
        until = time.monotonic() + 10
        while len(asked) < taken + prefetch and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        assert asked == list(range(taken + prefetch))
    assert len(list(loader)) == 4


def test_the_number_of_threads_changes_no_bit():
    rows = [[row(2 * number + k) for k in range(2)] for number in range(3)]
    sample = partial(sample_into, augmentation=ALL)
    for a, b in zip(*(batches(rows, sample, num_threads=n) for n in (1, 4)), strict=True):
        assert torch.equal(a.images_B3HW, b.images_B3HW)
        assert torch.equal(a.boxes_BG4, b.boxes_BG4)


def test_a_broken_image_stops_the_loader_with_file_and_offset():
    where, position, whole = row(1)
    broken = replace(whole, encoded=whole.encoded[:60])
    loader = batches([[row(0)], [(where, position, broken)], [row(2)]], prefetch=2)
    assert next(loader).source_ids == ("0",)
    with pytest.raises(DataError, match="shard: offset 1: "):
        next(loader)


def test_a_loader_that_is_given_up_leaves_no_thread_behind():
    loader = batches(([row(number)] for number in range(50)), prefetch=5)
    next(loader)
    loader.close()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("decode")]


def test_no_rows_are_no_batches():
    assert list(batches([])) == []


def test_an_augmented_sample_depends_on_seed_and_position_alone():
    first_3HW, first = sample_of(row(5), augmentation=ALL)
    again_3HW, again = sample_of(row(5), augmentation=ALL)
    assert torch.equal(first_3HW, again_3HW)
    assert np.array_equal(first.boxes_xyxy, again.boxes_xyxy)
    where, _, same_record = row(5)
    elsewhere_3HW, _ = sample_of((where, 6, same_record), augmentation=ALL)
    other_seed_3HW, _ = sample_of(row(5), augmentation=ALL, seed=2)
    assert not torch.equal(first_3HW, elsewhere_3HW)
    assert not torch.equal(first_3HW, other_seed_3HW)


def test_without_augmentation_the_training_image_is_that_of_evaluation():
    training_3HW, training = sample_of(row(3))
    evaluation_3HW = torch.empty_like(training_3HW)
    evaluation = evaluation_sample(row(3), evaluation_3HW, padding_rgb=PADDING_RGB)
    assert torch.equal(training_3HW, evaluation_3HW)
    assert training.scale == evaluation.scale
    assert len(training.labels) == 1


@pytest.mark.parametrize(
    "switch",
    [{"hflip": True}, {"max_scale": 2.0}, {"color_distortion": True}, {"translate_xy": True}],
)
def test_each_switch_of_the_augmentation_changes_images(switch):
    augmentation = replace(NONE, **switch)
    changed = [
        not torch.equal(
            sample_of(row(number), augmentation=augmentation)[0], sample_of(row(number))[0]
        )
        for number in range(8)
    ]
    assert any(changed)


def test_crowds_are_left_out_of_training_on_request():
    one = row(boxes=[[0, 0, 60, 30], [8, 8, 24, 24]], labels=[1, 2], crowd=[True, False])
    assert sample_of(one, skip_crowd=True)[1].labels.tolist() == [2]
    assert sample_of(one, skip_crowd=False)[1].labels.tolist() == [1, 2]


def test_an_evaluation_sample_has_no_boxes_and_the_whole_picture_at_the_top_left():
    out_3HW = torch.zeros(3, 48, 32, dtype=torch.uint8)
    sample = evaluation_sample(row(), out_3HW, padding_rgb=PADDING_RGB)
    assert (out_3HW[:, 16:] == PADDING_RGB[:, None, None]).all()
    assert len(sample.labels) == 0
    assert sample.scale == 2

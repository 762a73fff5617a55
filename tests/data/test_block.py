import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from rayeffdet.data.block import (
    SCHEMA,
    batch_to_table,
    examples_to_table,
    table_to_batch,
    table_to_examples,
)
from rayeffdet.data.example import Example
from rayeffdet.data.loader import Batch


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), (9, 99, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def make(**changes):
    values = {
        "source_id": "917",
        "filename": "a/naïve.png",
        "encoded": png(),
        "format": "png",
        "height": 20,
        "width": 40,
        "boxes_xyxy": np.array([[1, 2, 30.25, 18], [-3, 0, 45.5, 20]], np.float32),
        "labels": np.array([2, 90]),
        "class_names": ("dog", "環"),
        "is_crowd": np.array([True, False]),
        "areas": np.array([400.5, 12], np.float32),
    }
    return Example(**(values | changes))


def empty():
    return make(
        source_id="x",
        boxes_xyxy=np.empty((0, 4), np.float32),
        labels=np.empty(0, np.int64),
        class_names=(),
        is_crowd=np.empty(0, bool),
        areas=np.empty(0, np.float32),
    )


def table_of(*examples, start=0):
    positions = range(start, start + len(examples))
    wheres = [f"shard: offset {position}" for position in positions]
    return examples_to_table(examples, positions=positions, wheres=wheres)


def assert_same(found, expected):
    for name in Example.__dataclass_fields__:
        value, wanted = getattr(found, name), getattr(expected, name)
        if isinstance(wanted, np.ndarray):
            assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape), name
            np.testing.assert_array_equal(value, wanted)
        else:
            assert value == wanted, name


def test_examples_come_back_from_the_table_in_every_field():
    examples = [make(), empty(), make(source_id="", filename="", width=70_000)]
    rows = table_to_examples(table_of(*examples, start=2**40))
    assert [where for where, _, _ in rows] == [f"shard: offset {2**40 + i}" for i in range(3)]
    assert [position for _, position, _ in rows] == [2**40, 2**40 + 1, 2**40 + 2]
    for (_, _, found), expected in zip(rows, examples, strict=True):
        assert_same(found, expected)


def test_what_came_back_can_be_sent_again():
    ((where, position, example),) = table_to_examples(table_of(make()))
    again = examples_to_table([example], positions=[position], wheres=[where])
    assert again.equals(table_of(make()))


def test_tables_that_were_cut_and_joined_give_the_same_examples():
    first, second = table_of(make(source_id="1"), empty()), table_of(make(source_id="3"), start=2)
    joined = pa.concat_tables([first, second])
    assert [e.source_id for _, _, e in table_to_examples(joined)] == ["1", "x", "3"]
    ((_, position, example),) = table_to_examples(joined.slice(2, 1))
    assert position == 2
    assert_same(example, make(source_id="3"))


def test_masks_stay_behind():
    ((_, _, example),) = table_to_examples(table_of(make(masks=(b"png", b"png"))))
    assert example.masks == ()


def test_no_examples_are_an_empty_table():
    table = table_of()
    assert table.schema.equals(SCHEMA)
    assert table_to_examples(table) == []


@pytest.mark.parametrize("name", [n for n in Example.__dataclass_fields__ if n != "masks"])
def test_every_field_of_an_example_has_a_column(name):
    assert name in SCHEMA.names


def batch_of(*numbers_of_boxes):
    count = len(numbers_of_boxes)
    rng = np.random.default_rng(0)
    labels_BG = np.full((count, 16), -1)
    for row, number in enumerate(numbers_of_boxes):
        labels_BG[row, :number] = rng.integers(0, 9, number)
    return Batch(
        images_B3HW=torch.from_numpy(rng.integers(0, 256, (count, 3, 5, 7), np.uint8)),
        boxes_BG4=torch.from_numpy(rng.random((count, 16, 4), np.float32)),
        labels_BG=torch.from_numpy(labels_BG),
        scales_B=torch.from_numpy(rng.random(count, np.float32)),
        examples=tuple(make(source_id=str(number)) for number in range(count)),
        num_truncated=3,
    )


def test_a_batch_travels_without_its_encoded_images_and_keeps_every_bit_of_the_rest():
    batch = batch_of(2, 0, 16)
    wheres = ["a", "b", "c"]
    table = batch_to_table(batch, wheres=wheres, positions=[7, 9, 8])
    found, positions = table_to_batch(table, size_hw=(5, 7))
    assert positions == [7, 9, 8]
    for name in ("images_B3HW", "boxes_BG4", "labels_BG", "scales_B"):
        ours, theirs = getattr(found, name), getattr(batch, name)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        assert torch.equal(ours, theirs), name
    assert found.num_truncated == 3
    assert found.source_ids == ("0", "1", "2")
    assert {example.encoded for example in found.examples} == {b""}
    assert batch.examples[0].encoded == png()


def test_pixels_are_not_copied_on_their_way_out_of_a_table():
    table = batch_to_table(batch_of(1, 1), wheres=["a", "b"], positions=[0, 1])
    batch, _ = table_to_batch(table, size_hw=(5, 7))
    buffer = table.column("pixels").chunk(0).buffers()[1]
    assert batch.images_B3HW.data_ptr() == buffer.address

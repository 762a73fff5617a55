import hashlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tfrecord import example_pb2

from rayeffdet.data.example import Example, decode_example, encode_example
from rayeffdet.errors import DataError

WHERE = "shard.tfrecord: offset 12"
BOX = "image/object/bbox/"
LABEL = "image/object/class/label"


def jpeg(width=40, height=20):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


# A protocol buffer writer of its own, so that the contract does not rest on one library.


def varint(number):
    number &= 2**64 - 1
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def message(field, content):
    return varint(field << 3 | 2) + varint(len(content)) + content


def feature(values):
    if isinstance(values[0], bytes):
        return message(1, b"".join(message(1, value) for value in values))
    if isinstance(values[0], float):
        return message(2, message(1, struct.pack(f"<{len(values)}f", *values)))
    return message(3, message(1, b"".join(map(varint, values))))


def record(**changes):
    """A full record of two objects by hand; a change to None removes a field."""
    fields = {
        "image/encoded": [jpeg()],
        "image/format": [b"jpeg"],
        "image/height": [20],
        "image/width": [40],
        "image/filename": [b"a.jpg"],
        "image/source_id": [b"917"],
        BOX + "xmin": [0.25, 0.5],
        BOX + "ymin": [0.0, 0.5],
        BOX + "xmax": [0.5, 1.25],
        BOX + "ymax": [0.5, 0.75],
        LABEL: [3, 1],
        "image/object/class/text": [b"cat", "Grüße".encode()],
        "image/object/is_crowd": [0, 1],
        "image/object/area": [50.0, 7.5],
    }
    fields |= changes
    entries = (
        message(1, message(1, key.encode()) + message(2, feature(values)))
        for key, values in fields.items()
        if values is not None
    )
    return message(1, b"".join(entries))


def make(**changes):
    values = {
        "source_id": "x/1",
        "filename": "a/b.png",
        "encoded": jpeg(),
        "format": "png",
        "height": 20,
        "width": 40,
        "boxes_xyxy": np.array([[1, 2, 30, 18], [-3, 0, 45.5, 20]], np.float32),
        "labels": np.array([2, 90]),
        "class_names": ("dog", "naïve"),
        "is_crowd": np.array([True, False]),
        "areas": np.array([400.5, 12], np.float32),
    }
    return Example(**(values | changes))


def problem_of(payload):
    with pytest.raises(DataError) as caught:
        decode_example(payload, where=WHERE)
    (problem,) = caught.value.problems
    return problem


def test_a_record_encoded_by_hand_is_read():
    example = decode_example(record(), where=WHERE)
    assert (example.source_id, example.filename, example.format) == ("917", "a.jpg", "jpeg")
    assert (example.height, example.width) == (20, 40)
    assert example.encoded == jpeg()
    np.testing.assert_array_equal(example.boxes_xyxy, [[10, 0, 20, 10], [20, 10, 50, 15]])
    assert example.boxes_xyxy.dtype == np.float32
    np.testing.assert_array_equal(example.labels, [3, 1])
    assert example.labels.dtype == np.int64
    assert example.class_names == ("cat", "Grüße")
    np.testing.assert_array_equal(example.is_crowd, [False, True])
    np.testing.assert_array_equal(example.areas, np.float32([50, 7.5]))


def test_the_written_record_follows_taos_schema():
    features = example_pb2.Example.FromString(encode_example(make(masks=(b"m1", b"m2"))))
    found = {
        key: list(getattr(value, value.WhichOneof("kind")).value)
        for key, value in features.features.feature.items()
    }
    assert found.pop(BOX + "xmin") == pytest.approx([1 / 40, -3 / 40])
    assert found.pop(BOX + "ymin") == pytest.approx([2 / 20, 0])
    assert found.pop(BOX + "xmax") == pytest.approx([30 / 40, 45.5 / 40])
    assert found.pop(BOX + "ymax") == pytest.approx([18 / 20, 1])
    assert found == {
        "image/height": [20],
        "image/width": [40],
        "image/filename": [b"a/b.png"],
        "image/source_id": [b"x/1"],
        "image/key/sha256": [hashlib.sha256(jpeg()).hexdigest().encode()],
        "image/encoded": [jpeg()],
        "image/format": [b"png"],
        "image/object/class/text": [b"dog", "naïve".encode()],
        LABEL: [2, 90],
        "image/object/is_crowd": [1, 0],
        "image/object/area": [400.5, 12.0],
        "image/object/mask": [b"m1", b"m2"],
    }


def test_the_fields_of_a_record_are_in_sorted_order_so_that_equal_examples_give_equal_bytes():
    payload = encode_example(make())
    keys = sorted(example_pb2.Example.FromString(payload).features.feature)
    places = [payload.index(key.encode()) for key in keys]
    assert places == sorted(places)


coordinates = st.floats(-100, 5000, width=32)


@settings(max_examples=50, deadline=None)
@given(
    boxes=st.lists(st.tuples(*[coordinates] * 4), max_size=5),
    sides=st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)),
    source_id=st.text(min_size=1),
)
def test_writing_and_reading_loses_nothing_but_the_masks(boxes, sides, source_id):
    n = len(boxes)
    example = make(
        source_id=source_id,
        height=sides[0],
        width=sides[1],
        boxes_xyxy=np.array(boxes, np.float32).reshape(n, 4),
        labels=np.arange(n) + 1,
        class_names=tuple("abcde"[:n]),
        is_crowd=np.arange(n) % 2 == 1,
        areas=np.arange(n).astype(np.float32),
    )
    back = decode_example(encode_example(example), where=WHERE)
    # One rounding to float32 after the division, one after the product.
    np.testing.assert_allclose(back.boxes_xyxy, example.boxes_xyxy, rtol=2**-22, atol=1e-30)
    for name in ("labels", "is_crowd", "areas"):
        np.testing.assert_array_equal(getattr(back, name), getattr(example, name))
        assert getattr(back, name).dtype == getattr(example, name).dtype
    for name in ("source_id", "filename", "encoded", "format", "height", "width", "class_names"):
        assert getattr(back, name) == getattr(example, name)


def test_an_image_without_objects_is_an_example():
    n0 = {"boxes_xyxy": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
    n0 |= {"class_names": (), "is_crowd": np.zeros(0, bool), "areas": np.zeros(0, np.float32)}
    back = decode_example(encode_example(make(**n0)), where=WHERE)
    assert back.boxes_xyxy.shape == (0, 4)
    assert back.labels.shape == back.is_crowd.shape == back.areas.shape == (0,)
    assert back.class_names == ()


def test_only_the_image_is_required():
    bare = message(1, message(1, message(1, b"image/encoded") + message(2, feature([jpeg()]))))
    example = decode_example(bare, where=WHERE)
    assert (example.height, example.width, example.format) == (20, 40, "jpeg")
    assert example.source_id == hashlib.sha256(jpeg()).hexdigest()
    assert example.boxes_xyxy.shape == (0, 4)


def test_missing_parts_of_objects_have_defaults():
    gone = ("image/object/is_crowd", "image/object/area", "image/object/class/text")
    example = decode_example(record(**dict.fromkeys(gone)), where=WHERE)
    np.testing.assert_array_equal(example.is_crowd, [False, False])
    np.testing.assert_array_equal(example.areas, [100, 150])
    assert example.class_names == ("3", "1")


def test_unknown_size_is_taken_from_the_image_header():
    missing = {"image/height": None, "image/width": None}
    unknown = {"image/height": [-1], "image/width": [-1]}
    for changes in (missing, unknown):
        example = decode_example(record(**changes), where=WHERE)
        assert (example.height, example.width) == (20, 40)
        np.testing.assert_array_equal(example.boxes_xyxy[0], [10, 0, 20, 10])


def test_ids_of_any_kind_survive():
    for source_id in ("16777217", "9007199254740993", "a/b c.jpg"):
        example = decode_example(record(**{"image/source_id": [source_id.encode()]}), where=WHERE)
        assert example.source_id == source_id


def test_text_that_is_not_utf8_is_written_and_read_with_marks_in_its_place():
    half_pair = make(class_names=("\ud800", "b"), source_id="\udc80")
    back = decode_example(encode_example(half_pair), where=WHERE)
    assert (back.class_names, back.source_id) == (("?", "b"), "?")
    latin = {"image/filename": [b"\xe9.jpg"], "image/object/class/text": [b"\xe9", b"b"]}
    example = decode_example(record(**latin), where=WHERE)
    assert (example.filename, example.class_names) == ("\ufffd.jpg", ("\ufffd", "b"))


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"image/encoded": None}, "image/encoded is missing"),
        ({"image/encoded": [b""]}, "image/encoded is missing"),
        ({"image/encoded": [1]}, "image/encoded is a int64_list, not a bytes_list"),
        ({LABEL: [1]}, f"differ in length: {LABEL} 1, {BOX}xmin 2"),
        ({LABEL: None}, f"differ in length: {LABEL} 0"),
        ({BOX + "ymax": None}, f"{BOX}ymax 0"),
        ({"image/object/is_crowd": [0]}, "image/object/is_crowd 1"),
        ({"image/object/area": [0.5] * 3}, "image/object/area 3"),
        ({"image/object/class/text": [b"cat"]}, "image/object/class/text 1"),
        ({BOX + "xmin": [float("nan"), 0.0]}, "not a finite number"),
        ({"image/height": [20.0]}, "image/height is a float_list"),
        ({"image/height": None, "image/encoded": [b"not an image"]}, "not a JPEG"),
    ],
)
def test_an_unusable_record_is_named(changes, fragment):
    problem = problem_of(record(**changes))
    assert problem.startswith(WHERE + ": ")
    assert fragment in problem


def test_bytes_that_are_no_example_are_named():
    assert problem_of(b"\xff\xffgarbage").startswith(f"{WHERE}: the record is not a tensorflow.Ex")

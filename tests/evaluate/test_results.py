import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayeffdet.data.example import Example
from rayeffdet.errors import DataError
from rayeffdet.evaluate.coco import detections_json
from rayeffdet.evaluate.detect import ImageDetections
from rayeffdet.evaluate.results import join_parts, metrics_of_parts, part_of

NAMES = {1: "disc", 2: "square"}
BOXES = np.array([[10, 10, 50, 60], [80, 20, 140, 90]], np.float32)


def example(source_id, **changes):
    values = {
        "source_id": source_id,
        "filename": f"{source_id}.jpg",
        "encoded": b"x" * 100_000,
        "format": "jpeg",
        "height": 100,
        "width": 150,
        "boxes_xyxy": BOXES,
        "labels": np.array([1, 2]),
        "class_names": ("disc", "square"),
        "is_crowd": np.zeros(2, bool),
        "areas": np.array([2000, 4200], np.float32),
        "masks": (b"png", b"png"),
    }
    return Example(**(values | changes))


def found_in(source_id, *, shift=0.0, scores=(0.9, 0.8)):
    return ImageDetections(
        example(source_id),
        BOXES + np.float32(shift),
        np.array(scores, np.float32),
        np.array([1, 2]),
    )


# The further down, the worse the boxes.
IMAGES = [found_in(str(n), shift=3.0 * n, scores=(0.9 - n / 10, 0.4 + n / 10)) for n in range(5)]


def metrics(parts, val_json_file=""):
    return metrics_of_parts(parts, class_names=NAMES, val_json_file=val_json_file)


def document(**changes):
    images = [{"id": n, "file_name": "", "height": 100, "width": 150} for n in range(5, -1, -1)]
    annotations = [
        {"id": 2 * n + k, "image_id": n, "category_id": k + 1, "bbox": box, "iscrowd": 0}
        for n in range(6)
        for k, box in enumerate([[10, 10, 40, 50], [80, 20, 60, 70]])
    ]
    categories = [{"id": i, "name": name} for i, name in NAMES.items()]
    values = {"images": images, "annotations": annotations, "categories": categories}
    return {key: value for key, value in (values | changes).items() if value is not None}


def test_a_part_is_small_and_travels():
    part = part_of(IMAGES)
    assert [e.source_id for e in part.examples] == list("01234")
    assert all(e.encoded == b"" and e.masks == () for e in part.examples)
    assert len(pickle.dumps(part)) < 10_000
    # Image number, x, y, width, height, score, category id.
    np.testing.assert_allclose(part.detections[0][1], [0, 80, 20, 60, 70, 0.4, 2], rtol=1e-6)


def test_exact_boxes_score_one():
    found = metrics([part_of([found_in("a"), found_in("b")])])
    assert (found["AP"], found["AP50"], found["ARmax100"]) == (1, 1, 1)
    assert (found["num_images"], found["num_truths"], found["num_detections"]) == (2, 4, 4)


@settings(max_examples=20)
@given(st.permutations(range(5)), st.lists(st.integers(0, 4), max_size=3).map(sorted))
def test_the_division_into_parts_and_their_order_change_nothing(order, cuts):
    edges = [0, *cuts, 5]
    parts = [
        part_of(IMAGES[number] for number in order[first:last]) for first, last in pairwise(edges)
    ]
    assert metrics(parts) == metrics([part_of(IMAGES)])


def test_detections_carry_the_id_of_their_image():
    parts = [part_of([IMAGES[3], IMAGES[1]]), part_of([]), part_of([found_in("a/b")])]
    truth, rows = join_parts(parts, class_names=NAMES, val_json_file="")
    written = detections_json(truth, rows)
    assert [one["image_id"] for one in written] == [3, 3, 1, 1, "a/b", "a/b"]
    assert parts[0].detections[0][:, 0].tolist() == [0, 0]


def test_no_images_are_no_metrics_and_no_crash():
    assert metrics([])["AP"] == -1
    assert metrics([part_of([])])["num_images"] == 0


def test_an_image_that_is_there_twice_is_refused():
    with pytest.raises(DataError, match="source id '1' is on two records"):
        metrics([part_of(IMAGES[:2]), part_of(IMAGES[1:])])


def test_a_class_that_no_record_shows_is_named_still():
    found = metrics_of_parts([part_of(IMAGES)], class_names=NAMES | {3: "star"}, val_json_file="")
    assert found["per_class"]["star"]["AP"] == -1


def test_the_truth_of_a_json_file_goes_before_that_of_the_records(tmp_path):
    path = tmp_path / "val.json"
    path.write_text(json.dumps(document()))
    assert metrics([part_of(IMAGES)], str(path))["AP"] == metrics([part_of(IMAGES)])["AP"]

    moved = [one | {"bbox": [100, 80, 10, 10]} for one in document()["annotations"]]
    path.write_text(json.dumps(document(annotations=moved)))
    found = metrics([part_of(IMAGES)], str(path))
    assert found["AP"] == 0
    # The sixth image of the file was not looked at and does not count.
    assert (found["num_images"], found["num_truths"]) == (5, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "val.json: there is no such file"),
        ("{\n nonsense", "val.json:2: not JSON: "),
        ("[]", "val.json: images: missing or not a list"),
        (json.dumps(document(annotations=None)), "val.json: annotations: missing or not a list"),
        (json.dumps(document(categories={})), "val.json: categories: missing or not a list"),
        (json.dumps(document(images=[{"file_name": "a"}])), r"val.json: images\[0\]: needs id"),
        (
            json.dumps(document(annotations=[{"image_id": 1, "category_id": 1}])),
            r"val.json: annotations\[0\]: needs bbox, category_id, image_id",
        ),
        (
            json.dumps(document(images=document()["images"][:2])),
            r"val.json: no image of id 0, 1, 2, 3 \(4 in all\)",
        ),
    ],
)
def test_a_file_that_is_not_the_truth_of_the_records_is_refused_with_its_cause(
    tmp_path, text, message
):
    path = tmp_path / "val.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        metrics([part_of(IMAGES)], str(path))
    assert len(caught.value.problems) == 1

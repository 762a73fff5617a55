import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rayeffdet.data.coco import read_coco
from rayeffdet.data.example import Example
from rayeffdet.errors import DataError
from rayeffdet.evaluate.coco import (
    coco_curves,
    coco_metrics,
    detection_rows,
    detections_json,
    image_numbers,
    restrict_truth,
    summarise,
    truth_from_coco,
    truth_from_examples,
)

# In the order of COCOeval.stats.
TWELVE = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("ARmax1", "ARmax10", "ARmax100", "ARs", "ARm", "ARl"),
)
NO_DETECTIONS = np.empty((0, 7))


def pycocotools_stats(truth, results, category_ids=None):
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(truth))
        gt.createIndex()
        dt = COCO()
        if results:
            dt = gt.loadRes(json.loads(json.dumps(results)))
        evaluation = COCOeval(gt, dt, "bbox")
        if category_ids is not None:
            evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(TWELVE, evaluation.stats.tolist(), strict=True))


# Coarse grids make equal IoUs, equal scores and exact matches likely.
boxes_xywh = st.tuples(
    st.sampled_from([0.0, 8.0, 30.0]),
    st.sampled_from([0.0, 10.0, 33.5]),
    st.sampled_from([8.0, 30.0, 32.0, 60.0, 96.0, 130.0]),
    st.sampled_from([10.0, 32.0, 64.0, 96.0, 120.0]),
).map(list)
CATEGORY_IDS = (1, 3, 17)


@st.composite
def sets(draw):
    image_ids = draw(st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True))
    count = draw(st.integers(0, 10))
    annotations = [
        {
            "id": number,
            "image_id": draw(st.sampled_from(image_ids)),
            "category_id": draw(st.sampled_from(CATEGORY_IDS)),
            "bbox": draw(boxes_xywh),
            "area": draw(st.sampled_from([100.0, 1024.0, 5000.0, 9216.0, 20000.0])),
            "iscrowd": int(draw(st.integers(0, 4)) == 0),
        }
        for number in range(1, count + 1)
    ]
    rows = [
        [
            draw(st.integers(0, len(image_ids) - 1)),
            *draw(boxes_xywh),
            draw(st.sampled_from([0.2, 0.5, 0.9])),
            draw(st.sampled_from((*CATEGORY_IDS, 5))),
        ]
        for _ in range(draw(st.integers(0, 15)))
    ]
    # A part of a truth has just that IoU with it, between any two thresholds in turn.
    for one in annotations:
        part = draw(st.sampled_from([0.0, 0.53, 0.58, 0.63, 0.68, 0.73, 0.78, 0.83, 0.97, 1.0]))
        x, y, w, h = one["bbox"]
        rows.append([image_ids.index(one["image_id"]), x, y, w * part, h, 0.5, one["category_id"]])
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in image_ids],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORY_IDS],
    }
    return truth, np.array(rows, dtype=np.float64).reshape(-1, 7)


@settings(max_examples=150, deadline=None)
@given(sets())
def test_metrics_are_bit_for_bit_those_of_pycocotools(drawn):
    truth, detections = drawn
    results = detections_json(truth, detections)
    metrics = coco_metrics(truth, detections)
    assert {name: metrics[name] for name in TWELVE} == pycocotools_stats(truth, results)
    for category_id in CATEGORY_IDS:
        expected = pycocotools_stats(truth, results, [category_id])
        found = metrics["per_class"][f"class {category_id}"]
        for name in ("AP", "AP50", "AP75", "ARmax100"):
            assert found[name] == expected[name]


@settings(max_examples=25, deadline=None)
@given(sets(), st.randoms(use_true_random=False))
def test_the_order_in_which_images_arrive_changes_nothing(drawn, random):
    truth, detections = drawn
    order = list(range(len(truth["images"])))
    random.shuffle(order)
    shuffled = truth | {"images": [truth["images"][number] for number in order]}
    blocks = [detections[detections[:, 0] == number].copy() for number in order]
    for number, block in enumerate(blocks):
        block[:, 0] = number
    assert coco_metrics(shuffled, np.concatenate(blocks)) == coco_metrics(truth, detections)


@settings(max_examples=25, deadline=None)
@given(sets())
def test_categories_computed_apart_give_the_metrics_of_the_whole(drawn):
    truth, detections = drawn
    parts = [coco_curves(truth, detections, ids) for ids in ([17, 1], [3])]
    assert summarise(truth, detections, parts) == coco_metrics(truth, detections)


def one_truth(**annotation):
    return {
        "images": [{"id": 4, "file_name": "4.jpg"}],
        "annotations": [
            {"id": 0, "image_id": 4, "category_id": 2, "bbox": [0, 0, 50, 50], **annotation}
        ],
        "categories": [{"id": 2, "name": "cat"}, {"id": 9, "name": "dog"}],
    }


HIT = np.array([[0, 0, 0, 50, 50, 0.9, 2]], dtype=np.float64)


def test_an_annotation_with_id_zero_and_without_area_or_crowd_flag_is_found():
    metrics = coco_metrics(one_truth(), HIT)
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["APm"] == pytest.approx(1.0)
    assert metrics["APs"] == metrics["APl"] == -1.0


def test_counts_and_classes_are_reported():
    metrics = coco_metrics(one_truth(), HIT)
    assert (metrics["num_images"], metrics["num_truths"], metrics["num_detections"]) == (1, 1, 1)
    assert metrics["per_class"]["cat"]["num_truths"] == 1
    assert metrics["per_class"]["cat"]["num_detections"] == 1
    assert metrics["per_class"]["dog"] == {
        **dict.fromkeys(("AP", "AP50", "AP75", "ARmax100"), -1.0),
        "num_truths": 0,
        "num_detections": 0,
    }


def test_no_detections_score_zero():
    metrics = coco_metrics(one_truth(), NO_DETECTIONS)
    assert metrics["AP"] == metrics["ARmax100"] == 0.0


def test_only_crowds_leave_nothing_to_measure():
    metrics = coco_metrics(one_truth(iscrowd=1), HIT)
    assert metrics["AP"] == -1.0
    assert metrics["num_truths"] == 0


@pytest.mark.parametrize("empty", ["annotations", "categories", "images"])
def test_empty_ground_truth_is_minus_one(empty):
    truth = one_truth() | {"annotations": []}
    truth[empty] = []
    detections = NO_DETECTIONS if empty == "images" else HIT
    metrics = coco_metrics(truth, detections)
    assert {metrics[name] for name in TWELVE} == {-1.0}


def test_nothing_is_printed_and_metrics_are_json(capfd):
    metrics = coco_metrics(one_truth(), HIT)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert capfd.readouterr().out == ""


def test_classes_of_the_same_name_are_told_apart_by_id():
    truth = one_truth()
    truth["categories"][1]["name"] = "cat"
    assert set(coco_metrics(truth, HIT)["per_class"]) == {"cat (2)", "cat (9)"}


def test_results_keep_the_ids_of_the_truth_exactly():
    truth = one_truth()
    truth["images"] = [{"id": 2**60 + 1}, {"id": "a/b 7"}]
    detections = np.array([[1, 1, 2, 3, 4, 0.5, 9], [0, 5, 6, 7, 8, 0.25, 2]])
    assert detections_json(truth, detections) == [
        {"image_id": "a/b 7", "category_id": 9, "bbox": [1, 2, 3, 4], "score": 0.5},
        {"image_id": 2**60 + 1, "category_id": 2, "bbox": [5, 6, 7, 8], "score": 0.25},
    ]


def test_rows_carry_sizes_instead_of_corners():
    rows = detection_rows(
        3,
        boxes_xyxy=np.array([[10, 20, 40, 25]], dtype=np.float32),
        scores=np.array([0.5], dtype=np.float32),
        category_ids=np.array([7]),
    )
    assert rows.tolist() == [[3, 10, 20, 30, 5, 0.5, 7]]
    none = detection_rows(0, boxes_xyxy=np.empty((0, 4)), scores=np.empty(0), category_ids=[])
    assert none.shape == (0, 7)


def example(source_id, *, boxes_xyxy=(), labels=(), names=(), crowds=(), areas=()):
    return Example(
        source_id=source_id,
        filename=f"{source_id}.jpg",
        encoded=b"",
        format="jpeg",
        height=100,
        width=200,
        boxes_xyxy=np.array(boxes_xyxy, dtype=np.float32).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        class_names=tuple(names),
        is_crowd=np.array(crowds, dtype=bool),
        areas=np.array(areas, dtype=np.float32),
    )


def test_records_become_a_coco_document():
    records = [
        example("7"),
        example(
            "b7",
            boxes_xyxy=[[1, 2, 11, 22], [0, 0, 5, 5]],
            labels=[3, 1],
            names=["dog", "cat"],
            crowds=[False, True],
            areas=[150, 25],
        ),
    ]
    truth = truth_from_examples(iter(records), class_names={1: "kitten", 8: "cow"})
    assert truth == {
        "images": [
            {"id": 7, "file_name": "7.jpg", "height": 100, "width": 200},
            {"id": "b7", "file_name": "b7.jpg", "height": 100, "width": 200},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": "b7",
                "category_id": 3,
                "bbox": [1, 2, 10, 20],
                "area": 150,
                "iscrowd": 0,
            },
            {
                "id": 2,
                "image_id": "b7",
                "category_id": 1,
                "bbox": [0, 0, 5, 5],
                "area": 25,
                "iscrowd": 1,
            },
        ],
        "categories": [
            {"id": 1, "name": "kitten"},
            {"id": 3, "name": "dog"},
            {"id": 8, "name": "cow"},
        ],
    }
    assert json.loads(json.dumps(truth)) == truth


def test_an_annotation_file_becomes_the_document_that_it_was(tmp_path):
    document = {
        "images": [
            {"id": 30, "file_name": "b.jpg", "height": 40, "width": 50},
            {"id": 4, "file_name": "a.jpg", "height": 60, "width": 70},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 4,
                "category_id": 5,
                "bbox": [1.5, 2.0, 10.0, 20.25],
                "area": 99.5,
                "iscrowd": 1,
            }
        ],
        "categories": [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document))
    assert truth_from_coco(read_coco(str(path), str(tmp_path))) == document


@pytest.mark.parametrize("source_id", ["007", "1_0", "²", "+5", "1e3", "-0"])
def test_text_that_is_not_plainly_a_number_stays_text(source_id):
    assert truth_from_examples([example(source_id)])["images"][0]["id"] == source_id


def test_a_source_id_on_two_records_is_an_error_that_names_both():
    with pytest.raises(DataError, match=r"'5' is on two records \(5\.jpg and 5\.jpg\)"):
        truth_from_examples([example("5"), example("6"), example("5")])


def test_text_and_number_ids_can_stand_side_by_side():
    records = [
        example(i, boxes_xyxy=[[0, 0, 9, 9]], labels=[1], names=["a"], crowds=[0], areas=[81])
        for i in ("x", "10", "9")
    ]
    truth = truth_from_examples(records)
    assert image_numbers(truth) == {"x": 0, "10": 1, "9": 2}
    found = np.array([[number, 0, 0, 9, 9, 0.5, 1] for number in range(3)], dtype=np.float64)
    assert coco_metrics(truth, found)["AP"] == pytest.approx(1.0)


def test_a_restricted_truth_holds_only_the_images_asked_for():
    truth = truth_from_examples(
        example(i, boxes_xyxy=[[0, 0, 9, 9]], labels=[1], names=["a"], crowds=[0], areas=[81])
        for i in ("1", "2", "x")
    )
    part = restrict_truth(truth, ["2", "x", "absent"])
    assert image_numbers(part) == {"2": 0, "x": 1}
    assert [one["image_id"] for one in part["annotations"]] == [2, "x"]
    assert part["categories"] == truth["categories"]

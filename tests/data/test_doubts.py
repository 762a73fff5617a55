import numpy as np
import pytest

from rayeffdet.data.doubts import (
    box_doubts,
    class_doubts,
    crowding_doubts,
    leaked_ids,
    repeated_ids,
    repeated_images,
    some,
)
from rayeffdet.data.index import RecordIndex, ShardIndex
from rayeffdet.data.inspect import FACTS, BoxLimits, ImageFacts

LIMITS = BoxLimits(size_hw=(320, 512), cell=8, skip_crowd=True)
NAMES = {1: "cat", 2: "dog", 3: "cow", 4: "owl"}


def facts(count=10, *, first_id=0, **columns):
    """Images with three good boxes each, but for the columns given."""
    table = np.zeros(count, FACTS)
    table["content"] = table["labelled"] = np.arange(first_id, first_id + count) + 1000
    table["num_boxes"] = 3
    for name, values in columns.items():
        table[name] = values
    return ImageFacts(tuple(map(str, range(first_id, first_id + count))), table)


def index(**class_counts):
    counts = {int(name[1:]): count for name, count in class_counts.items()}
    return RecordIndex((ShardIndex("a", np.arange(9), counts, {}, 3),))


def one_in_ten(value=1):
    return [0, 0, 0, 0, value, 0, 0, 0, 0, 0]


def test_nothing_is_doubted_in_good_data():
    assert box_doubts("train", facts(), limits=LIMITS) == []
    assert crowding_doubts("train", facts(), max_instances=3) == []
    assert repeated_images("train", facts()) == []
    assert repeated_ids("train", facts().ids) == []
    assert leaked_ids(facts(), facts(first_id=10)) == []
    assert class_doubts(index(_1=3, _2=1), index(_1=1, _2=1), num_classes=3, names=NAMES) == []


def test_an_image_without_boxes_is_normal_and_many_are_not():
    assert box_doubts("val", facts(num_boxes=[0] * 2 + [3] * 8), limits=LIMITS) == []
    (doubt,) = box_doubts("val", facts(num_boxes=[0] * 3 + [3] * 7), limits=LIMITS)
    assert doubt.startswith("val: images without boxes: 3 of 10 (0, 1, 2)")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("num_flat", "train: boxes without area inside their picture: 2 (images 4)"),
        (
            "num_vanishing",
            "train: boxes with a side under 1 px at the input of 512 x 320: 2 (images 4)",
        ),
    ],
)
def test_boxes_that_are_left_out_are_counted_with_their_images(column, said):
    (doubt,) = box_doubts("train", facts(**{column: one_in_ten(2)}), limits=LIMITS)
    assert doubt.startswith(said)


def test_a_size_that_contradicts_the_image_is_said():
    (doubt,) = box_doubts("train", facts(is_resized=one_in_ten()), limits=LIMITS)
    assert doubt.startswith("train: records whose size is not that of their image: 1 (images 4)")


def test_small_boxes_are_doubted_when_they_are_many():
    assert box_doubts("train", facts(num_small=one_in_ten(3)), limits=LIMITS) == []
    (doubt,) = box_doubts("train", facts(num_small=1), limits=LIMITS)
    assert doubt.startswith("train: 33% of the boxes are smaller than 8 px at the input")


def test_boxes_above_the_limit_are_counted():
    (doubt,) = crowding_doubts("train", facts(num_boxes=[9, 12] + [1] * 8), max_instances=10)
    assert "images with more than dataset.max_instances_per_image 10 boxes: 1 (1)" in doubt
    assert "2 are left out, 12 keeps all" in doubt


def test_classes_that_training_does_not_show_are_named():
    doubts = class_doubts(index(_1=5, _4=1), index(_1=1, _2=1, _4=1), num_classes=5, names=NAMES)
    assert doubts == [
        "train: classes without boxes: 2 (dog), 3 (cow); the network cannot learn them"
    ]


def test_classes_that_validation_does_not_show_are_named():
    doubts = class_doubts(index(_1=5, _2=1), index(_1=1), num_classes=3, names=NAMES)
    assert doubts == ["val: classes without boxes: 2 (dog); they get no AP"]


def test_a_count_of_classes_beyond_the_largest_id_is_doubted_once():
    (doubt,) = class_doubts(index(_1=5), index(_1=1), num_classes=91, names=NAMES)
    assert (
        "dataset.num_classes is 91, the largest category id with a box is 1: 2 is enough" in doubt
    )


def test_records_without_any_box_show_no_class():
    (doubt,) = class_doubts(index(), index(), num_classes=3, names=NAMES)
    assert doubt == "train: no image has a box: there is nothing to learn"


def test_an_image_in_both_splits_is_found_by_its_bytes():
    train, val = facts(), facts(first_id=10)
    val.table["content"][3] = train.table["content"][8]
    assert leaked_ids(train, val) == ["13"]


def test_a_copy_in_both_splits_is_found_by_id_and_boxes_if_it_has_any():
    train, val = facts(), facts(first_id=10)
    val.table["labelled"][4] = train.table["labelled"][2]
    val.table["labelled"][5] = train.table["labelled"][5] = 0
    assert leaked_ids(train, val) == ["14"]


def test_an_image_that_is_there_twice_is_named_once():
    twice = facts()
    twice.table["content"][6] = twice.table["content"][2]
    assert repeated_images("val", twice) == ["val: images that repeat an earlier one: 1 (6)"]


def test_ids_that_evaluation_cannot_tell_apart_are_named():
    (problem,) = repeated_ids("val", ["1", "2", "1", "3"])
    assert problem.startswith("val: source ids on more than one record: 1 (1)")


def test_a_long_list_is_cut_with_the_number_that_is_left():
    assert some([1, 2]) == "1, 2"
    assert some(range(1205)) == "0, 1, 2, 3, 4 and 1,200 more"

import io
import json

import numpy as np
import pytest
from PIL import Image

from rayeffdet.data.coco import read_coco
from rayeffdet.data.example import Example, encode_example
from rayeffdet.data.inspect import BoxLimits, index_coco, inspect_coco, inspect_shard, join_facts
from rayeffdet.data.tfrecord import write_shard
from rayeffdet.errors import DataError

# The pictures are 200 x 100, so the input halves them.
LIMITS = BoxLimits(size_hw=(100, 100), cell=8, skip_crowd=True)


def jpeg(colour=90, size=(200, 100)):
    file = io.BytesIO()
    Image.new("RGB", size, (colour, 20, 30)).save(file, "JPEG")
    return file.getvalue()


def example(boxes_xyxy=(), *, source_id="7", crowd=(), encoded=None, size=(200, 100)):
    boxes_xyxy = np.array(boxes_xyxy, np.float32).reshape(-1, 4)
    count = len(boxes_xyxy)
    return Example(
        source_id=source_id,
        filename="a.jpg",
        encoded=encoded or jpeg(),
        format="jpeg",
        height=size[1],
        width=size[0],
        boxes_xyxy=boxes_xyxy,
        labels=np.ones(count, np.int64),
        class_names=("a",) * count,
        is_crowd=np.array(crowd or [False] * count, bool),
        areas=np.ones(count, np.float32),
    )


def inspect(tmp_path, *examples, decode_every=1, limits=LIMITS):
    path = str(tmp_path / "shard.tfrecord")
    write_shard(path, map(encode_example, examples))
    return inspect_shard(path, limits=limits, decode_every=decode_every)


def numbers(facts):
    names = ("num_boxes", "num_flat", "num_vanishing", "num_small")
    return [tuple(int(row[name]) for name in names) for row in facts.table]


def test_boxes_are_sorted_by_what_the_input_leaves_of_them(tmp_path):
    boxes = [
        (10, 10, 80, 60),  # well visible
        (10, 10, 10, 60),  # flat
        (210, 10, 260, 60),  # outside
        (10, 10, 11, 60),  # half a pixel wide
        (10, 10, 20, 20),  # five pixels
        (10, 10, 16, 60),  # narrow but long
    ]
    assert numbers(inspect(tmp_path, example(boxes))) == [(6, 2, 1, 1)]


def test_crowds_count_only_where_they_are_trained_on(tmp_path):
    crowd = example([(10, 10, 80, 60), (0, 0, 0, 9)], crowd=[True, True])
    assert numbers(inspect(tmp_path, crowd)) == [(0, 0, 0, 0)]
    trained = BoxLimits(LIMITS.size_hw, LIMITS.cell, skip_crowd=False)
    assert numbers(inspect(tmp_path, crowd, limits=trained)) == [(2, 1, 0, 0)]


def test_a_record_that_gives_another_size_than_its_image_is_found(tmp_path):
    facts = inspect(tmp_path, example(), example(size=(100, 200), source_id="8"))
    assert facts.ids_where(facts.table["is_resized"]) == ["8"]


def test_an_image_that_cannot_be_decoded_is_named_by_file_and_offset(tmp_path):
    cut = jpeg()[:-200]
    facts = inspect(tmp_path, example(), example(encoded=cut))
    (sentence,) = facts.broken
    assert "shard.tfrecord: offset" in sentence
    assert len(facts.ids) == 2


def test_only_every_nth_image_is_decoded_but_every_header_is_read(tmp_path):
    cut, none = example(encoded=jpeg()[:-200]), example(encoded=b"no image")
    assert inspect(tmp_path, example(), cut, decode_every=2).broken == ()
    assert len(inspect(tmp_path, example(), none, decode_every=2).broken) == 1


def test_equal_bytes_have_equal_digests_whatever_the_record_says(tmp_path):
    facts = inspect(
        tmp_path, example(), example([(1, 2, 30, 40)], source_id="8"), example(encoded=jpeg(91))
    )
    first, second, third = facts.table["content"].tolist()
    assert first == second != third


def test_a_resized_copy_with_the_same_id_and_boxes_has_the_same_label_digest(tmp_path):
    large = example([(20, 10, 80, 60)])
    small = example([(10, 5, 40, 30)], encoded=jpeg(size=(100, 50)), size=(100, 50))
    moved = example([(30, 10, 80, 60)])
    other = example([(20, 10, 80, 60)], source_id="8")
    facts = inspect(tmp_path, large, small, moved, other, example())
    digests = facts.table["labelled"].tolist()
    assert digests[0] == digests[1] != 0
    assert len({digests[0], digests[2], digests[3]}) == 3
    assert digests[4] == 0


def test_facts_are_joined_in_order(tmp_path):
    parts = [inspect(tmp_path, example(source_id=i)) for i in ("3", "1")]
    joined = join_facts(parts)
    assert joined.ids == ("3", "1")
    assert len(joined.table) == 2


@pytest.fixture
def coco_set(tmp_path):
    def image(i, **size):
        return {"id": i, "file_name": f"{i}.jpg", **size}

    def box(i, image_id, bbox, **more):
        return {"id": i, "image_id": image_id, "category_id": 2, "bbox": bbox, **more}

    document = {
        "images": [image(5, height=100, width=200), image(6), image(9, height=100, width=200)],
        "annotations": [
            box(1, 5, [10, 10, 70, 50]),
            box(2, 5, [10, 10, 0, 50]),
            box(3, 5, [0, 0, 90, 90], iscrowd=1),
            box(4, 6, [10, 10, 4, 4]),
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    return read_coco(str(tmp_path / "instances.json"), str(tmp_path))


def test_a_set_is_inspected_before_its_conversion(coco_set):
    facts = inspect_coco(coco_set, limits=LIMITS)
    assert facts.ids == ("5", "6", "9")
    # Without a size the picture is taken to be as large as the input.
    assert numbers(facts) == [(2, 1, 0, 0), (1, 0, 0, 1), (0, 0, 0, 0)]


def test_a_set_is_indexed_before_its_conversion(coco_set):
    index = index_coco(coco_set, num_classes=3)
    assert index.offsets.tolist() == [0, 1, 2]
    assert index.class_counts == {2: 4}
    assert index.class_names == {2: "b"}
    assert index.most_boxes == 3
    assert index.problems == ()


def test_a_category_id_that_is_not_allowed_is_a_problem_before_conversion(coco_set):
    (problem,) = index_coco(coco_set, num_classes=2).problems
    assert "instances.json: category id 2 (4 boxes) is not in 1..1" in problem


def test_a_corrupt_record_is_not_passed_over(tmp_path):
    path = tmp_path / "shard.tfrecord"
    write_shard(str(path), [encode_example(example())])
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="offset 0"):
        inspect_shard(str(path), limits=LIMITS, decode_every=1)

import io

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rayeffdet.data.example import Example, decode_example, encode_example
from rayeffdet.data.index import (
    RecordIndex,
    ShardIndex,
    find_shards,
    index_shard,
    join_shards,
)
from rayeffdet.data.tfrecord import read_records, write_shard
from rayeffdet.errors import DataError

NAMES = {1: "disc", 2: "square", 3: "star"}


def record(source_id, labels=()):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    example = Example(
        source_id=source_id,
        filename=f"{source_id}.jpg",
        encoded=buffer.getvalue(),
        format="jpeg",
        height=16,
        width=16,
        boxes_xyxy=np.array([[1, 1, 9, 9]] * len(labels), np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        class_names=tuple(NAMES.get(label, "?") for label in labels),
        is_crowd=np.zeros(len(labels), bool),
        areas=np.full(len(labels), 64, np.float32),
    )
    return encode_example(example)


@pytest.fixture
def folder(tmp_path):
    """Three shards of 2, 0 and 3 records."""
    write_shard(str(tmp_path / "a.tfrecord"), [record("0", [1, 1, 2]), record("1")])
    write_shard(str(tmp_path / "b.tfrecord"), [])
    write_shard(str(tmp_path / "c.tfrecord"), [record(str(i), [3]) for i in (2, 3, 4)])
    return tmp_path


def index_of(folder):
    return join_shards([index_shard(path, num_classes=4) for path in find_shards([str(folder)])])


def problems_of(function, *args):
    with pytest.raises(DataError) as caught:
        function(*args)
    return caught.value.problems


def test_a_shard_is_counted_and_its_classes_are_named(folder):
    shard = index_shard(str(folder / "a.tfrecord"), num_classes=4)
    assert (len(shard.offsets), shard.most_boxes, shard.problems) == (2, 3, ())
    assert shard.class_counts == {1: 2, 2: 1}
    assert shard.class_names == {1: "disc", 2: "square"}
    assert index_shard(str(folder / "c.tfrecord"), num_classes=4).most_boxes == 1


def test_a_split_adds_up_its_shards(folder):
    index = index_of(folder)
    assert index.shard_sizes == (2, 0, 3)
    assert (index.num_records, index.num_boxes) == (5, 6)
    assert index.class_counts == {1: 2, 2: 1, 3: 3}
    assert index.class_names == NAMES


def test_every_record_is_found_where_it_lies_and_in_the_order_asked(folder):
    places = index_of(folder).locate([4, 0, 2, 1, 3, 4])
    found = [decode_example(read_records(path, [o])[0], where="") for path, o in places]
    assert [example.source_id for example in found] == ["4", "0", "2", "1", "3", "4"]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any))
def test_records_count_through_shards_of_any_sizes(sizes):
    index = RecordIndex(
        tuple(
            ShardIndex(f"shard {n}", np.arange(size) * 10, {}, {}, 0)
            for n, size in enumerate(sizes)
        )
    )
    expected = [(f"shard {n}", k * 10) for n, size in enumerate(sizes) for k in range(size)]
    assert index.locate(range(index.num_records)) == expected


def test_a_category_id_outside_of_the_classes_is_a_problem_that_names_file_and_id(folder):
    shard = index_shard(str(folder / "a.tfrecord"), num_classes=2)
    (problem,) = shard.problems
    assert problem.startswith(f"{folder}/a.tfrecord: category id 2 (1 boxes) is not in 1..1")
    write_shard(str(folder / "z.tfrecord"), [record("9", [0])])
    (problem,) = index_shard(str(folder / "z.tfrecord"), num_classes=4).problems
    assert "category id 0 (1 boxes) is not in 1..3" in problem


def test_a_broken_shard_is_a_problem_and_no_exception(folder):
    path = folder / "c.tfrecord"
    blob = bytearray(path.read_bytes())
    blob[-10] ^= 1
    path.write_bytes(blob)
    shard = index_shard(str(path), num_classes=4)
    assert len(shard.offsets) == 2
    (problem,) = shard.problems
    assert problem.startswith(f"{path}: offset ")
    assert "checksum" in problem
    (problem,) = index_shard(str(folder / "gone.tfrecord"), num_classes=4).problems
    assert "no such file" in problem


def test_a_record_that_is_no_example_is_a_problem_at_its_offset(folder):
    path = str(folder / "b.tfrecord")
    write_shard(path, [record("7"), b"\xff\xff"])
    shard = index_shard(path, num_classes=4)
    offset = 16 + len(record("7"))
    assert shard.problems[0].startswith(f"{path}: offset {offset}: ")


def test_the_problems_of_all_shards_are_told_at_once(folder):
    shards = [index_shard(path, num_classes=2) for path in find_shards([str(folder)])]
    problems = problems_of(join_shards, shards)
    assert [problem.split(":")[0][-10:] for problem in problems] == ["a.tfrecord", "c.tfrecord"]


def test_a_split_without_records_is_refused_by_name(folder):
    empty = index_shard(str(folder / "b.tfrecord"), num_classes=4)
    assert problems_of(join_shards, [empty]) == (
        f"{folder}/b.tfrecord: no records in these shards",
    )


def test_a_folder_means_its_tfrecord_files_in_order(folder):
    (folder / "notes.txt").write_text("")
    (folder / ".a.tfrecord.json").write_text("")
    assert find_shards([str(folder)]) == [f"{folder}/{name}.tfrecord" for name in "abc"]


def test_a_file_and_a_glob_may_have_any_ending(folder):
    for name in ("train.record-00000-of-00002", "train.record-00001-of-00002"):
        write_shard(str(folder / name), [record("5")])
    pattern = f"{folder}/train.record-*"
    assert len(find_shards([pattern])) == 2
    one = f"{folder}/train.record-00000-of-00002"
    assert find_shards([one]) == [one]


def test_patterns_keep_their_order(folder):
    wanted = [f"{folder}/c.tfrecord", f"{folder}/a.tfrecord"]
    assert find_shards(wanted) == wanted


def test_every_pattern_that_matches_nothing_is_named(folder):
    (folder / "images").mkdir()
    patterns = [f"{folder}/x*.tfrecord", str(folder), f"{folder}/images"]
    problems = problems_of(find_shards, patterns)
    assert [problem.split(": ")[0] for problem in problems] == [patterns[0], patterns[2]]


def test_a_folder_whose_name_holds_brackets_is_no_pattern(tmp_path):
    path = str(tmp_path / "runs [2]" / "train.tfrecord")
    write_shard(path, [record("5")])
    assert find_shards([str(tmp_path / "runs [2]")]) == [path]
    assert find_shards([path]) == [path]


def test_shards_on_an_object_store_are_found_and_indexed():
    path = "memory://index-test/train.tfrecord"
    write_shard(path, [record("5", [1])])
    try:
        (found,) = find_shards(["memory://index-test"])
        assert index_shard(found, num_classes=2).class_counts == {1: 1}
        assert find_shards([path]) == [path]
    finally:
        fsspec.filesystem("memory").rm("/index-test", recursive=True)

import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from rayeffdet.data.convert import (
    build_manifest,
    build_warnings,
    convert_shard,
    report_name,
    shard_name,
)
from rayeffdet.data.example import decode_example
from rayeffdet.data.tfrecord import iterate_records
from rayeffdet.errors import DataError, RunError

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"


@pytest.fixture
def source(tmp_path):
    """Seven images of which image k has k boxes; images 3 and 5 have one bad box more."""
    folder = tmp_path / "images"
    folder.mkdir()
    annotations = []
    for k in range(7):
        Image.new("RGB", (50, 40), (30 * k, 9, 90)).save(folder / f"{k}.jpg")
        boxes = [[j, j, 10 + j, 12] for j in range(k)] + [[5, 5, 0, 9]] * (k in (3, 5))
        for box in boxes:
            entry = {"id": len(annotations), "image_id": k, "category_id": 1 + len(annotations) % 2}
            annotations.append(entry | {"bbox": box})
    document = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "height": 40, "width": 50} for k in range(7)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 4, "name": "unused"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    return tmp_path


def convert(source, shard, *, num_shards=3, results_dir=None, include_masks=False):
    return convert_shard(
        annotations_file=str(source / "instances.json"),
        image_dir=str(source / "images"),
        results_dir=results_dir or str(source / "out"),
        tag="train",
        shard=shard,
        num_shards=num_shards,
        include_masks=include_masks,
    )


def convert_all(source, num_shards=3):
    return [convert(source, shard, num_shards=num_shards) for shard in range(num_shards)]


def examples_of(path):
    return [decode_example(payload, where=str(path)) for _, payload in iterate_records(str(path))]


def rewrite(source, change):
    path = source / "instances.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_shard_names_are_taos():
    assert shard_name("train", 7, 256) == "train-00007-of-00256.tfrecord"


def test_image_i_lands_in_shard_i_mod_num_shards_in_order(source):
    convert_all(source)
    found = [
        [example.source_id for example in examples_of(source / "out" / shard_name("train", k, 3))]
        for k in range(3)
    ]
    assert found == [["0", "3", "6"], ["1", "4"], ["2", "5"]]


def test_more_shards_than_images_leave_empty_files(source):
    reports = convert_all(source, num_shards=9)
    assert [report.num_images for report in reports] == [1] * 7 + [0, 0]
    assert examples_of(source / "out" / shard_name("train", 8, 9)) == []


def test_the_manifest_counts_what_the_shards_hold(source):
    manifest = build_manifest(convert_all(source)[::-1])
    counted = Counter()
    for entry in manifest["shards"]:
        path = source / "out" / entry["name"]
        examples = examples_of(path)
        counted.update(name for example in examples for name in example.class_names)
        assert entry["num_images"] == len(examples)
        assert entry["num_bytes"] == path.stat().st_size
    assert [entry["name"] for entry in manifest["shards"]] == [
        shard_name("train", k, 3) for k in range(3)
    ]
    assert manifest["boxes_per_class"] == {"a": counted["a"], "b": counted["b"], "unused": 0}
    assert manifest["num_boxes"] == 21
    assert (manifest["num_images"], manifest["num_skipped"]) == (7, 0)
    assert manifest["categories"] == {"1": "a", "2": "b", "4": "unused"}
    assert manifest["num_classes"] == 5
    json.dumps(manifest, allow_nan=False)


def test_the_same_source_gives_the_same_digest_anywhere(source):
    here = build_manifest(convert_all(source))
    there = build_manifest(
        [convert(source, k, results_dir=str(source / "there")) for k in range(3)]
    )
    assert here == there


def test_dropped_boxes_are_listed_by_image_as_in_tao(source):
    assert build_warnings(convert_all(source)) == {"3": {"box": [6]}, "5": {"box": [16]}}


def test_one_bad_image_and_one_bad_annotation_cost_nothing_else(source):
    (source / "images" / "4.jpg").write_bytes(b"broken")
    (source / "images" / "1.jpg").unlink()
    orphan = {"id": 77, "image_id": 99, "category_id": 1, "bbox": [1, 2, 3, 4]}
    rewrite(source, lambda document: document["annotations"].append(orphan))
    reports = convert_all(source)
    assert [report.num_images for report in reports] == [3, 0, 2]
    assert [report.num_skipped for report in reports] == [0, 2, 0]
    manifest, warnings = build_manifest(reports), build_warnings(reports)
    assert (manifest["num_images"], manifest["num_skipped"]) == (5, 2)
    assert manifest["num_boxes"] == 21 - 1 - 4
    assert list(warnings) == ["99", "3", "1", "4", "5"]
    assert warnings["99"] == {"annotation": [77]}
    assert "1.jpg: " in warnings["1"]["image"]
    assert "4.jpg: " in warnings["4"]["image"]


def test_a_set_without_one_usable_image_is_an_error(source):
    for path in (source / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"train: not one image .*0\.jpg"):
        build_manifest(convert_all(source))


def test_masks_are_stored_on_request(source):
    def outline(document):
        for annotation in document["annotations"]:
            annotation["segmentation"] = [[0, 0, 9, 0, 9, 9]]

    rewrite(source, outline)
    plain = convert(source, 0)
    with_masks = convert(source, 0, include_masks=True)
    assert with_masks.num_bytes > plain.num_bytes


def test_a_finished_shard_is_not_written_again(source):
    first = convert_all(source)
    paths = [source / "out" / report.name for report in first]
    stamps = [path.stat().st_mtime_ns for path in paths]
    (source / "images" / "0.jpg").unlink()  # Would be missed if it were read again.
    assert convert_all(source) == first
    assert [path.stat().st_mtime_ns for path in paths] == stamps


def test_an_interrupted_conversion_leaves_whole_shards_and_a_rerun_takes_them(source):
    def is_final(name):
        return name.endswith(".tfrecord") and not name.startswith(".")

    done = convert(source, 0)
    # The second shard dies midway: its second image cannot be opened for now.
    os.unlink(source / "images" / "4.jpg")
    os.symlink(source / "images" / "4.jpg", source / "images" / "4.jpg")
    with pytest.raises(RunError, match=r"4\.jpg: cannot be read"):
        convert(source, 1)
    assert set(os.listdir(source / "out")) == {done.name, report_name("train", 0, 3)}
    os.unlink(source / "images" / "4.jpg")
    Image.new("RGB", (50, 40)).save(source / "images" / "4.jpg")
    stamp = (source / "out" / done.name).stat().st_mtime_ns
    reports = convert_all(source)
    assert (source / "out" / done.name).stat().st_mtime_ns == stamp
    assert build_manifest(reports)["num_images"] == 7
    assert sum(map(is_final, os.listdir(source / "out"))) == 3


def damage_report(out):
    (out / report_name("train", 0, 3)).write_text('{"half": ')


def drop_report(out):
    (out / report_name("train", 0, 3)).unlink()


def drop_shard(out):
    (out / shard_name("train", 0, 3)).unlink()


def cut_shard(out):
    path = out / shard_name("train", 0, 3)
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [damage_report, drop_report, drop_shard, cut_shard])
def test_a_shard_that_is_not_surely_finished_is_made_again(source, damage):
    first = convert(source, 0)
    damage(source / "out")
    assert convert(source, 0) == first
    assert [e.source_id for e in examples_of(source / "out" / first.name)] == ["0", "3", "6"]


def test_changed_annotations_make_the_shard_again(source):
    convert(source, 0)
    rewrite(source, lambda document: document["annotations"].clear())
    assert sum(convert(source, 0).boxes_per_class.values()) == 0


def test_the_report_beside_the_shard_is_the_one_returned(source):
    report = convert(source, 0)
    stored = json.loads((source / "out" / report_name("train", 0, 3)).read_text())
    assert stored == json.loads(json.dumps(asdict(report)))


def test_conversion_reads_and_writes_object_stores(source):
    memory = fsspec.filesystem("memory")
    memory.put(str(source / "images"), "/test-convert/images", recursive=True)
    memory.put(str(source / "instances.json"), "/test-convert/instances.json")
    report = convert_shard(
        annotations_file="memory://test-convert/instances.json",
        image_dir="memory://test-convert/images",
        results_dir="memory://test-convert/out",
        tag="val",
        shard=1,
        num_shards=3,
        include_masks=False,
    )
    examples = examples_of(f"memory://test-convert/out/{report.name}")
    assert [example.source_id for example in examples] == ["1", "4"]


def test_a_missing_annotation_file_is_a_data_error(source):
    (source / "instances.json").unlink()
    with pytest.raises(DataError, match=r"instances\.json: no such annotation file"):
        convert(source, 0)


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"the BCCD set is not at {BCCD}")
def test_bccd_is_converted_without_loss(tmp_path):
    reports = [
        convert_shard(
            annotations_file=str(BCCD / "annotations" / "instances_val.json"),
            image_dir=str(BCCD / "val"),
            results_dir=str(tmp_path),
            tag="val",
            shard=shard,
            num_shards=2,
            include_masks=False,
        )
        for shard in range(2)
    ]
    manifest = build_manifest(reports)
    assert manifest["num_images"] == 87
    assert manifest["boxes_per_class"] == {"Platelets": 83, "RBC": 967, "WBC": 87}
    assert build_warnings(reports) == {"338": {"box": [887]}}
    truth = json.loads((BCCD / "annotations" / "instances_val.json").read_text())
    wanted = {(str(a["image_id"]), a["category_id"], *a["bbox"]) for a in truth["annotations"]}
    found = set()
    for report in reports:
        for example in examples_of(tmp_path / report.name):
            for label, box in zip(example.labels.tolist(), example.boxes_xyxy, strict=True):
                x1, y1, x2, y2 = (round(float(side), 3) for side in box)
                found.add((example.source_id, label, x1, y1, x2 - x1, y2 - y1))
            assert example.encoded == (BCCD / "val" / example.filename).read_bytes()
    assert len(wanted - found) == 1
    assert found < wanted

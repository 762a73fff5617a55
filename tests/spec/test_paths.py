import os

import pytest

from rayeffdet import storage
from rayeffdet.data.convert import shard_name
from rayeffdet.data.index import find_shards
from rayeffdet.spec.paths import with_absolute_paths
from rayeffdet.spec.root import Spec

RELATIVE = {
    "results_dir": "results",
    "dataset": {
        "train_tfrecords": ["data/train-*", "s3://bucket/more"],
        "val_tfrecords": ["data/val"],
        "val_json_file": "val.json",
    },
    "train": {
        "checkpoint": "backbone.pth",
        "resume_training_checkpoint_path": "../old/a.tlt",
        "pruned_model_path": "pruned.tlt",
        "results_dir": "here",
    },
    "evaluate": {"checkpoint": "a.tlt", "label_map": "names.yaml", "results_dir": "e"},
    "prune": {"checkpoint": "a.tlt", "output_path": "p.tlt", "results_dir": "p"},
    "export": {"checkpoint": "a.tlt", "onnx_file": "m.onnx", "results_dir": "x"},
    "inference": {
        "checkpoint": "a.tlt",
        "image_dir": "voc",
        "label_map": "coco",
        "results_dir": "i",
    },
    "dataset_convert": {
        "image_dir": "images",
        "annotations_file": "a.json",
        "results_dir": "d",
        "splits": {"val": {"image_dir": "v", "annotations_file": "v.json"}},
    },
    "ray": {"storage_path": "shared"},
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(tmp_path)


def leaves(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_every_local_path_becomes_absolute(here):
    spec = with_absolute_paths(Spec.from_dict(RELATIVE))
    found = dict(leaves(spec.to_dict()))
    for name, given in leaves(RELATIVE):
        expected = (
            [storage.absolute(path) for path in given]
            if isinstance(given, list)
            else os.path.normpath(f"{here}/{given}")
        )
        assert found[name] == expected, name


def test_fields_that_are_no_paths_stay_as_they_are(here):
    before = dict(leaves(Spec.from_dict(RELATIVE).to_dict()))
    after = dict(leaves(with_absolute_paths(Spec.from_dict(RELATIVE)).to_dict()))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name, _ in leaves(RELATIVE)}


def test_every_field_of_the_spec_that_names_a_file_is_covered():
    ends = ("_dir", "_file", "_path", "_tfrecords", "checkpoint", "label_map")
    kept_from_tao = {"dataset_convert.output_dir"}
    named = {
        name
        for name, value in leaves(Spec().to_dict())
        if name.endswith(ends)
        and name.split(".")[0] not in ("gen_trt_engine", "tune")
        and isinstance(value, str | list)
    }
    covered = {name for name, _ in leaves(RELATIVE)}
    assert named - kept_from_tao <= covered


def test_uris_and_empty_fields_are_left_alone(here):
    spec = Spec.from_dict(
        {"results_dir": "s3://bucket/run", "train": {"checkpoint": "gs://other/a.tlt"}}
    )
    found = with_absolute_paths(spec)
    assert found.results_dir == "s3://bucket/run"
    assert found.train.checkpoint == "gs://other/a.tlt"
    assert found.train.resume_training_checkpoint_path == ""
    assert found.dataset.val_json_file == ""


@pytest.mark.parametrize("results_dir", ["r", "runs [2]"])
def test_without_shards_those_of_dataset_convert_are_meant(here, results_dir):
    dataset = with_absolute_paths(Spec.from_dict({"results_dir": results_dir})).dataset
    folder = f"{here}/{results_dir}/dataset_convert"
    for tag in ("train", "val", "train-old"):
        storage.write_atomic(f"{folder}/{shard_name(tag, 0, 1)}", b"")
    assert find_shards(dataset.train_tfrecords) == [f"{folder}/{shard_name('train', 0, 1)}"]
    assert find_shards(dataset.val_tfrecords) == [f"{folder}/{shard_name('val', 0, 1)}"]


def test_shards_are_expected_where_dataset_convert_was_told_to_leave_them():
    spec = Spec.from_dict({"dataset_convert": {"results_dir": "s3://b/shards"}})
    (pattern,) = with_absolute_paths(spec).dataset.train_tfrecords
    assert pattern.startswith("s3://b/shards/train-")


def test_doing_it_twice_changes_nothing(here):
    once = with_absolute_paths(Spec.from_dict(RELATIVE))
    assert with_absolute_paths(once) == once

"""TensorFlow as the judge of our shards, in an environment that the test makes."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayeffdet.data.example import Example, decode_example, encode_example
from rayeffdet.data.tfrecord import iterate_records, read_records, write_shard

JUDGE = Path(__file__).with_name("tensorflow_judge.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def jpeg() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    encoded = BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """Returns a function that runs the judge with TensorFlow."""
    folder = tmp_path_factory.mktemp("tensorflow")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "tensorflow-cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"TensorFlow cannot be installed here: {done.stderr.strip()[-200:]}")

    def run(*arguments) -> str:
        command = [python, JUDGE, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def theirs(judge, tmp_path_factory):
    """Returns the folder of the shards that TensorFlow wrote."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "image.jpg").write_bytes(jpeg())
    judge("write", folder, folder / "image.jpg")
    return folder


@pytest.mark.parametrize("name", ["plain", "gzip"])
def test_shards_that_tensorflow_wrote_are_read_record_by_record(theirs, name):
    path = str(theirs / f"{name}.tfrecord")
    records = list(iterate_records(path))
    full, empty, fewest = (decode_example(payload, where=path) for _, payload in records)

    assert (full.source_id, full.filename, full.height, full.width) == ("17", "full.jpg", 48, 64)
    np.testing.assert_array_equal(full.boxes_xyxy, [[16, 24, 48, 48], [0, 0, 32, 12]])
    assert full.labels.tolist() == [1, 2]
    assert full.class_names == ("cat", "Hündin")
    assert full.is_crowd.tolist() == [False, True]
    assert full.areas.tolist() == [700, 300]
    assert bytes(full.encoded) == (theirs / "image.jpg").read_bytes()
    assert (empty.source_id, len(empty.labels)) == ("not-a-number", 0)
    assert (fewest.height, fewest.width, len(fewest.labels)) == (48, 64, 0)

    offsets = [offset for offset, _ in records]
    assert read_records(path, offsets[::-1]) == [payload for _, payload in records[::-1]]


def test_shards_that_we_write_are_parsed_by_tensorflow(judge, tmp_path):
    image = jpeg()
    full = Example(
        source_id="7",
        filename="seven.jpg",
        encoded=image,
        format="jpeg",
        height=48,
        width=64,
        boxes_xyxy=np.array([[16, 24, 48, 48], [0, 0, 32, 12]], np.float32),
        labels=np.array([1, 3]),
        class_names=("cat", "Hündin"),
        is_crowd=np.array([False, True]),
        areas=np.array([700, 300], np.float32),
    )
    empty = replace(
        full,
        source_id="none",
        boxes_xyxy=np.empty((0, 4), np.float32),
        labels=np.empty(0, np.int64),
        class_names=(),
        is_crowd=np.empty(0, bool),
        areas=np.empty(0, np.float32),
    )
    path = tmp_path / "ours.tfrecord"
    write_shard(str(path), map(encode_example, (full, empty)))
    first, second = map(json.loads, judge("parse", path).splitlines())

    assert first["image/source_id"] == "7"
    assert first["image/filename"] == "seven.jpg"
    assert (first["image/height"], first["image/width"]) == (48, 64)
    assert first["image/format"] == "jpeg"
    assert first["pixels"] == [48, 64, 3]
    assert first["image/key/sha256"] == first["image/encoded"] == hashlib.sha256(image).hexdigest()
    assert first["image/object/bbox/xmin"] == [0.25, 0]
    assert first["image/object/bbox/xmax"] == [0.75, 0.5]
    assert first["image/object/bbox/ymin"] == [0.5, 0]
    assert first["image/object/bbox/ymax"] == [1, 0.25]
    assert first["image/object/class/label"] == [1, 3]
    assert first["image/object/class/text"] == ["cat", "Hündin"]
    assert first["image/object/is_crowd"] == [0, 1]
    assert first["image/object/area"] == [700, 300]
    assert second["image/source_id"] == "none"
    assert second["image/object/bbox/xmin"] == second["image/object/class/label"] == []

"""TensorFlow as the judge of our shards, in an environment that the test makes."""

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayeffdet.data.convert import convert_shard, shard_name
from rayeffdet.data.decode import decode_image
from rayeffdet.data.example import decode_example
from rayeffdet.data.tfrecord import iterate_records, read_records

JUDGE = Path(__file__).with_name("tensorflow_judge.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HEIGHT, WIDTH = 48, 64
PIXELS = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
UPPER_LEFT = np.zeros((HEIGHT, WIDTH), np.uint8)
UPPER_LEFT[:12, :32] = 1
LOWER_MIDDLE = np.zeros((HEIGHT, WIDTH), np.uint8)
LOWER_MIDDLE[24:, 16:48] = 1


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
def images(tmp_path_factory):
    """Returns a folder with a JPEG, a grey JPEG and a PNG of the same size, and two PNG masks."""
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(PIXELS).save(folder / "colour.jpg")
    Image.fromarray(PIXELS[..., 0]).save(folder / "grey.jpg")
    Image.fromarray(PIXELS).save(folder / "exact.png")
    Image.fromarray(LOWER_MIDDLE).save(folder / "mask0.png")
    Image.fromarray(UPPER_LEFT).save(folder / "mask1.png")
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def image_fields(path: Path, source_id: str) -> dict[str, list]:
    # TAO and the authors of EfficientDet call every image a JPEG.
    return {
        "image/height": [HEIGHT],
        "image/width": [WIDTH],
        "image/filename": [path.name],
        "image/source_id": [source_id],
        "image/key/sha256": [digest(path)],
        "image/encoded": [{"file": path.name}],
        "image/format": ["jpeg"],
    }


BOXES = {
    "image/object/bbox/xmin": [0.25, 0.0],
    "image/object/bbox/xmax": [0.75, 0.5],
    "image/object/bbox/ymin": [0.5, 0.0],
    "image/object/bbox/ymax": [1.0, 0.25],
    "image/object/class/text": ["cat", "Hündin"],
    "image/object/class/label": [1, 90],
}
CROWD_AND_AREA = {"image/object/is_crowd": [0, 1], "image/object/area": [700.0, 300.5]}
MASKS = {"image/object/mask": [{"file": "mask0.png"}, {"file": "mask1.png"}]}
CAPTIONS = {"image/caption": ["two cats", "zwei Katzen"]}
PASCAL = {
    "image/object/difficult": [0, 1],
    "image/object/truncated": [1, 0],
    "image/object/view": ["Left", "Unspecified"],
}


def foreign_records(images: Path) -> dict[str, dict[str, list]]:
    """Returns what the converters of google/automl (COCO, Pascal) and of TAO write, by its id."""
    colour, grey, exact = (images / name for name in ("colour.jpg", "grey.jpg", "exact.png"))
    no_objects = {key: [] for key in BOXES | CROWD_AND_AREA}
    return {
        "17": image_fields(colour, "17") | BOXES | CROWD_AND_AREA | MASKS | CAPTIONS,
        "18": image_fields(grey, "18") | CAPTIONS,
        "19": image_fields(colour, "19") | BOXES | PASCAL,
        "000000397133": image_fields(exact, "000000397133") | BOXES | CROWD_AND_AREA,
        "street/9 (north)": image_fields(exact, "street/9 (north)") | no_objects,
        digest(exact): {"image/encoded": [{"file": "exact.png"}]},
    }


def expected_example(source_id: str, record: dict[str, list]) -> dict:
    (file,) = record["image/encoded"]
    count = len(record.get("image/object/class/label", ()))
    has_areas = "image/object/area" in record
    return {
        "source_id": source_id,
        "filename": "".join(record.get("image/filename", ())),
        "encoded": file["file"],
        "format": "jpeg",
        "height": HEIGHT,
        "width": WIDTH,
        "boxes_xyxy": [[16, 24, 48, 48], [0, 0, 32, 12]][:count],
        "labels": [1, 90][:count],
        "class_names": ("cat", "Hündin")[:count],
        "is_crowd": [False, has_areas][:count],
        "areas": ([700, 300.5] if has_areas else [32 * 24, 32 * 12])[:count],
        "masks": (),
    }


@pytest.fixture(scope="module")
def theirs(judge, images):
    """Returns the folder of the shards that TensorFlow wrote."""
    records = foreign_records(images)
    (images / "records.json").write_text(json.dumps(list(records.values())))
    judge("write", images)
    return images


@pytest.mark.parametrize("name", ["plain", "gzip"])
def test_shards_that_tensorflow_wrote_are_read_record_by_record(theirs, name):
    path = str(theirs / f"{name}.tfrecord")
    found = list(iterate_records(path))
    expected = foreign_records(theirs)
    assert len(found) == len(expected)
    for (_, payload), (source_id, record) in zip(found, expected.items(), strict=True):
        example = asdict(decode_example(payload, where=path))
        wanted = expected_example(source_id, record)
        assert bytes(example.pop("encoded")) == (theirs / wanted.pop("encoded")).read_bytes()
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in example.items()}
        assert plain == wanted

    offsets = [offset for offset, _ in found]
    assert read_records(path, offsets[::-1]) == [payload for _, payload in found[::-1]]


@pytest.fixture(scope="module")
def ours(images, tmp_path_factory):
    """Returns the paths of two shards that we made of three images."""
    folder = tmp_path_factory.mktemp("ours")
    polygon = [16, 24, 48, 24, 48, 48, 16, 48]
    runs = [0, *([12, 36] * 31), 12, 36 + 32 * HEIGHT]
    document = {
        "images": [
            {"id": 7, "file_name": "colour.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": "street/9 (north)", "file_name": "exact.png"},
            {"id": 397133, "file_name": "grey.jpg", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            {
                **{"id": 1, "image_id": 7, "category_id": 1, "bbox": [16, 24, 32, 24]},
                **{"area": 700, "iscrowd": 0, "segmentation": [polygon]},
            },
            {
                **{"id": 2, "image_id": 7, "category_id": 90, "bbox": [0, 0, 32, 12]},
                **{"area": 300.5, "iscrowd": 1},
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs},
            },
            {"id": 3, "image_id": "street/9 (north)", "category_id": 1, "bbox": [-8, 24, 24, 12]},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 90, "name": "Hündin"}],
    }
    (folder / "instances.json").write_text(json.dumps(document))
    for shard in range(2):
        convert_shard(
            annotations_file=str(folder / "instances.json"),
            image_dir=str(images),
            results_dir=str(folder),
            tag="ours",
            shard=shard,
            num_shards=2,
            include_masks=True,
        )
    return [folder / shard_name("ours", shard, 2) for shard in range(2)]


def test_shards_that_we_convert_are_parsed_by_tensorflow(judge, ours, images):
    first, second = ([json.loads(line) for line in judge("parse", s).splitlines()] for s in ours)
    (full, empty), (partial,) = first, second

    assert without_pixels(full) == {
        **image_document(images / "colour.jpg", source_id="7", image_format="jpeg"),
        **BOXES,
        **CROWD_AND_AREA,
        "masks": [LOWER_MIDDLE.tolist(), UPPER_LEFT.tolist()],
    }
    assert without_pixels(empty) == {
        **image_document(images / "grey.jpg", source_id="397133", image_format="jpeg"),
        **{key: [] for key in BOXES | CROWD_AND_AREA},
        "masks": [],
    }
    assert without_pixels(partial) == {
        **image_document(images / "exact.png", source_id="street/9 (north)", image_format="png"),
        "image/object/bbox/xmin": [-0.125],
        "image/object/bbox/xmax": [0.25],
        "image/object/bbox/ymin": [0.5],
        "image/object/bbox/ymax": [0.75],
        "image/object/class/text": ["cat"],
        "image/object/class/label": [1],
        "image/object/is_crowd": [0],
        "image/object/area": [24 * 12],
        "masks": [np.zeros((HEIGHT, WIDTH), int).tolist()],
    }
    assert all(one["pixels"][0] == [HEIGHT, WIDTH, 3] for one in (full, empty, partial))
    decoded = decode_image((images / "exact.png").read_bytes(), where="exact.png")
    assert partial["pixels"][1] == hashlib.sha256(np.asarray(decoded).tobytes()).hexdigest()


def image_document(path: Path, *, source_id: str, image_format: str) -> dict:
    return {
        "image/height": HEIGHT,
        "image/width": WIDTH,
        "image/filename": path.name,
        "image/source_id": source_id,
        "image/key/sha256": digest(path),
        "image/encoded": digest(path),
        "image/format": image_format,
    }


def without_pixels(document: dict) -> dict:
    return {key: value for key, value in document.items() if key != "pixels"}

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from rayeffdet.data.coco import read_coco
from rayeffdet.data.synthetic import CLASS_NAMES, make_synthetic_set
from rayeffdet.errors import RunError

NUM_IMAGES = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    make_synthetic_set(str(folder), num_images=NUM_IMAGES, seed=1, split="train")
    return folder


@pytest.fixture(scope="module")
def document(folder):
    return json.loads((folder / "annotations/instances_train.json").read_text())


def boxes_of(document, image_id):
    rows = [a["bbox"] for a in document["annotations"] if a["image_id"] == image_id]
    xywh = np.array(rows)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def files_of(folder):
    return {p.name: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_our_own_reader_accepts_the_set_without_a_warning(folder):
    found = read_coco(str(folder / "annotations/instances_train.json"), str(folder / "train"))
    assert len(found.images) == NUM_IMAGES
    assert found.categories == dict(enumerate(CLASS_NAMES, start=1))


def test_pictures_have_the_sizes_that_the_annotations_say(folder, document):
    sizes = set()
    for entry in document["images"]:
        with Image.open(folder / "train" / entry["file_name"]) as image:
            assert (image.width, image.height) == (entry["width"], entry["height"])
            assert image.format == "JPEG"
        sizes |= {entry["width"], entry["height"]}
    assert 200 <= min(sizes) < 225
    assert 295 < max(sizes) <= 320


def test_every_class_and_every_count_of_objects_occurs(document):
    categories = [a["category_id"] for a in document["annotations"]]
    assert set(categories) == {1, 2, 3, 4, 5}
    counts = [len(boxes_of(document, image["id"])) for image in document["images"]]
    assert (min(counts), max(counts)) == (1, 6)


def test_boxes_lie_inside_the_picture_and_are_neither_tiny_nor_huge(document):
    for image in document["images"]:
        boxes_xyxy = boxes_of(document, image["id"])
        assert (boxes_xyxy >= 0).all()
        size = np.array([image["width"], image["height"]])
        assert (boxes_xyxy[:, 2:] <= size + 1e-6).all()
        longer = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(axis=1) / size.min()
        assert ((longer > 0.17) & (longer < 0.56)).all()


def test_no_shape_is_hidden_by_another(document):
    for image in document["images"]:
        boxes_xyxy = boxes_of(document, image["id"])
        areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
        for i, a in enumerate(boxes_xyxy):
            for j, b in enumerate(boxes_xyxy[:i]):
                shared = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(min=0).prod()
                assert shared <= 0.3 * min(areas[i], areas[j]) + 0.1


def test_boxes_fit_the_drawn_shapes(folder, document):
    """Shapes are saturated and backgrounds muted, so a lone shape can be found by its colour."""
    errors = []
    for image in document["images"]:
        boxes_xyxy = boxes_of(document, image["id"])
        if len(boxes_xyxy) > 1:
            continue
        pixels = np.asarray(Image.open(folder / "train" / image["file_name"])).astype(int)
        saturation = np.ptp(pixels, axis=2) / pixels.max(axis=2).clip(min=1)
        ys, xs = np.nonzero(saturation > 0.5)
        extent = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        errors.append(extent - boxes_xyxy[0])
    assert len(errors) >= 3
    # Sharp tips lose their colour in the JPEG.
    assert np.abs(errors).max() < 4
    assert np.abs(np.median(errors, axis=0)).max() < 1.5


def test_only_rings_show_the_background_in_their_middle(folder, document):
    files = {image["id"]: image["file_name"] for image in document["images"]}
    seen = set()
    for annotation in document["annotations"]:
        if len(boxes_of(document, annotation["image_id"])) > 1:
            continue
        x, y, width, height = annotation["bbox"]
        with Image.open(folder / "train" / files[annotation["image_id"]]) as image:
            middle = np.array(image.getpixel((round(x + width / 2), round(y + height / 2))))
        name = CLASS_NAMES[annotation["category_id"] - 1]
        assert (np.ptp(middle) / middle.max() < 0.5) == (name == "ring"), annotation
        seen.add(name)
    assert {"ring", "disc"} <= seen


def test_polygons_agree_with_boxes_and_areas(document):
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    for annotation in document["annotations"]:
        parts = coco_mask.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
        merged = coco_mask.merge(parts)
        assert coco_mask.area(merged) == pytest.approx(annotation["area"], rel=0.03)
        np.testing.assert_allclose(coco_mask.toBbox(merged), annotation["bbox"], atol=3)


def test_a_ring_has_a_hole_and_a_disc_has_none(document):
    shares = {name: [] for name in CLASS_NAMES}
    for annotation in document["annotations"]:
        name = CLASS_NAMES[annotation["category_id"] - 1]
        shares[name].append(annotation["area"] / np.prod(annotation["bbox"][2:]))
    assert np.allclose(shares["disc"], np.pi / 4, atol=0.01)
    assert np.allclose(shares["ring"], np.pi / 4 * (1 - 0.55**2), atol=0.01)


def test_the_same_call_writes_the_same_files(folder, tmp_path):
    make_synthetic_set(str(tmp_path), num_images=NUM_IMAGES, seed=1, split="train")
    assert files_of(tmp_path) == files_of(folder)


def test_a_longer_set_begins_with_the_shorter_one(folder, tmp_path):
    make_synthetic_set(str(tmp_path), num_images=3, seed=1, split="train")
    shorter = files_of(tmp_path / "train")
    assert shorter.items() <= files_of(folder / "train").items()


@pytest.mark.parametrize("change", [{"seed": 2}, {"split": "val"}])
def test_another_seed_or_split_draws_other_pictures(folder, tmp_path, change):
    call = {"num_images": 3, "seed": 1, "split": "train"} | change
    make_synthetic_set(str(tmp_path), **call)
    drawn = set(files_of(tmp_path / call["split"]).values())
    assert not drawn & set(files_of(folder / "train").values())


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path):
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        make_synthetic_set(str(blocked), num_images=1, seed=0, split="train")

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_masks
from tfrecord import example_pb2

from rayeffdet.data.coco import read_coco
from rayeffdet.data.coco_example import make_example
from rayeffdet.data.example import encode_example
from rayeffdet.errors import DataError

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"


def write_image(path, *, size=(60, 40), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 90)).save(path, **options)


def annotation(number, *, image=1, category=1, bbox=(5, 6, 20, 10), **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox)} | more


def document(*annotations, **changes):
    whole = {
        "images": [
            {"id": 1, "file_name": "one.jpg", "height": 40, "width": 60},
            {"id": 2, "file_name": "two.jpg", "height": 40, "width": 60},
        ],
        "annotations": list(annotations),
        "categories": [{"id": 1, "name": "cat"}, {"id": 90, "name": "dog"}],
    }
    return whole | changes


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "images" / "one.jpg")
    write_image(tmp_path / "images" / "two.jpg")
    return tmp_path


def read(folder, content, **options):
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_coco(str(path), str(folder / "images"), **options)


def problems_of(folder, content):
    with pytest.raises(DataError) as caught:
        read(folder, content)
    return caught.value.problems


def example_of(folder, content, index=0, *, include_masks=False):
    return make_example(read(folder, content), index, include_masks=include_masks)


def test_an_image_becomes_an_example_with_its_objects(folder):
    content = document(
        annotation(1, area=120.5, iscrowd=0),
        annotation(2, category=90, bbox=(-4, 30.5, 10, 30), iscrowd=1),
        annotation(3, image=2),
    )
    example, warnings = example_of(folder, content)
    assert warnings == []
    assert (example.source_id, example.filename, example.format) == ("1", "one.jpg", "jpeg")
    assert (example.height, example.width) == (40, 60)
    assert example.encoded == (folder / "images" / "one.jpg").read_bytes()
    # The second box stays unclipped.
    np.testing.assert_array_equal(example.boxes_xyxy, [[5, 6, 25, 16], [-4, 30.5, 6, 60.5]])
    np.testing.assert_array_equal(example.labels, [1, 90])
    assert example.class_names == ("cat", "dog")
    np.testing.assert_array_equal(example.is_crowd, [False, True])
    np.testing.assert_array_equal(example.areas, [120.5, 300])


def test_an_image_without_annotations_is_kept(folder):
    example, warnings = example_of(folder, document(annotation(1)), index=1)
    assert example.boxes_xyxy.shape == (0, 4)
    assert warnings == []


def test_ids_may_be_text_or_huge_and_table_floats_are_whole_numbers(folder):
    content = document(annotation(1, image="a/7"), annotation(2, image=float(2**53)))
    content["images"][0]["id"] = "a/7"
    content["images"][1]["id"] = 2**53
    coco_set = read(folder, content)
    assert [image.id for image in coco_set.images] == ["a/7", str(2**53)]
    assert coco_set.warnings == ()
    assert set(coco_set.annotations) == {"a/7", str(2**53)}


@pytest.mark.parametrize(
    "bbox", [(5, 6, 0, 10), (5, 6, 10, -3), (5, 6, 0.9, 10), (59.5, 6, 30, 10), (70, 6, 9, 9)]
)
def test_a_box_below_one_pixel_in_the_picture_is_dropped_and_said(folder, bbox):
    content = document(annotation(7, bbox=bbox), annotation(8))
    example, (warning,) = example_of(folder, content)
    np.testing.assert_array_equal(example.boxes_xyxy, [[5, 6, 25, 16]])
    assert (warning.image_id, warning.annotation_id, warning.kind) == ("1", 7, "box")
    assert "one.jpg: annotation 7: box [" in warning.text


@pytest.mark.parametrize(
    ("entry", "image_id", "kind"),
    [
        (annotation(7, bbox=(1, 2, 3)), "1", "box"),
        (annotation(7, bbox=("a", 1, 2, 3)), "1", "box"),
        (annotation(7, bbox=(float("nan"), 1, 2, 3)), "1", "box"),
        (annotation(7, bbox=(1, 2, 1e300, 3)), "1", "box"),
        ({"id": 7, "image_id": 1, "category_id": 1}, "1", "box"),
        (annotation(7, category=5), "1", "category"),
        (annotation(7, category=[1]), "1", "category"),
        (annotation(7, category=None), "1", "category"),
        (annotation(7, image=99), "99", "annotation"),
        ({"id": 7}, "", "annotation"),
    ],
)
def test_a_bad_annotation_is_reported_and_left_out(folder, entry, image_id, kind):
    coco_set = read(folder, document(annotation(1), entry))
    (warning,) = coco_set.warnings
    assert (warning.image_id, warning.annotation_id, warning.kind) == (image_id, 7, kind)
    assert warning.text.startswith("annotation 7: ")
    assert [a.id for a in coco_set.annotations["1"]] == [1]


def test_an_annotation_that_is_not_an_object_is_named_by_its_place(folder):
    (warning,) = read(folder, document(annotation(1), 17)).warnings
    assert warning.annotation_id == "annotations[1]"


def test_bad_area_and_missing_crowd_flag_have_defaults(folder):
    content = document(annotation(1, area=None), annotation(2, area=float("inf"), iscrowd=None))
    example, _ = example_of(folder, content)
    np.testing.assert_array_equal(example.areas, [200, 200])
    assert not example.is_crowd.any()


def test_bad_and_doubled_images_are_reported_and_left_out(folder):
    content = document(annotation(1))
    content["images"] += [{"id": 1, "file_name": "again.jpg"}, {"id": 3}, {"file_name": "x.jpg"}, 4]
    coco_set = read(folder, content)
    assert [image.file_name for image in coco_set.images] == ["one.jpg", "two.jpg"]
    assert [w.image_id for w in coco_set.warnings] == ["1", "3", "", ""]
    assert {w.kind for w in coco_set.warnings} == {"image"}
    assert "again.jpg: id 1 is taken" in coco_set.warnings[0].text


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_missing_list_is_an_error_that_names_file_and_key(folder, key):
    content = document()
    del content[key]
    (problem,) = problems_of(folder, content)
    assert problem.startswith(f"{folder}/instances.json: {key}: missing or not a list")


def test_all_problems_of_a_file_are_told_at_once(folder):
    assert len(problems_of(folder, {"images": {}})) == 3


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ('{"images": [],\n "annotations": oops}', "instances.json:2: column 17: not JSON"),
        ("[1, 2]", "instances.json: holds a list"),
        (document(images=[]), "images: lists no usable image"),
        (document(categories=[]), "categories: is empty"),
        (document(categories=[{"id": "1", "name": "a"}]), "categories[0].id: '1' is not a whole"),
        (document(categories=[{"id": 1}]), "categories[0].name: None is not a name"),
        (
            document(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]),
            "categories[1].id: 1 is both 'a' and 'b'",
        ),
        (
            document(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]),
            "2 ids share the name 'a'",
        ),
    ],
)
def test_a_file_that_cannot_be_understood_is_an_error(folder, content, fragment):
    (problem,) = problems_of(folder, content)
    assert fragment in problem


def test_missing_file_and_folder_are_errors(folder):
    with pytest.raises(DataError, match=r"none\.json: no such annotation file"):
        read_coco(str(folder / "none.json"), str(folder / "images"))
    (folder / "images").rename(folder / "elsewhere")
    (problem,) = problems_of(folder, document())
    assert problem == f"{folder}/images: no such image folder"


def test_a_category_below_one_is_an_error_where_used_and_dropped_where_not(folder):
    categories = [{"id": 0, "name": "animal"}, {"id": 1, "name": "cat"}]
    coco_set = read(folder, document(annotation(1), categories=categories))
    assert coco_set.categories == {1: "cat"}
    used = document(annotation(1), annotation(2, category=0), categories=categories)
    (problem,) = problems_of(folder, used)
    assert "categories: id 0 ('animal') has 1 annotations" in problem


def test_a_missing_image_is_skipped_with_a_warning(folder):
    (folder / "images" / "one.jpg").unlink()
    example, (warning,) = example_of(folder, document(annotation(1)))
    assert example is None
    assert (warning.image_id, warning.annotation_id, warning.kind) == ("1", None, "image")
    assert warning.text.startswith(f"{folder}/images/one.jpg: ")


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "folder"])
def test_a_broken_image_is_skipped_with_a_warning(folder, damage):
    path = folder / "images" / "one.jpg"
    content = {"cut": path.read_bytes()[:-200], "text": b"<html>", "empty": b"", "folder": b""}
    path.write_bytes(content[damage])
    if damage == "folder":
        path.unlink()
        path.mkdir()
    example, (warning,) = example_of(folder, document(annotation(1)))
    assert example is None
    assert warning.kind == "image"
    assert str(path) in warning.text


def test_an_impossible_file_name_is_skipped_with_a_warning(folder):
    for name in ("a\0b.jpg", "\ud800.jpg", "one.jpg/two.jpg", "../nowhere.jpg", "x" * 999):
        content = document(images=[{"id": 1, "file_name": name}])
        example, (warning,) = example_of(folder, content)
        assert example is None
        assert warning.kind == "image"


def test_the_real_size_wins_over_the_listed_one(folder):
    write_image(folder / "images" / "one.jpg", size=(100, 80))
    example, (warning,) = example_of(folder, document(annotation(1, bbox=(70, 50, 20, 20))))
    assert (example.height, example.width) == (80, 100)
    np.testing.assert_array_equal(example.boxes_xyxy, [[70, 50, 90, 70]])
    assert (warning.annotation_id, warning.kind) == (None, "size")
    assert "100 x 80" in warning.text
    assert "60 x 40" in warning.text


def test_an_unlisted_size_is_no_warning(folder):
    content = document(images=[{"id": 1, "file_name": "one.jpg"}])
    example, warnings = example_of(folder, content)
    assert (example.height, example.width, warnings) == (40, 60, [])


def test_boxes_refer_to_the_picture_turned_upright_by_exif(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(folder / "images" / "one.jpg", size=(40, 60), exif=exif)
    example, warnings = example_of(folder, document(annotation(1, bbox=(45, 5, 10, 10))))
    assert (example.height, example.width, warnings) == (40, 60, [])
    np.testing.assert_array_equal(example.boxes_xyxy, [[45, 5, 55, 15]])


@pytest.mark.parametrize("kind", ["png", "bmp", "webp", "jpeg"])
def test_the_format_is_that_of_the_bytes_not_of_the_name(folder, kind):
    write_image(folder / "images" / "one.jpg", format=kind)
    example, _ = example_of(folder, document())
    assert example.format == kind


def png_mask(payload):
    return np.array(Image.open(io.BytesIO(payload)))


RECTANGLE = [[5, 6, 25, 6, 25, 16, 5, 16]]
FILLED = np.zeros((40, 60), np.uint8)
FILLED[6:16, 5:25] = 1


@pytest.mark.parametrize("form", ["polygon", "two polygons", "runs", "compressed"])
def test_masks_of_every_coco_form_are_drawn(folder, form):
    compressed = rle_masks.encode(np.asfortranarray(FILLED))
    flat = FILLED.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    segmentation = {
        "polygon": RECTANGLE,
        "two polygons": [[5, 6, 15, 6, 15, 16, 5, 16], [15, 6, 25, 6, 25, 16, 15, 16]],
        "runs": {"size": [40, 60], "counts": np.diff([0, *changes, flat.size]).tolist()},
        "compressed": {"size": [40, 60], "counts": compressed["counts"].decode()},
    }[form]
    content = document(annotation(1, segmentation=segmentation))
    example, warnings = example_of(folder, content, include_masks=True)
    assert warnings == []
    np.testing.assert_array_equal(png_mask(example.masks[0]), FILLED)


def test_compressed_runs_of_any_shape_are_drawn_as_pycocotools_draws_them(folder):
    noise = np.random.default_rng(0).random((40, 60)) < np.linspace(0, 1, 60)
    compressed = rle_masks.encode(np.asfortranarray(noise.astype(np.uint8)))
    segmentation = {"size": [40, 60], "counts": compressed["counts"].decode()}
    content = document(annotation(1, bbox=(0, 0, 60, 40), segmentation=segmentation))
    example, _ = example_of(folder, content, include_masks=True)
    np.testing.assert_array_equal(png_mask(example.masks[0]), noise)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, "x"]],
        [[1, 2, 3, 4, 1e9, 1e9]],
        {"size": [40, 60], "counts": [7]},
        {"size": [40, 60], "counts": "zz?"},
        {"size": [40, 60], "counts": [-100, 2500]},
        {"size": [9, 9], "counts": [81]},
        {"size": [40, 60]},
        "text",
    ],
)
def test_an_unusable_mask_is_reported_and_stored_empty(folder, segmentation):
    content = document(
        annotation(7, segmentation=segmentation), annotation(8, segmentation=RECTANGLE)
    )
    example, (warning,) = example_of(folder, content, include_masks=True)
    assert (warning.annotation_id, warning.kind) == (7, "mask")
    assert len(example.labels) == len(example.masks) == 2
    assert not png_mask(example.masks[0]).any()
    np.testing.assert_array_equal(png_mask(example.masks[1]), FILLED)


def test_a_mask_far_outside_its_box_is_reported_and_kept(folder):
    content = document(annotation(7, bbox=(5, 6, 17, 10), segmentation=RECTANGLE))
    example, (warning,) = example_of(folder, content, include_masks=True)
    assert (warning.annotation_id, warning.kind) == (7, "mask")
    np.testing.assert_array_equal(png_mask(example.masks[0]), FILLED)


def test_masks_are_stored_as_png_of_zeros_and_ones(folder):
    content = document(annotation(1, segmentation=RECTANGLE))
    example, _ = example_of(folder, content, include_masks=True)
    message = example_pb2.Example.FromString(encode_example(example))
    (stored,) = message.features.feature["image/object/mask"].bytes_list.value
    assert Image.open(io.BytesIO(stored)).mode == "L"
    np.testing.assert_array_equal(png_mask(stored), FILLED)


def test_segmentations_are_kept_only_on_request(folder):
    content = document(annotation(1, segmentation=RECTANGLE))
    assert read(folder, content).annotations["1"][0].segmentation == RECTANGLE
    assert read(folder, content, keep_masks=False).annotations["1"][0].segmentation is None


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"the BCCD set is not at {BCCD}")
@pytest.mark.parametrize(
    ("split", "boxes", "bad"),
    [("train", 2804, [("343", 2288)]), ("val", 1137, [("338", 887)]), ("test", 945, [])],
)
def test_the_degenerate_boxes_of_bccd_are_found(split, boxes, bad):
    annotations_file = BCCD / "annotations" / f"instances_{split}.json"
    coco_set = read_coco(str(annotations_file), str(BCCD / split))
    assert coco_set.warnings == ()
    assert coco_set.categories == {1: "Platelets", 2: "RBC", 3: "WBC"}
    warnings, num_boxes = [], 0
    for index in range(len(coco_set.images)):
        example, found = make_example(coco_set, index, include_masks=False)
        warnings += found
        num_boxes += len(example.labels)
    assert num_boxes == boxes
    assert [(w.image_id, w.annotation_id) for w in warnings if w.kind == "box"] == bad
    assert [w for w in warnings if w.kind != "box"] == []

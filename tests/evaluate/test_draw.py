import io

import numpy as np
import pytest
from PIL import Image

from rayeffdet.errors import DataError
from rayeffdet.evaluate.draw import (
    class_colour,
    draw_detections,
    draw_file,
    grid,
    kitti_lines,
    side_by_side,
)

GREY = (90, 90, 90)


def canvas(width=200, height=160):
    return Image.new("RGB", (width, height), GREY)


def draw(boxes_xyxy, labels, scores=None, image=None):
    image = image or canvas()
    return draw_detections(image, np.array(boxes_xyxy, float), labels, scores, {1: "cat"})


def count_of(picture, colour):
    return int((np.asarray(picture) == colour).all(axis=-1).sum())


def test_a_box_is_outlined_two_pixels_wide_in_the_colour_of_its_class():
    picture = draw([[40, 50, 120, 130]], [1], [0.5])
    colour = class_colour(1)
    for x, y in ((40, 100), (41, 100), (120, 100), (119, 100), (80, 130), (80, 129)):
        assert picture.getpixel((x, y)) == colour
    for x, y in ((39, 100), (42, 100), (80, 131), (80, 128)):
        assert picture.getpixel((x, y)) == GREY


def test_the_picture_given_is_left_as_it_is():
    image = canvas()
    draw([[40, 50, 120, 130]], [1], [0.5], image)
    assert image.tobytes() == canvas().tobytes()


def test_the_score_is_part_of_the_caption_and_truth_has_none():
    box = [[40, 50, 120, 130]]
    pictures = [draw(box, [1], scores) for scores in (None, [0.5], [0.871], [0.869])]
    truth, half, rounded, same = (picture.tobytes() for picture in pictures)
    assert truth != half != rounded
    assert rounded == same


def test_a_label_without_a_name_is_captioned_too():
    assert count_of(draw([[40, 50, 120, 130]], [77]), class_colour(77)) > 700


def test_the_best_of_two_equal_boxes_lies_on_top():
    for scores, best in (([0.9, 0.2], 1), ([0.2, 0.9], 2)):
        picture = draw([[40, 50, 120, 130]] * 2, [1, 2], scores)
        assert picture.getpixel((40, 100)) == class_colour(best)


@pytest.mark.parametrize("x", [-30, 180])
@pytest.mark.parametrize("y", [-30, 140])
def test_a_caption_stays_inside_the_picture(x, y):
    inside = draw([[40, 50, 120, 130]], [77], image=canvas(400, 400))
    outline = 2 * 2 * (81 + 77)
    caption = count_of(inside, class_colour(77)) - outline
    picture = draw([[x, y, x + 50, y + 50]], [77])
    assert count_of(picture, class_colour(77)) > 0.8 * caption


@pytest.mark.parametrize(
    "box", [[np.nan, 0, 9, 9], [0, 0, np.inf, 9], [60, 10, 20, 30], [10, 60, 20, 30]]
)
def test_a_box_that_is_none_is_left_out(box):
    assert draw([box], [1], [0.5]).tobytes() == canvas().tobytes()


def test_no_boxes_leave_the_picture_as_it_is():
    assert draw(np.empty((0, 4)), [], []).tobytes() == canvas().tobytes()


def test_grey_pictures_get_colour():
    picture = draw([[40, 50, 120, 130]], [1], [0.5], Image.new("L", (200, 160), 90))
    assert picture.mode == "RGB"
    assert picture.getpixel((40, 100)) == class_colour(1)


def test_large_pictures_get_thicker_lines():
    picture = draw([[400, 500, 1200, 1300]], [1], image=canvas(3000, 2000))
    assert [picture.getpixel((x, 900)) == class_colour(1) for x in (400, 404, 405)] == [
        True,
        True,
        False,
    ]


def test_neighbouring_classes_differ_in_colour():
    colours = np.array([class_colour(label) for label in range(12)])
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(12)
    assert distances.min() > 40


def test_a_file_is_drawn_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    canvas(200, 160).save(tmp_path / "a.jpg", exif=exif)
    picture = draw_file(str(tmp_path / "a.jpg"), np.array([[10, 60, 90, 190]]), [1], [0.5], {})
    assert picture.size == (160, 200)
    assert picture.getpixel((10, 120)) == class_colour(1)


def test_a_file_that_is_no_image_is_named(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_text("no image")
    with pytest.raises(DataError, match=r"a\.jpg"):
        draw_file(str(path), np.empty((0, 4)), [], [], {})


def test_a_grid_places_pictures_row_by_row_in_equal_cells():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    sizes = [(40, 20), (20, 40), (10, 10)]
    images = [Image.new("RGB", size, c) for size, c in zip(sizes, colours, strict=True)]
    sheet = grid(images, 2)
    gap = sheet.width - 80
    assert sheet.size == (80 + gap, 80 + gap)
    centres = [(20, 20), (60 + gap, 20), (20, 60 + gap)]
    assert [sheet.getpixel(centre) for centre in centres] == colours
    assert [count_of(sheet, colour) for colour in colours] == [800, 800, 100]


def test_a_grid_is_no_wider_than_its_pictures():
    assert grid([canvas()], 5).size == (200, 160)


def test_truth_is_left_of_the_prediction():
    truth, prediction = canvas(), Image.new("RGB", (200, 160), (1, 2, 3))
    pair = np.asarray(side_by_side(truth, prediction))
    assert pair.shape[1] > 400
    assert (pair[-160:, :200] == GREY).all()
    assert (pair[-160:, -200:] == (1, 2, 3)).all()


def test_kitti_lines_have_sixteen_columns_in_order():
    text = kitti_lines(["traffic light", "cat"], np.array([[1, 2, 30.5, 40], [0] * 4]), [0.9, 0.25])
    assert text == (
        "traffic_light 0.00 0 0.00 1.000 2.000 30.500 40.000"
        " 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.900\n"
        "cat 0.00 0 0.00 0.000 0.000 0.000 0.000 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.250\n"
    )


@pytest.mark.parametrize("name", ["", "a b\tc", "ü\u00a0x", "a\nb"])
def test_no_name_breaks_the_kitti_columns(name):
    text = kitti_lines([name], np.zeros((1, 4)), [0.5])
    assert text.count("\n") == 1
    assert len(text.split()) == 16


def test_no_detections_are_an_empty_kitti_file():
    assert kitti_lines([], np.empty((0, 4)), []) == ""


def test_drawn_pictures_can_be_saved_as_jpeg_and_png():
    for kind in ("JPEG", "PNG"):
        stream = io.BytesIO()
        draw([[40, 50, 120, 130]], [1], [0.5]).save(stream, format=kind)
        assert Image.open(stream).size == (200, 160)

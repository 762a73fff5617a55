import io
import math

import numpy as np
import pytest
from PIL import Image

from rayeffdet import storage
from rayeffdet.evaluate.plots import plot_label_statistics, plot_training


def row(epoch, **more):
    losses = {"loss": 2 / epoch, "cls_loss": 1 / epoch, "box_loss": 0.02 / epoch}
    return {"epoch": epoch, "step": 10 * epoch, **losses, "learning_rate": 0.1, **more}


def pictures(rows, folder):
    return [storage.read_bytes(path) for path in plot_training(rows, str(folder))]


def ink_at_the_centre(encoded):
    pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("L"))
    height, width = pixels.shape
    return int((pixels[height // 3 : -height // 3, width // 5 : -width // 5] < 128).sum())


def test_three_pictures_are_written_under_their_names(tmp_path):
    paths = plot_training([row(1), row(2, AP=0.1, AP50=0.3)], str(tmp_path))
    expected = [str(tmp_path / name) for name in ("losses.png", "ap.png", "learning_rate.png")]
    assert paths == expected
    for path in paths:
        assert Image.open(path).format == "PNG"


def test_rows_as_text_look_like_rows_of_numbers(tmp_path):
    rows = [row(1), row(2, AP=0.25)]
    texts = [{key: str(value) for key, value in one.items()} for one in rows]
    assert pictures(texts, tmp_path) == pictures(rows, tmp_path)


def test_values_that_are_missing_or_undefined_are_left_out(tmp_path):
    known, gaps = {1: 0.1, 3: 0.3, 7: 0.35}, {2: "", 4: None, 5: "nan", 6: math.inf, 8: -1.0}
    rows = [row(epoch, AP=(known | gaps)[epoch]) for epoch in range(1, 9)]
    without = [
        row(epoch, AP=known[epoch]) if epoch in known else row(epoch) for epoch in range(1, 9)
    ]
    assert pictures(rows, tmp_path) == pictures(without, tmp_path)


@pytest.mark.parametrize("rows", [[], [{"epoch": 1}]])
def test_nothing_to_plot_is_said_in_the_picture(tmp_path, rows):
    for encoded in pictures(rows, tmp_path):
        assert ink_at_the_centre(encoded) > 50


def test_pictures_go_to_an_object_store_as_well():
    for path in plot_training([row(1)], "memory://run/train/plots"):
        assert storage.read_bytes(path).startswith(b"\x89PNG")


def statistics(folder, counts, box_sizes_wh):
    path = str(folder / "labels.png")
    plot_label_statistics(counts, np.array(box_sizes_wh), path)
    return storage.read_bytes(path)


def test_label_statistics_are_one_picture(tmp_path):
    encoded = statistics(tmp_path, {"cat": 5, "dog": 2, "cow": 0}, [[10, 20], [300, 200]])
    assert Image.open(io.BytesIO(encoded)).format == "PNG"


def test_a_class_name_that_looks_like_a_formula_is_only_a_name(tmp_path):
    statistics(tmp_path, {r"$\nonsense{$": 1}, [[10, 20]])


def test_rare_classes_are_summed_in_one_bar(tmp_path):
    many = {f"c{i}": 100 - i for i in range(41)}
    summed = {f"c{i}": 100 - i for i in range(40)} | {"1 others": 60}
    assert statistics(tmp_path, many, [[9, 9]]) == statistics(tmp_path, summed, [[9, 9]])


def test_boxes_without_an_area_are_left_out(tmp_path):
    good = [[10, 20], [300, 200]]
    bad = [[0, 5], [-3, 5], [np.nan, 5], [np.inf, 5]]
    assert statistics(tmp_path, {"a": 1}, good + bad) == statistics(tmp_path, {"a": 1}, good)


def test_an_empty_set_is_said_in_the_picture(tmp_path):
    assert ink_at_the_centre(statistics(tmp_path, {}, np.empty((0, 2)))) > 50

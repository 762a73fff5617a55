import numpy as np
import torch
from PIL import Image

from rayeffdet.data.example import Example
from rayeffdet.data.loader import Batch
from rayeffdet.evaluate.preview import write_preview


def example(name: str) -> Example:
    return Example(
        source_id=name,
        filename=f"{name}.jpg",
        encoded=b"",
        format="jpeg",
        height=64,
        width=64,
        boxes_xyxy=np.empty((0, 4), np.float32),
        labels=np.empty(0, np.int64),
        class_names=(),
        is_crowd=np.empty(0, bool),
        areas=np.empty(0, np.float32),
    )


def test_the_picture_shows_the_boxes_where_the_network_sees_them(tmp_path):
    boxes = torch.zeros(2, 16, 4)
    boxes[0, 0] = torch.tensor([16.0, 16.0, 48.0, 48.0])
    labels = torch.full((2, 16), -1)
    labels[0, 0] = 2
    batch = Batch(
        images_B3HW=torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        boxes_BG4=boxes,
        labels_BG=labels,
        scales_B=torch.ones(2),
        examples=(example("a"), example("b")),
        num_truncated=0,
    )
    path = tmp_path / "previews" / "first.jpg"
    write_preview(batch, {3: "cat"}, path=str(path))

    picture = np.asarray(Image.open(path)).astype(int)
    assert picture.shape[0] == 320
    zoom = 320 // 64
    # The lower edge of the box and what lies beside it, clear of the caption at the upper left.
    lower_edge = picture[48 * zoom - 3 : 48 * zoom + 3, 30 * zoom].sum(axis=1)
    assert lower_edge.max() > 150
    assert picture[40 * zoom, 30 * zoom].sum() < 30
    image_without_boxes = picture[:, 340:]
    assert image_without_boxes.sum(axis=2).max() < 60

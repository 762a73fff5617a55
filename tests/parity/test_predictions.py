"""Detections against effdet's prediction bench: top-k, decoding, suppression, original pixels.

Our settings come from a spec by its builder, effdet's are set on the bench.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from math import inf
from typing import Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn

effdet = pytest.importorskip("effdet", reason="parity needs effdet: the extra named parity")

from networks import Pair, Size, make_images, make_pair  # noqa: E402

from rayeffdet.evaluate.build import build_postprocess  # noqa: E402
from rayeffdet.ops.anchors import make_anchors  # noqa: E402
from rayeffdet.ops.boxes import area_xyxy, pairwise_iou_xyxy  # noqa: E402
from rayeffdet.ops.postprocess import postprocess  # noqa: E402
from rayeffdet.spec.load import with_values  # noqa: E402
from rayeffdet.spec.root import Spec  # noqa: E402


class Scene(NamedTuple):
    """A pair of networks, and what each image was: its height, width and scale."""

    num_classes: int
    size: Size
    seed: int
    frames: tuple[tuple[float, float, float], ...]


class Settings(NamedTuple):
    """Fields of the section ``evaluate``."""

    nms: Literal["hard", "soft"] = "hard"
    max_nms_inputs: int = 5000
    max_detections_per_image: int = 100
    sigma: float = 0.5


# Images that fill the canvas as they are, shrunk and enlarged; and with padding below or beside.
WHOLE = ((96, 160, 1.0), (240, 400, 2.5), (48, 80, 0.5))
PADDED = ((100, 320, 2.0), (48, 40, 0.5), (288, 300, 3.0))
SQUARE = ((128, 128, 1.0), (512, 512, 4.0), (32, 32, 0.25))
SCENES = {
    "90 classes": Scene(90, (96, 160), 0, WHOLE),
    "90 classes padded": Scene(90, (96, 160), 0, PADDED),
    "3 classes": Scene(3, (96, 160), 5, WHOLE),
    "3 classes padded": Scene(3, (96, 160), 5, PADDED),
    "3 classes square": Scene(3, (128, 128), 8, SQUARE),
}


@cache
def networks_and_images(
    num_classes: int, size: Size, seed: int, dtype: torch.dtype
) -> tuple[Pair, Tensor]:
    """Returns networks whose outputs are spread as those of trained ones, and three images.

    Random weights as they come give logits of up to 200 and boxes far outside of the image, so
    the last layers are scaled, both networks' alike.
    """
    pair = make_pair("efficientdet-d0", size=size, num_classes=num_classes, dtype=dtype, seed=seed)
    images_B3HW = make_images(3, size, seed=seed).to(dtype)
    ours, theirs = pair
    with torch.no_grad():
        logits, deltas = ours(images_B3HW)
        for layer in (ours.class_head.predict.pointwise, theirs.class_net.predict.conv_pw):
            _rescale(layer, 1.5 / logits.std(), shift=-2.0)
        for layer in (ours.box_head.predict.pointwise, theirs.box_net.predict.conv_pw):
            _rescale(layer, 0.1 / deltas.std(), shift=0.0)
    return pair, images_B3HW


def _rescale(layer: nn.Module, factor: Tensor, *, shift: float) -> None:
    layer.weight.mul_(factor)
    layer.bias.mul_(factor).add_(shift)


@torch.no_grad()
def our_rows(scene: Scene, settings: Settings, dtype: torch.dtype) -> list[Tensor]:
    """Returns (x1, y1, x2, y2, score, class from 1) [n, 6] of each image."""
    pair, images_B3HW = networks_and_images(*scene[:3], dtype)
    fields = {f"evaluate.{name}": value for name, value in settings._asdict().items()}
    chosen = build_postprocess(with_values(Spec(), fields, where="test"))
    frames = torch.tensor(scene.frames, dtype=dtype)
    found = postprocess(
        *pair.ours(images_B3HW),
        make_anchors(height=scene.size[0], width=scene.size[1]).to(dtype),
        scales_B=frames[:, 2],
        sizes_B2=frames[:, :2],
        **asdict(chosen),
    )
    columns = (found.scores_BD[..., None], found.labels_BD[..., None] + 1)
    rows_BD6 = torch.cat([found.boxes_xyxy_BD4, *columns], dim=-1)
    return [rows[:count] for rows, count in zip(rows_BD6, found.num_B.tolist(), strict=True)]


@torch.no_grad()
def bench_rows(scene: Scene, settings: Settings, dtype: torch.dtype) -> list[Tensor]:
    """Returns the same of effdet's bench, as it is."""
    pair, images_B3HW = networks_and_images(*scene[:3], dtype)
    bench = effdet.DetBenchPredict(pair.theirs).to(dtype).eval()
    bench.soft_nms = settings.nms == "soft"
    bench.max_detection_points = settings.max_nms_inputs
    bench.max_det_per_image = settings.max_detections_per_image
    frames = torch.tensor(scene.frames, dtype=dtype)
    image_info = {"img_size": frames[:, [1, 0]], "img_scale": frames[:, 2]}
    if dtype is torch.float64:
        with effdet_in_float64(settings.sigma):
            rows_BD6 = bench(images_B3HW, image_info)
    else:
        rows_BD6 = bench(images_B3HW, image_info)
    return [rows[rows[:, 5] > 0] for rows in rows_BD6]


@contextmanager
def effdet_in_float64(sigma: float) -> Iterator[None]:
    """Lets effdet compute in float64, and its soft suppression with another sigma than 0.5.

    It casts by ``.float()`` and ``torch.float32``. Its loop over images is scripted, and a script
    cannot be reached; what the loop calls is effdet's own code here too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(effdet.bench, "_batch_detection", _image_by_image)
        soft = partial(effdet.soft_nms.batched_soft_nms, sigma=sigma)
        patch.setattr(effdet.anchors, "batched_soft_nms", soft)
        yield


def _image_by_image(
    num_images, logits, deltas, anchors, indices, classes, scales, sizes, **settings
):
    anchors_of_all = [anchors] * num_images
    images = zip(logits, deltas, anchors_of_all, indices, classes, scales, sizes, strict=True)
    found = [effdet.anchors.generate_detections(*image, **settings) for image in images]
    return torch.stack(found)


def their_rows(scene: Scene, settings: Settings, dtype: torch.dtype) -> list[Tensor]:
    """Returns effdet's detections less those without area, which we drop before we count."""
    if scene.frames is not PADDED:
        rows = bench_rows(scene, settings, dtype)
        assert not any(map(_count_empty, rows))
        return rows
    everything = settings._replace(max_detections_per_image=settings.max_nms_inputs)
    return [
        rows[area_xyxy(rows[:, :4]) > 0][: settings.max_detections_per_image]
        for rows in bench_rows(scene, everything, dtype)
    ]


def _count_empty(rows: Tensor) -> int:
    return int((area_xyxy(rows[:, :4]) == 0).sum())


def row_by_row_difference(scene: Scene, settings: Settings) -> float:
    """Returns the largest difference of a coordinate or score in float64, in order."""
    ours, theirs = (rows(scene, settings, torch.float64) for rows in (our_rows, their_rows))
    return max(_row_difference(*image) for image in zip(ours, theirs, strict=True))


def _row_difference(ours: Tensor, theirs: Tensor) -> float:
    if not torch.equal(ours[:, 5], theirs[:, 5]):  # of another class or another number
        return inf
    return (ours - theirs).abs().max().item()


def unmatched_share(scene: Scene, settings: Settings) -> float:
    """Returns the share of float32 detections, of either side, that the other side lacks."""
    ours, theirs = (rows(scene, settings, torch.float32) for rows in (our_rows, their_rows))
    shares = [_unmatched(*image, settings) for image in zip(ours, theirs, strict=True)]
    return max(shares)


def _unmatched(ours: Tensor, theirs: Tensor, settings: Settings) -> float:
    """Two rows are the same detection if class, box and score agree, wherever they stand."""
    is_same_MN = pairwise_iou_xyxy(ours[:, :4], theirs[:, :4]) > 0.999
    is_same_MN &= ours[:, None, 5] == theirs[:, 5]
    is_same_MN &= (ours[:, None, 4] - theirs[:, 4]).abs() < SCORE_TOLERANCE[settings.nms]
    lacking = (~is_same_MN.any(1)).float().mean(), (~is_same_MN.any(0)).float().mean()
    return max(lacking).item()


# Logits of both networks differ by up to 1e-5 in float32. To keep classes apart, effdet moves the
# boxes of the last of 90 by 36000 px, where a step of float32 is 0.004 px: enough for the fourth
# digit of an IoU, and with it of the score that soft suppression lowers.
SCORE_TOLERANCE = {"hard": 1e-5, "soft": 1e-4}
# A near-tie at the threshold or at the cut may go the other way.
UNMATCHED_TOLERANCE = 0.01
# Pixels and scores; coordinates of up to 512 px round at 1e-13.
FLOAT64_TOLERANCE = 1e-10

FLOAT64_CASES = (
    ("90 classes", Settings()),
    ("90 classes", Settings(max_detections_per_image=10)),
    ("90 classes", Settings("soft", max_nms_inputs=1000)),
    ("90 classes padded", Settings()),
    ("90 classes padded", Settings("soft", max_nms_inputs=1000)),
    ("3 classes", Settings()),
    ("3 classes", Settings(max_nms_inputs=60)),  # fewer than the detections asked for
    ("3 classes", Settings("soft", max_nms_inputs=60)),
    ("3 classes", Settings("soft", max_nms_inputs=1000, sigma=0.2)),
    ("3 classes padded", Settings()),
    ("3 classes square", Settings(max_detections_per_image=5000)),  # all that survive
    ("3 classes square", Settings("soft", max_nms_inputs=500, max_detections_per_image=500)),
)
FLOAT32_CASES = (
    ("90 classes", Settings()),
    ("90 classes", Settings("soft", max_nms_inputs=1000)),
    ("3 classes padded", Settings()),
    ("3 classes padded", Settings("soft", max_nms_inputs=1000)),
)


def words_of(scene: str, settings: Settings) -> str:
    """Returns a name for the table: the scene, the kind of suppression, what is not default."""
    default = Settings(settings.nms, max_nms_inputs=5000 if settings.nms == "hard" else 1000)
    pairs = zip(settings, default, strict=True)
    others = "".join(f" {value}" for value, usual in pairs if value != usual)
    return f"{scene}, {settings.nms}{others}"


CHECKS = (
    *(
        (
            f"float64 rows, {words_of(name, settings)}",
            partial(row_by_row_difference, SCENES[name], settings),
            FLOAT64_TOLERANCE,
        )
        for name, settings in FLOAT64_CASES
    ),
    *(
        (
            f"unmatched share, {words_of(name, settings)}",
            partial(unmatched_share, SCENES[name], settings),
            UNMATCHED_TOLERANCE,
        )
        for name, settings in FLOAT32_CASES
    ),
)


@pytest.mark.parametrize(
    ("measure", "tolerance"), [check[1:] for check in CHECKS], ids=[check[0] for check in CHECKS]
)
def test_detections_differ_by_no_more_than_the_tolerance(measure, tolerance):
    assert measure() <= tolerance


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_suppression_has_work_in_every_image(scene):
    hard = our_rows(scene, Settings(max_nms_inputs=100), torch.float64)
    soft = our_rows(scene, Settings("soft", max_nms_inputs=100), torch.float64)
    for dropped, lowered in zip(hard, soft, strict=True):
        assert len(dropped) < len(lowered)
        assert not torch.equal(dropped[:, 4], lowered[: len(dropped), 4])


def test_boxes_in_the_padding_are_no_detections_where_effdet_lists_them_without_area():
    scene = SCENES["3 classes padded"]
    ours, theirs = (rows(scene, Settings(), torch.float64) for rows in (our_rows, bench_rows))
    assert all(map(_count_empty, theirs))
    assert not any(map(_count_empty, ours))

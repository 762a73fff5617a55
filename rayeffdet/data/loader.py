"""Ready batches for the device: decoding and augmentation in threads beside the training loop.

Encoded records come in, and a ring of batch tensors is filled with pixels in place; nothing else
holds pixels.

Legend: B images, H W pixels, G padded boxes.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import Queue
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rayeffdet.data.autoaugment import auto_color_distortion, auto_translate_xy
from rayeffdet.data.decode import open_image
from rayeffdet.data.example import Example
from rayeffdet.data.transforms import (
    Sample,
    letterbox,
    pad_boxes,
    place_boxes,
    place_pixels,
    random_placement,
)

# Boxes are padded to a multiple of this, so that few different shapes reach the device.
PADDING_STEP = 16
NO_BOXES = np.empty((0, 4), np.float32), np.empty(0, np.int64)

Row = tuple[str, int, Example]
"""Where the record came from, its position in the stream, the record."""

MakeSample = Callable[[Row, Tensor], Sample]
"""Writes the pixels of a record into a uint8 [3,H,W] tensor and returns the rest."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One worker's share of a step.

    Args:
        images_B3HW: uint8, RGB, letterboxed or cropped to the network's input. Overwritten once
            the next batch is asked for.
        boxes_BG4: float32, xyxy in network pixels; padding rows are zero.
        labels_BG: int64, channel of the class (category id - 1); -1 marks padding.
        scales_B: float32, factor from network pixels to original pixels.
        examples: The records, for their ids, sizes and truths.
        num_truncated: Boxes left out because an image has more than ``max_instances_per_image``.
    """

    images_B3HW: Tensor
    boxes_BG4: Tensor
    labels_BG: Tensor
    scales_B: Tensor
    examples: tuple[Example, ...]
    num_truncated: int

    @property
    def sizes_B2(self) -> Tensor:
        """Original height and width, float32."""
        return torch.tensor([[e.height, e.width] for e in self.examples], dtype=torch.float32)

    @property
    def source_ids(self) -> tuple[str, ...]:
        """Ids of the images."""
        return tuple(example.source_id for example in self.examples)


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image; the fields of ``dataset.augmentation``."""

    hflip: bool
    min_scale: float
    max_scale: float
    color_distortion: bool
    translate_xy: bool


def training_sample(
    row: Row,
    out_3HW: Tensor,
    *,
    augmentation: Augmentation,
    padding_rgb: Tensor,
    seed: int,
    skip_crowd: bool,
) -> Sample:
    """Writes an augmented image, a function of the seed and the record's place in the stream.

    Args:
        row: The record.
        out_3HW: uint8, overwritten.
        augmentation: What may happen.
        padding_rgb: uint8 (3,), what is around the picture.
        seed: Of the run.
        skip_crowd: Leave out the boxes of crowds.

    Raises:
        DataError: The image cannot be decoded; names file and offset.
    """
    where, position, example = row
    rng = np.random.default_rng([seed, position])
    keep = ~example.is_crowd if skip_crowd else np.ones_like(example.is_crowd)
    boxes_xyxy, labels = example.boxes_xyxy[keep], example.labels[keep]
    image = open_image(example.encoded, where=where)
    pixels_HW3 = None
    if augmentation.color_distortion or augmentation.translate_xy:
        picture = Image.fromarray(image.pixels_HW3().numpy())
        if augmentation.color_distortion:
            picture = auto_color_distortion(picture, rng)
        if augmentation.translate_xy:
            picture, boxes_xyxy, labels = auto_translate_xy(picture, boxes_xyxy, labels, rng)
        pixels_HW3 = torch.from_numpy(np.array(picture))
    placement = random_placement(
        image.height,
        image.width,
        rng,
        input_hw=(out_3HW.shape[1], out_3HW.shape[2]),
        hflip=augmentation.hflip,
        min_scale=augmentation.min_scale,
        max_scale=augmentation.max_scale,
        can_shrink=image.can_shrink and pixels_HW3 is None,
    )
    if pixels_HW3 is None:
        pixels_HW3 = image.pixels_HW3(shrink=placement.shrink)
    place_pixels(pixels_HW3, placement, out_3HW, padding_rgb=padding_rgb)
    return Sample(*place_boxes(boxes_xyxy, labels, placement), scale=1 / placement.zoom)


def evaluation_sample(row: Row, out_3HW: Tensor, *, padding_rgb: Tensor) -> Sample:
    """Writes the letterboxed image; the truth stays in original pixels, so there are no boxes.

    Args:
        row: The record.
        out_3HW: uint8, overwritten.
        padding_rgb: uint8 (3,), what is around the picture.

    Raises:
        DataError: The image cannot be decoded; names file and offset.
    """
    where, _, example = row
    image = open_image(example.encoded, where=where)
    placement = letterbox(image.height, image.width, input_hw=(out_3HW.shape[1], out_3HW.shape[2]))
    place_pixels(image.pixels_HW3(), placement, out_3HW, padding_rgb=padding_rgb)
    return Sample(*NO_BOXES, scale=1 / placement.zoom)


def load_batches(
    batches_of_rows: Iterable[list[Row]],
    sample: MakeSample,
    *,
    size_hw: tuple[int, int],
    max_instances: int,
    num_threads: int,
    prefetch: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yields batches in order while up to ``prefetch`` later ones are being made.

    A batch may be copied to a device without waiting, if the device is waited for before the next
    batch is asked for.

    Args:
        batches_of_rows: The rows of each batch; asked for in a thread.
        sample: Decodes and places one image; runs in threads.
        size_hw: Height and width of the network's input.
        max_instances: Boxes kept of one image.
        num_threads: Decoding threads; the decoders release the interpreter lock.
        prefetch: Batches in the making ahead of the one that is used; 0 makes each when asked.
        pin_memory: Page-locked tensors, which a GPU copies by itself.
    """
    free: Queue[Tensor | None] = Queue()
    for _ in range(prefetch + 1):
        free.put(torch.empty(0, 3, *size_hw, dtype=torch.uint8))
    made: Queue[_Making | BaseException | None] = Queue()
    pool = ThreadPoolExecutor(
        num_threads, "decode", initializer=torch.set_num_threads, initargs=(1,)
    )
    fill = partial(_feed, batches_of_rows, sample, pool, free, made, pin_memory=pin_memory)
    feeder = threading.Thread(target=fill, name="decode-feeder", daemon=True)
    feeder.start()
    try:
        while (making := made.get()) is not None:
            if isinstance(making, BaseException):
                raise making
            samples = [future.result() for future in making.futures]
            yield collate(making.rows, making.images, samples, max_instances=max_instances)
            free.put(making.images)
    finally:
        free.put(None)
        pool.shutdown(cancel_futures=True)
        feeder.join()


class _Making(NamedTuple):
    """A batch under way; ``images`` may have more rows than it needs."""

    rows: list[Row]
    images: Tensor
    futures: list[Future[Sample]]


def _feed(
    batches_of_rows: Iterable[list[Row]],
    sample: MakeSample,
    pool: ThreadPoolExecutor,
    free: "Queue[Tensor | None]",
    made: "Queue[_Making | BaseException | None]",
    *,
    pin_memory: bool,
) -> None:
    """Starts a batch whenever a tensor is free for it; ends with None, or with what went wrong."""
    try:
        batches = iter(batches_of_rows)
        while (images := free.get()) is not None:
            rows = next(batches, None)
            if rows is None:
                break
            if len(images) < len(rows):
                shape = (len(rows), *images.shape[1:])
                images = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
            futures = [pool.submit(sample, row, images[i]) for i, row in enumerate(rows)]
            made.put(_Making(rows, images, futures))
        made.put(None)
    except BaseException as error:  # handed to the thread that asks for batches
        made.put(error)


def collate(
    rows: Sequence[Row], images: Tensor, samples: Sequence[Sample], *, max_instances: int
) -> Batch:
    """Returns the batch of some rows.

    Args:
        rows: The records.
        images: uint8 [rows or more, 3, H, W].
        samples: What is known of each image beside its pixels.
        max_instances: Boxes kept of one image.
    """
    longest = max((len(sample.labels) for sample in samples), default=0)
    padded = min(max_instances, -(-max(1, longest) // PADDING_STEP) * PADDING_STEP)
    boxes_BG4, labels_BG, num_truncated = pad_boxes(samples, padded)
    return Batch(
        images_B3HW=images[: len(samples)],
        boxes_BG4=torch.from_numpy(boxes_BG4),
        labels_BG=torch.from_numpy(np.where(labels_BG > 0, labels_BG - 1, -1)),
        scales_B=torch.tensor([sample.scale for sample in samples], dtype=torch.float32),
        examples=tuple(example for _, _, example in rows),
        num_truncated=num_truncated,
    )

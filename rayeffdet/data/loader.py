"""Ready batches for the device: decoding and augmentation in threads beside the training loop.

Legend: B images, H W pixels, G padded boxes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayeffdet.data.autoaugment import auto_color_distortion, auto_translate_xy
from rayeffdet.data.decode import decode_image
from rayeffdet.data.example import Example
from rayeffdet.data.transforms import Sample, letterbox, pad_boxes, train_sample

# Boxes are padded to a multiple of this, so that few different shapes reach the device.
PADDING_STEP = 16

Row = tuple[str, int, Example]
"""Where the record came from, its position in the stream, the record."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One worker's share of a step.

    Args:
        images_BHW3: uint8, RGB, letterboxed or cropped to the network's input.
        boxes_BG4: float32, xyxy in network pixels; padding rows are zero.
        labels_BG: int64, channel of the class (category id - 1); -1 marks padding.
        scales_B: float32, factor from network pixels to original pixels.
        examples: The records, for their ids, sizes and truths.
        num_truncated: Boxes left out because an image has more than ``max_instances_per_image``.
    """

    images_BHW3: Tensor
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
    row: Row, *, size_hw: tuple[int, int], augmentation: Augmentation, seed: int, skip_crowd: bool
) -> Sample:
    """Returns an augmented sample, a function of the seed and the record's place in the stream.

    Raises:
        DataError: The image cannot be decoded; names file and offset.
    """
    where, position, example = row
    rng = np.random.default_rng([seed, position])
    keep = ~example.is_crowd if skip_crowd else np.ones_like(example.is_crowd)
    boxes_xyxy, labels = example.boxes_xyxy[keep], example.labels[keep]
    image = decode_image(example.encoded, where=where)
    if augmentation.color_distortion:
        image = auto_color_distortion(image, rng)
    if augmentation.translate_xy:
        image, boxes_xyxy, labels = auto_translate_xy(image, boxes_xyxy, labels, rng)
    return train_sample(
        image,
        boxes_xyxy,
        labels,
        rng,
        height=size_hw[0],
        width=size_hw[1],
        hflip=augmentation.hflip,
        min_scale=augmentation.min_scale,
        max_scale=augmentation.max_scale,
    )


def evaluation_sample(row: Row, *, size_hw: tuple[int, int]) -> Sample:
    """Returns the letterboxed image without boxes; the truth stays in original pixels.

    Raises:
        DataError: The image cannot be decoded; names file and offset.
    """
    where, _, example = row
    image = decode_image(example.encoded, where=where)
    return letterbox(image, height=size_hw[0], width=size_hw[1])


def load_batches(
    batches_of_rows: Iterable[list[Row]],
    sample: Callable[[Row], Sample],
    *,
    max_instances: int,
    num_threads: int,
    prefetch: int,
) -> Iterator[Batch]:
    """Yields batches in order while up to ``prefetch`` later ones are being decoded.

    Pillow releases the interpreter lock while it decodes and resizes, so threads are enough.

    Args:
        batches_of_rows: The rows of each batch.
        sample: Decodes and places one image; runs in threads.
        max_instances: Boxes kept of one image.
        num_threads: Decoding threads.
        prefetch: Batches in the making ahead of the one that is used; 0 makes each when asked.
    """
    pending: deque[tuple[list[Row], list[Future[Sample]]]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as pool:
        try:
            for rows in batches_of_rows:
                pending.append((rows, [pool.submit(sample, row) for row in rows]))
                if len(pending) > prefetch:
                    yield _collate(*pending.popleft(), max_instances)
            while pending:
                yield _collate(*pending.popleft(), max_instances)
        finally:
            for _, futures in pending:
                for future in futures:
                    future.cancel()


def _collate(rows: list[Row], futures: list[Future[Sample]], max_instances: int) -> Batch:
    samples = [future.result() for future in futures]
    longest = max((len(sample.labels) for sample in samples), default=0)
    padded = min(max_instances, -(-max(1, longest) // PADDING_STEP) * PADDING_STEP)
    boxes_BG4, labels_BG, num_truncated = pad_boxes(samples, padded)
    return Batch(
        images_BHW3=torch.from_numpy(np.stack([sample.image_HW3 for sample in samples])),
        boxes_BG4=torch.from_numpy(boxes_BG4),
        labels_BG=torch.from_numpy(np.where(labels_BG > 0, labels_BG - 1, -1)),
        scales_B=torch.tensor([sample.scale for sample in samples], dtype=torch.float32),
        examples=tuple(example for _, _, example in rows),
        num_truncated=num_truncated,
    )

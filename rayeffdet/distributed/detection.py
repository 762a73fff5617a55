"""Detection outside of training: Ray tasks, each over its own range of images."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np

from rayeffdet import storage
from rayeffdet.data.decode import decode_image
from rayeffdet.data.example import Example, decode_example
from rayeffdet.data.index import RecordIndex
from rayeffdet.data.loader import Batch, Row, evaluation_sample, load_batches
from rayeffdet.data.tfrecord import read_records
from rayeffdet.distributed.scatter import scatter
from rayeffdet.errors import DataError
from rayeffdet.evaluate.detect import ImageDetections, PostprocessSettings, detect
from rayeffdet.evaluate.results import Part, part_of
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import padding_rgb
from rayeffdet.train.detector import Detector, device_here, load_detector

# A task is worth starting for this many images; loading a detector costs about as much as ten.
IMAGES_PER_TASK = 64
PREFETCH_BATCHES = 2


def detect_records(
    index: RecordIndex,
    num_images: int,
    *,
    checkpoint: str,
    spec: Spec,
    batch_size: int,
    settings: PostprocessSettings,
    num_gpus: float,
) -> Iterator[Part]:
    """Yields what tasks found in the first ``num_images`` records, each image in one part.

    Parts come as they are finished; which record is where depends on nothing but the numbers.
    The spec serves ``load_detector``.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        DataError: A record cannot be read.
    """
    starts = range(0, num_images, IMAGES_PER_TASK)
    calls = [
        {
            "places": index.locate(range(start, min(start + IMAGES_PER_TASK, num_images))),
            "checkpoint": checkpoint,
            "spec": spec,
            "batch_size": batch_size,
            "settings": settings,
        }
        for start in starts
    ]
    for _, part in scatter(_detect_places, calls, num_gpus=num_gpus):
        yield part


def _detect_places(
    places: Sequence[tuple[str, int]],
    checkpoint: str,
    spec: Spec,
    batch_size: int,
    settings: PostprocessSettings,
) -> Part:
    detector = _detector(checkpoint, spec.model_dump_json())
    rows: list[Row] = []
    for path, offset in places:
        where = f"{path}: offset {offset}"
        payload = read_records(path, [offset])[0]
        rows.append((where, offset, decode_example(payload, where=where)))
    part = part_of(_detect_rows(detector, rows, batch_size=batch_size, settings=settings))
    return replace(part, notices=detector.notices)


def detect_files(
    paths: Sequence[str],
    *,
    checkpoint: str,
    spec: Spec,
    batch_size: int,
    settings: PostprocessSettings,
) -> tuple[list[ImageDetections], Detector, list[str]]:
    """Returns detections of image files in their order, the detector, and what was left out.

    An image that cannot be read is left out with a sentence; ids are the paths. To be run as a
    task for a part of the files. The spec serves ``load_detector``.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    detector = _detector(checkpoint, spec.model_dump_json())
    rows: list[Row] = []
    problems: list[str] = []
    for number, path in enumerate(paths):
        try:
            rows.append((path, number, _example_of_file(path)))
        except DataError as error:
            problems.extend(error.problems)
    found = list(_detect_rows(detector, rows, batch_size=batch_size, settings=settings))
    return found, detector, problems


def _example_of_file(path: str) -> Example:
    encoded = storage.read_bytes(path)
    image = decode_image(encoded, where=path)
    return Example(
        source_id=path,
        filename=path.rsplit("/", 1)[-1],
        encoded=encoded,
        format=path.rsplit(".", 1)[-1].lower(),
        height=image.height,
        width=image.width,
        boxes_xyxy=np.empty((0, 4), np.float32),
        labels=np.empty(0, np.int64),
        class_names=(),
        is_crowd=np.empty(0, bool),
        areas=np.empty(0, np.float32),
    )


def _detect_rows(
    detector: Detector, rows: Sequence[Row], *, batch_size: int, settings: PostprocessSettings
) -> Iterator[ImageDetections]:
    batches: Iterator[Batch] = load_batches(
        (list(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)),
        partial(evaluation_sample, padding_rgb=padding_rgb(detector.network.architecture)),
        size_hw=detector.input_size,
        max_instances=1,
        num_threads=1,
        prefetch=PREFETCH_BATCHES,
    )
    return detect(detector.network, batches, anchors_N4=detector.anchors_N4, settings=settings)


@lru_cache(maxsize=1)
def _detector(checkpoint: str, spec_json: str) -> Detector:
    # A worker process runs many tasks of one evaluation.
    spec = Spec.model_validate_json(spec_json)
    return load_detector(checkpoint, spec=spec, device=device_here())

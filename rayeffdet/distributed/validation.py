"""Validation of the network in training, each worker on its own range of the records."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.distributed as dist

from rayeffdet.data.index import RecordIndex
from rayeffdet.data.loader import Batch, evaluation_sample, load_batches
from rayeffdet.data.order import SEQUENTIAL
from rayeffdet.distributed.ingest import stream_rows
from rayeffdet.evaluate.build import build_postprocess
from rayeffdet.evaluate.detect import detect
from rayeffdet.evaluate.results import Part, metrics_of_parts, part_of
from rayeffdet.model.scaling import Architecture
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import amp_dtype, input_size, padding_rgb
from rayeffdet.train.loop import Metrics
from rayeffdet.train.step import Trainee, World


def validate_together(
    spec: Spec,
    trainee: Trainee,
    world: World,
    *,
    index: RecordIndex,
    class_names: dict[int, str],
    threads: int,
    data_cpus: float,
) -> Metrics:
    """Returns the COCO metrics of the averaged weights on rank 0, and nothing on the others.

    The statistics must be those of all workers: see ``share_statistics``.
    """
    num_images = min(index.num_records, spec.evaluate.num_samples)
    records = range(
        num_images * world.rank // world.size, num_images * (world.rank + 1) // world.size
    )
    with _averaged_weights(trainee):
        batches = evaluation_batches(
            index,
            records,
            batch_size=spec.evaluate.batch_size,
            architecture=trainee.network.architecture,
            size_hw=input_size(spec),
            threads=threads,
            prefetch=spec.dataset.loader.prefetch_size,
            data_cpus=data_cpus,
        )
        part = part_of(
            detect(
                trainee.network,
                batches,
                anchors_N4=trainee.anchors_N4,
                settings=build_postprocess(spec),
                amp_dtype=amp_dtype(spec, world.device),
            )
        )
    parts = _gathered(part, world)
    if world.rank != 0:
        return {}
    return metrics_of_parts(
        parts, class_names=class_names, val_json_file=spec.dataset.val_json_file
    )


def share_statistics(trainee: Trainee, world: World) -> None:
    """Gives all workers the mean over workers of batch statistics, the averaged ones included.

    Each worker's own come from its share of the images alone. Where they agree already, nothing
    changes by a single bit, so that it may be called before every use.
    """
    if world.size == 1:
        return
    names = [n for n, buffer in trainee.network.named_buffers() if buffer.is_floating_point()]
    states = [trainee.network.state_dict()]
    if trainee.ema is not None:
        states.append(trainee.ema.state_dict())
    tensors = [state[name] for state in states for name in names]
    own = torch.cat([tensor.flatten() for tensor in tensors])
    mean = own.clone()
    dist.broadcast(mean, src=0)
    difference = own - mean
    dist.all_reduce(difference)
    mean += difference / world.size
    for tensor, part in zip(tensors, mean.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def evaluation_batches(
    index: RecordIndex,
    records: range,
    *,
    batch_size: int,
    architecture: Architecture,
    size_hw: tuple[int, int],
    threads: int,
    prefetch: int,
    data_cpus: float,
) -> Iterator[Batch]:
    """Yields letterboxed batches of consecutive records; the last one may be smaller."""
    starts = range(records.start, records.stop, batch_size)
    shares = [range(start, min(start + batch_size, records.stop)) for start in starts]
    return load_batches(
        stream_rows(index, shares, shuffle=SEQUENTIAL, data_cpus=data_cpus),
        partial(evaluation_sample, padding_rgb=padding_rgb(architecture)),
        size_hw=size_hw,
        max_instances=1,
        num_threads=threads,
        prefetch=prefetch,
    )


@contextmanager
def _averaged_weights(trainee: Trainee) -> Iterator[None]:
    with ExitStack() as stack:
        if trainee.ema is not None:
            stack.enter_context(trainee.ema.applied_to(trainee.network))
        trainee.network.eval()
        yield


def _gathered(part: Part, world: World) -> list[Part]:
    if world.size == 1:
        return [part]
    parts: list[Part | None] = [None] * world.size
    dist.all_gather_object(parts, part)
    return [one for one in parts if one is not None]

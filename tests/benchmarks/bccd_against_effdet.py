"""effdet's own network on the images, batches and schedule of a finished rayeffdet run.

    python -m rayeffdet.run specs/bccd.yaml
    python tests/benchmarks/bccd_against_effdet.py specs/bccd.yaml

Trains effdet's EfficientDet-D0 with effdet's own labeler and losses in a plain eager loop for the
same number of steps: the same shards, order, augmentation, rate, momentum, decay, clipping and
moving average. Then evaluates both on the test shards with the same COCO metric, each through its
own post-processor, and prints one table. Needs the extra `parity` (effdet, timm).
"""

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from effdet import DetBenchPredict, DetBenchTrain, EfficientDet, get_efficientdet_config

from rayeffdet.data.example import decode_example
from rayeffdet.data.index import RecordIndex, find_shards, index_shard, join_shards
from rayeffdet.data.loader import Batch, Row, evaluation_sample, load_batches
from rayeffdet.data.order import SEQUENTIAL, Shuffle, records_at
from rayeffdet.data.tfrecord import read_records
from rayeffdet.evaluate.build import build_postprocess
from rayeffdet.evaluate.coco import coco_metrics, detection_rows, image_numbers, truth_from_examples
from rayeffdet.evaluate.detect import detect
from rayeffdet.evaluate.results import join_parts, part_of
from rayeffdet.model.efficientdet import normalise
from rayeffdet.spec.load import load_spec
from rayeffdet.spec.paths import with_absolute_paths
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import (
    build_architecture,
    build_epochs,
    build_learning_rate,
    build_sample,
    build_shuffle,
    input_size,
    padding_rgb,
)
from rayeffdet.train.checkpoint_index import CheckpointIndex
from rayeffdet.train.detector import load_detector
from rayeffdet.train.ema import Ema
from rayeffdet.train.optim import build_optimizer, clip_gradients_


def main() -> None:
    """Trains, evaluates both, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="section.field=value, as in the run")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    spec = with_absolute_paths(load_spec(given.spec, given.overrides).spec)
    test = load_index(spec, [f"{spec.task_dir('dataset_convert')}/test-*.tfrecord"])

    index = CheckpointIndex.read(spec.task_dir("train"))
    assert index.last is not None, "run the spec first"
    ours = evaluate_ours(spec, index.path(index.last), test, threads=given.threads)
    started = time.perf_counter()
    network = train_effdet(spec, load_index(spec, spec.dataset.train_tfrecords), given.threads)
    seconds = time.perf_counter() - started
    theirs = evaluate_effdet(spec, network, test, threads=given.threads)

    print(f"\ntest split, {test.num_records} images, {index.last.step} steps each")
    print(f"{'':<12}{'AP':>8}{'AP50':>8}{'AP75':>8}")
    for name, metrics in (("rayeffdet", ours), ("effdet", theirs)):
        print(f"{name:<12}" + "".join(f"{metrics[key]:8.4f}" for key in ("AP", "AP50", "AP75")))
    report = {"rayeffdet": ours, "effdet": theirs, "effdet_seconds": seconds}
    Path(spec.results_dir, "against_effdet.json").write_text(json.dumps(report, indent=1))


def train_effdet(spec: Spec, index: RecordIndex, threads: int) -> EfficientDet:
    """Returns effdet's network with its averaged weights after all steps of the spec."""
    torch.manual_seed(spec.train.random_seed)
    network = effdet_network(spec).to(memory_format=torch.channels_last)
    bench = DetBenchTrain(network, create_labeler=True)
    optimizer = build_optimizer(
        network,
        name=spec.train.optimizer.name,
        momentum=spec.train.optimizer.momentum,
        l2_weight_decay=spec.train.l2_weight_decay,
    )
    average = Ema(network, spec.train.moving_average_decay)
    epochs = build_epochs(spec, num_records=index.num_records, num_workers=1)
    rate = build_learning_rate(spec, steps_per_epoch=epochs.steps, num_workers=1)
    step = 0
    for epoch in range(spec.train.num_epochs):
        bench.train()
        started, losses = time.perf_counter(), []
        shares = [epochs.share(epoch, s, rank=0, world_size=1) for s in range(epochs.steps)]
        sample = build_sample(spec, build_architecture(spec))
        for batch in batches_of(spec, index, shares, build_shuffle(spec), sample, threads):
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            images_B3HW = normalise(batch.images_B3HW, build_architecture(spec))
            loss = bench(images_B3HW, effdet_targets(batch))["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            clip_gradients_(network.parameters(), spec.train.clip_gradients_norm)
            optimizer.step()
            step += 1
            average.update(network, step)
            losses.append(loss.item())
        speed = index.num_records / (time.perf_counter() - started)
        print(f"effdet epoch {epoch + 1}: loss {np.mean(losses):.4f} · {speed:.1f} images/s")
    network.load_state_dict(average.state_dict())
    return network


def effdet_network(spec: Spec) -> EfficientDet:
    """Returns effdet's D0 for the size, classes and anchors of the spec, drop-path off as ours."""
    config = get_efficientdet_config("tf_efficientdet_d0")
    config.image_size = list(input_size(spec))
    config.num_classes = spec.dataset.num_classes - 1
    config.anchor_scale = float(spec.model.anchor_scale)
    config.backbone_args.drop_path_rate = 0.0
    return EfficientDet(config, pretrained_backbone=False)


def effdet_targets(batch: Batch) -> dict[str, list[torch.Tensor]]:
    """Returns the truth as effdet wants it: yxyx boxes and classes from 1, per image."""
    kept = [labels >= 0 for labels in batch.labels_BG]
    return {
        "bbox": [
            boxes[keep][:, [1, 0, 3, 2]] for boxes, keep in zip(batch.boxes_BG4, kept, strict=True)
        ],
        "cls": [
            (labels[keep] + 1).float() for labels, keep in zip(batch.labels_BG, kept, strict=True)
        ],
    }


def evaluate_effdet(
    spec: Spec, network: EfficientDet, index: RecordIndex, *, threads: int
) -> dict[str, float]:
    """Returns the metrics of effdet's network through effdet's own post-processor."""
    bench = DetBenchPredict(network).eval()
    examples, rows = [], []
    with torch.inference_mode():
        for batch in evaluation_batches(spec, index, threads):
            information = {
                "img_scale": batch.scales_B,
                "img_size": batch.sizes_B2.flip(1),
            }
            images_B3HW = normalise(batch.images_B3HW, build_architecture(spec))
            found_BD6 = bench(images_B3HW, information)
            examples.extend(batch.examples)
            rows.extend(found[found[:, 4] > 0].numpy().astype(np.float64) for found in found_BD6)
    truth = truth_from_examples(examples)
    numbers = image_numbers(truth)
    detections = np.concatenate(
        [
            detection_rows(
                numbers[example.source_id],
                boxes_xyxy=found[:, :4],
                scores=found[:, 4],
                category_ids=found[:, 5],
            )
            for example, found in zip(examples, rows, strict=True)
        ]
    )
    return coco_metrics(truth, detections)


def evaluate_ours(
    spec: Spec, checkpoint: str, index: RecordIndex, *, threads: int
) -> dict[str, float]:
    """Returns the metrics of the finished run's last checkpoint."""
    detector = load_detector(checkpoint, spec=spec, device=torch.device("cpu"))
    found = detect(
        detector.network,
        evaluation_batches(spec, index, threads),
        anchors_N4=detector.anchors_N4,
        settings=build_postprocess(spec),
    )
    truth, detections = join_parts(
        [part_of(found)], class_names=detector.class_names, val_json_file=""
    )
    return coco_metrics(truth, detections)


def evaluation_batches(spec: Spec, index: RecordIndex, threads: int) -> Iterator[Batch]:
    """Yields the letterboxed images of a split."""
    size = spec.evaluate.batch_size
    shares = [
        range(start, min(start + size, index.num_records))
        for start in range(0, index.num_records, size)
    ]
    sample = partial(evaluation_sample, padding_rgb=padding_rgb(build_architecture(spec)))
    return batches_of(spec, index, shares, SEQUENTIAL, sample, threads)


def batches_of(spec, index, shares, shuffle: Shuffle, sample, threads: int) -> Iterator[Batch]:
    """Yields the batches of a rayeffdet run, read without Ray."""
    return load_batches(
        (rows_of(index, share, shuffle) for share in shares),
        sample,
        size_hw=input_size(spec),
        max_instances=spec.dataset.max_instances_per_image,
        num_threads=threads,
        prefetch=spec.dataset.loader.prefetch_size,
    )


def rows_of(index: RecordIndex, share: range, shuffle: Shuffle) -> list[Row]:
    """Returns the records at some positions of the stream."""
    places = index.locate(records_at(share, index.shard_sizes, shuffle))
    return [
        (path, position, decode_example(read_records(path, [offset])[0], where=path))
        for (path, offset), position in zip(places, share, strict=True)
    ]


def load_index(spec: Spec, patterns: tuple[str, ...] | list[str]) -> RecordIndex:
    """Returns the index of some shards."""
    shards = find_shards(patterns)
    return join_shards([index_shard(s, num_classes=spec.dataset.num_classes) for s in shards])


if __name__ == "__main__":
    main()

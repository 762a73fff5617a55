"""Trains EfficientDet-D0 on TFRecord shards in one process: the parts of rayeffdet without Ray.

python examples/plain_train.py 'TRAIN-*.tfrecord' 'VAL-*.tfrecord' --num-classes 6 --epochs 14
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from rayeffdet.data import loader
from rayeffdet.data.example import decode_example
from rayeffdet.data.index import RecordIndex, find_shards, index_shard, join_shards
from rayeffdet.data.order import SEQUENTIAL, Epochs, Shuffle, records_at
from rayeffdet.data.tfrecord import read_records
from rayeffdet.evaluate.detect import PostprocessSettings, detect
from rayeffdet.evaluate.results import metrics_of_parts, part_of
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import architecture_of
from rayeffdet.ops.anchors import make_anchors
from rayeffdet.train.ema import Ema
from rayeffdet.train.loop import LoopSettings, Metrics, StepDone, train_epochs
from rayeffdet.train.optim import build_optimizer
from rayeffdet.train.schedule import learning_rate
from rayeffdet.train.step import StepSettings, Trainee, World

SEED, BATCH_SIZE = 42, 8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHUFFLE = Shuffle(SEED, shuffle_file=True, shuffle_buffer=10_000, cycle_length=32, block_length=16)
VARIED = loader.Augmentation(
    hflip=True, min_scale=0.8, max_scale=1.2, color_distortion=False, translate_xy=False
)
GREY = torch.tensor([124, 116, 104], dtype=torch.uint8)
SUPPRESSION = PostprocessSettings(
    max_nms_inputs=5000, max_detections=100, min_score=0.0, nms="hard", sigma=0.5
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, and prints the mean loss of every epoch and the metrics after the last."""
    parser = argparse.ArgumentParser(description="Trains EfficientDet-D0 in one process.")
    parser.add_argument("train", help="training shards: a path, folder, glob or URI")
    parser.add_argument("val", help="validation shards")
    parser.add_argument("--num-classes", type=int, required=True, help="largest category id + 1")
    parser.add_argument("--size", type=int, default=128, help="side of the input in pixels")
    parser.add_argument("--epochs", type=int, default=14)
    given = parser.parse_args(arguments)
    train, val = (read_index(p, given.num_classes) for p in (given.train, given.val))
    names = {i: f"class {i}" for i in range(1, given.num_classes)} | val.class_names
    vary = partial(
        loader.training_sample, augmentation=VARIED, padding_rgb=GREY, seed=SEED, skip_crowd=True
    )
    letterbox = partial(loader.evaluation_sample, padding_rgb=GREY)
    trainee = new_trainee(num_channels=given.num_classes - 1, size=given.size)

    def evaluate(_: int) -> Metrics:
        batches = load(val, 0, SEQUENTIAL, letterbox, given.size)
        network, anchors_N4 = trainee.network.eval(), trainee.anchors_N4
        with trainee.ema.applied_to(network):
            part = part_of(detect(network, batches, anchors_N4=anchors_N4, settings=SUPPRESSION))
        return metrics_of_parts([part], class_names=names, val_json_file="")

    losses, steps = [], Epochs(train.num_records, BATCH_SIZE).steps
    rate = {"base": 0.08, "warmup_init": 0.008, "warmup_steps": steps, "name": "cosine"}
    for event in train_epochs(
        trainee,
        first_epoch=0,
        batches=lambda epoch: load(train, epoch, SHUFFLE, vary, given.size),
        learning_rate=partial(learning_rate, total_steps=given.epochs * steps, **rate),
        evaluate=evaluate,
        save=lambda epoch, metrics: "",
        settings=LoopSettings(given.epochs, steps, given.epochs, given.epochs, 1),
        step_settings=StepSettings({}, 10.0, 0.0, amp_dtype=None, seed=SEED),
        world=World(0, 1, DEVICE),
    ):
        if isinstance(event, StepDone):
            losses.append(event.result.loss)
        else:
            print(f"epoch {event.epoch + 1}: loss {sum(losses) / len(losses):.4f}", flush=True)
            losses.clear()
    print(f"AP {event.metrics['AP']:.4f}  AP50 {event.metrics['AP50']:.4f}")


def read_index(pattern: str, num_classes: int) -> RecordIndex:
    return join_shards([index_shard(p, num_classes=num_classes) for p in find_shards([pattern])])


def load(data: RecordIndex, epoch: int, order: Shuffle, sample: Callable, size: int) -> Iterator:
    epochs = Epochs(data.num_records, BATCH_SIZE)
    shares = (epochs.share(epoch, step, rank=0, world_size=1) for step in range(epochs.steps))
    rows = (list(read_rows(data, share, order)) for share in shares)
    limits = {"max_instances": 100, "num_threads": 2, "prefetch": 2}
    return loader.load_batches(rows, sample, size_hw=(size, size), **limits)


def read_rows(data: RecordIndex, positions: range, order: Shuffle) -> Iterator[loader.Row]:
    places = data.locate(records_at(positions, data.shard_sizes, order))
    for position, (path, offset) in zip(positions, places, strict=True):
        [payload] = read_records(path, [offset])
        where = f"{path}: offset {offset}"
        yield where, position, decode_example(payload, where=where)


def new_trainee(*, num_channels: int, size: int) -> Trainee:
    torch.manual_seed(SEED)
    network = EfficientDet(architecture_of("efficientdet-d0", num_classes=num_channels)).to(DEVICE)
    return Trainee(
        network=network,
        parallel=network,
        optimizer=build_optimizer(network, name="sgd", momentum=0.9, l2_weight_decay=4e-5),
        ema=Ema(network, 0.99),
        anchors_N4=make_anchors(height=size, width=size).to(DEVICE),
        scaler=torch.amp.GradScaler(DEVICE.type, enabled=False),
    )


if __name__ == "__main__":
    main()

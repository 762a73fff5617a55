"""How fast training images come: our pipeline beside the pure work and beside the usual loaders.

    python tests/benchmarks/ingest.py [--bccd FOLDER] [--images 1000] [--repeats 3] [--only a,b]
    python tests/benchmarks/ingest.py --soak 50      memory of our pipeline over so many epochs

Every variant reads the same TFRecord shards and makes the same kind of batch: 16 images of 512x512,
uint8, flipped, scaled (0.1 to 2), cropped and padded, with their boxes. Each gets the same cores.
In every repeat all variants run once, so that a slow moment of the machine meets all of them; the
clock of a run starts with its first batch, so that starting processes is not counted. Printed are
medians and ratios. Without effdet its row is left out.
"""

import argparse
import io
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from rayeffdet.data.convert import convert_shard
from rayeffdet.data.example import Example, decode_example, encode_example
from rayeffdet.data.index import RecordIndex, find_shards, index_shard, join_shards
from rayeffdet.data.loader import Augmentation, Batch, load_batches, training_sample
from rayeffdet.data.order import Epochs, Shuffle, records_at
from rayeffdet.data.tfrecord import iterate_records, read_records, write_shard
from rayeffdet.distributed.cluster import connected
from rayeffdet.distributed.ingest import stream_rows

# Where pytest finds what the tests share.
sys.path.insert(1, str(Path(__file__).parents[1]))

from photographs import photo_like

SIDE = 512
BATCH = 16
SHARDS = 8
MAX_BOXES = 100
AUGMENTATION = Augmentation(
    hflip=True, min_scale=0.1, max_scale=2.0, color_distortion=False, translate_xy=False
)
SHUFFLE = Shuffle(
    seed=1, shuffle_file=True, shuffle_buffer=10_000, cycle_length=32, block_length=16
)
PADDING_RGB = torch.tensor([124, 116, 104], dtype=torch.uint8)
SAMPLE = partial(
    training_sample, augmentation=AUGMENTATION, padding_rgb=PADDING_RGB, seed=1, skip_crowd=True
)
CORES = os.cpu_count() or 1
PAGE_BYTES = os.sysconf("SC_PAGESIZE")

Run = Callable[[RecordIndex], float]
"""Reads every record once and returns images per second."""


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as folder:
        for name, index in sets(given, folder):
            if given.soak:
                soak(index, given.soak)
                return
            print(f"\n{name}: {index.num_records} images, {CORES} cores, torch {torch.__version__}")
            variants = {k: v for k, v in available().items() if not given.only or k in given.only}
            rates: dict[str, list[float]] = {letter: [] for letter in variants}
            for _ in range(given.repeats):
                for letter, (_, run) in variants.items():
                    rates[letter].append(run(index))
            table(variants, rates)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bccd", default="../shared/data/bccd", help="folder of the BCCD set")
    parser.add_argument("--images", type=int, default=1000, help="of each generated set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--soak", type=int, default=0, help="epochs of one stream, memory shown")
    parser.add_argument("--only", type=lambda text: text.split(","), help="letters, as in a,b,c")
    return parser.parse_args()


def table(variants: dict[str, tuple[str, Run]], rates: dict[str, list[float]]) -> None:
    medians = {letter: statistics.median(found) for letter, found in rates.items()}
    ours = medians.get("b")
    for letter, (words, _) in variants.items():
        ratio = f"{ours / medians[letter]:6.2f}" if ours else ""
        spread = f"{min(rates[letter]):6.0f} .. {max(rates[letter]):.0f}"
        print(
            f"  ({letter}) {words:<52}{medians[letter]:8.0f} images/s  b/{letter} {ratio}  {spread}"
        )


# ---- data


def sets(given: argparse.Namespace, folder: str) -> Iterator[tuple[str, RecordIndex]]:
    if Path(given.bccd).is_dir():
        out = Path(folder, "bccd")
        for shard in range(SHARDS):
            convert_shard(
                annotations_file=f"{given.bccd}/annotations/instances_train.json",
                image_dir=f"{given.bccd}/train",
                results_dir=str(out),
                tag="train",
                shard=shard,
                num_shards=SHARDS,
                include_masks=False,
            )
        yield "BCCD, JPEG 640x480", indexed(out, copies=max(1, given.images // 205))
    for width, height, count in ((640, 480, given.images), (1280, 960, given.images // 3)):
        out = Path(folder, str(width))
        out.mkdir()
        for shard in range(SHARDS):
            payloads = (
                encode_example(photo_record(number, width, height))
                for number in range(shard, count, SHARDS)
            )
            write_shard(str(out / f"train-{shard}.tfrecord"), payloads)
        yield f"photo-like JPEG {width}x{height}", indexed(out, copies=1)


def indexed(folder: Path, *, copies: int) -> RecordIndex:
    """The shards of a folder; a small set is read several times over."""
    shards = [index_shard(path, num_classes=1000) for path in find_shards([str(folder)])]
    return join_shards(shards * copies)


def photo_record(number: int, width: int, height: int) -> Example:
    """About 100 KB at 640x480, with eight boxes."""
    rng = np.random.default_rng(number)
    corners = rng.uniform(0, 1, (8, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
    return Example(
        source_id=str(number),
        filename=f"{number}.jpg",
        encoded=photo_like(height, width, number),
        format="jpeg",
        height=height,
        width=width,
        boxes_xyxy=boxes,
        labels=np.ones(8, np.int64),
        class_names=("thing",) * 8,
        is_crowd=np.zeros(8, bool),
        areas=np.ones(8, np.float32),
    )


# ---- variants


def available() -> dict[str, tuple[str, Run]]:
    found: dict[str, tuple[str, Run]] = {
        "a": ("the pure function, a process for each core", pure),
        "b": ("rayeffdet: Ray Data, decoding beside the loop", ours),
        "c": ("torch DataLoader, the same function", partial(loader, kind=SameFunction)),
        "e": ("torch DataLoader, torchvision v2", partial(loader, kind=TorchvisionV2)),
        "f": ("Ray Data: read, map_batches, iter_torch_batches", obvious_ray_data),
    }
    try:
        import effdet  # noqa: F401
    except ImportError:
        return found
    found["d"] = ("torch DataLoader, effdet's transforms", partial(loader, kind=EffdetTransforms))
    return dict(sorted(found.items()))


def pure(index: RecordIndex) -> float:
    places = index.locate(records_at(range(index.num_records), index.shard_sizes, SHUFFLE))
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        parts = [places[core::CORES] for core in range(CORES)]
        pool.map(process_records, [part[:4] for part in parts], chunksize=1)
        return sum(pool.map(process_records, parts, chunksize=1))


def process_records(places: list[tuple[str, int]]) -> float:
    torch.set_num_threads(1)
    out_3HW = torch.empty(3, SIDE, SIDE, dtype=torch.uint8)
    started = time.perf_counter()
    for number, (path, offset) in enumerate(places):
        example = decode_example(read_records(path, [offset])[0], where=path)
        SAMPLE((path, number, example), out_3HW)
    return len(places) / (time.perf_counter() - started)


def ours(index: RecordIndex) -> float:
    return rate(len(batch.examples) for batch in our_batches(index, num_epochs=1))


def our_batches(index: RecordIndex, *, num_epochs: int) -> Iterator[Batch]:
    epochs = Epochs(index.num_records, BATCH)
    shares = (
        epochs.share(epoch, step, rank=0, world_size=1)
        for epoch in range(num_epochs)
        for step in range(epochs.steps)
    )
    return load_batches(
        stream_rows(index, shares, shuffle=SHUFFLE, data_cpus=1.0),
        SAMPLE,
        size_hw=(SIDE, SIDE),
        max_instances=MAX_BOXES,
        num_threads=CORES,
        prefetch=4,
    )


def soak(index: RecordIndex, num_epochs: int) -> None:
    """Prints the memory of this process and of the object store as epochs go by."""
    steps, started = Epochs(index.num_records, BATCH).steps, time.perf_counter()
    for number, _ in enumerate(our_batches(index, num_epochs=num_epochs), start=1):
        epoch, step = divmod(number, steps)
        if step == 0 and epoch % max(1, num_epochs // 10) == 0:
            # What is shared is the object store, counted by itself.
            resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
            store = ray.cluster_resources()["object_store_memory"]
            used = store - ray.available_resources().get("object_store_memory", 0)
            print(
                f"epoch {epoch:3}: {(resident - shared) * PAGE_BYTES / 2**20:6.0f} MiB of its own ·"
                f" {used / 2**20:5.0f} MiB of the object store ·"
                f" {number * BATCH / (time.perf_counter() - started):.0f} images/s"
            )


def rate(sizes: Iterator[int]) -> float:
    """Images per second after the first batch."""
    next(sizes)
    started = time.perf_counter()
    count = sum(sizes)
    return count / (time.perf_counter() - started)


class Records(Dataset):
    """Records by number; what is made of each is the subclass's."""

    def __init__(self, index: RecordIndex) -> None:
        self._places = index.locate(
            records_at(range(index.num_records), index.shard_sizes, SHUFFLE)
        )

    def __len__(self) -> int:
        return len(self._places)

    def example(self, number: int) -> Example:
        path, offset = self._places[number]
        return decode_example(read_records(path, [offset])[0], where=path)


class SameFunction(Records):
    def __getitem__(self, number: int):
        out_3HW = torch.empty(3, SIDE, SIDE, dtype=torch.uint8)
        sample = SAMPLE(("", number, self.example(number)), out_3HW)
        return out_3HW, sample.boxes_xyxy, sample.labels, sample.scale

    @staticmethod
    def collate(items):
        boxes_BG4 = np.zeros((len(items), MAX_BOXES, 4), np.float32)
        labels_BG = np.full((len(items), MAX_BOXES), -1)
        for i, (_, boxes, labels, _) in enumerate(items):
            boxes_BG4[i, : len(labels)], labels_BG[i, : len(labels)] = boxes, labels
        images_B3HW = torch.stack([item[0] for item in items])
        return images_B3HW, torch.from_numpy(boxes_BG4), torch.from_numpy(labels_BG)


class TorchvisionV2(Records):
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ScaleJitter((SIDE, SIDE), scale_range=(0.1, 2.0), antialias=True),
            v2.RandomCrop((SIDE, SIDE), pad_if_needed=True, fill={tv_tensors.Image: 116}),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(),
        ]
    )

    def __getitem__(self, number: int):
        example = self.example(number)
        encoded = torch.frombuffer(bytearray(example.encoded), dtype=torch.uint8)
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(example.boxes_xyxy),
            format="XYXY",
            canvas_size=(example.height, example.width),
        )
        return self.transform(
            tv_tensors.Image(decode_jpeg(encoded, ImageReadMode.RGB)),
            {"boxes": boxes, "labels": torch.from_numpy(example.labels)},
        )

    @staticmethod
    def collate(items):
        return torch.stack([image for image, _ in items]), [target for _, target in items]


class EffdetTransforms(Records):
    def __init__(self, index: RecordIndex) -> None:
        super().__init__(index)
        from effdet.data.transforms import transforms_coco_train

        self._transform = transforms_coco_train((SIDE, SIDE), use_prefetcher=True)

    def __getitem__(self, number: int):
        example = self.example(number)
        target = {
            "bbox": example.boxes_xyxy[:, [1, 0, 3, 2]].copy(),
            "cls": example.labels.astype(np.float32),
            "img_idx": number,
            "img_size": (example.width, example.height),
        }
        return self._transform(Image.open(io.BytesIO(example.encoded)).convert("RGB"), target)

    @staticmethod
    def collate(items):
        from effdet.data.loader import DetectionFastCollate

        return DetectionFastCollate()(items)


def loader(index: RecordIndex, *, kind: type[Records]) -> float:
    batches = DataLoader(
        kind(index),
        batch_size=BATCH,
        num_workers=CORES,
        collate_fn=kind.collate,
        worker_init_fn=lambda _: torch.set_num_threads(1),
        multiprocessing_context="fork",
    )
    return rate(len(images) for images, *_ in batches)


def obvious_ray_data(index: RecordIndex) -> float:
    def read(row):
        for _, payload in iterate_records(row["item"]):
            example = decode_example(payload, where=row["item"])
            yield {"encoded": example.encoded, "boxes": example.boxes_xyxy.tolist()}

    def decode(batch):
        images = []
        for number, encoded in enumerate(batch["encoded"]):
            out_3HW = torch.empty(3, SIDE, SIDE, dtype=torch.uint8)
            boxes = np.array(list(batch["boxes"][number]), np.float32).reshape(-1, 4)
            example = Example(
                *("", "", encoded, "jpeg", 0, 0, boxes, np.ones(len(boxes), np.int64)),
                *((), np.zeros(len(boxes), bool), np.ones(len(boxes), np.float32)),
            )
            SAMPLE(("", random.randrange(2**31), example), out_3HW)
            images.append(out_3HW.numpy())
        return {"image": np.stack(images)}

    dataset = ray.data.from_items([shard.path for shard in index.shards]).flat_map(read)
    dataset = dataset.map_batches(decode, batch_size=BATCH)
    batches = dataset.iter_torch_batches(batch_size=BATCH, prefetch_batches=4)
    return rate(len(batch["image"]) for batch in batches)


if __name__ == "__main__":
    with connected("local", debug=False):
        main()

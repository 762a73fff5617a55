"""Records from shards through Ray Data: each one once, in the order of the plan, or an error."""

import itertools
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from rayeffdet.data.example import decode_example, encode_example
from rayeffdet.data.index import index_shard, join_shards
from rayeffdet.data.loader import Augmentation, load_batches, training_sample
from rayeffdet.data.order import SEQUENTIAL, Epochs, Shuffle, records_at
from rayeffdet.data.tfrecord import iterate_records, write_shard
from rayeffdet.distributed import ingest
from rayeffdet.distributed.ingest import stream_batches, stream_rows
from rayeffdet.distributed.validation import evaluation_batches
from rayeffdet.errors import DataError
from rayeffdet.model.scaling import architecture_of

pytestmark = pytest.mark.usefixtures("local_ray")

SHUFFLED = Shuffle(seed=5, shuffle_file=True, shuffle_buffer=16, cycle_length=2, block_length=1)
NUM_RECORDS = 32


def index_of(folder):
    shards = sorted(folder.glob("train-*.tfrecord"))
    return join_shards([index_shard(str(path), num_classes=6) for path in shards])


@pytest.fixture(scope="module")
def index(shards):
    return index_of(shards)


def ids_in_shard_order(index):
    rows = stream_rows(index, [range(NUM_RECORDS)], shuffle=SEQUENTIAL, data_cpus=1.0)
    return [example.source_id for _, _, example in next(rows)]


def test_two_workers_together_read_every_record_once_an_epoch(index):
    epochs = Epochs(examples_per_epoch=NUM_RECORDS, global_batch=5)
    read = []
    for rank in range(2):
        shares = [epochs.share(1, step, rank=rank, world_size=2) for step in range(epochs.steps)]
        for batch in stream_rows(index, shares, shuffle=SHUFFLED, data_cpus=0.5):
            read += [example.source_id for _, _, example in batch]
    assert sorted(read) == sorted(ids_in_shard_order(index))


def test_batches_come_in_the_order_of_the_plan_over_blocks_and_passes(index):
    positions = range(20, 20 + 3 * NUM_RECORDS)
    shares = [positions[i : i + 7] for i in range(0, len(positions), 7)]
    batches = list(stream_rows(index, shares, shuffle=SHUFFLED, data_cpus=1.0))
    assert [[position for _, position, _ in batch] for batch in batches] == [
        list(share) for share in shares
    ]
    ids = ids_in_shard_order(index)
    planned = [ids[i] for i in records_at(positions, index.shard_sizes, SHUFFLED)]
    assert [example.source_id for batch in batches for _, _, example in batch] == planned


def test_each_row_says_where_its_record_lies(index):
    rows = next(stream_rows(index, [range(NUM_RECORDS)], shuffle=SEQUENTIAL, data_cpus=1.0))
    places = index.locate(range(NUM_RECORDS))
    assert [where for where, _, _ in rows] == [f"{path}: offset {o}" for path, o in places]


def test_a_record_that_broke_after_it_was_indexed_is_named(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "copy")
    index = index_of(folder)
    path, offset = index.locate([NUM_RECORDS - 1])[0]
    with open(path, "r+b") as file:
        file.seek(offset + 200)
        byte = file.read(1)
        file.seek(offset + 200)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DataError) as caught:
        list(stream_rows(index, [range(NUM_RECORDS)], shuffle=SEQUENTIAL, data_cpus=1.0))
    assert type(caught.value) is DataError
    assert f"{path}: offset {offset}: " in caught.value.problems[0]


def test_evaluation_sees_every_record_once_and_ends_with_a_smaller_batch(index):
    batches = list(
        evaluation_batches(
            index,
            range(3, 16),
            batch_size=5,
            architecture=architecture_of("efficientdet-d0", num_classes=5),
            size_hw=(64, 64),
            threads=1,
            prefetch=1,
            data_cpus=1.0,
        )
    )
    assert [len(batch.examples) for batch in batches] == [5, 5, 3]
    read = [source_id for batch in batches for source_id in batch.source_ids]
    assert read == ids_in_shard_order(index)[3:16]


@pytest.fixture
def decoding():
    """How a batch of 64 x 64 pixels is made; flips, scales and crops."""
    augmentation = Augmentation(
        hflip=True, min_scale=0.5, max_scale=2.0, color_distortion=False, translate_xy=False
    )
    sample = partial(
        training_sample,
        augmentation=augmentation,
        padding_rgb=torch.tensor([124, 116, 104], dtype=torch.uint8),
        seed=3,
        skip_crowd=True,
    )
    return {"sample": sample, "size_hw": (64, 64), "max_instances": 3}


def test_batches_decoded_by_ray_data_are_those_decoded_beside_the_loop(index, decoding):
    epochs = Epochs(examples_per_epoch=NUM_RECORDS, global_batch=7)
    shares = [epochs.share(0, step, rank=0, world_size=1) for step in range(epochs.steps)]
    there = stream_batches(index, shares, **decoding, shuffle=SHUFFLED, data_cpus=1.0, prefetch=1)
    rows = stream_rows(index, shares, shuffle=SHUFFLED, data_cpus=0.5)
    sample = decoding.pop("sample")
    here = load_batches(rows, sample, **decoding, num_threads=1, prefetch=1)
    for a, b in zip(there, here, strict=True):
        for name in ("images_B3HW", "boxes_BG4", "labels_BG", "scales_B"):
            ours, theirs = getattr(a, name), getattr(b, name)
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
        assert (a.source_ids, a.num_truncated) == (b.source_ids, b.num_truncated)
        assert torch.equal(a.sizes_B2, b.sizes_B2)


def test_an_image_that_cannot_be_decoded_is_named_by_ray_data_too(shards, tmp_path, decoding):
    folder = shutil.copytree(shards, tmp_path / "copy")
    path = str(min(folder.glob("train-*.tfrecord")))
    payloads = [payload for _, payload in iterate_records(path)]
    broken = decode_example(payloads[1], where=path)
    payloads[1] = encode_example(replace(broken, encoded=broken.encoded[:200]))
    write_shard(path, payloads)
    index = index_of(folder)
    shares = [range(4), range(4, 8)]
    with pytest.raises(DataError) as caught:
        list(
            stream_batches(index, shares, **decoding, shuffle=SEQUENTIAL, data_cpus=1.0, prefetch=1)
        )
    assert f"{path}: offset {index.shards[0].offsets[1]}: " in caught.value.problems[0]


def test_shares_may_be_endless_and_are_planned_a_part_at_a_time(index, monkeypatch):
    monkeypatch.setattr(ingest, "SEGMENT_RECORDS", 40)
    planned = []

    def shares():
        for start in itertools.count(0, 8):
            planned.append(start)
            yield range(start, start + 8)

    batches = stream_rows(index, shares(), shuffle=SHUFFLED, data_cpus=1.0)
    for start in range(0, 48, 8):
        assert [position for _, position, _ in next(batches)] == list(range(start, start + 8))
    assert len(planned) <= 10


TWO_NODES = """
import sys
import ray, torch
from ray.cluster_utils import Cluster
from rayeffdet.data.index import index_shard, join_shards
from rayeffdet.data.loader import Augmentation, load_batches, training_sample
from rayeffdet.data.order import SEQUENTIAL
from rayeffdet.data.transforms import Sample
from rayeffdet.data.loader import NO_BOXES
from rayeffdet.distributed.ingest import stream_batches

def sample(row, out_3HW):
    out_3HW.fill_(int(ray.get_runtime_context().get_node_id()[:2], 16))
    return Sample(*NO_BOXES, scale=1.0)

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=2)
ray.init(cluster.address, log_to_driver=False)
cluster.wait_for_nodes()
index = join_shards([index_shard(path, num_classes=6) for path in sys.argv[1:]])
shares = [range(i, i + 2) for i in range(0, 2 * index.num_records, 2)]
seen, count = set(), 0
for batch in stream_batches(
    index, shares, sample=sample, size_hw=(8, 8), max_instances=4, shuffle=SEQUENTIAL,
    data_cpus=3.0, prefetch=2,
):
    count += len(batch.examples)
    seen |= set(batch.images_B3HW[:, 0, 0, 0].tolist())
print(count, len(seen))
"""


def test_images_are_decoded_on_every_node_of_a_cluster(index, tmp_path):
    script = tmp_path / "two_nodes.py"
    script.write_text(TWO_NODES)
    done = subprocess.run(
        [sys.executable, str(script), *(shard.path for shard in index.shards)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stdout.split() == [str(2 * NUM_RECORDS), "2"], done.stderr[-2000:]

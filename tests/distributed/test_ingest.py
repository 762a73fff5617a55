"""Records from shards through Ray Data: each one once, in the order of the plan, or an error."""

import shutil

import pytest

from rayeffdet.data.index import index_shard, join_shards
from rayeffdet.data.order import SEQUENTIAL, Epochs, Shuffle, records_at
from rayeffdet.distributed.ingest import stream_rows
from rayeffdet.distributed.validation import evaluation_batches
from rayeffdet.errors import DataError

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
            size_hw=(64, 64),
            threads=1,
            prefetch=1,
            data_cpus=1.0,
        )
    )
    assert [len(batch.examples) for batch in batches] == [5, 5, 3]
    read = [source_id for batch in batches for source_id in batch.source_ids]
    assert read == ids_in_shard_order(index)[3:16]

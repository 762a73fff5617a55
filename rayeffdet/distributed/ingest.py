"""Ray Data between the shards and a worker: records in exactly the order of the plan.

Each read task fetches the records of a few steps of one worker, checks and parses them, and gives
one block. Either the records stay encoded and are decoded beside the training loop, which moves the
fewest bytes; or the same task decodes them too and gives one batch in the layout of the trainer,
for nodes whose cores the trainer could not use otherwise. Workers read their own stream, so nothing
passes a common coordinator and the order is a function of seed and epoch alone.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
import torch
from ray.data import DataContext, Datasource, ExecutionResources
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.exceptions import RayError

from rayeffdet.data.block import (
    batch_to_table,
    examples_to_table,
    table_to_batch,
    table_to_examples,
)
from rayeffdet.data.example import decode_example
from rayeffdet.data.index import RecordIndex
from rayeffdet.data.loader import Batch, MakeSample, Row, collate
from rayeffdet.data.order import Shuffle, records_at
from rayeffdet.data.tfrecord import read_records
from rayeffdet.distributed.failures import user_error_in

# Small blocks start the first batch early; large ones make Ray's cost per block small.
BLOCK_RECORDS = 256
# A dataset is planned whole before it starts, which bounds how long one may be.
SEGMENT_RECORDS = 65_536
READ_CPUS = 0.25
DECODE_CPUS = 1.0
PREFETCH_BLOCKS = 2

Place = tuple[str, int, int]
"""Shard, offset in it, position in the worker's stream."""

MakeBlock = Callable[[Sequence[Place]], pa.Table]
"""Makes a block of the records at some places; runs in a task on any node."""


class RecordSource(Datasource):
    """Reads given records; one read task and one block for each list of places."""

    def __init__(self, blocks: Sequence[Sequence[Place]], make_block: MakeBlock) -> None:
        super().__init__()
        self._blocks = blocks
        self._make_block = make_block

    def estimate_inmemory_data_size(self) -> int | None:
        """Returns None: sizes are known when the records are read."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """Returns a task for each block, whatever parallelism Ray would like."""
        return [
            ReadTask(
                partial(_one_block, self._make_block, block),
                BlockMetadata(
                    num_rows=len(block), size_bytes=None, input_files=None, exec_stats=None
                ),
            )
            for block in self._blocks
        ]


def stream_rows(
    index: RecordIndex,
    shares: Iterable[range],
    *,
    shuffle: Shuffle,
    data_cpus: float,
) -> Iterator[list[Row]]:
    """Yields the rows of each share, still encoded, in order, read ahead by Ray Data.

    Args:
        index: Where the records lie.
        shares: Positions in the endless stream of records, one range for each batch.
        shuffle: The order of the stream.
        data_cpus: Logical CPUs that this stream may use.

    Raises:
        DataError: A record cannot be read; names file and offset.
    """
    for segment in _grouped(shares, SEGMENT_RECORDS):
        blocks = [
            _places(index, list(itertools.chain(*group)), shuffle)
            for group in _grouped(segment, BLOCK_RECORDS)
        ]
        tables = _tables(
            blocks,
            read_block,
            data_cpus=data_cpus,
            cpus_per_task=READ_CPUS,
            prefetch=PREFETCH_BLOCKS,
        )
        rows = (row for table in tables for row in table_to_examples(table))
        for share in segment:
            batch = [row for _, row in zip(share, rows, strict=False)]
            _assert_order([position for _, position, _ in batch], share)
            yield batch


def stream_batches(
    index: RecordIndex,
    shares: Iterable[range],
    *,
    sample: MakeSample,
    size_hw: tuple[int, int],
    max_instances: int,
    shuffle: Shuffle,
    data_cpus: float,
    prefetch: int,
) -> Iterator[Batch]:
    """Yields the batch of each share, in order, decoded ahead by Ray Data on any node.

    Args:
        index: Where the records lie.
        shares: Positions in the endless stream of records, one range for each batch.
        sample: Decodes and places one image.
        size_hw: Height and width of the network's input.
        max_instances: Boxes kept of one image.
        shuffle: The order of the stream.
        data_cpus: Logical CPUs that this stream may use.
        prefetch: Batches fetched ahead of the one that is used.

    Raises:
        DataError: A record cannot be read or decoded; names file and offset.
    """
    make_block = partial(decode_block, sample=sample, size_hw=size_hw, max_instances=max_instances)
    for segment in _grouped(shares, SEGMENT_RECORDS):
        blocks = [_places(index, share, shuffle) for share in segment]
        tables = _tables(
            blocks,
            make_block,
            data_cpus=data_cpus,
            cpus_per_task=DECODE_CPUS,
            prefetch=prefetch,
        )
        for share, table in zip(segment, tables, strict=True):
            batch, positions = table_to_batch(table, size_hw=size_hw)
            _assert_order(positions, share)
            yield batch


def read_block(places: Sequence[Place]) -> pa.Table:
    """Returns the encoded records at some places.

    Raises:
        DataError: A record cannot be read; names file and offset.
    """
    rows = _read_rows(places)
    return examples_to_table(
        [example for _, _, example in rows],
        positions=[position for _, position, _ in rows],
        wheres=[where for where, _, _ in rows],
    )


def decode_block(
    places: Sequence[Place], *, sample: MakeSample, size_hw: tuple[int, int], max_instances: int
) -> pa.Table:
    """Returns the records at some places as one batch.

    Raises:
        DataError: A record cannot be read or decoded; names file and offset.
    """
    torch.set_num_threads(1)
    rows = _read_rows(places)
    images_B3HW = torch.empty(len(rows), 3, *size_hw, dtype=torch.uint8)
    samples = [sample(row, images_B3HW[i]) for i, row in enumerate(rows)]
    return batch_to_table(
        collate(rows, images_B3HW, samples, max_instances=max_instances),
        wheres=[where for where, _, _ in rows],
        positions=[position for _, position, _ in rows],
    )


def _tables(
    blocks: Sequence[Sequence[Place]],
    make_block: MakeBlock,
    *,
    data_cpus: float,
    cpus_per_task: float,
    prefetch: int,
) -> Iterator[pa.Table]:
    """Yields the table of each block in order."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(
        cpu=max(data_cpus, cpus_per_task)
    )
    dataset = ray.data.read_datasource(
        RecordSource(blocks, make_block), override_num_blocks=len(blocks), num_cpus=cpus_per_task
    )
    try:
        yield from dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch
        )
    except RayError as error:
        raise (user_error_in(error) or error) from None


def _one_block(make_block: MakeBlock, places: Sequence[Place]) -> list[pa.Table]:
    return [make_block(places)]


def _places(index: RecordIndex, positions: Sequence[int], shuffle: Shuffle) -> list[Place]:
    found = index.locate(records_at(positions, index.shard_sizes, shuffle))
    return [
        (path, offset, position) for (path, offset), position in zip(found, positions, strict=True)
    ]


def _grouped(shares: Iterable[range], size: int) -> Iterator[list[range]]:
    """Yields runs of shares of at least a number of records each, but for the last."""
    group: list[range] = []
    count = 0
    for share in shares:
        group.append(share)
        count += len(share)
        if count >= size:
            yield group
            group, count = [], 0
    if group:
        yield group


def _read_rows(places: Sequence[Place]) -> list[Row]:
    payloads: list[Any] = [None] * len(places)
    for path in sorted({path for path, _, _ in places}):
        slots = [i for i, place in enumerate(places) if place[0] == path]
        for i, payload in zip(
            slots, read_records(path, [places[i][1] for i in slots]), strict=True
        ):
            payloads[i] = payload
    wheres = [f"{path}: offset {offset}" for path, offset, _ in places]
    return [
        (where, position, decode_example(payload, where=where))
        for where, payload, (_, _, position) in zip(wheres, payloads, places, strict=True)
    ]


def _assert_order(found: list[int], share: range) -> None:
    assert found == list(share), f"records out of order: asked {share}, got {found}"

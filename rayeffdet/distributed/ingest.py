"""Ray Data between the shards and a worker: encoded records in exactly the order of the plan.

Each read task fetches the records of a few steps of one worker, checks and parses them, and gives
one block; pixels never travel. Workers read their own stream, so nothing passes a common
coordinator and the order is a function of seed and epoch alone.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import DataContext, Datasource, ExecutionResources
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.exceptions import RayError

from rayeffdet.data.block import examples_to_table, table_to_examples
from rayeffdet.data.example import decode_example
from rayeffdet.data.index import RecordIndex
from rayeffdet.data.loader import Row
from rayeffdet.data.order import Shuffle, records_at
from rayeffdet.data.tfrecord import read_records
from rayeffdet.distributed.failures import user_error_in

# Small blocks start the first batch early; large ones make Ray's cost per block small. Between 64
# and 256 records of 100 kB the rate is flat.
BLOCK_RECORDS = 64
READ_CPUS = 0.25
PREFETCH_BLOCKS = 2

Place = tuple[str, int, int]
"""Shard, offset in it, position in the worker's stream."""


class RecordSource(Datasource):
    """Reads given records; one read task and one block for each list of places."""

    def __init__(self, blocks: Sequence[Sequence[Place]]) -> None:
        super().__init__()
        self._blocks = blocks

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
                partial(_read_block, block),
                BlockMetadata(
                    num_rows=len(block), size_bytes=None, input_files=None, exec_stats=None
                ),
            )
            for block in self._blocks
        ]


def stream_rows(
    index: RecordIndex,
    shares: Sequence[range],
    *,
    shuffle: Shuffle,
    data_cpus: float,
) -> Iterator[list[Row]]:
    """Yields the rows of each share, in order, read ahead by Ray Data.

    Args:
        index: Where the records lie.
        shares: Positions in the endless stream of records, one range for each batch.
        shuffle: The order of the stream.
        data_cpus: Logical CPUs that this stream may use.

    Raises:
        DataError: A record cannot be read; names file and offset.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(cpu=max(data_cpus, READ_CPUS))
    blocks = [_places(index, positions, shuffle) for positions in _grouped(shares, BLOCK_RECORDS)]
    dataset = ray.data.read_datasource(
        RecordSource(blocks), override_num_blocks=len(blocks), num_cpus=READ_CPUS
    )
    rows = (row for table in _tables(dataset) for row in table_to_examples(table))
    for share in shares:
        batch = [row for _, row in zip(share, rows, strict=False)]
        got = [position for _, position, _ in batch]
        assert got == list(share), f"records out of order: asked {share}, got {got}"
        yield batch


def _tables(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    try:
        yield from dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCH_BLOCKS
        )
    except RayError as error:
        raise (user_error_in(error) or error) from None


def _places(index: RecordIndex, positions: Sequence[int], shuffle: Shuffle) -> list[Place]:
    found = index.locate(records_at(positions, index.shard_sizes, shuffle))
    return [
        (path, offset, position) for (path, offset), position in zip(found, positions, strict=True)
    ]


def _grouped(shares: Sequence[range], size: int) -> Iterator[list[int]]:
    group: list[int] = []
    for share in shares:
        group.extend(share)
        if len(group) >= size:
            yield group
            group = []
    if group:
        yield group


def _read_block(places: Sequence[Place]) -> list[pa.Table]:
    payloads: list[Any] = [None] * len(places)
    for path in sorted({path for path, _, _ in places}):
        slots = [i for i, place in enumerate(places) if place[0] == path]
        for i, payload in zip(
            slots, read_records(path, [places[i][1] for i in slots]), strict=True
        ):
            payloads[i] = payload
    wheres = [f"{path}: offset {offset}" for path, offset, _ in places]
    examples = [
        decode_example(payload, where=where)
        for payload, where in zip(payloads, wheres, strict=True)
    ]
    positions = [position for _, _, position in places]
    return [examples_to_table(examples, positions=positions, wheres=wheres)]

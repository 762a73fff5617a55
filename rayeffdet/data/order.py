"""Which record is read when: the order of an epoch as a function of seed and epoch alone.

Only numbers are shuffled, never encoded images, so a shuffle buffer of any size costs eight bytes a
record. The order does not depend on the number of workers: they take slices of one global batch.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Shuffle:
    """How one pass over the records is mixed; the fields of ``dataset.loader``."""

    seed: int
    shuffle_file: bool
    shuffle_buffer: int
    cycle_length: int
    block_length: int


SEQUENTIAL = Shuffle(seed=0, shuffle_file=False, shuffle_buffer=0, cycle_length=1, block_length=1)


@dataclass(frozen=True)
class Epochs:
    """The division of the endless stream of passes into epochs, steps and workers' shares.

    An epoch takes ``examples_per_epoch`` records from the stream in ``steps`` global batches whose
    sizes differ by at most one, so that no step is left with a tiny batch; with as many examples as
    records, every epoch sees every record exactly once.

    Args:
        examples_per_epoch: Records of one epoch over all workers.
        global_batch: The largest number of records of one step over all workers.
    """

    examples_per_epoch: int
    global_batch: int

    @property
    def steps(self) -> int:
        """Steps of one epoch, ceil(examples / global batch)."""
        return -(-self.examples_per_epoch // self.global_batch)

    def share(self, epoch: int, step: int, *, rank: int, world_size: int) -> range:
        """Returns the positions in the endless stream that one worker reads for one step."""
        start = epoch * self.examples_per_epoch
        first = start + step * self.examples_per_epoch // self.steps
        size = start + (step + 1) * self.examples_per_epoch // self.steps - first
        return range(first + size * rank // world_size, first + size * (rank + 1) // world_size)

    def smallest_share(self, world_size: int) -> int:
        """Returns the least number of records that a worker gets in a step."""
        return self.examples_per_epoch // self.steps // world_size


def records_at(
    positions: Sequence[int], shard_sizes: tuple[int, ...], shuffle: Shuffle
) -> list[int]:
    """Returns the record numbers (shards laid end to end) at positions of the endless stream."""
    num_records = sum(shard_sizes)
    orders = {
        index: pass_order(shard_sizes, shuffle, index)
        for index in sorted({position // num_records for position in positions})
    }
    return [int(orders[p // num_records][p % num_records]) for p in positions]


@lru_cache(maxsize=2)
def pass_order(shard_sizes: tuple[int, ...], shuffle: Shuffle, pass_index: int) -> np.ndarray:
    """Returns a permutation of all records: file order, interleave, then the shuffle buffer.

    Args:
        shard_sizes: Records of each shard; an empty shard is allowed.
        shuffle: The mixing; a buffer of 0 or 1 keeps the interleaved order.
        pass_index: The number of the pass over the data, from 0.

    Returns:
        int64 [num_records]. Record numbers count through the shards in their given order.
    """
    rng = np.random.default_rng([shuffle.seed, pass_index])
    files = np.arange(len(shard_sizes))
    if shuffle.shuffle_file:
        files = rng.permutation(files)
    order = _interleave(shard_sizes, files, shuffle.cycle_length, shuffle.block_length)
    return _buffer_shuffle(order, shuffle.shuffle_buffer, rng)


def _interleave(
    shard_sizes: tuple[int, ...], files: np.ndarray, cycle_length: int, block_length: int
) -> np.ndarray:
    """Takes ``block_length`` records in turn from each of ``cycle_length`` open files."""
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    waiting = deque(int(file) for file in files)
    is_open: deque[tuple[int, int]] = deque()
    pieces = [np.empty(0, np.int64)]
    while waiting or is_open:
        while waiting and len(is_open) < max(1, cycle_length):
            file = waiting.popleft()
            is_open.append((int(starts[file]), int(starts[file + 1])))
        first, end = is_open.popleft()
        stop = min(first + max(1, block_length), end)
        pieces.append(np.arange(first, stop))
        if stop < end:
            is_open.append((stop, end))
    return np.concatenate(pieces)


def _buffer_shuffle(order: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Emits a random element of a buffer of ``size`` and refills its place with the next one."""
    if size <= 1 or len(order) <= 1:
        return order
    if size >= len(order):
        return rng.permutation(order)
    buffer, rest = order[:size].copy(), order[size:]
    picks = rng.integers(0, size, len(rest))
    shuffled = np.empty_like(order)
    for i, pick in enumerate(picks):
        shuffled[i] = buffer[pick]
        buffer[pick] = rest[i]
    shuffled[len(rest) :] = rng.permutation(buffer)
    return shuffled

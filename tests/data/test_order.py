from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rayeffdet.data.order import SEQUENTIAL, Epochs, Shuffle, pass_order, records_at

shard_sizes = st.lists(st.integers(0, 12), min_size=1, max_size=8).map(tuple).filter(any)
shuffles = st.builds(
    Shuffle,
    seed=st.integers(0, 2**32 - 1),
    shuffle_file=st.booleans(),
    shuffle_buffer=st.integers(0, 60),
    cycle_length=st.integers(1, 10),
    block_length=st.integers(1, 8),
)
epochs = st.builds(Epochs, examples_per_epoch=st.integers(1, 80), global_batch=st.integers(1, 25))


def shares_of_step(epochs, epoch, step, world_size):
    return [epochs.share(epoch, step, rank=r, world_size=world_size) for r in range(world_size)]


def positions_of_epoch(epochs, epoch, world_size):
    return [
        position
        for step in range(epochs.steps)
        for share in shares_of_step(epochs, epoch, step, world_size)
        for position in share
    ]


def round_robin(sizes, cycle_length, block_length):
    """The interleave told in another way: fixed slots, visited in turn, refilled when empty."""
    ends = np.cumsum(sizes).tolist()
    waiting = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    slots = [waiting.pop(0) for _ in range(min(cycle_length, len(waiting)))]
    order = []
    while any(slots) or waiting:
        for number, slot in enumerate(slots):
            order += slot[:block_length]
            slots[number] = slot[block_length:]
            if not slots[number] and waiting:
                slots[number] = waiting.pop(0)
    return order


@given(shard_sizes, shuffles, st.integers(0, 5))
def test_every_pass_holds_every_record_exactly_once(sizes, shuffle, index):
    assert sorted(pass_order(sizes, shuffle, index)) == list(range(sum(sizes)))


@given(epochs, st.integers(0, 3), st.integers(1, 6))
def test_shares_partition_their_step_steps_their_epoch_and_epochs_the_stream(
    epochs, epoch, world_size
):
    start = epoch * epochs.examples_per_epoch
    expected = list(range(start, start + epochs.examples_per_epoch))
    assert positions_of_epoch(epochs, epoch, world_size) == expected


@given(epochs, st.integers(0, 3), st.integers(1, 6))
def test_steps_and_shares_differ_by_at_most_one_record(epochs, epoch, world_size):
    shares = [shares_of_step(epochs, epoch, step, world_size) for step in range(epochs.steps)]
    for step in shares:
        lengths = [len(share) for share in step]
        assert max(lengths) - min(lengths) <= 1
    sizes = [sum(map(len, step)) for step in shares]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= epochs.global_batch
    assert epochs.smallest_share(world_size) == min(len(s) for step in shares for s in step)


@given(epochs)
def test_an_epoch_has_the_fewest_steps_that_hold_it(epochs):
    assert epochs.steps * epochs.global_batch >= epochs.examples_per_epoch
    assert (epochs.steps - 1) * epochs.global_batch < epochs.examples_per_epoch


@given(shard_sizes, shuffles, st.integers(1, 25), st.integers(1, 6), st.integers(0, 2))
def test_an_epoch_as_long_as_the_data_reads_every_record_once_on_any_number_of_workers(
    sizes, shuffle, global_batch, world_size, epoch
):
    epochs = Epochs(examples_per_epoch=sum(sizes), global_batch=global_batch)
    positions = positions_of_epoch(epochs, epoch, world_size)
    assert sorted(records_at(positions, sizes, shuffle)) == list(range(sum(sizes)))


@given(epochs, st.integers(0, 3), st.integers(2, 6))
def test_the_workers_of_a_step_read_what_one_worker_would_read(epochs, epoch, world_size):
    for step in range(epochs.steps):
        (alone,) = shares_of_step(epochs, epoch, step, 1)
        together = shares_of_step(epochs, epoch, step, world_size)
        assert [position for share in together for position in share] == list(alone)


@given(shard_sizes, shuffles, st.data())
def test_a_record_depends_on_its_position_in_the_stream_and_on_nothing_asked_before(
    sizes, shuffle, data
):
    positions = data.draw(st.lists(st.integers(0, 4 * sum(sizes) - 1), max_size=10))
    stream = [record for index in range(4) for record in pass_order(sizes, shuffle, index)]
    pass_order.cache_clear()
    assert records_at(positions, sizes, shuffle) == [stream[position] for position in positions]


def test_other_seeds_and_other_passes_give_other_orders():
    sizes = (50, 50)
    orders = {
        tuple(pass_order(sizes, Shuffle(seed, False, 100, 2, 4), index))
        for seed in range(5)
        for index in range(5)
    }
    assert len(orders) == 25


def test_the_order_of_a_seed_is_the_same_in_every_version():
    order = pass_order((5, 3), Shuffle(42, True, 4, 2, 2), 1)
    assert order.tolist() == [6, 1, 0, 2, 7, 4, 5, 3]


@given(shard_sizes, st.integers(1, 10), st.integers(1, 8), st.integers(0, 1), st.integers(0, 3))
def test_without_shuffling_every_pass_is_the_interleave_of_the_shards(
    sizes, cycle_length, block_length, buffer, index
):
    shuffle = Shuffle(7, False, buffer, cycle_length, block_length)
    expected = round_robin(sizes, cycle_length, block_length)
    assert pass_order(sizes, shuffle, index).tolist() == expected


def test_the_interleave_is_that_of_tensorflows_documentation():
    # tf.data.Dataset.interleave: five files of six records, cycle_length 2, block_length 4.
    order = pass_order((6,) * 5, Shuffle(0, False, 0, 2, 4), 0)
    files = [1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 3, 3, 4, 4, 5]
    assert (order // 6 + 1).tolist() == [*files, 5, 5, 5, 5, 5]


@given(shard_sizes)
def test_the_sequential_order_is_that_of_the_files(sizes):
    assert pass_order(sizes, SEQUENTIAL, 0).tolist() == list(range(sum(sizes)))


def test_shuffled_files_stay_whole_when_read_one_at_a_time():
    sizes = (4, 1, 3, 2, 5)
    ends = np.cumsum(sizes).tolist()
    shards = {
        end - size: list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)
    }
    firsts = set()
    for index in range(20):
        order = pass_order(sizes, Shuffle(3, True, 0, 1, 16), index).tolist()
        rest = list(order)
        while rest:
            shard = shards[rest[0]]
            assert rest[: len(shard)] == shard
            rest = rest[len(shard) :]
        firsts.add(order[0])
    assert firsts == set(shards)


@given(shard_sizes, shuffles)
def test_a_record_leaves_the_buffer_no_earlier_than_it_can_have_entered(sizes, shuffle):
    plain = Shuffle(
        shuffle.seed, shuffle.shuffle_file, 0, shuffle.cycle_length, shuffle.block_length
    )
    entered = {record: i for i, record in enumerate(pass_order(sizes, plain, 0))}
    for place, record in enumerate(pass_order(sizes, shuffle, 0)):
        assert place > entered[record] - max(1, shuffle.shuffle_buffer)


def test_a_buffer_as_large_as_the_data_puts_any_record_anywhere():
    orders = [pass_order((3, 3), Shuffle(1, False, 6, 1, 1), index) for index in range(200)]
    assert {(place, record) for order in orders for place, record in enumerate(order)} == {
        (place, record) for place in range(6) for record in range(6)
    }


def test_shards_of_one_class_each_are_mixed_by_the_defaults():
    order = pass_order((1000, 1000), Shuffle(42, True, 10_000, 32, 16), 0)
    runs = 1 + sum(a != b for a, b in pairwise(order // 1000))
    assert runs > 900

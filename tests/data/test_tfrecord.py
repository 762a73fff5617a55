import gzip
import hashlib
import struct
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfrecord.reader import tfrecord_iterator

from rayeffdet.data.tfrecord import frame_record, iterate_records, read_records, write_shard
from rayeffdet.errors import DataError

PAYLOADS = [b"first", b"", b"x" * 300, b"last record"]
OFFSETS = [0, 21, 37, 353]


def crc32c(data):
    """CRC-32C bit by bit, from the polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(payload):
    length = struct.pack("<Q", len(payload))
    return length + masked(length) + payload + masked(payload)


@pytest.fixture(params=["plain", "gzip"])
def foreign_shard(request, tmp_path):
    content = b"".join(map(framed, PAYLOADS))
    path = tmp_path / "foreign.tfrecord"
    path.write_bytes(gzip.compress(content) if request.param == "gzip" else content)
    return str(path)


def shard_bytes(tmp_path):
    path = tmp_path / "shard.tfrecord"
    write_shard(str(path), PAYLOADS)
    return path, bytearray(path.read_bytes())


def error_of(path):
    with pytest.raises(DataError) as caught:
        list(iterate_records(str(path)))
    (problem,) = caught.value.problems
    return problem


def test_the_handwritten_checksum_is_crc32c():
    assert crc32c(b"123456789") == 0xE3069283


def test_records_framed_by_hand_are_read_plain_and_gzip(foreign_shard):
    assert list(iterate_records(foreign_shard)) == list(zip(OFFSETS, PAYLOADS, strict=True))


def test_a_shard_is_the_bytes_that_the_format_prescribes(tmp_path):
    _, content = shard_bytes(tmp_path)
    assert bytes(content) == b"".join(map(framed, PAYLOADS))


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_frames_match_the_handwritten_ones(payload):
    assert frame_record(payload) == framed(payload)


def test_the_summary_describes_the_file(tmp_path):
    path = tmp_path / "new" / "shard.tfrecord"
    summary = write_shard(str(path), iter(PAYLOADS))
    content = path.read_bytes()
    assert summary.num_records == len(PAYLOADS)
    assert summary.num_bytes == len(content)
    assert summary.sha256 == hashlib.sha256(content).hexdigest()


def test_the_tfrecord_package_reads_our_shards(tmp_path):
    path, _ = shard_bytes(tmp_path)
    assert [bytes(record) for record in tfrecord_iterator(str(path))] == PAYLOADS


def test_an_empty_shard_has_no_records(tmp_path):
    path = tmp_path / "empty.tfrecord"
    assert write_shard(str(path), []).num_records == 0
    assert list(iterate_records(str(path))) == []


def test_records_are_read_in_the_order_asked(foreign_shard):
    wanted = [2, 0, 3, 0]
    found = read_records(foreign_shard, [OFFSETS[i] for i in wanted])
    assert found == [PAYLOADS[i] for i in wanted]
    assert read_records(foreign_shard, []) == []


@pytest.mark.parametrize("offset", [5, 36, 10_000])
def test_an_offset_where_no_record_starts_is_an_error(foreign_shard, offset):
    with pytest.raises(DataError, match=f"foreign.tfrecord: offset {offset}: "):
        read_records(foreign_shard, [0, offset])


def test_a_plain_shard_that_starts_like_gzip_is_read(tmp_path):
    payload = b"z" * 0x088B1F
    path = str(tmp_path / "shard.tfrecord")
    write_shard(path, [payload])
    assert Path(path).read_bytes()[:3] == gzip.compress(b"")[:3]
    assert read_records(path, [0]) == [payload]


def test_a_flipped_bit_in_the_data_names_file_and_offset(tmp_path):
    path, content = shard_bytes(tmp_path)
    content[OFFSETS[2] + 12 + 100] ^= 1
    path.write_bytes(content)
    expected = f"{path}: offset {OFFSETS[2]}: the record's data does not match its checksum"
    assert error_of(path).startswith(expected)


@pytest.mark.parametrize("byte", range(12))
def test_a_flipped_bit_in_the_length_or_its_checksum_names_file_and_offset(tmp_path, byte):
    path, content = shard_bytes(tmp_path)
    content[OFFSETS[1] + byte] ^= 0x80
    path.write_bytes(content)
    expected = f"{path}: offset {OFFSETS[1]}: the record's length does not match its checksum"
    assert error_of(path).startswith(expected)


@pytest.mark.parametrize("kept", [1, 11, 12, 16, 26])
def test_a_cut_off_tail_names_file_and_offset(tmp_path, kept):
    path, content = shard_bytes(tmp_path)
    path.write_bytes(content[: OFFSETS[3] + kept])
    expected = f"{path}: offset {OFFSETS[3]}: the file ends inside this record"
    assert error_of(path).startswith(expected)


def test_records_before_the_fault_are_still_yielded(tmp_path):
    path, content = shard_bytes(tmp_path)
    path.write_bytes(content[:-1])
    records = iterate_records(str(path))
    assert [next(records)[1] for _ in range(3)] == PAYLOADS[:3]
    with pytest.raises(DataError):
        next(records)


def test_an_absurd_length_is_refused_before_memory_is_asked_for(tmp_path):
    path = tmp_path / "shard.tfrecord"
    length = struct.pack("<Q", 2**62)
    path.write_bytes(length + masked(length))
    assert f"{path}: offset 0: a record of {2**62} bytes" in error_of(path)


def test_a_cut_off_gzip_file_names_file_and_offset(tmp_path):
    path = tmp_path / "shard.tfrecord"
    content = gzip.compress(b"".join(map(framed, PAYLOADS)))
    path.write_bytes(content[:-12])
    problem = error_of(path)
    assert problem.startswith(f"{path}: offset ")
    assert "GZIP" in problem


def test_a_flipped_byte_in_a_gzip_file_names_file_and_offset(tmp_path):
    path = tmp_path / "shard.tfrecord"
    content = bytearray(gzip.compress(b"".join(map(framed, PAYLOADS))))
    content[-6] ^= 0xFF  # In the stream's own checksum.
    path.write_bytes(content)
    assert error_of(path).startswith(f"{path}: offset ")


def test_a_missing_shard_is_a_data_error(tmp_path):
    assert "no such file" in error_of(tmp_path / "none.tfrecord")


def test_a_writer_that_fails_midway_leaves_the_old_shard_and_nothing_else(tmp_path):
    path, content = shard_bytes(tmp_path)

    def interrupted():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(str(path), interrupted())
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_of_the_old_shard_is_not_disturbed_by_a_new_one(tmp_path):
    path, _ = shard_bytes(tmp_path)
    records = iterate_records(str(path))
    next(records)
    write_shard(str(path), [b"new"] * 9)
    assert [payload for _, payload in records] == PAYLOADS[1:]


def test_nothing_bears_the_final_name_while_it_is_written(tmp_path):
    path = tmp_path / "shard.tfrecord"
    seen = []

    def payloads():
        for payload in PAYLOADS:
            seen.append(path.exists())
            yield payload

    write_shard(str(path), payloads())
    assert seen == [False] * len(PAYLOADS)
    assert path.exists()


def test_shards_live_on_object_stores_too():
    uri = "memory://test-tfrecord/shard.tfrecord"

    def interrupted():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(uri, interrupted())
    assert not fsspec.filesystem("memory").exists("/test-tfrecord/shard.tfrecord")
    write_shard(uri, PAYLOADS)
    assert list(iterate_records(uri)) == list(zip(OFFSETS, PAYLOADS, strict=True))
    assert read_records(uri, OFFSETS[::-1]) == PAYLOADS[::-1]

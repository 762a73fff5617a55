"""The TFRecord container: framed records with checksums, plain or GZIP, at local paths and URIs.

A record is: length (uint64), masked CRC-32C of the length, payload, masked CRC-32C of the payload;
all numbers little-endian. Masked: rotate right by 15 bits, add 0xa282ead8.
"""

import gzip
import hashlib
import os
import struct
import tempfile
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import google_crc32c
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from rayeffdet import storage
from rayeffdet.errors import DataError

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_GZIP_MAGIC = b"\x1f\x8b"
# Protocol buffers end at 2 GiB; a larger length would only make the reader ask for absurd memory.
_MAX_LENGTH = 2**31

_CURE = "copy or convert this shard again"
_CUT_OFF = f"the file ends inside this record; {_CURE}"


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What was written.

    Attributes:
        num_records: Records in the file.
        num_bytes: Size of the file.
        sha256: Hex digest of the file.
    """

    num_records: int
    num_bytes: int
    sha256: str


def iterate_records(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields (offset, payload) of each record; both checksums are checked.

    Args:
        path: Path or URI of a plain or GZIP file; told apart by content. Offsets are bytes from
            the start of the uncompressed stream.

    Raises:
        DataError: A record is corrupt or cut off, or the file is missing; names file and offset.
    """
    with _open_records(path) as file:
        offset = 0
        while (payload := _read_record(file, path, offset)) is not None:
            yield offset, payload
            offset += _framed_size(payload)


def read_records(path: str, offsets: Sequence[int]) -> list[bytes]:
    """Returns the payloads at the offsets, in the order asked, from one pass over one open file.

    Args:
        path: Path or URI; a GZIP file is streamed up to the last offset.
        offsets: Starts of records, as :func:`iterate_records` gives them; may repeat.

    Raises:
        DataError: As for :func:`iterate_records`, or no record starts at an offset.
    """
    found: dict[int, bytes] = {}
    with _open_records(path) as file:
        for offset in sorted(set(offsets)):
            payload = _read_record(file, path, offset)
            if payload is None:
                raise DataError(f"{path}: offset {offset}: the file ends before it; {_CURE}")
            found[offset] = payload
    return [found[offset] for offset in offsets]


def frame_record(payload: bytes) -> bytes:
    """Returns the payload with the length and the checksums around it."""
    length = struct.pack("<Q", len(payload))
    crcs = _FOOTER.pack(_masked_crc(length)), _FOOTER.pack(_masked_crc(payload))
    return b"".join((length, crcs[0], payload, crcs[1]))


def write_shard(path: str, payloads: Iterable[bytes]) -> ShardSummary:
    """Writes one record per payload; the file appears whole under its name or not at all.

    Payloads are written as they come, to a temporary file that is renamed, or uploaded when the
    path is on an object store. An exception raised by ``payloads`` leaves nothing behind; one that
    is an OSError counts as a failed write.

    Raises:
        RunError: The disk is full or refuses the write.
    """
    filesystem, inner = url_to_fs(path)
    is_local = isinstance(filesystem, LocalFileSystem)
    folder = Path(inner).parent if is_local else Path(tempfile.gettempdir())
    temporary = folder / f".{Path(inner).name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        summary = _write_frames(temporary, payloads)
        if is_local:
            os.replace(temporary, inner)
        else:
            filesystem.put_file(str(temporary), inner)
    except OSError as error:
        raise storage.write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return summary


def _write_frames(path: Path, payloads: Iterable[bytes]) -> ShardSummary:
    digest = hashlib.sha256()
    num_records = num_bytes = 0
    with open(path, "wb") as file:
        for payload in payloads:
            frame = frame_record(payload)
            file.write(frame)
            digest.update(frame)
            num_records += 1
            num_bytes += len(frame)
        file.flush()
        os.fsync(file.fileno())
    return ShardSummary(num_records, num_bytes, digest.hexdigest())


@contextmanager
def _open_records(path: str) -> Iterator[BinaryIO]:
    try:
        file = storage.open_input(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; run dataset_convert or mend the path") from error
    with file:
        head = file.read(_HEADER.size)
        file.seek(0)
        # A plain record of the right length starts with GZIP's two magic bytes too.
        is_gzip = head.startswith(_GZIP_MAGIC) and not _is_header(head)
        yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_gzip else file


def _is_header(head: bytes) -> bool:
    return len(head) == _HEADER.size and _masked_crc(head[:8]) == _HEADER.unpack(head)[1]


def _read_record(file: BinaryIO, path: str, offset: int) -> bytes | None:
    """Returns the payload of the record that starts at the offset, None at or after the end."""
    where = f"{path}: offset {offset}"
    try:
        file.seek(offset)
        head = file.read(_HEADER.size)
        if not head:
            return None
        if len(head) < _HEADER.size:
            raise DataError(f"{where}: {_CUT_OFF}")
        if not _is_header(head):
            raise DataError(f"{where}: the record's length does not match its checksum; {_CURE}")
        length = _HEADER.unpack(head)[0]
        if length > _MAX_LENGTH:
            raise DataError(f"{where}: a record of {length} bytes is larger than 2 GiB; {_CURE}")
        payload = file.read(length)
        footer = file.read(_FOOTER.size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{where}: the GZIP stream is broken ({error}); {_CURE}") from error
    if len(payload) < length or len(footer) < _FOOTER.size:
        raise DataError(f"{where}: {_CUT_OFF}")
    if _masked_crc(payload) != _FOOTER.unpack(footer)[0]:
        raise DataError(f"{where}: the record's data does not match its checksum; {_CURE}")
    return payload


def _framed_size(payload: bytes) -> int:
    return _HEADER.size + len(payload) + _FOOTER.size


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

"""Files of a run by local path or URI (``s3://``, ``gs://``, ``file://``), through fsspec."""

import errno
import json
import os
import uuid
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.core import url_to_fs

from rayeffdet.errors import RunError


def is_uri(path: str) -> bool:
    """Tells a URI from a path of this machine."""
    return "://" in path


def absolute(path: str) -> str:
    """Returns the path independent of the working directory; a URI is returned as it is."""
    return path if is_uri(path) else os.path.abspath(os.path.expanduser(path))


def join(root: str, *parts: str) -> str:
    """Joins with one slash between parts, for paths and URIs alike."""
    return "/".join([root.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(path: str) -> bool:
    """Tells whether a file or folder is there."""
    filesystem, inner = url_to_fs(path)
    return bool(filesystem.exists(inner))


def size(path: str) -> int:
    """Returns the size in bytes."""
    filesystem, inner = url_to_fs(path)
    return int(filesystem.size(inner))


def glob(pattern: str) -> list[str]:
    """Returns the files that match, sorted; a folder means every file in it.

    What exists under the very name of the pattern is meant by it, brackets or not.
    """
    filesystem, inner = url_to_fs(pattern)
    if filesystem.isdir(inner):
        inner = join(escape(inner), "*")
    elif filesystem.exists(inner):
        return [pattern]
    found = sorted(path for path in filesystem.glob(inner) if not filesystem.isdir(path))
    return [filesystem.unstrip_protocol(path) for path in found] if is_uri(pattern) else found


def open_input(path: str) -> BinaryIO:
    """Opens for reading, seekable, bytes."""
    if not is_uri(path):
        return open(path, "rb")
    return fsspec.open(path, "rb").open()  # type: ignore[no-any-return]


def read_bytes(path: str) -> bytes:
    """Returns the whole content."""
    with open_input(path) as file:
        return file.read()


def read_json(path: str) -> Any:
    """Returns the parsed JSON document."""
    return json.loads(read_bytes(path))


def write_atomic(path: str, *pieces: bytes | memoryview) -> None:
    """Writes the pieces one after the other so that the file is either whole or not there.

    Local files go through a temporary name, fsync and rename; object stores make an upload visible
    only when it is complete.

    Raises:
        RunError: The disk is full or refuses the write; an older file of that name is untouched.
    """
    try:
        if is_uri(path):
            with fsspec.open(path, "wb") as file:
                for piece in pieces:
                    file.write(piece)
        else:
            _write_local(Path(path), pieces)
    except OSError as error:
        raise write_error(path, error) from error


def write_json(path: str, document: Any) -> None:
    """Writes a JSON document atomically; not-a-number is refused since JSON has no word for it."""
    write_atomic(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def append(path: str, text: str) -> None:
    """Adds text to the end of a file; on an object store the file is written anew.

    Raises:
        RunError: The disk is full or refuses the write.
    """
    if is_uri(path):
        before = read_bytes(path) if exists(path) else b""
        write_atomic(path, before, text.encode())
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise write_error(path, error) from error


def remove(path: str) -> None:
    """Deletes a file; no error when it is not there."""
    filesystem, inner = url_to_fs(path)
    if filesystem.exists(inner):
        filesystem.rm(inner)


def write_error(path: str, error: OSError) -> RunError:
    """Words a failed write for a person."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"{path}: the disk is full; nothing written earlier is lost: free some space"
            " and run the same command again"
        )
    return RunError(f"{path}: cannot be written: {error.strerror or error}")


def _write_local(path: Path, pieces: tuple[bytes | memoryview, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

import errno
import io
import json
import os
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayeffdet import storage
from rayeffdet.errors import RunError


@pytest.fixture(params=["local", "object store"])
def root(request, tmp_path):
    """A folder on the disk, and one in memory behind a URI."""
    if request.param == "local":
        yield str(tmp_path)
        return
    yield "memory://storage-test"
    memory = fsspec.filesystem("memory")
    if memory.exists("/storage-test"):
        memory.rm("/storage-test", recursive=True)


def test_what_is_written_is_read_and_measured(root):
    path = storage.join(root, "new", "folder", "a.bin")
    assert not storage.exists(path)
    storage.write_atomic(path, b"one", memoryview(b"two"), b"")
    assert storage.exists(path)
    assert storage.read_bytes(path) == b"onetwo"
    assert storage.size(path) == 6


def test_writing_replaces_the_whole_file(root):
    path = storage.join(root, "a.bin")
    storage.write_atomic(path, b"a long first version")
    storage.write_atomic(path, b"short")
    assert storage.read_bytes(path) == b"short"


def test_files_open_for_reading_are_seekable(root):
    path = storage.join(root, "a.bin")
    storage.write_atomic(path, b"0123456789")
    with storage.open_input(path) as file:
        file.seek(4)
        assert file.read(3) == b"456"
        assert file.seek(-2, io.SEEK_END) == 8


def test_a_missing_file_is_file_not_found(root):
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "gone.bin"))


def test_json_survives_and_ends_in_a_newline(root):
    path = storage.join(root, "a.json")
    document = {"AP": 0.25, "names": ["disc", "環"], "none": None}
    storage.write_json(path, document)
    assert storage.read_json(path) == document
    assert storage.read_bytes(path).endswith(b"}\n")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_has_no_word_for_numbers_that_are_not_finite_and_the_old_file_stays(root, number):
    path = storage.join(root, "a.json")
    storage.write_json(path, [1])
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(path, [number])
    assert storage.read_json(path) == [1]


def test_lines_are_added_to_the_end(root):
    path = storage.join(root, "new", "log.txt")
    storage.append(path, "first\n")
    storage.append(path, "zweite Zeile: ü\n")
    assert storage.read_bytes(path).decode() == "first\nzweite Zeile: ü\n"


def test_removing_is_quiet_about_what_is_not_there(root):
    path = storage.join(root, "a.bin")
    storage.write_atomic(path, b"x")
    storage.remove(path)
    storage.remove(path)
    assert not storage.exists(path)


def test_patterns_and_folders_give_sorted_files_without_folders(root):
    for name in ("b.txt", "a.txt", "c.bin", "inner/d.txt"):
        storage.write_atomic(storage.join(root, name), b"x")
    names = {
        pattern: [path.rsplit("/", 1)[-1] for path in storage.glob(pattern)]
        for pattern in (root, storage.join(root, "*.txt"), storage.join(root, "**/d.*"))
    }
    assert list(names.values()) == [["a.txt", "b.txt", "c.bin"], ["a.txt", "b.txt"], ["d.txt"]]
    assert storage.glob(storage.join(root, "x*")) == []
    for path in storage.glob(root):
        assert storage.read_bytes(path) == b"x"


def test_what_exists_is_meant_by_its_name_even_if_it_looks_like_a_pattern(root):
    path = storage.join(root, "set [1]", "image[2].jpg")
    storage.write_atomic(path, b"x")
    assert storage.glob(path) == [path]
    assert [p.rsplit("/", 1)[-1] for p in storage.glob(storage.join(root, "set [1]"))] == [
        "image[2].jpg"
    ]


def test_a_failed_local_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = str(tmp_path / "a.bin")
    storage.write_atomic(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError) as caught:
        storage.write_atomic(path, b"new")
    assert str(caught.value).startswith(f"{path}: the disk is full; ")
    assert os.listdir(tmp_path) == ["a.bin"]
    assert storage.read_bytes(path) == b"old"


def test_a_folder_that_cannot_be_made_is_a_worded_error(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (storage.write_atomic, lambda path, _: storage.append(path, "x")):
        with pytest.raises(RunError, match=r"file/a\.bin: cannot be written: "):
            write(str(tmp_path / "file" / "a.bin"), b"x")


def test_the_file_is_whole_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []

    def watched(source, target, rename=os.replace):
        seen.append((os.path.exists(target), Path(source).read_bytes()))
        rename(source, target)

    monkeypatch.setattr(os, "replace", watched)
    storage.write_atomic(str(tmp_path / "a.bin"), b"abc", b"def")
    assert seen == [(False, b"abcdef")]


def test_paths_are_made_absolute_and_uris_are_left_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.absolute("a/../b") == f"{tmp_path}/b"
    assert storage.absolute("~/c") == "/home/someone/c"
    assert storage.absolute("/d/") == "/d"
    assert storage.absolute("s3://bucket/e") == "s3://bucket/e"
    assert [storage.is_uri(path) for path in ("a/b", "/a", "file:///a", "gs://b")] == [
        False, False, True, True,
    ]  # fmt: skip


names = st.text("abc.-", min_size=1, max_size=4)


@given(st.sampled_from(["", "/", "//"]), names, st.sampled_from(["", "/"]), names)
def test_joining_puts_one_slash_between_parts(slashes, first, lead, second):
    assert storage.join(f"s3://bucket{slashes}", first, lead + second) == (
        f"s3://bucket/{first}/{second}"
    )
    assert storage.join(f"/root{slashes}", f"{first}/{second}") == f"/root/{first}/{second}"


def test_documents_are_readable_by_people(tmp_path):
    path = str(tmp_path / "a.json")
    storage.write_json(path, {"a": 1, "b": [2]})
    text = storage.read_bytes(path).decode()
    assert len(text.splitlines()) > 2
    assert json.loads(text) == {"a": 1, "b": [2]}

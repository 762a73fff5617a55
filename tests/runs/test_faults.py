"""Faults of data, files, cluster and disk: the exit code, a line that helps, nothing lost."""

import json
import os
import shutil
import socket
import subprocess

import pytest
from checkpoints import save_fresh
from command import SPEC, Running, rayeffdet

from rayeffdet.train.checkpoint import load_checkpoint

# One checkpoint of the small network with room for all else, and not two.
DISK_BYTES = 75_000_000


def assert_fails(done, code, *said):
    """The exit code, one line for each problem and no trace."""
    assert done.code == code
    assert done.out == []
    assert len(done.err) == len(said), done.err
    for line, part in zip(done.err, said, strict=True):
        assert part in line


def test_a_flipped_byte_in_a_shard_names_file_and_offset(spec, shards, tmp_path, ray_address):
    folder = shutil.copytree(shards, tmp_path / "damaged")
    shard = folder / "train-00001-of-00003.tfrecord"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    done = rayeffdet(
        *(spec, "train", "--quiet", f"ray.address={ray_address}"),
        f"dataset.train_tfrecords=[{folder}/train-*.tfrecord]",
    )
    assert_fails(done, 3, f"{shard}: offset ")
    (line,) = (tmp_path / "results" / "train" / "status.json").read_text().splitlines()
    assert json.loads(line)["status"] == "FAILURE"


def test_shards_that_are_not_there_are_named(spec, tmp_path, ray_address):
    done = rayeffdet(
        *(spec, "train", "--quiet", f"ray.address={ray_address}"),
        f"dataset.train_tfrecords=[{tmp_path}/none-*.tfrecord, {tmp_path}/gone.tfrecord]",
    )
    assert_fails(done, 3, f"{tmp_path}/none-*.tfrecord: no such", f"{tmp_path}/gone.tfrecord: no")


def test_a_category_id_beyond_num_classes_names_file_and_id(spec, shards, ray_address):
    done = rayeffdet(
        spec, "train", "--quiet", f"ray.address={ray_address}", "dataset.num_classes=5"
    )
    ids = [f"{shards}/train-0000{i}-of-00003.tfrecord: category id 5 (" for i in range(3)]
    assert_fails(done, 3, *ids)


@pytest.mark.parametrize("missing", ["images", "annotations"])
def test_conversion_names_the_folder_or_file_that_is_missing(missing, drawn, tmp_path, ray_address):
    paths = {
        "images": str(drawn / "val"),
        "annotations": str(drawn / "annotations" / "instances_val.json"),
    }
    paths[missing] = str(tmp_path / "none")
    done = rayeffdet(
        *(spec_of_conversion(tmp_path, paths), "dataset_convert", "--quiet"),
        f"ray.address={ray_address}",
    )
    assert done.code == 3
    assert len(done.err) == 1
    assert paths[missing] in done.err[0]


def spec_of_conversion(folder, paths):
    spec = folder / "convert.yaml"
    spec.write_text(
        f"results_dir: {folder}/results\n"
        f"dataset_convert:\n"
        f"  image_dir: {paths['images']}\n"
        f"  annotations_file: {paths['annotations']}\n"
        f"  num_shards: 2\n"
    )
    return spec


def test_a_wrong_encryption_key_is_told_from_damage(spec, tmp_path, ray_address):
    path = save_fresh(tmp_path / "sealed.tlt", SPEC, encryption_key="right")
    arguments = (spec, "evaluate", "--quiet", f"ray.address={ray_address}")
    done = rayeffdet(*arguments, f"evaluate.checkpoint={path}", "encryption_key=wrong")
    assert_fails(done, 4, f"{path}: ")
    assert "key" in done.err[0]


def test_more_workers_than_this_machine_can_hold_are_refused(spec):
    cpus = os.cpu_count()
    done = rayeffdet(
        *(spec, "train", "--quiet", "ray.num_workers=2"),
        f"ray.resources_per_worker={{CPU: {cpus}}}",
    )
    assert_fails(done, 6, f"ray.num_workers 2 with {cpus} CPU each: this machine has {cpus};")


def test_a_cluster_that_cannot_be_reached_is_an_error_and_no_wait(spec, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    done = rayeffdet(spec, "train", f"ray.address={address}")
    assert_fails(done, 6, "rayeffdet ", f"ray.address {address}: ")
    assert "leave ray.address empty to start a local Ray" in done.err[-1]
    assert not (tmp_path / "results").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own with room for one checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=False)


def test_a_full_disk_ends_training_and_keeps_the_earlier_checkpoint(spec, small_disk):
    done = rayeffdet(
        *(spec, "train", f"results_dir={small_disk}/results", "--quiet"),
        *("train.num_epochs=2", "train.checkpoint_interval=1"),
    )
    assert_fails(done, 1, "efficientdet-d0_002.tlt: the disk is full; nothing written earlier")
    folder = small_disk / "results" / "train"
    listed = json.loads((folder / "checkpoints.json").read_text())
    assert [entry["epoch"] for entry in listed["checkpoints"]] == [1]
    assert load_checkpoint(str(folder / "efficientdet-d0_001.tlt")).epoch == 1
    assert [path.name for path in folder.glob("*002*")] == []
    assert [path.name for path in folder.glob(".*")] == []


@pytest.mark.slow
def test_sigterm_ends_a_run_as_ctrl_c_does(spec, tmp_path):
    running = Running(spec, "train")
    running.wait_for("epoch 2: saved")
    running.terminate()
    done = running.end()
    assert done.code == 130
    assert done.err[-1] == "interrupted; run the same command again to go on"
    listed = json.loads((tmp_path / "results" / "train" / "checkpoints.json").read_text())
    last = tmp_path / "results" / "train" / listed["last"]
    assert load_checkpoint(str(last)).epoch >= 2

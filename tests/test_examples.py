"""The examples, run as a reader would run them."""

import math
import re
import subprocess
import sys
from pathlib import Path

from rayeffdet.data.convert import convert_shard
from rayeffdet.data.synthetic import CLASS_NAMES, make_synthetic_set

ROOT = Path(__file__).parent.parent
PLAIN_TRAIN = ROOT / "examples" / "plain_train.py"


def convert(folder: str, split: str, num_images: int) -> None:
    annotations = make_synthetic_set(folder, num_images=num_images, seed=1, split=split)
    for shard in range(2):
        convert_shard(
            annotations_file=annotations,
            image_dir=f"{folder}/{split}",
            results_dir=folder,
            tag=split,
            shard=shard,
            num_shards=2,
            include_masks=False,
        )


def test_plain_train_takes_two_steps_over_shards_and_prints_loss_and_ap(tmp_path):
    convert(str(tmp_path), "train", 16)
    convert(str(tmp_path), "val", 5)
    shards = [str(tmp_path / f"{split}-*.tfrecord") for split in ("train", "val")]
    options = ["--num-classes", str(len(CLASS_NAMES) + 1), "--size", "64", "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, str(PLAIN_TRAIN), *shards, *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    epoch, metrics = done.stdout.splitlines()
    loss = re.fullmatch(r"epoch 1: loss (\S+)", epoch)
    precision = re.fullmatch(r"AP (\S+)  AP50 (\S+)", metrics)
    assert loss is not None
    assert math.isfinite(float(loss[1]))
    assert precision is not None
    assert 0 <= float(precision[1]) <= float(precision[2]) <= 1


def test_plain_train_is_one_process_of_less_than_120_lines():
    text = PLAIN_TRAIN.read_text()
    assert len(text.splitlines()) < 120
    assert not re.search(r"\bray\.|import ray\b|rayeffdet\.(distributed|tasks|spec)", text)

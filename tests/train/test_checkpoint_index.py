import json

import pytest
import torch

from rayeffdet.errors import CheckpointError
from rayeffdet.train.checkpoint import Checkpoint, save_checkpoint
from rayeffdet.train.checkpoint_index import CheckpointIndex


def add(index, epoch, ap=None):
    metrics = {} if ap is None else {"AP": ap}
    return index.add(f"m_{epoch:03d}.tlt", epoch=epoch, step=epoch * 10, metrics=metrics)


def with_files(folder, epochs, encryption_key=""):
    index = CheckpointIndex(str(folder))
    for epoch in epochs:
        index = add(index, epoch)
        checkpoint = Checkpoint(
            architecture={},
            class_names={},
            input_size=(64, 64),
            normalisation={},
            spec={},
            epoch=epoch,
            step=epoch * 10,
            model={"weight": torch.full((3,), float(epoch))},
        )
        save_checkpoint(index.path(index.last), checkpoint, encryption_key=encryption_key)
    return index


def test_a_folder_without_an_index_is_empty(tmp_path):
    index = CheckpointIndex.read(str(tmp_path))
    assert (index.entries, index.best, index.last) == ((), None, None)
    assert index.load_latest() == (None, [])


def test_what_was_added_is_read_again(tmp_path):
    index = add(add(CheckpointIndex(str(tmp_path)), 5, ap=0.2), 10)
    assert CheckpointIndex.read(str(tmp_path)) == index
    assert [entry.epoch for entry in index.entries] == [5, 10]


def test_the_file_names_best_and_last_for_other_programs(tmp_path):
    add(add(CheckpointIndex(str(tmp_path)), 5, ap=0.2), 10, ap=0.1)
    assert json.loads((tmp_path / "checkpoints.json").read_text()) == {
        "checkpoints": [
            {"file": "m_005.tlt", "epoch": 5, "step": 50, "metrics": {"AP": 0.2}},
            {"file": "m_010.tlt", "epoch": 10, "step": 100, "metrics": {"AP": 0.1}},
        ],
        "best": "m_005.tlt",
        "last": "m_010.tlt",
    }


@pytest.mark.parametrize(
    ("aps", "best"),
    [
        ([0.1, 0.3, 0.2], 2),
        ([0.3, None, 0.3], 3),
        ([None, 0.0], 2),
        ([None, None], None),
        ([-1.0, 0.0, -1.0], 2),
    ],
)
def test_best_is_the_highest_ap_and_the_later_of_equals(tmp_path, aps, best):
    index = CheckpointIndex(str(tmp_path))
    for epoch, ap in enumerate(aps, start=1):
        index = index.add(str(epoch), epoch=epoch, step=epoch, metrics={"AP": ap})
    assert (index.best and index.best.epoch) == best


def test_going_on_from_an_earlier_epoch_drops_the_course_that_was_given_up(tmp_path):
    index = CheckpointIndex(str(tmp_path))
    for epoch in (5, 10, 15):
        index = add(index, epoch, ap=epoch / 100)
    index = add(index, 10, ap=0.01)
    assert [(entry.epoch, entry.metrics["AP"]) for entry in index.entries] == [
        (5, 0.05),
        (10, 0.01),
    ]


def test_the_latest_file_is_loaded(tmp_path):
    checkpoint, problems = with_files(tmp_path, [1, 2, 3]).load_latest()
    assert checkpoint.model["weight"].tolist() == [3.0] * 3
    assert problems == []


def test_broken_and_missing_files_are_passed_over_and_said(tmp_path):
    index = with_files(tmp_path, [1, 2, 3])
    (tmp_path / "m_003.tlt").unlink()
    whole = (tmp_path / "m_002.tlt").read_bytes()
    (tmp_path / "m_002.tlt").write_bytes(whole[:-5])
    checkpoint, problems = index.load_latest()
    assert checkpoint.epoch == 1
    assert "no such file" in problems[0]
    assert "cut short" in problems[1]


def test_a_wrong_key_never_starts_a_run_anew(tmp_path):
    index = with_files(tmp_path, [1, 2], encryption_key="right")
    assert index.load_latest(encryption_key="right")[0].epoch == 2
    with pytest.raises(CheckpointError) as caught:
        index.load_latest(encryption_key="wrong")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"checkpoints": [{"file": "a"}]}'])
def test_a_broken_index_is_an_error_that_says_what_to_do(tmp_path, content):
    (tmp_path / "checkpoints.json").write_text(content)
    with pytest.raises(CheckpointError, match="delete it"):
        CheckpointIndex.read(str(tmp_path))

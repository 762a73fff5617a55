"""Training, evaluation and inference by the command: what is left, what is said, what is equal."""

import csv
import json
import re

import pytest
import torch
from checkpoints import as_effdet
from command import rayeffdet, write_spec
from PIL import Image

from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import Architecture
from rayeffdet.train.checkpoint import load_checkpoint

OUR_LINES = re.compile(
    r"rayeffdet \d|(model|data|workers|ingest|changed|resume|notice|plots|evaluate|train|done) +\S"
    r"|epoch \d+(/6 step \d+ ·|: AP|: saved)|inference /| {9}\S|\d+ of \d+ images|part \d+ of \d+"
)
TASK_FILES = {"spec.yaml", "environment.json", "status.json", "log.txt"}


def rows_of(run):
    with open(run.results / "train" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def statuses_of(run, task):
    lines = (run.results / task / "status.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def tensors_of(results, epoch):
    checkpoint = load_checkpoint(str(results / "train" / f"efficientdet-d0_{epoch:03d}.tlt"))
    groups = ("model", "ema", "optimizer")
    return {f"{g}.{k}": tensor for g in groups for k, tensor in getattr(checkpoint, g).items()}


def assert_equal_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []


def test_a_run_ends_well_and_its_terminal_holds_our_lines_alone(straight):
    assert straight.done.code == 0
    assert [line for line in straight.done.err if not OUR_LINES.match(line)] == []


def test_stdout_is_one_line_of_json_for_each_task(straight):
    results = [json.loads(line) for line in straight.done.out]
    assert [result["task"] for result in results] == ["train", "evaluate", "inference"]
    assert results[0]["epoch"] == 6
    assert results[2] | {"num_detections": 0} == {
        "task": "inference",
        "num_images": 8,
        "num_left_out": 1,
        "num_detections": 0,
    }


def test_training_leaves_what_the_layout_promises_and_nothing_else(straight):
    folder = straight.results / "train"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert len([name for name in files if name.startswith("events.out.tfevents")]) == 1
    assert {name for name in files if not name.startswith("events")} == TASK_FILES | {
        *(f"efficientdet-d0_{epoch:03d}.tlt" for epoch in (2, 4, 6)),
        *("checkpoints.json", "metrics.csv", "previews/first_batch.jpg"),
        *("plots/losses.png", "plots/ap.png", "plots/learning_rate.png"),
    }


def test_the_index_names_every_checkpoint_the_best_and_the_last(straight):
    listed = json.loads((straight.results / "train" / "checkpoints.json").read_text())
    assert [(entry["epoch"], entry["step"]) for entry in listed["checkpoints"]] == [
        (2, 16),
        (4, 32),
        (6, 48),
    ]
    assert listed["last"] == "efficientdet-d0_006.tlt"
    best = max(listed["checkpoints"], key=lambda entry: entry["metrics"]["AP"])
    assert listed["best"] == best["file"]


def test_metrics_have_a_row_for_each_epoch_and_the_loss_falls(straight):
    rows = rows_of(straight)
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [
        (epoch, 8 * epoch) for epoch in range(1, 7)
    ]
    assert [bool(row["AP"]) for row in rows] == [False, True] * 3
    assert float(rows[-1]["loss"]) < 0.95 * float(rows[0]["loss"])


def test_status_follows_the_run_in_the_keys_of_tao(straight):
    lines = statuses_of(straight, "train")
    assert [line["status"] for line in lines] == ["STARTED", *["RUNNING"] * 6, "SUCCESS"]
    assert all({"date", "time", "verbosity", "message"} <= line.keys() for line in lines)
    assert [line.get("epoch") for line in lines[1:-1]] == [1, 2, 3, 4, 5, 6]
    assert "AP50" in lines[6]["kpi"]


def test_evaluation_equals_that_of_training_on_the_same_file(straight):
    metrics = json.loads((straight.results / "evaluate" / "metrics.json").read_text())
    row = rows_of(straight)[-1]
    for name in ("AP", "AP50", "AP75", "APm", "APl", "ARmax1", "ARmax10", "ARmax100"):
        assert metrics[name] == pytest.approx(float(row[name]), abs=1e-9)
    assert metrics["num_images"] == 8
    assert set(metrics["per_class"]) == {"disc", "square", "triangle", "star", "ring"}
    found = json.loads((straight.results / "evaluate" / "detections.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} == set(found[0])


def test_the_same_weights_as_effdet_names_them_give_the_same_metrics(
    straight, tmp_path, ray_address
):
    checkpoint = load_checkpoint(str(straight.results / "train" / "efficientdet-d0_006.tlt"))
    network = EfficientDet(Architecture.from_dict(checkpoint.architecture))
    network.load_state_dict(checkpoint.ema)
    torch.save(as_effdet(network), tmp_path / "effdet.pth")
    done = rayeffdet(
        *(straight.spec, "evaluate", "--json", f"evaluate.checkpoint={tmp_path / 'effdet.pth'}"),
        *(f"evaluate.results_dir={tmp_path}", f"ray.address={ray_address}"),
    )
    assert done.code == 0
    expected = json.loads((straight.results / "evaluate" / "metrics.json").read_text())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics.pop("checkpoint") != expected.pop("checkpoint")
    assert metrics == expected


def test_inference_leaves_pictures_labels_and_detections(straight, pictures):
    folder = straight.results / "inference"
    stems = {path.stem for path in pictures.glob("val_*.jpg")}
    assert {path.stem for path in (folder / "images_annotated").iterdir()} == stems
    assert {path.stem for path in (folder / "labels").iterdir()} == stems
    for path in (folder / "images_annotated").iterdir():
        with Image.open(path) as annotated, Image.open(pictures / path.name) as original:
            assert annotated.size == original.size
    lines = [
        line for path in (folder / "labels").iterdir() for line in path.read_text().splitlines()
    ]
    assert lines
    assert {len(line.split()) for line in lines} == {16}
    detections = json.loads((folder / "detections.json").read_text())
    assert len(detections) == len(lines)
    assert {one["image_id"] for one in detections} <= {f"{stem}.jpg" for stem in stems}


def test_inference_says_which_image_it_left_out(straight, pictures):
    said = [line for line in straight.done.err if line.startswith("notice   left out: ")]
    assert len(said) == 1
    assert f"{pictures}/broken.jpg: " in said[0]


def test_a_finished_run_says_so_and_does_nothing(straight, ray_address):
    folder = straight.results / "train"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = rayeffdet(straight.spec, "train", "--json", f"ray.address={ray_address}")
    assert done.code == 0
    assert any(
        line.startswith("train    already finished: epoch 6 of 6 is in") for line in done.err
    )
    assert json.loads(done.out[0])["checkpoint"] == str(folder / "efficientdet-d0_006.tlt")
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert before == after


def test_quiet_says_nothing_when_all_is_well(straight, ray_address):
    done = rayeffdet(straight.spec, "train", "--quiet", f"ray.address={ray_address}")
    assert (done.code, done.out, done.err) == (0, [], [])


def test_ctrl_c_says_how_to_go_on_without_a_trace(interrupted):
    first, listed, _ = interrupted
    assert first.done.code == 130
    assert first.done.err[-1] == "interrupted; run the same command again to go on"
    assert [line for line in first.done.err[:-1] if not OUR_LINES.match(line)] == []
    assert listed["checkpoints"][0]["epoch"] == 2
    assert [line["status"] for line in statuses_of(first, "train")].count("FAILURE") == 1
    assert list((first.results / "train").glob(".ray*")) == []


def test_the_same_command_goes_on_after_the_last_checkpoint(interrupted):
    _, listed, second = interrupted
    assert second.done.code == 0
    last = listed["checkpoints"][-1]["epoch"]
    assert last < 6
    assert f"resume   after epoch {last}" in second.done.err
    assert [int(row["step"]) for row in rows_of(second)] == [8, 16, 24, 32, 40, 48]


def test_the_same_seed_gives_the_same_bits(straight, interrupted):
    assert_equal_bits(tensors_of(straight.results, 2), tensors_of(interrupted[2].results, 2))


def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(straight, interrupted):
    assert_equal_bits(tensors_of(straight.results, 6), tensors_of(interrupted[2].results, 6))
    kept = ("epoch", "step", "loss", "learning_rate", "gradient_norm", "AP", "AP50")
    theirs = [[row[name] for name in kept] for row in rows_of(straight)]
    assert [[row[name] for name in kept] for row in rows_of(interrupted[2])] == theirs


@pytest.mark.slow
def test_decoding_by_ray_data_gives_the_bits_of_decoding_beside_the_loop(
    straight, shards, tmp_path
):
    spec = write_spec(tmp_path, shards)
    done = rayeffdet(spec, "train", "ray.decode=data")
    assert done.code == 0
    assert any(line.startswith("ingest   images are decoded by Ray Data") for line in done.err)
    assert_equal_bits(tensors_of(tmp_path / "results", 6), tensors_of(straight.results, 6))


def test_a_killed_worker_costs_the_run_a_restart_and_nothing_else(two_workers):
    said = two_workers.done.err
    assert two_workers.done.code == 0
    assert [line for line in said if not OUR_LINES.match(line)] == []
    restarts = [line for line in said if "restarting from the last checkpoint" in line]
    assert len(restarts) == 1
    assert [int(row["step"]) for row in rows_of(two_workers)] == [8, 16, 24, 32, 40, 48]


def test_two_workers_learn_as_one_does(straight, two_workers):
    one, two = rows_of(straight), rows_of(two_workers)
    for ours, theirs in zip(two, one, strict=True):
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=0.15)
        assert ours["learning_rate"] == theirs["learning_rate"]
    assert tensors_of(two_workers.results, 6).keys() == tensors_of(straight.results, 6).keys()

"""check on a small Ray: what it says about good data, and that all faults are said at once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rayeffdet.console import Console
from rayeffdet.data.convert import convert_shard
from rayeffdet.distributed.trial import has_room
from rayeffdet.errors import CheckpointError, ClusterError, DataError, RunError, SpecError
from rayeffdet.spec.load import LoadedSpec, load_spec
from rayeffdet.spec.paths import with_absolute_paths
from rayeffdet.tasks import check
from rayeffdet.tasks.context import Context

SMALL = [
    "dataset.num_classes=6",
    "model.name=efficientdet-d0",
    "model.input_width=128",
    "model.input_height=128",
    "train.batch_size=2",
    "train.num_epochs=3",
    "train.lr_schedule.warmup_epoch=0",
]


def convert(drawn, results_dir, **splits):
    """Converts splits, each from the drawn one named, to one shard."""
    for tag, split in (splits or {"train": "train", "val": "val"}).items():
        convert_shard(
            annotations_file=str(drawn / "annotations" / f"instances_{split}.json"),
            image_dir=str(drawn / split),
            results_dir=str(results_dir / "dataset_convert"),
            tag=tag,
            shard=0,
            num_shards=1,
            include_masks=False,
        )


def from_coco(drawn, annotations=None):
    """Returns overrides that name COCO sets not converted yet."""
    train = annotations or drawn / "annotations" / "instances_train.json"
    val = drawn / "annotations" / "instances_val.json"
    return [
        f"dataset_convert.splits.train={{image_dir: {drawn}/train, annotations_file: {train}}}",
        f"dataset_convert.splits.val={{image_dir: {drawn}/val, annotations_file: {val}}}",
    ]


@pytest.fixture
def checked(local_ray, tmp_path):
    """Returns a function that runs check and returns its result and report."""
    (tmp_path / "spec.yaml").write_text("{}\n")

    def run(*overrides, **changed):
        words = [f"results_dir={tmp_path}", *SMALL, *overrides]
        loaded = load_spec(str(tmp_path / "spec.yaml"), words)
        loaded = LoadedSpec(
            with_absolute_paths(loaded.spec), loaded.origins, loaded.notices, "spec.yaml"
        )
        context = Context(
            loaded=loaded, console=Console(quiet=True), cluster=replace(local_ray, **changed)
        )
        return check.run(context)

    return run


def report(tmp_path):
    return json.loads(Path(tmp_path, "check", "report.json").read_text())


def test_good_data_passes_with_a_plan_and_a_time(checked, drawn, tmp_path):
    convert(drawn, tmp_path)
    result = checked()
    assert result["errors"] == []
    assert result["train"]["num_images"] == 32
    assert result["train"]["converted"]
    assert result["step"]["seconds_per_step"] > 0
    assert result["step"]["seconds_per_epoch"] >= 16 * result["step"]["seconds_per_step"]
    assert result["step"]["peak_bytes"] > 2**20
    assert report(tmp_path) == result
    said = (tmp_path / "check" / "log.txt").read_text()
    assert "efficientdet-d0 128x128" in said
    assert "16 steps per epoch" in said
    last = (tmp_path / "check" / "status.json").read_text().splitlines()[-1]
    assert json.loads(last)["status"] == "SUCCESS"


def test_a_check_leaves_the_training_folder_alone(checked, drawn, tmp_path):
    convert(drawn, tmp_path)
    checked()
    assert not (tmp_path / "train").exists()


def test_before_conversion_the_source_is_checked_and_trained_on(checked, drawn, tmp_path):
    result = checked(*from_coco(drawn))
    assert result["errors"] == []
    assert not result["train"]["converted"]
    assert result["train"]["num_images"] == 32
    assert result["step"]["loss"] > 0
    assert "not converted yet" in (tmp_path / "check" / "log.txt").read_text()


def test_what_conversion_will_leave_out_is_a_warning(checked, drawn, tmp_path):
    document = json.loads((drawn / "annotations" / "instances_train.json").read_text())
    document["annotations"][0]["category_id"] = 77
    document["images"][1]["file_name"] = "nowhere.jpg"
    (tmp_path / "bad.json").write_text(json.dumps(document))
    warnings = checked(*from_coco(drawn, tmp_path / "bad.json"))["warnings"]
    (entries,) = [text for text in warnings if "entries that cannot be used: 1" in text]
    assert "no category has id 77" in entries
    (images,) = [text for text in warnings if "doubts about a sample of 32 images: 1" in text]
    assert "nowhere.jpg: no such image" in images


def test_a_wrong_image_folder_is_an_error_before_conversion(checked, drawn):
    wrong = [text.replace(f"{drawn}/train,", f"{drawn}/annotations,") for text in from_coco(drawn)]
    with pytest.raises(DataError, match=r"not one of 32 images can be used.*right image folder"):
        checked(*wrong)


def test_a_source_that_no_pattern_reads_is_not_taken(checked, drawn, tmp_path):
    with pytest.raises(DataError, match="elsewhere: no such TFRecord file"):
        checked(*from_coco(drawn), f"dataset.train_tfrecords=[{tmp_path}/elsewhere]")


def test_all_faults_are_said_at_once_and_the_first_gives_the_exit_code(checked, drawn, tmp_path):
    convert(drawn, tmp_path)
    shard = next((tmp_path / "dataset_convert").glob("train-*"))
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        checked(
            "tasks=[train, inference]",
            "dataset.num_classes=4",
            "dataset.val_json_file=/nowhere.json",
            "ray.num_workers=500",
            "ray.resources_per_worker={CPU: 1}",
        )
    problems = caught.value.problems
    assert caught.value.exit_code == 2
    for part in (
        "inference.image_dir: inference needs the folder",
        f"{shard}: offset 0: ",
        "category id 4",
        "category id 5",
        "/nowhere.json: there is no such file",
        "ray.num_workers 500 with 1 CPU each",
    ):
        assert any(part in problem for problem in problems), (part, problems)
    assert report(tmp_path)["errors"] == list(problems)


def test_missing_shards_without_a_source_are_a_data_error(checked):
    with pytest.raises(DataError) as caught:
        checked()
    assert [problem.rsplit("; ", 1)[-1] for problem in caught.value.problems] == [
        "run dataset_convert first?"
    ] * 2


def test_validation_images_that_are_trained_on_are_a_warning(checked, drawn, tmp_path):
    convert(drawn, tmp_path, train="train", val="train")
    result = checked("dataset.max_instances_per_image=3")
    assert len(result["leaked_image_ids"]) == 32
    assert any("images that are trained on too: 32 of 32" in text for text in result["warnings"])
    assert any("dataset.max_instances_per_image 3" in text for text in result["warnings"])


def test_ids_on_two_validation_records_are_an_error(checked, drawn, tmp_path):
    convert(drawn, tmp_path, train="train", val="val", more="val")
    folder = tmp_path / "dataset_convert"
    with pytest.raises(DataError, match="source ids on more than one record: 8"):
        checked(f"dataset.val_tfrecords=[{folder}/val-*.tfrecord, {folder}/more-*.tfrecord]")


def test_weights_that_do_not_fit_are_found_by_the_real_step(checked, drawn, tmp_path):
    convert(drawn, tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        checked(f"train.checkpoint={tmp_path}/weights.pth")


def test_more_workers_than_images_is_a_cluster_error(checked, drawn, tmp_path):
    convert(drawn, tmp_path)
    words = ("ray.num_workers=40", "ray.resources_per_worker={CPU: 0.01}")
    with pytest.raises(ClusterError, match="use fewer workers"):
        checked(*words)


def test_a_loss_that_is_not_finite_is_found(checked, drawn, tmp_path):
    convert(drawn, tmp_path)
    with pytest.raises(RunError, match="not finite"):
        checked("train.lr_schedule.learning_rate=1.0e+30")


def test_a_cluster_that_must_grow_first_gives_warnings_and_no_step(checked, drawn, tmp_path):
    convert(drawn, tmp_path)
    result = checked(
        "ray.num_workers=2", "ray.resources_per_worker={CPU: 400}", address="10.0.0.1:6379"
    )
    assert "step" not in result
    assert any("2 workers ask for 800 CPU" in text for text in result["warnings"])
    assert any(text.startswith("no real step was taken") for text in result["warnings"])


@pytest.mark.usefixtures("local_ray")
def test_room_is_what_is_free():
    assert has_room({"CPU": 0.5})
    assert not has_room({"CPU": 0.5, "unobtainium": 1.0}, wait_s=0.0)

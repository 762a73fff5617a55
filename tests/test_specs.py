"""The specs that come with the project."""

import shlex
from pathlib import Path

import pytest

from rayeffdet.run import TASKS
from rayeffdet.spec.load import LoadedSpec, load_spec, validate_for

ROOT = Path(__file__).parent.parent
SPECS = sorted((ROOT / "specs").glob("*.yaml"))
COMMAND = ["python", "-m", "rayeffdet.run"]

each_spec = pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)


def command(path: Path) -> list[str]:
    """Returns the words of the first comment line."""
    return shlex.split(path.read_text().splitlines()[0].removeprefix("# "))


def load(path: Path) -> LoadedSpec:
    return load_spec(str(path), [word for word in command(path)[4:] if "=" in word])


def local_paths(loaded: LoadedSpec) -> dict[str, str]:
    """Returns every path that the spec gives, by dotted name."""
    spec = loaded.spec
    fields = {
        "results_dir": spec.results_dir,
        "inference.image_dir": spec.inference.image_dir,
        "dataset.val_json_file": spec.dataset.val_json_file,
        "dataset_convert.image_dir": spec.dataset_convert.image_dir,
        "dataset_convert.annotations_file": spec.dataset_convert.annotations_file,
    }
    for tag, split in spec.dataset_convert.splits.items():
        fields[f"{tag}.image_dir"] = split.image_dir
        fields[f"{tag}.annotations_file"] = split.annotations_file
    shards = (*spec.dataset.train_tfrecords, *spec.dataset.val_tfrecords)
    fields |= {f"shards {i}": path for i, path in enumerate(shards)}
    return {name: path for name, path in fields.items() if path and "://" not in path}


def test_there_are_specs_for_the_quickstart_and_for_a_real_set():
    assert {"quickstart", "bccd"} <= {path.stem for path in SPECS}


@each_spec
def test_a_spec_begins_with_the_command_that_runs_it(path):
    words = command(path)
    assert words[:4] == [*COMMAND, f"specs/{path.name}"]
    assert {word for word in words[4:] if "=" not in word} <= set(TASKS)


@each_spec
def test_a_spec_loads_without_notices_and_has_all_that_its_tasks_need(path):
    loaded = load(path)
    assert not loaded.notices
    named = [word for word in command(path)[4:] if "=" not in word]
    validate_for(loaded, named or list(loaded.spec.tasks) or ["train"])


@each_spec
def test_a_spec_writes_to_a_results_folder_of_its_own_name(path):
    assert load(path).spec.results_dir == f"results/{path.stem}"


@each_spec
def test_paths_of_a_spec_are_relative_to_the_checkout(path):
    fields = local_paths(load(path))
    assert not [name for name, value in fields.items() if Path(value).expanduser().is_absolute()]


@each_spec
def test_what_a_spec_reads_below_results_is_what_it_writes_there(path):
    loaded = load(path)
    below = [value for value in local_paths(loaded).values() if value.startswith("results/")]
    assert all((value + "/").startswith(loaded.spec.results_dir + "/") for value in below)


def test_the_bccd_spec_matches_the_set_when_it_is_there(monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = load(ROOT / "specs" / "bccd.yaml").spec
    splits = spec.dataset_convert.splits
    assert {"train", "val"} <= set(splits)
    if not all(Path(split.annotations_file).exists() for split in splits.values()):
        pytest.skip("the BCCD set is not where specs/bccd.yaml expects it")
    from rayeffdet.data.coco import read_coco

    for split in splits.values():
        coco = read_coco(split.annotations_file, split.image_dir)
        assert max(coco.categories) + 1 == spec.dataset.num_classes
        assert all((Path(split.image_dir) / image.file_name).exists() for image in coco.images)

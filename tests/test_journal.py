import json
import sys
from datetime import datetime
from importlib.metadata import version

import pytest
import yaml

import rayeffdet
from rayeffdet.journal import Journal, environment
from rayeffdet.spec.load import load_spec


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "train"


@pytest.fixture
def journal(folder):
    return Journal(str(folder), "train")


@pytest.fixture
def loaded(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("encryption_key: secret\ntrain: {num_epochs: 7}\n")
    return load_spec(str(path), ["model.input_width=96"])


def lines(folder):
    return [json.loads(line) for line in (folder / "status.json").read_text().splitlines()]


def test_a_task_begins_with_its_spec_its_surroundings_and_a_status(journal, loaded, folder):
    journal.begin(loaded, hardware={"gpus": 2})
    assert sorted(path.name for path in folder.iterdir()) == [
        "environment.json", "spec.yaml", "status.json",
    ]  # fmt: skip
    assert json.loads((folder / "environment.json").read_text())["hardware"] == {"gpus": 2}
    (line,) = lines(folder)
    assert (line["status"], line["message"]) == ("STARTED", "Starting train.")


def test_the_spec_is_kept_with_origins_and_without_the_key(journal, loaded, folder):
    journal.begin(loaded, hardware={})
    text = (folder / "spec.yaml").read_text()
    kept = yaml.safe_load(text)
    assert (kept["train"]["num_epochs"], kept["model"]["input_width"]) == (7, 96)
    assert kept["encryption_key"] == ""
    assert "secret" not in text
    (origin,) = (line for line in text.splitlines() if "num_epochs: 7" in line)
    assert origin.endswith("spec.yaml:2")


def test_beginning_again_adds_to_the_status_of_before(journal, loaded, folder):
    for _ in range(2):
        journal.begin(loaded, hardware={})
        journal.status("SUCCESS", "Done.")
    assert [line["status"] for line in lines(folder)] == ["STARTED", "SUCCESS"] * 2


def test_a_status_line_has_taos_keys(journal, folder):
    before = datetime.now()
    journal.status("RUNNING", epoch=3, max_epoch=10, eta="2 min 05 s", kpi={"AP": 0.5})
    after = datetime.now()
    (line,) = lines(folder)
    assert line.pop("date") in {f"{t.month}/{t.day}/{t.year}" for t in (before, after)}
    assert before.strftime("%H:%M:%S") <= line.pop("time") <= after.strftime("%H:%M:%S") or (
        before.date() != after.date()
    )
    assert line == {
        "epoch": 3,
        "max_epoch": 10,
        "eta": "2 min 05 s",
        "kpi": {"AP": 0.5},
        "status": "RUNNING",
        "verbosity": "INFO",
        "message": "",
    }


def test_numbers_that_json_cannot_hold_become_null_at_any_depth(journal, folder):
    nan, inf = float("nan"), float("inf")
    journal.status("RUNNING", loss=nan, kpi={"AP": -inf, "curve": [0.5, nan, (inf, 1)]})
    (line,) = lines(folder)
    assert line["loss"] is None
    assert line["kpi"] == {"AP": None, "curve": [0.5, None, [None, 1]]}


def test_the_log_grows_and_silence_makes_no_file(journal, folder):
    journal.log("")
    assert not (folder / "log.txt").exists()
    journal.log("first\n")
    journal.log("second: ü\n")
    assert (folder / "log.txt").read_text(encoding="utf-8") == "first\nsecond: ü\n"


def test_the_surroundings_name_versions_machine_and_command():
    found = environment({"cpus": 2})
    assert found["rayeffdet"] == rayeffdet.__version__
    assert found["packages"]["torch"] == version("torch")
    assert found["command"] == sys.argv
    assert datetime.fromisoformat(found["started"]).tzinfo is not None
    assert json.loads(json.dumps(found)) == found


def test_a_package_that_is_not_there_is_null(monkeypatch):
    monkeypatch.setattr("rayeffdet.journal.PACKAGES", ("torch", "no-such-package"))
    assert environment({})["packages"] == {"torch": version("torch"), "no-such-package": None}

"""The example that evaluates published weights: its spec by the command, its table by the spec."""

import json
import re
from pathlib import Path

import pytest
import torch
from checkpoints import as_effdet
from command import rayeffdet

from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import VARIANTS, architecture_of
from rayeffdet.spec.load import load_spec, validate_for

FOLDER = Path(__file__).parents[2] / "examples" / "published_weights"
SPEC = FOLDER / "coco_val2017.yaml"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (FOLDER / "README.md").read_text().splitlines()
    if line.startswith("| efficientdet-")
]


def test_the_spec_is_the_tables_first_row_and_has_what_its_tasks_need():
    loaded = load_spec(str(SPEC))
    assert loaded.notices == []
    validate_for(loaded, list(loaded.spec.tasks))
    model, evaluate = loaded.spec.model, loaded.spec.evaluate
    row = [model.name, str(model.input_width), f"{model.anchor_scale:g}"]
    assert [*row, evaluate.checkpoint.removeprefix("weights/"), "34.2"] == ROWS[0]
    assert model.input_height == model.input_width


def test_the_table_has_every_variant_with_its_own_size_and_anchors():
    assert {row[0] for row in ROWS} == set(VARIANTS)
    for name, size, anchor_scale, file, _ in ROWS:
        variant = VARIANTS[name]
        assert (size, anchor_scale) == (str(variant.image_size), f"{variant.anchor_scale:g}")
        assert re.match(rf"tf_{name.replace('-', '_')}[_-]", file)


def run_on(drawn, folder, file, *words):
    """Runs the spec on the drawn images with random weights in a file of this name."""
    torch.manual_seed(0)
    network = EfficientDet(architecture_of("efficientdet-d0", num_classes=90))
    torch.save(as_effdet(network), folder / file)
    truth = drawn / "annotations" / "instances_val.json"
    done = rayeffdet(
        *(SPEC, *words, f"results_dir={folder}/results"),
        f"dataset_convert.splits.val.image_dir={drawn / 'val'}",
        f"dataset_convert.splits.val.annotations_file={truth}",
        "dataset_convert.num_shards=2",
        f"dataset.val_json_file={truth}",
        *("model.input_width=128", "model.input_height=128"),
        f"evaluate.checkpoint={folder / file}",
    )
    assert done.code == 0, done.err
    return done


def test_the_spec_ends_in_the_metrics_of_the_weights(drawn, tmp_path, ray_address):
    run_on(drawn, tmp_path, ROWS[0][3], f"ray.address={ray_address}")
    metrics = json.loads((tmp_path / "results" / "evaluate" / "metrics.json").read_text())
    assert metrics["num_images"] == 8
    assert metrics["num_detections"] == 8 * 100
    assert 0 <= metrics["AP"] <= metrics["AP50"] < 0.5
    assert set(metrics["per_class"]) == {"disc", "square", "triangle", "star", "ring"}


@pytest.mark.slow
def test_evaluation_and_inference_say_what_the_weights_expect(drawn, tmp_path, ray_address):
    file = "tf_efficientdet_d0_ap-d0cdbd0a.pth"
    assert file in {row[3] for row in ROWS}
    done = run_on(
        *(drawn, tmp_path, file, "dataset_convert", "evaluate", "inference"),
        *(f"inference.image_dir={drawn / 'val'}", f"inference.checkpoint={tmp_path / file}"),
        f"ray.address={ray_address}",
    )
    assert len([line for line in done.err if f"{file}: trained on images scaled" in line]) == 2

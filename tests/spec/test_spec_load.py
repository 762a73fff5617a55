import subprocess
import sys
from pathlib import Path

import pytest

from rayeffdet.errors import SpecError
from rayeffdet.spec.load import LoadedSpec, load_spec, resolved_yaml, validate_for, with_values
from rayeffdet.spec.root import Spec

SAMPLE = str(Path(__file__).parent.parent / "golden" / "tao-sample-spec.yaml")


def loaded(tmp_path: Path, text: str, *overrides: str) -> LoadedSpec:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return load_spec(str(path), overrides)


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        loaded(tmp_path, text, *overrides)
    return [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]


def notices(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    found = loaded(tmp_path, text, *overrides).notices
    return [notice.replace(f"{tmp_path}/", "") for notice in found]


def test_the_documentation_sample_of_tao_loads_unchanged():
    spec = load_spec(SAMPLE).spec
    assert spec.model.aspect_ratios == ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
    assert spec.dataset.train_tfrecords == ("/datasets/coco/train-*",)
    assert spec.train.num_examples_per_epoch == 100
    assert spec.train.l2_weight_decay == 4e-5
    assert spec.encryption_key == "nvidia_tlt"
    assert spec.prune.output_path == ""


def test_the_sample_is_complete_for_everything_that_the_documentation_shows():
    validate_for(load_spec(SAMPLE), ["train", "evaluate", "prune", "retrain", "export"])


def test_an_empty_section_has_its_defaults(tmp_path):
    assert loaded(tmp_path, "train:\nmodel:\n").spec == Spec()


def test_a_zero_stays_zero(tmp_path):
    text = (
        "train:\n  clip_gradients_norm: 0\n  optimizer: {momentum: 0}\n"
        "  lr_schedule: {warmup_epoch: 0, warmup_init: 0}\n  moving_average_decay: 0\n"
    )
    train = loaded(tmp_path, text).spec.train
    assert train.clip_gradients_norm == train.optimizer.momentum == 0
    assert train.lr_schedule.warmup_epoch == train.lr_schedule.warmup_init == 0
    assert train.moving_average_decay == 0


def test_quoted_numbers_and_truth_values_are_read_as_tao_reads_them(tmp_path):
    text = "train:\n  batch_size: '4'\n  amp: 'True'\n  l2_weight_decay: '1e-4'\n"
    train = loaded(tmp_path, text).spec.train
    assert (train.batch_size, train.amp, train.l2_weight_decay) == (4, True, 1e-4)


def test_a_field_left_empty_in_yaml_is_an_empty_text(tmp_path):
    assert loaded(tmp_path, "train:\n  checkpoint:\n").spec.train.checkpoint == ""


def test_overrides_win_over_the_file_and_the_last_one_wins(tmp_path):
    found = loaded(
        tmp_path,
        "train:\n  batch_size: 4\n  num_epochs: 7\n",
        "train.batch_size=5",
        "train.batch_size=6",
        "dataset.train_tfrecords=[a, b]",
        "ray.resources_per_worker.CPU=2",
        "evaluate={batch_size: 3}",
        "prune.checkpoint=",
    )
    assert found.spec.train.batch_size == 6
    assert found.spec.dataset.train_tfrecords == ("a", "b")
    assert found.spec.ray.resources_per_worker == {"CPU": 2}
    assert found.spec.evaluate.batch_size == 3
    assert found.spec.prune.checkpoint == ""
    assert found.origins["train.batch_size"] == "command line"
    assert found.origins["evaluate.batch_size"] == "command line"
    assert found.origins["train.num_epochs"].endswith("spec.yaml:3")
    assert "train" not in found.origins


def test_an_override_repairs_a_wrong_value_of_the_file(tmp_path):
    assert loaded(tmp_path, "train: {batch_size: x}", "train.batch_size=2").spec.train.batch_size


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.batch_size", "'train.batch_size' is not of the form section.field=value"),
        ("train.batchsize=2", "train.batchsize: unknown field; did you mean 'batch_size'?"),
        ("trian.batch_size=2", "trian.batch_size: unknown field; did you mean 'train'?"),
        ("train.num_classes=2", "train.num_classes: unknown field; did you mean 'dataset.num_"),
        ("train.batch_size=[", "train.batch_size: '[' is not a YAML value"),
        ("train.batch_size=0", "train.batch_size: 0 is out of range: must be > 0"),
        ("train.batch_size.x=0", "train.batch_size.x: unknown field"),
    ],
)
def test_a_wrong_override_is_blamed_on_the_command_line(tmp_path, override, problem):
    (found,) = problems(tmp_path, "train: {}", override)
    assert found.startswith(f"command line: {problem}")


def test_problems_of_all_kinds_are_reported_together_in_the_order_of_the_file(tmp_path):
    text = """\
dataset:
  num_classes: 1
  augmentation:
    random_crop_min_scale: 3
train:
  batch_size: yes
  lr_schedule:
    name: cosin
    warmup_epochs: 3
  batch_size: 4.5
  random_seed: null
tune:
  search_space:
    train.momentum: {uniform: [0, 1]}
"""
    assert problems(tmp_path, text, "evaluate.nms=sof") == [
        "spec.yaml:2: dataset.num_classes: 1 is out of range: must be > 1",
        "spec.yaml:4: dataset.augmentation.random_crop_min_scale: 3.0 but"
        " dataset.augmentation.random_crop_max_scale is 2.0:"
        " the smallest scale is above the largest",
        "spec.yaml:8: train.lr_schedule.name: 'cosin' is not one of cosine, soft_anneal;"
        " did you mean 'cosine'?",
        "spec.yaml:9: train.lr_schedule.warmup_epochs: unknown field; did you mean 'warmup_epoch'?",
        "spec.yaml:10: train.batch_size: given twice; first on line 6",
        "spec.yaml:10: train.batch_size: 4.5 is not an integer",
        "spec.yaml:11: train.random_seed: null is not allowed;"
        " leave the field out for its default 42",
        "spec.yaml:14: tune.search_space.train.momentum: unknown field;"
        " did you mean 'train.optimizer.momentum'?",
        "command line: evaluate.nms: 'sof' is not one of hard, soft; did you mean 'soft'?",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dataset_convert: {tag: on}", "YAML reads this as true, but text is expected"),
        ("ray: {use_gpu: 2}", "2 is not one of auto, true, false"),
        ("ray: {num_workers: [3, 1]}", "[3, 1] is not an integer > 0, [min, max]"),
        ("ray: {num_workers: 1.5}", "1.5 is not an integer > 0"),
        ("model: {freeze_blocks: [0, 8]}", "8 is out of range: must be <= 7"),
        ("model: {aspect_ratios: '__import__(1)'}", "is not of the form"),
        ("model: {aspect_ratios: [[1, 0]]}", "pairs of numbers > 0"),
        ("model: {aspect_ratios: []}", "must not be empty"),
        ("model: {min_level: 4}", "4 is not allowed: only 3 is"),
        ("export: {onnx_file: a.pt}", "must end in .onnx"),
        ("dataset_convert: {splits: {a: {image_dir: b}}}", "annotations_file: this field is req"),
        ("dataset_convert: {splits: {a/b: {image_dir: c, annotations_file: d}}}", "no '/'"),
        ("prune: {scope: [hed]}", "prune.scope[0]: 'hed' is not one of backbone, neck, heads; did"),
        ("prune: {scope: []}", "prune.scope: must not be empty"),
        ("tune: {tasks: [tune]}", "tune.tasks[0]: 'tune' is not one of train"),
        ("train: 5", "train: 5 is not a section"),
        ("train: {l2_weight_decay: .nan}", "is not a finite number"),
    ],
)
def test_a_value_that_no_task_could_use_is_refused(tmp_path, text, problem):
    (found,) = problems(tmp_path, text)
    assert found.startswith("spec.yaml:1: ")
    assert problem in found


def test_problems_of_the_command_line_come_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text("train: {amp: 3}")
    with pytest.raises(SpecError) as caught:
        load_spec("spec.yaml", ["train.qat=3"])
    assert caught.value.problems == (
        "spec.yaml:1: train.amp: 3 is not one of true, false, bf16, fp16",
        "command line: train.qat: 3 is not true or false",
    )


def test_a_refused_value_does_not_cause_a_second_problem(tmp_path):
    text = "train:\n  num_epochs: many\n  lr_schedule: {warmup_epoch: 400}\n"
    assert problems(tmp_path, text) == ["spec.yaml:2: train.num_epochs: 'many' is not an integer"]


def test_ends_of_elastic_workers_are_kept(tmp_path):
    assert loaded(tmp_path, "ray: {num_workers: [1, 4]}").spec.ray.num_workers == (1, 4)


def test_more_gpu_ids_than_num_gpus_raise_it_as_tao_does(tmp_path):
    text = "num_gpus: 2\ngpu_ids: [0, 1, 3]\n"
    assert loaded(tmp_path, text).spec.num_gpus == 3
    assert notices(tmp_path, text) == [
        "spec.yaml:2: num_gpus: raised from 2 to 3, as gpu_ids has it"
    ]
    assert loaded(tmp_path, text, "num_gpus=1").spec.num_gpus == 1


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        ("train: {wandb: {project: x}}", "train.wandb: no effect: nothing is sent to"),
        ("mpi_args: {x: 1}", "mpi_args: no effect"),
        ("gen_trt_engine: {onnx_file: a}", "gen_trt_engine: no effect"),
        ("evaluate: {sigma: 0.3}", "evaluate.sigma: no effect, since evaluate.nms is hard"),
        ("prune: {target_macs: 0.5, threshold: 0.5}", "prune.threshold: no effect, since"),
        ("train: {checkpoint: a, pruned_model_path: b}", "train.checkpoint: no effect, since"),
        ("train: {num_epochs: 9}\nevaluate: {start_eval_epoch: 10}", "evaluate.start_eval_epoch"),
    ],
)
def test_a_value_without_effect_is_kept_and_said(tmp_path, text, notice):
    (found,) = notices(tmp_path, text)
    assert notice in found


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(SpecError, match=r"nope\.yaml: there is no such file"):
        load_spec(str(tmp_path / "nope.yaml"))


@pytest.mark.parametrize(
    ("text", "task", "problem"),
    [
        ("train: {}", "dataset_convert", "dataset_convert: needs image_dir and"),
        ("dataset_convert: {image_dir: a}", "dataset_convert", "dataset_convert.annotations_file"),
        ("train: {}", "inference", "inference.image_dir: inference needs"),
        ("inference: {image_dir: ''}", "inference", "spec.yaml:1: inference.image_dir"),
        ("train: {}", "tune", "tune.search_space: tune needs"),
        ("train: {}", "trian", "'trian' is not a task: choose from check"),
    ],
)
def test_only_what_the_requested_tasks_need_must_be_given(tmp_path, text, task, problem):
    found = loaded(tmp_path, text)
    validate_for(found, ["check", "train", "evaluate", "prune", "retrain", "export"])
    with pytest.raises(SpecError) as caught:
        validate_for(found, [task])
    assert problem in str(caught.value)


def test_sampled_values_are_checked_like_the_spec():
    spec = with_values(Spec(), {"train.lr_schedule.learning_rate": 0.05}, where="trial 3")
    assert spec.train.lr_schedule.learning_rate == 0.05
    assert Spec().train.lr_schedule.learning_rate == 0.2
    with pytest.raises(SpecError) as caught:
        with_values(Spec(), {"train.num_epochs": 2, "train.amp": 3}, where="trial 3")
    assert caught.value.problems == (
        "trial 3: train.amp: 3 is not one of true, false, bf16, fp16",
        "trial 3: train.num_epochs: train.lr_schedule.warmup_epoch is 5 but train.num_epochs is"
        " 2: the warm-up does not end within the run",
    )


def test_the_spec_survives_the_journey_to_another_process():
    spec = load_spec(SAMPLE, ["ray.num_workers=[1, 2]", "dataset_convert.synthetic={}"]).spec
    assert Spec.from_dict(spec.to_dict()) == spec
    assert spec.to_dict()["encryption_key"] == "nvidia_tlt"
    assert spec.public_dict()["encryption_key"] == ""


def test_the_resolved_spec_loads_as_the_same_spec_and_tells_origins(tmp_path):
    overrides = ["train.batch_size=3", "dataset_convert.tag='1e-4'", "evaluate.label_map='a # b'"]
    overrides += ["dataset_convert.synthetic={num_val: 3}"]
    found = load_spec(SAMPLE, overrides)
    text = resolved_yaml(found)
    again = loaded(tmp_path, text)
    assert again.spec == found.spec.model_copy(update={"encryption_key": ""})
    assert again.notices == [notice for notice in again.notices if "shuffle_file" in notice]
    assert "  batch_size: 3  # command line\n" in text
    assert f"  num_epochs: 200  # {SAMPLE}:44\n" in text
    assert "  num_scales: 3\n" in text
    assert "nvidia_tlt" not in text
    assert "derived" not in text


def test_a_task_writes_to_its_own_folder_or_below_the_results():
    spec = Spec.from_dict({"results_dir": "s3://b/r/", "evaluate": {"results_dir": "e"}})
    assert spec.task_dir("train") == "s3://b/r/train"
    assert spec.task_dir("retrain") == "s3://b/r/retrain"
    assert spec.task_dir("evaluate") == "e"


def test_loading_imports_neither_torch_nor_ray():
    code = (
        "import sys; from rayeffdet.spec.load import load_spec; load_spec(sys.argv[1]);"
        "print({'torch', 'ray', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, SAMPLE], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"

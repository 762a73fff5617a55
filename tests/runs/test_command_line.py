"""What the command line answers by itself, before anything heavy is imported."""

import subprocess
import sys

import pytest
from command import rayeffdet

import rayeffdet as package

HEAVY = ("torch", "ray", "torchvision", "numpy", "pyarrow", "matplotlib", "pycocotools", "onnx")

FIVE_MISTAKES = """\
dataset: {num_classes: 1}
model:
  name: efficientdet-d9
train:
  num_epochs: many
  lr_schedule:
    name: cosin
    warmup_epochs: 3
"""


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(f"results_dir: {tmp_path}/results\n")
    return path


@pytest.fixture
def wrong(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(FIVE_MISTAKES)
    return path


def imported_by(*arguments):
    """Returns the exit code of a command and the top-level modules that it imported."""
    program = (
        "import sys\n"
        "from rayeffdet.run import main\n"
        "try:\n"
        "    code = main(sys.argv[1:])\n"
        "except SystemExit as error:\n"
        "    code = error.code\n"
        "print('imported', *sys.modules)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    modules = done.stdout.splitlines()[-1].split()[1:]
    return done.returncode, {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["WRONG"], 2),
        (["SPEC", "trian"], 2),
        (["SPEC", "train.epochs=3"], 2),
        (["none.yaml"], 2),
    ],
)
def test_answers_that_need_no_work_import_nothing_heavy(words, code, spec, wrong):
    named = {"SPEC": str(spec), "WRONG": str(wrong)}
    found, modules = imported_by(*(named.get(word, word) for word in words))
    assert found == code
    assert "rayeffdet" in modules
    assert modules.isdisjoint(HEAVY)


def test_help_names_tasks_overrides_and_exit_codes():
    done = rayeffdet("--help")
    text = "\n".join(done.out)
    assert (done.code, done.err) == (0, [])
    for word in ("dataset_convert", "section.field=value", "--json", "130 interrupted"):
        assert word in text
    assert all(len(line) <= 100 for line in done.out)


def test_version_is_the_packages_own():
    done = rayeffdet("--version")
    assert (done.code, done.out, done.err) == (0, [package.__version__], [])


def test_five_mistakes_are_five_lines_in_the_order_of_the_file(wrong):
    done = rayeffdet(wrong)
    assert done.code == 2
    assert done.out == []
    places = [line.partition(" ")[0] for line in done.err]
    assert places == [f"{wrong}:{line}:" for line in (1, 3, 5, 7, 8)]
    assert "'cosin' is not one of cosine, soft_anneal; did you mean 'cosine'?" in done.err[3]


def test_mistakes_of_the_command_line_are_said_with_those_of_the_file(wrong):
    done = rayeffdet(wrong, "train.batch_size=-1", "nosuch.field=1")
    assert done.code == 2
    assert len(done.err) == 7
    assert [line.startswith("command line: ") for line in done.err] == [False] * 5 + [True] * 2


def test_an_unknown_task_is_a_usage_error_that_names_the_nearest(spec):
    done = rayeffdet(spec, "trian")
    assert done.code == 2
    assert len(done.err) == 1
    assert "'trian' is not a task" in done.err[0]
    assert "did you mean 'train'" in done.err[0]


def test_an_unknown_option_is_a_usage_error(spec):
    done = rayeffdet(spec, "--jsn")
    assert done.code == 2
    assert "unrecognized arguments: --jsn" in done.err[-1]


def test_a_mistake_leaves_nothing_behind(wrong, tmp_path):
    rayeffdet(wrong, f"results_dir={tmp_path}/results")
    assert not (tmp_path / "results").exists()

"""The command line: parse, load the spec, run the tasks in order, exit codes."""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import rayeffdet
from rayeffdet.console import Console
from rayeffdet.errors import SpecError, UserError
from rayeffdet.spec.load import LoadedSpec, load_spec, validate_for
from rayeffdet.spec.paths import with_absolute_paths
from rayeffdet.spec.section import TaskName

if TYPE_CHECKING:
    from rayeffdet.tasks.context import Context

INTERRUPTED = 130
TASKS = ("check", "dataset_convert", "train", "evaluate", "inference")

EPILOG = f"""\
tasks     several run in the order given; none: the spec's `tasks` list, else train
          {", ".join(TASKS)}
overrides section.field=value, the value in YAML: train.num_epochs=20 'model.freeze_blocks=[0, 1]'

first steps
  rayeffdet specs/quickstart.yaml             a small set is drawn, converted, trained, evaluated
  rayeffdet specs/bccd.yaml check             what would run, on which data

your own data: COCO json and a folder of images for each split
  1. copy specs/quickstart.yaml; in dataset_convert replace `synthetic` by
       splits:
         train: {{image_dir: DIR, annotations_file: TRAIN.json}}
         val:   {{image_dir: DIR, annotations_file: VAL.json}}
  2. set dataset.num_classes to the largest category id + 1
  3. choose model.input_width, model.input_height, train.batch_size, train.num_epochs
  4. rayeffdet my.yaml check && rayeffdet my.yaml
on a cluster: ray job submit -- python -m rayeffdet.run my.yaml ray.num_workers=8

exit codes: 0 done, 1 failure while running, 2 spec or usage, 3 data, 4 checkpoint or model,
            5 export, 6 cluster, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    given = _parse(arguments)
    console = Console(quiet=given.quiet, as_json=given.json)
    try:
        return _run(given, console)
    except UserError as error:
        console.errors(error.problems)
        if given.debug:
            console.trace()
        return error.exit_code
    except KeyboardInterrupt:
        console.errors(["interrupted; run the same command again to go on"])
        return INTERRUPTED
    except Exception as error:  # a bug: worded for the user, its trace on request
        console.errors([f"{type(error).__name__}: {error} (run with --debug for the trace)"])
        if given.debug:
            console.trace()
        return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="rayeffdet",
        description="Trains, evaluates and deploys EfficientDet detectors from one YAML spec.",
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("spec", metavar="SPEC.yaml")
    parser.add_argument("words", nargs="*", metavar="TASK | section.field=value")
    parser.add_argument("--json", action="store_true", help="one line of JSON per task on stdout")
    parser.add_argument("--quiet", action="store_true", help="only errors and results")
    parser.add_argument("--debug", action="store_true", help="Ray's messages and tracebacks too")
    parser.add_argument("--version", action="version", version=rayeffdet.__version__)
    return parser.parse_intermixed_args(arguments)


def _run(given: argparse.Namespace, console: Console) -> int:
    overrides = [word for word in given.words if "=" in word]
    loaded = load_spec(given.spec, overrides)
    tasks = [word for word in given.words if "=" not in word]
    tasks = tasks or list(loaded.spec.tasks) or ["train"]
    validate_for(loaded, tasks)
    _refuse_missing(loaded, tasks)
    loaded = _anchored(loaded)
    console.say(f"rayeffdet {rayeffdet.__version__} · {', '.join(tasks)}")
    for notice in loaded.notices:
        console.notice(notice)

    from rayeffdet.distributed.cluster import connected
    from rayeffdet.tasks.context import Context

    spec = loaded.spec
    gpu_ids = spec.gpu_ids if "gpu_ids" in loaded.origins else None
    with connected(spec.ray.address, debug=given.debug, gpu_ids=gpu_ids) as cluster:
        context = Context(loaded=loaded, console=console, cluster=cluster, debug=given.debug)
        for task in tasks:
            console.result(task, _run_task(task, context))
    console.say(f"done     results are in {spec.results_dir}")
    return 0


def _run_task(task: str, context: "Context") -> dict[str, object]:
    """Runs one task; a failure is the last line of its status.json."""
    from rayeffdet.journal import Journal

    try:
        result: dict[str, object] = importlib.import_module(f"rayeffdet.tasks.{task}").run(context)
    except BaseException as error:
        journal = Journal(context.spec.task_dir(task), task)
        # The disk that failed the task may refuse this line too; the error itself is told.
        with contextlib.suppress(UserError):
            journal.status("FAILURE", str(error) or type(error).__name__)
        raise
    return result


def _refuse_missing(loaded: LoadedSpec, tasks: Sequence[str]) -> None:
    release = f"version {rayeffdet.__version__}"
    later = [task for task in tasks if task in get_args(TaskName) and task not in TASKS]
    problems = [f"{task}: not in {release}; it has {', '.join(TASKS)}" for task in later]
    if "train" in tasks and loaded.spec.train.qat:
        origin = loaded.origins.get("train.qat", loaded.path)
        problems.append(f"{origin}: train.qat: not in {release}; set it to false")
    if problems:
        raise SpecError(*problems)


def _anchored(loaded: LoadedSpec) -> LoadedSpec:
    spec = with_absolute_paths(loaded.spec)
    return LoadedSpec(spec, loaded.origins, loaded.notices, os.path.basename(loaded.path))


if __name__ == "__main__":
    sys.exit(main())

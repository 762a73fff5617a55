"""evaluate: the COCO metrics of a checkpoint on the validation records."""

from typing import Any

from rayeffdet import storage
from rayeffdet.distributed.detection import detect_records
from rayeffdet.evaluate.build import build_postprocess
from rayeffdet.evaluate.coco import coco_metrics, detections_json
from rayeffdet.evaluate.label_map import read_label_map
from rayeffdet.evaluate.results import join_parts
from rayeffdet.tasks.context import Context
from rayeffdet.tasks.train import class_names, index_split


def run(context: Context) -> dict[str, Any]:
    """Returns the twelve metrics and leaves metrics.json and detections.json.

    Raises:
        CheckpointError: There is no checkpoint, or it cannot be read.
        DataError: A record cannot be read.
    """
    spec, console = context.spec, context.console
    checkpoint = context.checkpoint_for("evaluate", spec.evaluate.checkpoint)
    journal = context.journal("evaluate")
    index = index_split(context, spec.dataset.val_tfrecords)
    num_images = min(index.num_records, spec.evaluate.num_samples)
    console.say(f"evaluate {checkpoint} on {num_images:,} images")
    parts = []
    with console.progress(num_images) as bar:
        done = 0
        for part in detect_records(
            index,
            num_images,
            checkpoint=checkpoint,
            spec=spec,
            batch_size=spec.evaluate.batch_size,
            settings=build_postprocess(spec),
            num_gpus=context.gpus_per_task,
        ):
            parts.append(part)
            done += len(part.examples)
            bar.update(done, f"{done:,} of {num_images:,} images")
    for text in dict.fromkeys(text for part in parts for text in part.notices):
        console.notice(text)
    names = class_names(spec, [index])
    if spec.evaluate.label_map:
        names |= read_label_map(spec.evaluate.label_map)
    truth, detections = join_parts(
        parts, class_names=names, val_json_file=spec.dataset.val_json_file
    )
    metrics = {**coco_metrics(truth, detections), "checkpoint": checkpoint}
    storage.write_json(journal.path("metrics.json"), metrics)
    storage.write_json(journal.path("detections.json"), detections_json(truth, detections))
    _say(context, metrics)
    kpi = {name: value for name, value in metrics.items() if isinstance(value, float)}
    journal.status("SUCCESS", "Evaluation finished successfully.", kpi=kpi)
    journal.log(console.take_log())
    return {**kpi, "num_images": num_images, "checkpoint": checkpoint}


def _say(context: Context, metrics: dict[str, Any]) -> None:
    say = context.console.say
    for names in (("AP", "AP50", "AP75", "APs", "APm", "APl"),
                  ("ARmax1", "ARmax10", "ARmax100", "ARs", "ARm", "ARl")):  # fmt: skip
        say("         " + " · ".join(f"{name} {_shown(metrics[name])}" for name in names))
    width = max((len(name) for name in metrics["per_class"]), default=0)
    for name, numbers in metrics["per_class"].items():
        say(
            f"         {name:<{width}}  AP {_shown(numbers['AP'])} · AP50"
            f" {_shown(numbers['AP50'])} · {numbers['num_truths']:,} objects"
        )


def _shown(value: float) -> str:
    return "none" if value < 0 else f"{value:.3f}"

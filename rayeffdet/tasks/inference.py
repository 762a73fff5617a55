"""inference: annotated pictures, KITTI labels and COCO json of a folder of images."""

from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

from rayeffdet import storage
from rayeffdet.data.decode import decode_image
from rayeffdet.distributed.detection import IMAGES_PER_TASK, detect_files
from rayeffdet.distributed.scatter import scatter
from rayeffdet.errors import DataError
from rayeffdet.evaluate.detect import ImageDetections, PostprocessSettings
from rayeffdet.evaluate.draw import draw_detections, kitti_lines
from rayeffdet.evaluate.label_map import read_label_map
from rayeffdet.spec.root import Spec
from rayeffdet.tasks.context import Context

ENDINGS = (".jpg", ".jpeg", ".png")
JPEG_QUALITY = 92


def run(context: Context) -> dict[str, Any]:
    """Returns the counts of images and detections.

    Raises:
        CheckpointError: There is no checkpoint, or it cannot be read.
        DataError: The folder holds no images.
    """
    spec, console = context.spec, context.console
    inference = spec.inference
    checkpoint = context.checkpoint_for("inference", inference.checkpoint)
    paths = find_images(inference.image_dir)
    journal = context.journal("inference")
    console.say(f"inference {checkpoint} on {len(paths):,} images of {inference.image_dir}")
    given_names = read_label_map(inference.label_map) if inference.label_map else {}
    settings = PostprocessSettings(
        max_nms_inputs=spec.evaluate.max_nms_inputs,
        max_detections=inference.max_boxes_to_draw,
        min_score=inference.min_score_thresh,
        nms=spec.evaluate.nms,
        sigma=spec.evaluate.sigma,
    )
    calls = [
        {
            "paths": paths[start : start + IMAGES_PER_TASK],
            "folder": journal.folder,
            "dump_label": inference.dump_label,
            "given_names": given_names,
            "checkpoint": checkpoint,
            "spec": spec,
            "batch_size": inference.batch_size,
            "settings": settings,
        }
        for start in range(0, len(paths), IMAGES_PER_TASK)
    ]
    parts: dict[int, tuple[list[dict[str, Any]], list[str], tuple[str, ...]]] = {}
    with console.progress(len(calls)) as bar:
        for number, part in scatter(infer_files, calls, num_gpus=context.gpus_per_task):
            parts[number] = part
            bar.update(len(parts), f"part {len(parts)} of {len(calls)}")
    detections = [one for number in sorted(parts) for one in parts[number][0]]
    problems = [text for number in sorted(parts) for text in parts[number][1]]
    for text in dict.fromkeys(text for part in parts.values() for text in part[2]):
        console.notice(text)
    for text in problems:
        console.notice(f"left out: {text}")
    storage.write_json(journal.path("detections.json"), detections)
    console.say(
        f"         {len(detections):,} detections; pictures in {journal.path('images_annotated')}"
    )
    result = {
        "num_images": len(paths) - len(problems),
        "num_left_out": len(problems),
        "num_detections": len(detections),
    }
    journal.status("SUCCESS", "Inference finished successfully.", **result)
    journal.log(console.take_log())
    return result


def find_images(folder: str) -> list[str]:
    """Returns the images of a folder, sorted.

    Raises:
        DataError: There is no such folder, there are none, or two would give one label file.
    """
    found = [path for path in storage.glob(folder) if path.lower().endswith(ENDINGS)]
    if not found:
        raise DataError(f"{folder}: no {', '.join(ENDINGS)} images (inference.image_dir)")
    stems = Counter(PurePosixPath(path).stem for path in found)
    twice = sorted(stem for stem, count in stems.items() if count > 1)
    if twice:
        raise DataError(
            f"{folder}: two images are called {', '.join(twice[:5])} but for their ending; their"
            " label files would be one: rename them"
        )
    return found


def infer_files(
    paths: Sequence[str],
    folder: str,
    dump_label: bool,
    given_names: dict[int, str],
    checkpoint: str,
    spec: Spec,
    batch_size: int,
    settings: PostprocessSettings,
) -> tuple[list[dict[str, Any]], list[str], tuple[str, ...]]:
    """Writes pictures and labels of some images.

    Returns:
        Detections in COCO form, images left out, notices about the detector.
    """
    found, detector, problems = detect_files(
        paths,
        checkpoint=checkpoint,
        spec=spec,
        batch_size=batch_size,
        settings=settings,
    )
    names = detector.class_names | given_names
    rows: list[dict[str, Any]] = []
    for one in found:
        _write(one, folder, names, dump_label=dump_label)
        for box_xyxy, score, category in zip(
            one.boxes_xyxy.tolist(), one.scores.tolist(), one.category_ids.tolist(), strict=True
        ):
            x1, y1, x2, y2 = box_xyxy
            rows.append(
                {
                    "image_id": one.example.filename,
                    "category_id": category,
                    "category_name": names.get(category, f"class {category}"),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
            )
    return rows, problems, detector.notices


def _write(one: ImageDetections, folder: str, names: dict[int, str], *, dump_label: bool) -> None:
    example = one.example
    picture = draw_detections(
        decode_image(example.encoded, where=example.source_id),
        one.boxes_xyxy,
        one.category_ids,
        one.scores,
        names,
    )
    encoded = BytesIO()
    kind = "PNG" if example.format == "png" else "JPEG"
    picture.save(encoded, kind, quality=JPEG_QUALITY)
    path = storage.join(folder, "images_annotated", example.filename)
    storage.write_atomic(path, encoded.getvalue())
    if dump_label:
        words = [names.get(i, f"class {i}") for i in one.category_ids.tolist()]
        lines = kitti_lines(words, one.boxes_xyxy, one.scores)
        label = storage.join(folder, "labels", f"{PurePosixPath(example.filename).stem}.txt")
        storage.write_atomic(label, lines.encode())

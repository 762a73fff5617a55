"""Older and documented spellings that are accepted, each with a notice."""

from typing import Any

from rayeffdet.spec.document import Document, Path, Place, dotted

RENAMED = {
    "model.model_name": "model.name",
    "model.max_instances_per_image": "dataset.max_instances_per_image",
    "inference.output_dir": "inference.results_dir",
    "dataset_convert.output_dir": "dataset_convert.results_dir",
    "dataset_convert.include_mask": "dataset_convert.include_masks",
    "export.output_path": "export.onnx_file",
    "export.engine_file": "gen_trt_engine.trt_engine",
    "export.max_workspace_size": "gen_trt_engine.tensorrt.max_workspace_size",
    "export.cal_image_dir": "gen_trt_engine.tensorrt.calibration.cal_image_dir",
    "export.cal_cache_file": "gen_trt_engine.tensorrt.calibration.cal_cache_file",
    "export.cal_batch_size": "gen_trt_engine.tensorrt.calibration.cal_batch_size",
    "export.batches": "gen_trt_engine.tensorrt.calibration.cal_batches",
}

_LISTS_OF_PATHS = (
    "dataset.train_tfrecords",
    "dataset.val_tfrecords",
    "dataset.train_dirs",
    "dataset.val_dirs",
)


def modernise(document: Document) -> list[str]:
    """Gives every value of a document its present name and form.

    A field that is given under both its names, with different values, is added to the document's
    problems.

    Returns:
        A notice for each change.
    """
    notices = [notice for old in RENAMED if (notice := _rename(document, old))]
    for name in ("model.name", "model.aspect_ratios", *_LISTS_OF_PATHS):
        path = tuple(name.split("."))
        if document.has(path):
            place = document.place(path)
            value, change = present_form(name, document.value(path))
            if change:
                document.assign(path, value, place)
                notices.append(f"{place}: {name}: {change}")
    return notices


def present_form(name: str, value: Any) -> tuple[Any, str]:
    """Returns the value in the form that the field takes, and what was changed, or nothing."""
    if name in _LISTS_OF_PATHS and isinstance(value, str):
        return [value] if value else [], "a single path is read as a list of one"
    if name == "model.aspect_ratios" and isinstance(value, list):
        return value, "a list is read like TAO's text; NVIDIA TAO itself refuses a list"
    if name == "model.name" and isinstance(value, str):
        present = value.strip().lower().replace("_", "-")
        return present, "" if present == value else f"{value!r} is read as {present!r}"
    return value, ""


def _rename(document: Document, old: str) -> str | None:
    path = tuple(old.split("."))
    if not document.has(path):
        return None
    new, place, value = RENAMED[old], document.place(path), document.value(path)
    document.remove(path)
    if _conflict(document, tuple(new.split(".")), value, old=old, place=place):
        return None
    document.assign(tuple(new.split(".")), value, place)
    return f"{place}: {old} is read as {new}"


def _conflict(document: Document, path: Path, value: Any, *, old: str, place: Place) -> bool:
    if not document.has(path) or document.value(path) == value:
        return False
    other = document.place(path)
    document.problems.append(
        (place, f"{old}: the same field as {dotted(path)} on line {other.line}: keep one of them")
    )
    return True

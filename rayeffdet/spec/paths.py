"""Paths of a spec made independent of the working directory, and natural predecessors filled in."""

from glob import escape

from rayeffdet import storage
from rayeffdet.spec.root import Spec
from rayeffdet.spec.section import Section

_PATHS = {
    "train": ("checkpoint", "resume_training_checkpoint_path", "pruned_model_path", "results_dir"),
    "evaluate": ("checkpoint", "label_map", "results_dir"),
    "prune": ("checkpoint", "output_path", "results_dir"),
    "export": ("checkpoint", "onnx_file", "results_dir"),
    "inference": ("checkpoint", "image_dir", "label_map", "results_dir"),
    "dataset_convert": ("image_dir", "annotations_file", "results_dir"),
    "ray": ("storage_path",),
}


def with_absolute_paths(spec: Spec) -> Spec:
    """Returns the spec with every local path absolute, and the shards of dataset_convert named.

    Workers run in other directories than the command, so no relative path may reach them. Empty
    ``train_tfrecords`` and ``val_tfrecords`` become what dataset_convert leaves under the tags
    train and val in the same results_dir.
    """
    changes: dict[str, object] = {"results_dir": storage.absolute(spec.results_dir)}
    for name, fields in _PATHS.items():
        section: Section = getattr(spec, name)
        changes[name] = section.model_copy(
            update={field: _absolute(getattr(section, field)) for field in fields}
        )
    spec = spec.model_copy(update=changes)
    splits = {
        tag: split.model_copy(
            update={
                "image_dir": _absolute(split.image_dir),
                "annotations_file": _absolute(split.annotations_file),
            }
        )
        for tag, split in spec.dataset_convert.splits.items()
    }
    converted = escape(spec.task_dir("dataset_convert"))
    dataset = spec.dataset
    train = dataset.train_tfrecords or (storage.join(converted, "train-?????-of-?????.tfrecord"),)
    val = dataset.val_tfrecords or (storage.join(converted, "val-?????-of-?????.tfrecord"),)
    return spec.model_copy(
        update={
            "dataset_convert": spec.dataset_convert.model_copy(update={"splits": splits}),
            "dataset": dataset.model_copy(
                update={
                    "train_tfrecords": tuple(map(_absolute, train)),
                    "val_tfrecords": tuple(map(_absolute, val)),
                    "val_json_file": _absolute(dataset.val_json_file),
                }
            ),
        }
    )


def _absolute(path: str) -> str:
    return storage.absolute(path) if path else path

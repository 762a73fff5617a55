"""What must hold between fields, and which values are without effect."""

from collections.abc import Iterator

from rayeffdet.spec.document import Path
from rayeffdet.spec.root import Spec
from rayeffdet.spec.search_space import search_space_problems

UNUSED = {
    "dataset.train_dirs": "images are read from the records",
    "dataset.val_dirs": "images are read from the records",
    "train.skip_checkpoint_variables": "TAO does not use it either",
    "train.wandb": "nothing is sent to Weights & Biases",
    "train.clearml": "nothing is sent to ClearML",
    "evaluate.trt_engine": "TensorRT engines are not run here",
    "inference.trt_engine": "TensorRT engines are not run here",
    "gen_trt_engine": "engines are built from the exported ONNX file with trtexec",
    "model_name": "TAO does not use it either",
    "num_processes": "ray.num_workers says how many processes train",
    "multi_node": "the Ray cluster decides on how many nodes a run spreads",
    "mpi_args": "nothing is started through MPI",
    "cuda_blocking": "set CUDA_LAUNCH_BLOCKING in the environment instead",
}

Relation = tuple[tuple[Path, ...], str]


def broken_relations(spec: Spec) -> Iterator[Relation]:
    """Yields the fields involved, the likeliest culprit first, and a sentence."""
    yield from _training(spec)
    yield from _conversion(spec)
    for path, text in search_space_problems(spec.tune.search_space):
        yield (("tune", "search_space", *path),), text
    grids = [name for name, kind in spec.tune.search_space.items() if "grid" in kind]
    if grids and spec.tune.search == "optuna":
        fields = ("tune.search", f"tune.search_space.{grids[0]}")
        yield (
            (("tune", "search"), ("tune", "search_space", grids[0])),
            f"{fields[0]} is optuna but {fields[1]} is a grid: use choice, or search random",
        )


def remarks(spec: Spec) -> Iterator[tuple[str, str]]:
    """Yields the dotted name and a sentence for each value that has no effect on any run."""
    default = Spec()
    for name, reason in UNUSED.items():
        if _value(spec, name) != _value(default, name):
            yield name, f"no effect: {reason}"
    if spec.train.pruned_model_path and spec.train.checkpoint:
        yield "train.checkpoint", "no effect, since train.pruned_model_path is given"
    if spec.prune.target_macs is not None and "threshold" in spec.prune.model_fields_set:
        yield "prune.threshold", "no effect, since prune.target_macs is given"
    if spec.evaluate.nms == "hard" and spec.evaluate.sigma != default.evaluate.sigma:
        yield "evaluate.sigma", "no effect, since evaluate.nms is hard"
    if spec.evaluate.start_eval_epoch > spec.train.num_epochs:
        yield "evaluate.start_eval_epoch", "after the last epoch, which alone is evaluated"


def _training(spec: Spec) -> Iterator[Relation]:
    crop, train = spec.dataset.augmentation, spec.train
    schedule = train.lr_schedule
    low, high = crop.random_crop_min_scale, crop.random_crop_max_scale
    if low > high:
        yield _relation(
            ("dataset.augmentation.random_crop_min_scale", low),
            ("dataset.augmentation.random_crop_max_scale", high),
            "the smallest scale is above the largest",
        )
    warmup = ("train.lr_schedule.warmup_epoch", schedule.warmup_epoch)
    annealing = ("train.lr_schedule.annealing_epoch", schedule.annealing_epoch)
    epochs = ("train.num_epochs", train.num_epochs)
    if schedule.warmup_epoch > train.num_epochs:
        yield _relation(warmup, epochs, "the warm-up does not end within the run")
    if train.init_epoch >= train.num_epochs:
        yield _relation(("train.init_epoch", train.init_epoch), epochs, "no epoch is left")
    if schedule.name != "soft_anneal":
        return
    if schedule.annealing_epoch > train.num_epochs:
        yield _relation(annealing, epochs, "soft_anneal must start to fall within the run")
    if schedule.warmup_epoch >= schedule.annealing_epoch:
        yield _relation(annealing, warmup, "soft_anneal must rise before it falls")
    if schedule.warmup_init == 0:
        yield _relation(
            ("train.lr_schedule.warmup_init", 0),
            ("train.lr_schedule.name", schedule.name),
            "an exponential rise cannot start at 0",
        )


def _conversion(spec: Spec) -> Iterator[Relation]:
    convert = spec.dataset_convert
    taken = ["train", "val"] if convert.synthetic else []
    if convert.image_dir and convert.tag in convert.splits:
        path: Path = ("dataset_convert", "splits", convert.tag)
        yield (path, ("dataset_convert", "tag")), "this is dataset_convert.tag too: rename one"
    for tag in taken:
        if tag in convert.splits or (convert.image_dir and tag == convert.tag):
            where: Path = ("splits", tag) if tag in convert.splits else ("tag",)
            yield (
                (("dataset_convert", *where), ("dataset_convert", "synthetic")),
                f"the synthetic set has the tag {tag} already: rename this one",
            )


def _relation(first: tuple[str, object], second: tuple[str, object], text: str) -> Relation:
    paths = tuple(tuple(name.split(".")) for name, _ in (first, second))
    return paths, f"{first[0]} is {first[1]} but {second[0]} is {second[1]}: {text}"


def _value(spec: Spec, name: str) -> object:
    value: object = spec
    for part in name.split("."):
        value = getattr(value, part)
    return value

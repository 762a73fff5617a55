"""The sections of the tasks other than training, one per task."""

from typing import Annotated, Literal

from annotated_types import Gt, Lt, MinLen
from pydantic import AfterValidator, Field

from rayeffdet.spec.section import (
    Count,
    Flag,
    ListOf,
    NonNegative,
    Number,
    Positive,
    PositiveInt,
    Score,
    Section,
    Text,
)


def _onnx_name(value: str) -> str:
    if value and not value.endswith(".onnx"):
        raise ValueError(f"{value!r} must end in .onnx")
    return value


def _file_tag(value: str) -> str:
    if "/" in value or value != value.strip():
        raise ValueError(f"{value!r} becomes part of file names: no '/', no space at the ends")
    return value


OnnxFile = Annotated[Text, AfterValidator(_onnx_name)]
Tag = Annotated[Text, AfterValidator(_file_tag)]
SplitTag = Annotated[str, MinLen(1), AfterValidator(_file_tag)]
Fraction = Annotated[Number, Gt(0), Lt(1)]


class EvaluateSection(Section):
    """COCO evaluation, during training and by itself."""

    checkpoint: Text = ""
    """Checkpoint to evaluate, or a whole effdet detector (.pth, .safetensors) of the spec's model
    section; empty: the best of the task before, in the same results_dir."""

    trt_engine: Text = ""
    """Kept from TAO Deploy; TensorRT engines are not evaluated."""

    batch_size: PositiveInt = 8
    """Images per worker and step."""

    num_samples: PositiveInt = 5000
    """Images to evaluate at most, from the start of the validation set."""

    max_detections_per_image: PositiveInt = 100
    """Detections kept per image after suppression, in evaluation and in the exported network."""

    max_nms_inputs: PositiveInt = 5000
    """Candidates per image, the best by score, that enter suppression."""

    nms: Literal["hard", "soft"] = "hard"
    """hard drops boxes that overlap a better one by IoU 0.5; soft lowers their score instead."""

    sigma: Positive = 0.5
    """Width of the Gaussian by which soft suppression lowers scores."""

    label_map: Text = ""
    """YAML file of {id: name}; empty: the names in the records."""

    start_eval_epoch: Count = 1
    """First epoch, counted from 1, that is evaluated during training."""

    results_dir: Text = ""
    """Folder of this task; empty: results_dir/evaluate."""


class PruneSection(Section):
    """Removal of the filters that matter least."""

    checkpoint: Text = ""
    """Checkpoint to prune; empty: the best of train, in the same results_dir."""

    normalizer: Literal["max", "L2"] = "max"
    """What a layer's filter norms are divided by: the largest of them, or their L2 norm."""

    equalization_criterion: Literal[
        "union", "intersection", "arithmetic_mean", "geometric_mean"
    ] = "union"
    """How layers that must keep the same channels agree on the value of a channel."""

    granularity: PositiveInt = 8
    """The number of filters of a layer stays a multiple of this."""

    threshold: NonNegative = 0.2
    """Filters whose normalised norm is not above this are removed."""

    min_num_filters: PositiveInt = 16
    """Filters that every layer keeps at least."""

    excluded_layers: ListOf[str] = ()
    """Layers that keep all their filters."""

    scope: Annotated[ListOf[Literal["backbone", "neck", "heads"]], MinLen(1)] = ("backbone",)
    """Parts of the network that may lose filters."""

    target_macs: Fraction | None = None
    """Share of the multiply-accumulates to keep; the threshold that gives it is then searched."""

    output_path: Text = ""
    """File to write; empty: model_th=<threshold>_eq=<criterion>.tlt in the task's folder."""

    results_dir: Text = ""
    """Folder of this task; empty: results_dir/prune."""


class ExportSection(Section):
    """Export to ONNX."""

    checkpoint: Text = ""
    """Checkpoint to export; empty: the best of the task before, in the same results_dir."""

    onnx_file: OnnxFile = ""
    """File to write; empty: named after the model, in the task's folder."""

    batch_size: PositiveInt = 8
    """Batch size of the exported network when dynamic_batch_size is false."""

    dynamic_batch_size: Flag = True
    """Leaves the batch size open."""

    min_score_thresh: Score = 0.01
    """Detections below this score are left out by the exported network."""

    nms: Literal["onnx", "efficientnms_trt", "none"] = "onnx"
    """onnx: standard operators; efficientnms_trt: TensorRT's plugin; none: raw logits and boxes."""

    data_type: Literal["fp32", "fp16", "int8"] = "fp32"
    """Precision of the exported weights."""

    simplify: Flag = False
    """Folds constants and removes what the exported graph does not need."""

    results_dir: Text = ""
    """Folder of this task; empty: results_dir/export."""


class InferenceSection(Section):
    """Detection on a folder of images."""

    checkpoint: Text = ""
    """Checkpoint, .onnx file, or a whole effdet detector (.pth, .safetensors) of the spec's model
    section; empty: the best of the task before, in the same results_dir."""

    trt_engine: Text = ""
    """Kept from TAO Deploy; TensorRT engines are not run."""

    image_dir: Text = ""
    """Folder of the images (.jpg, .jpeg, .png)."""

    dump_label: Flag = False
    """Writes KITTI text files too."""

    batch_size: PositiveInt = 1
    """Images per worker and step."""

    min_score_thresh: Score = 0.3
    """Detections below this score are neither drawn nor written."""

    label_map: Text = ""
    """YAML file of {id: name}, or a text file of one name a line; empty: the checkpoint's names."""

    max_boxes_to_draw: PositiveInt = 100
    """Detections kept per image."""

    results_dir: Text = ""
    """Folder of this task; empty: results_dir/inference."""


class SplitSection(Section):
    """One set of images to convert."""

    image_dir: str
    """Folder of the images."""

    annotations_file: str
    """COCO annotations of the images."""


class SyntheticSection(Section):
    """A drawn set, to try things without data."""

    num_train: PositiveInt = 256
    """Training images."""

    num_val: PositiveInt = 64
    """Validation images."""

    seed: Count = 0
    """Seed of the drawing."""


class DatasetConvertSection(Section):
    """Conversion of COCO data to TFRecord shards."""

    image_dir: Text = ""
    """Folder of the images."""

    annotations_file: Text = ""
    """COCO annotations of the images."""

    results_dir: Text = ""
    """Folder of the shards; empty: results_dir/dataset_convert."""

    tag: Tag = ""
    """First part of the shards' names; empty: the name of the annotations file."""

    num_shards: PositiveInt = 256
    """Shards per set."""

    include_masks: Flag = False
    """Stores segmentation masks; this network does not read them."""

    splits: dict[SplitTag, SplitSection] = Field(default_factory=dict)
    """Several sets in one run: tag to image_dir and annotations_file."""

    synthetic: SyntheticSection | None = None
    """Draws a set under the task's folder and converts it as tags train and val."""

"""The `gen_trt_engine` section of NVIDIA TAO Deploy: read, kept and not acted upon."""

from typing import Literal

from rayeffdet.spec.section import Count, Positive, PositiveInt, Section, Text


class CalibrationSection(Section):
    """Calibration of an INT8 engine."""

    cal_image_dir: Text = ""
    """Folder of calibration images."""

    cal_cache_file: Text = ""
    """Calibration cache."""

    cal_batch_size: PositiveInt = 1
    """Images per calibration batch."""

    cal_batches: PositiveInt = 1
    """Calibration batches."""


class TensorrtSection(Section):
    """How the engine is built."""

    calibration: CalibrationSection = CalibrationSection()
    """Calibration of an INT8 engine."""

    data_type: Literal["fp32", "fp16", "int8"] = "fp32"
    """Precision of the engine."""

    max_workspace_size: Positive = 2.0
    """Workspace in GiB."""

    min_batch_size: PositiveInt = 1
    """Smallest batch of the profile."""

    opt_batch_size: PositiveInt = 1
    """Batch for which the engine is tuned."""

    max_batch_size: PositiveInt = 1
    """Largest batch of the profile."""


class GenTrtEngineSection(Section):
    """Kept from TAO Deploy; TensorRT builds engines from the exported ONNX file with trtexec."""

    tensorrt: TensorrtSection = TensorrtSection()
    """How the engine is built."""

    onnx_file: Text = ""
    """ONNX file to build from."""

    trt_engine: Text = ""
    """Engine file to write."""

    timing_cache: Text = ""
    """Timing cache."""

    gpu_id: Count = 0
    """GPU on which the engine is built."""

    results_dir: Text = ""
    """Folder of this task."""

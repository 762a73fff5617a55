"""Spec-driven, Ray-distributed training of EfficientDet detectors."""

__version__ = "0.1.0"

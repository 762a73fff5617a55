"""From the spec to the parts of evaluation."""

from rayeffdet.evaluate.detect import PostprocessSettings
from rayeffdet.spec.root import Spec


def build_postprocess(spec: Spec) -> PostprocessSettings:
    """Returns the suppression of evaluation, in training and standalone."""
    evaluate = spec.evaluate
    return PostprocessSettings(
        max_nms_inputs=evaluate.max_nms_inputs,
        max_detections=evaluate.max_detections_per_image,
        min_score=0.0,
        nms=evaluate.nms,
        sigma=evaluate.sigma,
    )

"""Detections against truths: COCO metrics, plots, pictures."""

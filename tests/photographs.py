"""Generated JPEGs that cost a decoder what photographs cost."""

import io

import numpy as np
from PIL import Image


def photo_like(height, width, seed=0):
    """A JPEG with detail on several scales, as photographs have."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0)
    for step, strength in ((32, 40), (3, 18), (1, 4)):
        shape = (height // step + 2, width // step + 2, 3)
        coarse = np.uint8(np.clip(rng.normal(128, strength, shape), 0, 255))
        pixels += np.asarray(Image.fromarray(coarse).resize((width, height), 3), float) - 128
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(np.clip(pixels, 0, 255))).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()

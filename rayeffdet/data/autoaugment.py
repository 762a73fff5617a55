"""Two random policies of TAO: one colour operation, one shift along an axis.

The magnitude m is drawn from U(0, 15) on a scale where 10 is the usual full strength.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from rayeffdet.data.transforms import clip_boxes

_MAX_MAGNITUDE = 15.0
_SHIFT_PER_MAGNITUDE = 5.0  # pixels
_FILL_RGB = (128, 128, 128)
_ENHANCERS = (
    ImageEnhance.Color,
    ImageEnhance.Contrast,
    ImageEnhance.Brightness,
    ImageEnhance.Sharpness,
)


def auto_color_distortion(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Returns the RGB picture after one of equalize, colour, contrast, brightness and sharpness.

    The operation is chosen uniformly and always applied. The enhancement factor is
    0.1 + 0.18 m, so 0.1 to 2.8; 1 leaves the picture as it is.
    """
    choice = rng.integers(len(_ENHANCERS) + 1)
    factor = 0.1 + 0.18 * rng.uniform(0, _MAX_MAGNITUDE)
    if choice == len(_ENHANCERS):
        return ImageOps.equalize(image)
    return _ENHANCERS[choice](image).enhance(factor)


def auto_translate_xy(
    image: Image.Image,
    boxes_xyxy: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[Image.Image, npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Returns the picture and its boxes after a shift of 5 m whole pixels along one axis.

    Axis and direction are chosen evenly; what becomes empty is grey. Boxes are clipped to the
    picture, and dropped once they are outside.

    Args:
        image: RGB.
        boxes_xyxy: float32 (n, 4) in pixels of `image`.
        labels: int64 (n,).
        rng: The only source of randomness.
    """
    distance = int(_SHIFT_PER_MAGNITUDE * rng.uniform(0, _MAX_MAGNITUDE))
    along_y, backwards = rng.integers(2, size=2)
    shift = -distance if backwards else distance
    shift_x, shift_y = (0, shift) if along_y else (shift, 0)
    moved = Image.new("RGB", image.size, _FILL_RGB)
    moved.paste(image, (shift_x, shift_y))
    offsets = np.array((shift_x, shift_y, shift_x, shift_y), np.float32)
    boxes_xyxy, labels = clip_boxes(
        boxes_xyxy + offsets, labels, height=image.height, width=image.width
    )
    return moved, boxes_xyxy, labels

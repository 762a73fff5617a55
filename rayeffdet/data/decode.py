"""Encoded image bytes to upright RGB pixels."""

import io
import struct

import numpy as np
from PIL import Image, UnidentifiedImageError

from rayeffdet.errors import DataError

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")

# What Pillow's readers raise on broken bytes, beside plain OSError.
_BROKEN = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)

_ORIENTATION_TAG = 0x0112
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = frozenset(_TO_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))


def decode_image(encoded: bytes | memoryview, *, where: str) -> Image.Image:
    """Decodes JPEG, PNG, BMP or WebP bytes to an upright 8-bit RGB picture.

    The EXIF orientation is applied. Grey, palette and CMYK pictures are converted to RGB, 16-bit
    grey keeps its high byte, and an alpha channel is dropped (colours are not blended).

    Args:
        encoded: The bytes of the image file.
        where: Names the record or file in an error.

    Raises:
        DataError: The bytes are not such an image, or are broken or truncated.
    """
    try:
        image = _open(encoded)
        turn = _turn_to_upright(image)
        rgb = _to_rgb(image)
    except _BROKEN as error:
        raise _unreadable(where, error) from error
    return rgb if turn is None else rgb.transpose(turn)


def image_size(encoded: bytes | memoryview, *, where: str = "image") -> tuple[int, int]:
    """Returns (height, width) of the upright picture from its header, without decoding pixels.

    Args:
        encoded: The bytes of the image file.
        where: Names the record or file in an error.

    Raises:
        DataError: The header is not one of a JPEG, PNG, BMP or WebP image.
    """
    try:
        image = _open(encoded)
        width, height = image.size
        swapped = _turn_to_upright(image) in _SWAPS_SIDES
    except _BROKEN as error:
        raise _unreadable(where, error) from error
    return (width, height) if swapped else (height, width)


def _open(encoded: bytes | memoryview) -> Image.Image:
    return Image.open(io.BytesIO(encoded), formats=_FORMATS)


def _turn_to_upright(image: Image.Image) -> Image.Transpose | None:
    # Only EXIF that precedes the pixels counts, so that decode_image and image_size agree.
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return _TO_UPRIGHT.get(exif.get(_ORIENTATION_TAG, 1))
    except _BROKEN:
        return None  # A broken EXIF block does not make the picture unreadable.


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        high_byte = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _unreadable(where: str, error: Exception) -> DataError:
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{where}: not a JPEG, PNG, BMP or WebP image; replace or remove it")
    return DataError(f"{where}: the image cannot be decoded ({error}); replace or remove it")

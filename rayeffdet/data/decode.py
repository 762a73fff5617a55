"""Encoded image bytes to upright RGB pixels."""

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from rayeffdet.errors import DataError

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")

# What the readers raise on broken bytes, beside plain OSError; torchvision's are RuntimeErrors.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    RuntimeError,
    Image.DecompressionBombError,
)

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


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A JPEG, PNG, BMP or WebP file of which the header has been read.

    Attributes:
        where: Names the record or file in an error.
        height: Of the upright picture, in pixels.
        width: Of the upright picture, in pixels.
        can_shrink: Whether decoding at a half, a quarter or an eighth of the size saves work.
    """

    where: str
    height: int
    width: int
    can_shrink: bool
    _encoded: bytes | memoryview
    _image: Image.Image
    _turn: Image.Transpose | None

    def pixels_HW3(self, *, shrink: int = 1) -> Tensor:
        """Returns the upright picture, uint8 RGB on the host.

        The EXIF orientation is applied. Grey, palette and CMYK pictures are converted to RGB,
        16-bit grey keeps its high byte, and an alpha channel is dropped (colours are not blended).

        Args:
            shrink: 1, or where ``can_shrink`` 2, 4 or 8: both sides are divided by it, rounded up.

        Raises:
            DataError: The bytes are broken or truncated.
        """
        assert shrink == 1 or self.can_shrink
        image = self._image
        try:
            if shrink > 1:
                image.draft("RGB", (image.width // shrink, image.height // shrink))
            elif self.can_shrink:
                # The same libjpeg as Pillow's, without two copies of the pixels.
                pixels_3HW: Tensor = decode_jpeg(_as_tensor(self._encoded), ImageReadMode.RGB)
                return pixels_3HW.permute(1, 2, 0)
            rgb = _to_rgb(image)
        except _BROKEN as error:
            raise _unreadable(self.where, error) from error
        return torch.from_numpy(np.array(rgb if self._turn is None else rgb.transpose(self._turn)))


def open_image(encoded: bytes | memoryview, *, where: str) -> EncodedImage:
    """Reads the header of an image file.

    Args:
        encoded: The bytes of the image file.
        where: Names the record or file in an error.

    Raises:
        DataError: The bytes are no JPEG, PNG, BMP or WebP image.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
        turn = _turn_to_upright(image)
    except _BROKEN as error:
        raise _unreadable(where, error) from error
    width, height = image.size if turn not in _SWAPS_SIDES else image.size[::-1]
    can_shrink = image.format == "JPEG" and image.mode == "RGB" and turn is None
    return EncodedImage(where, height, width, can_shrink, encoded, image, turn)


def decode_image(encoded: bytes | memoryview, *, where: str) -> Image.Image:
    """Returns the upright picture of an image file as ``EncodedImage.pixels_HW3`` decodes it.

    Raises:
        DataError: The bytes are not such an image, or are broken or truncated.
    """
    return Image.fromarray(open_image(encoded, where=where).pixels_HW3().numpy())


def image_size(encoded: bytes | memoryview, *, where: str = "image") -> tuple[int, int]:
    """Returns (height, width) of the upright picture from its header, without decoding pixels.

    Raises:
        DataError: The header is not one of a JPEG, PNG, BMP or WebP image.
    """
    image = open_image(encoded, where=where)
    return image.height, image.width


def _as_tensor(encoded: bytes | memoryview) -> Tensor:
    # A copy, since torch refuses to share memory that it must not write.
    return torch.frombuffer(bytearray(encoded), dtype=torch.uint8)


def _turn_to_upright(image: Image.Image) -> Image.Transpose | None:
    # Only EXIF that precedes the pixels counts, so that the size is known before they are read.
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
    # torchvision names its source file and line first.
    reason = re.sub(r"^.*decode_jpeg\.cpp:\d+, ", "", str(error))
    return DataError(f"{where}: the image cannot be decoded ({reason}); replace or remove it")

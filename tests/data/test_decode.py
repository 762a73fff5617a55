import io
import struct
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rayeffdet.data.decode import decode_image, image_size
from rayeffdet.errors import DataError

ORIENTATION = 0x0112


def encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def picture(height=24, width=40):
    """Four plain quarters, so that every mirror and turn is told apart and JPEG changes little."""
    red, green, blue, white = (250, 10, 10), (10, 250, 10), (10, 10, 250), (240, 240, 240)
    quarters = np.array([[red, green], [blue, white]], np.uint8)
    return Image.fromarray(quarters.repeat(height // 2, axis=0).repeat(width // 2, axis=1))


def pixels(encoded):
    image = decode_image(encoded, where="a")
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "WEBP"])
def test_every_accepted_format_gives_the_picture_and_its_size(file_format):
    encoded = encode(picture(), file_format)
    assert image_size(encoded) == (24, 40)
    assert np.abs(pixels(encoded) - np.asarray(picture()))[4:8, 4:16].max() < 12


def test_bytes_may_come_as_a_view_of_a_larger_buffer():
    encoded = encode(picture())
    view = memoryview(b"xx" + encoded + b"yy")[2:-2]
    assert image_size(view) == (24, 40)
    np.testing.assert_array_equal(pixels(view), np.asarray(picture()))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_camera_gives_an_upright_picture(orientation, file_format):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    encoded = encode(picture(), file_format, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
    np.testing.assert_array_equal(pixels(encoded), upright)
    assert image_size(encoded) == upright.shape[:2]
    assert (image_size(encoded) == (40, 24)) == (orientation > 4)


@pytest.mark.filterwarnings("ignore")
def test_a_broken_exif_block_does_not_lose_the_picture():
    exif = Image.Exif()
    exif[ORIENTATION] = 1
    whole = exif.tobytes()
    for block in [whole[:length] for length in range(1, len(whole))] + [b"Exif\0\0nonsense"]:
        encoded = encode(picture(), "JPEG", exif=block)
        assert image_size(encoded) == (24, 40)
        assert pixels(encoded).shape == (24, 40, 3)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_leaves_the_picture_as_it_is(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    encoded = encode(picture(), exif=exif)
    np.testing.assert_array_equal(pixels(encoded), np.asarray(picture()))


def test_sixteen_bit_grey_keeps_its_high_byte():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    expected = np.repeat((ramp >> 8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(ramp))), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_grey_palette_and_alpha_become_rgb(mode):
    image = picture().convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels(encode(image)), expected)


def test_a_cmyk_jpeg_keeps_its_colours():
    found = pixels(encode(picture().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(found - np.asarray(picture()))[4:8, 4:16].max() < 12


def test_alpha_is_dropped_and_not_blended():
    image = Image.new("RGBA", (4, 4), (10, 200, 30, 0))
    np.testing.assert_array_equal(pixels(encode(image))[0, 0], (10, 200, 30))


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_decodes_without_a_warning():
    transparent = encode(picture().convert("P"), transparency=bytes([0, 128, 255]))
    assert pixels(transparent).shape == (24, 40, 3)


@pytest.mark.parametrize("encoded", [b"", b"hello", b"\xff\xd8\xff", b"GIF89a" + bytes(40)])
def test_what_is_no_image_is_named_as_such(encoded):
    for read in (decode_image, image_size):
        with pytest.raises(DataError) as caught:
            read(encoded, where="train.tfrecord: offset 7")
        assert str(caught.value).startswith("train.tfrecord: offset 7: ")
        assert "JPEG, PNG, BMP or WebP" in str(caught.value)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "WEBP"])
def test_a_truncated_image_is_an_error_that_names_the_record(file_format):
    encoded = encode(Image.effect_noise((64, 64), 50).convert("RGB"), file_format)
    with pytest.raises(DataError, match=r"^a\.jpg: .*; replace or remove it$"):
        decode_image(encoded[: len(encoded) // 2], where="a.jpg")


def test_a_header_cut_short_is_a_data_error():
    ihdr = b"IHDR" + bytes(5)
    encoded = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 5) + ihdr + struct.pack(">I", crc32(ihdr))
    for read in (decode_image, image_size):
        with pytest.raises(DataError, match=r"^a\.png: "):
            read(encoded, where="a.png")


def test_a_size_beyond_reason_is_an_error_before_any_pixel_is_read():
    header = bytearray(encode(picture(), "BMP"))
    header[18:26] = (60_000).to_bytes(4, "little") * 2
    with pytest.raises(DataError, match="bomb"):
        image_size(bytes(header))


CORRUPTIBLE = {name: encode(picture(), name) for name in ("JPEG", "PNG", "BMP", "WEBP")}


@given(
    file_format=st.sampled_from(sorted(CORRUPTIBLE)),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
)
@pytest.mark.filterwarnings("ignore")
def test_any_corruption_gives_a_picture_or_a_data_error(file_format, changes):
    encoded = bytearray(CORRUPTIBLE[file_format])
    for position, value in changes:
        encoded[position % len(encoded)] = value
    try:
        decoded = decode_image(bytes(encoded), where="a")
    except DataError:
        return
    assert image_size(bytes(encoded)) == (decoded.height, decoded.width)

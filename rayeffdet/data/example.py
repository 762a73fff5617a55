"""The record contract: one encoded image with its boxes, as stored in a TFRecord."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tfrecord import example_pb2

from rayeffdet.data.decode import image_size
from rayeffdet.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image, still encoded, and its n objects.

    Attributes:
        source_id: Id of the image in its annotation file, as text.
        filename: Name of the image file, relative to the image folder.
        encoded: The bytes of the image file, unmodified.
        format: ``jpeg``, ``png``, ``bmp`` or ``webp``.
        height: Of the upright picture, pixels.
        width: Of the upright picture, pixels.
        boxes_xyxy: float32 [n, 4], pixels of the upright picture; may reach outside of it.
        labels: int64 [n], category ids as in the annotation file.
        class_names: Name of each object's category; the id as text where the record has no name.
        is_crowd: bool [n].
        areas: float32 [n], square pixels; of the object's outline where the annotator gave it.
        masks: PNG of each object, 8 bits, 0 or 1, as large as the picture; empty without masks.
    """

    source_id: str
    filename: str
    encoded: bytes | memoryview
    format: str
    height: int
    width: int
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float32]
    masks: tuple[bytes, ...] = ()


def encode_example(example: Example) -> bytes:
    """Returns the serialised ``tensorflow.Example`` in the schema of TAO's dataset_convert."""
    message = example_pb2.Example()
    feature = message.features.feature
    box_lists = (example.boxes_xyxy.astype(np.float64) / _box_scale(example)).T

    def put(key: str, kind: str, values: Any) -> None:
        getattr(feature[key], kind).value.extend(values)

    put("image/height", "int64_list", [example.height])
    put("image/width", "int64_list", [example.width])
    put("image/filename", "bytes_list", [_bytes(example.filename)])
    put("image/source_id", "bytes_list", [_bytes(example.source_id)])
    put("image/key/sha256", "bytes_list", [hashlib.sha256(example.encoded).hexdigest().encode()])
    put("image/encoded", "bytes_list", [bytes(example.encoded)])
    put("image/format", "bytes_list", [_bytes(example.format)])
    for key, values in zip(_BOX_KEYS, box_lists, strict=True):
        put(key, "float_list", values.tolist())
    put(_TEXT_KEY, "bytes_list", list(map(_bytes, example.class_names)))
    put(_LABEL_KEY, "int64_list", example.labels.tolist())
    put(_CROWD_KEY, "int64_list", example.is_crowd.astype(np.int64).tolist())
    put(_AREA_KEY, "float_list", example.areas.tolist())
    if example.masks:
        put("image/object/mask", "bytes_list", example.masks)
    return message.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def decode_example(payload: bytes, *, where: str) -> Example:
    """Returns the example of one record; masks are left behind since this network reads none.

    Only the encoded image is required. A missing height or width is read from the image's header,
    a missing source_id is the SHA-256 of the image's bytes, a missing area is that of the box, a
    missing is_crowd is false and a missing name is the category id.

    Args:
        payload: A serialised ``tensorflow.Example``.
        where: Names the record in an error, as in ``<path>: offset <byte>``.

    Raises:
        DataError: Not an Example, no image, a field of the wrong type, object lists of different
            lengths, or a coordinate that is not finite.
    """
    try:
        features = example_pb2.Example.FromString(payload).features.feature
    except DecodeError as error:
        raise DataError(f"{where}: the record is not a tensorflow.Example ({error})") from error
    encoded = _first(features, "image/encoded", "bytes_list", where)
    if not encoded:
        raise DataError(f"{where}: image/encoded is missing; write the shard anew")
    height = _first(features, "image/height", "int64_list", where) or -1
    width = _first(features, "image/width", "int64_list", where) or -1
    if height < 1 or width < 1:
        height, width = image_size(encoded, where=where)
    source_id = _text(features, "image/source_id", where) or hashlib.sha256(encoded).hexdigest()
    return Example(
        source_id=source_id,
        filename=_text(features, "image/filename", where),
        encoded=encoded,
        format=_text(features, "image/format", where) or "jpeg",
        height=height,
        width=width,
        **_objects(features, height, width, where),
    )


_BOX_KEYS = tuple(f"image/object/bbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax"))
_LABEL_KEY = "image/object/class/label"
_TEXT_KEY = "image/object/class/text"
_CROWD_KEY = "image/object/is_crowd"
_AREA_KEY = "image/object/area"


def _objects(features: Mapping[str, Any], height: int, width: int, where: str) -> dict[str, Any]:
    sides = [np.array(_values(features, key, "float_list", where)) for key in _BOX_KEYS]
    labels = list(_values(features, _LABEL_KEY, "int64_list", where))
    texts = _values(features, _TEXT_KEY, "bytes_list", where)
    crowds = _values(features, _CROWD_KEY, "int64_list", where)
    areas = _values(features, _AREA_KEY, "float_list", where)
    lengths = {_LABEL_KEY: len(labels)}
    lengths |= {key: len(side) for key, side in zip(_BOX_KEYS, sides, strict=True)}
    optional = {_TEXT_KEY: texts, _CROWD_KEY: crowds, _AREA_KEY: areas}
    lengths |= {key: len(values) for key, values in optional.items() if len(values)}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise DataError(f"{where}: the object lists differ in length: {found}")
    boxes_xyxy = np.stack(sides, axis=-1).reshape(-1, 4) * [width, height, width, height]
    if not np.isfinite(boxes_xyxy).all():
        raise DataError(f"{where}: a box coordinate is not a finite number")
    box_areas = (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
    return {
        "boxes_xyxy": boxes_xyxy.astype(np.float32),
        "labels": np.array(labels, np.int64),
        "class_names": tuple(t.decode(errors="replace") for t in texts) or tuple(map(str, labels)),
        "is_crowd": np.array(crowds, bool) if len(crowds) else np.zeros(len(labels), bool),
        "areas": np.array(areas if len(areas) else box_areas, np.float32),
    }


def _values(features: Mapping[str, Any], key: str, kind: str, where: str) -> Any:
    # Looking up a missing key of a protobuf map would add it.
    if key not in features:
        return ()
    found = features[key].WhichOneof("kind")
    if found not in (kind, None):
        raise DataError(f"{where}: {key} is a {found}, not a {kind}")
    return getattr(features[key], kind).value


def _first(features: Mapping[str, Any], key: str, kind: str, where: str) -> Any:
    values = _values(features, key, kind, where)
    return values[0] if len(values) else None


def _text(features: Mapping[str, Any], key: str, where: str) -> str:
    return str((_first(features, key, "bytes_list", where) or b"").decode(errors="replace"))


def _bytes(text: str) -> bytes:
    # JSON can hold half a surrogate pair, which UTF-8 cannot.
    return text.encode(errors="replace")


def _box_scale(example: Example) -> NDArray[np.float64]:
    return np.array([example.width, example.height, example.width, example.height], np.float64)

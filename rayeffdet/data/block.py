"""What travels between processes, as Arrow tables: encoded records, or one batch ready for use."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from rayeffdet.data.example import Example
from rayeffdet.data.loader import Batch

SCHEMA = pa.schema(
    [
        ("where", pa.string()),
        ("position", pa.int64()),
        ("source_id", pa.string()),
        ("filename", pa.string()),
        ("format", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("encoded", pa.large_binary()),
        ("boxes_xyxy", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int64())),
        ("class_names", pa.list_(pa.string())),
        ("is_crowd", pa.list_(pa.bool_())),
        ("areas", pa.list_(pa.float32())),
    ]
)


def examples_to_table(
    examples: Sequence[Example], *, positions: Sequence[int], wheres: Sequence[str]
) -> pa.Table:
    """Returns one row an example; masks stay behind, since nothing downstream reads them.

    Args:
        examples: The records.
        positions: Position of each in the stream of its worker's run.
        wheres: File and offset of each, for error messages.
    """
    columns = {
        "where": list(wheres),
        "position": list(positions),
        "source_id": [e.source_id for e in examples],
        "filename": [e.filename for e in examples],
        "format": [e.format for e in examples],
        "height": [e.height for e in examples],
        "width": [e.width for e in examples],
        "encoded": [e.encoded for e in examples],
        "boxes_xyxy": [e.boxes_xyxy.reshape(-1) for e in examples],
        "labels": [e.labels for e in examples],
        "class_names": [list(e.class_names) for e in examples],
        "is_crowd": [e.is_crowd for e in examples],
        "areas": [e.areas for e in examples],
    }
    return pa.table(columns, schema=SCHEMA)


def table_to_examples(table: pa.Table) -> list[tuple[str, int, Example]]:
    """Returns (where, position, example) of each row."""
    rows = {name: table.column(name).to_pylist() for name in SCHEMA.names}
    return [
        (
            rows["where"][i],
            rows["position"][i],
            Example(
                source_id=rows["source_id"][i],
                filename=rows["filename"][i],
                encoded=rows["encoded"][i],
                format=rows["format"][i],
                height=rows["height"][i],
                width=rows["width"][i],
                boxes_xyxy=np.array(rows["boxes_xyxy"][i], np.float32).reshape(-1, 4),
                labels=np.array(rows["labels"][i], np.int64),
                class_names=tuple(rows["class_names"][i]),
                is_crowd=np.array(rows["is_crowd"][i], bool),
                areas=np.array(rows["areas"][i], np.float32),
            ),
        )
        for i in range(table.num_rows)
    ]


def batch_to_table(batch: Batch, *, wheres: Sequence[str], positions: Sequence[int]) -> pa.Table:
    """Returns one row an image: its record without the encoded bytes, its pixels, its boxes."""
    examples = [replace(example, encoded=b"") for example in batch.examples]
    table = examples_to_table(examples, positions=positions, wheres=wheres)
    pixels = batch.images_B3HW.numpy()
    columns = {
        "pixels": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(pixels[0].nbytes), len(pixels), [None, pa.py_buffer(pixels)]
        ),
        "input_boxes_xyxy": pa.array(list(batch.boxes_BG4.flatten(1).numpy())),
        "channels": pa.array(list(batch.labels_BG.numpy())),
        "scale": pa.array(batch.scales_B.numpy()),
        "num_truncated": pa.array([batch.num_truncated] + [0] * (len(pixels) - 1)),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def table_to_batch(table: pa.Table, *, size_hw: tuple[int, int]) -> tuple[Batch, list[int]]:
    """Returns the batch that ``batch_to_table`` was given, and its positions.

    The pixels stay where they are: the tensor is a view of the table's memory, not to be written.
    """
    table = table.combine_chunks()
    pixels = table.column("pixels").chunk(0)
    start = pixels.offset * pixels.type.byte_width
    view = np.frombuffer(pixels.buffers()[1], np.uint8)[start:][: pixels.nbytes]
    rows = table_to_examples(table)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        images_B3HW = torch.from_numpy(view.reshape(len(rows), 3, *size_hw))
    boxes = np.array(table.column("input_boxes_xyxy").to_pylist(), np.float32)
    batch = Batch(
        images_B3HW=images_B3HW,
        boxes_BG4=torch.from_numpy(boxes.reshape(len(rows), -1, 4)),
        labels_BG=torch.tensor(table.column("channels").to_pylist(), dtype=torch.int64),
        scales_B=torch.tensor(table.column("scale").to_pylist(), dtype=torch.float32),
        examples=tuple(example for _, _, example in rows),
        num_truncated=sum(table.column("num_truncated").to_pylist()),
    )
    return batch, [position for _, position, _ in rows]

"""Examples as an Arrow table, the form in which they travel between processes, still encoded."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayeffdet.data.example import Example

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

"""Runs under TensorFlow, in an environment of its own: writes shards, and reads ours.

python tensorflow_judge.py write FOLDER IMAGE.jpg   writes plain.tfrecord and gzip.tfrecord
python tensorflow_judge.py parse SHARD              prints one line of JSON for each record
"""

import hashlib
import json
import sys
from pathlib import Path

import tensorflow as tf

LISTS = {
    "image/object/bbox/xmin": tf.float32,
    "image/object/bbox/xmax": tf.float32,
    "image/object/bbox/ymin": tf.float32,
    "image/object/bbox/ymax": tf.float32,
    "image/object/area": tf.float32,
    "image/object/class/label": tf.int64,
    "image/object/is_crowd": tf.int64,
    "image/object/class/text": tf.string,
}
SCALARS = {
    "image/height": tf.int64,
    "image/width": tf.int64,
    "image/filename": tf.string,
    "image/source_id": tf.string,
    "image/key/sha256": tf.string,
    "image/format": tf.string,
    "image/encoded": tf.string,
}


def feature(values: list) -> tf.train.Feature:
    if values and isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if values and isinstance(values[0], int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def examples(image: bytes) -> list[bytes]:
    """One record with two objects, one with none, one with the fewest fields there can be."""
    full = {
        "image/height": [48],
        "image/width": [64],
        "image/filename": [b"full.jpg"],
        "image/source_id": [b"17"],
        "image/key/sha256": [hashlib.sha256(image).hexdigest().encode()],
        "image/encoded": [image],
        "image/format": [b"jpeg"],
        "image/object/bbox/xmin": [0.25, 0.0],
        "image/object/bbox/xmax": [0.75, 0.5],
        "image/object/bbox/ymin": [0.5, 0.0],
        "image/object/bbox/ymax": [1.0, 0.25],
        "image/object/class/text": [b"cat", "Hündin".encode()],
        "image/object/class/label": [1, 2],
        "image/object/is_crowd": [0, 1],
        "image/object/area": [700.0, 300.0],
    }
    empty = {name: values for name, values in full.items() if "object" not in name}
    empty["image/source_id"] = [b"not-a-number"]
    fewest = {"image/encoded": [image]}
    return [
        tf.train.Example(
            features=tf.train.Features(feature={k: feature(v) for k, v in one.items()})
        ).SerializeToString()
        for one in (full, empty, fewest)
    ]


def write(folder: Path, image: bytes) -> None:
    for name, compression in (("plain", ""), ("gzip", "GZIP")):
        options = tf.io.TFRecordOptions(compression_type=compression)
        with tf.io.TFRecordWriter(str(folder / f"{name}.tfrecord"), options) as writer:
            for example in examples(image):
                writer.write(example)


def parse(shard: str) -> None:
    description = {name: tf.io.VarLenFeature(kind) for name, kind in LISTS.items()}
    description |= {name: tf.io.FixedLenFeature([], kind) for name, kind in SCALARS.items()}
    for record in tf.data.TFRecordDataset(shard):
        parsed = tf.io.parse_single_example(record, description)
        document = {}
        for name in LISTS:
            values = tf.sparse.to_dense(parsed[name]).numpy().tolist()
            document[name] = [v.decode() if isinstance(v, bytes) else v for v in values]
        for name in SCALARS:
            value = parsed[name].numpy()
            if name == "image/encoded":
                document["pixels"] = list(tf.io.decode_image(value).shape)
                value = hashlib.sha256(value).hexdigest().encode()
            document[name] = value.decode() if isinstance(value, bytes) else int(value)
        print(json.dumps(document))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), Path(sys.argv[3]).read_bytes())
    else:
        parse(sys.argv[2])

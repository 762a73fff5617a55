"""Runs under TensorFlow, in an environment of its own: writes shards, and reads ours.

python tensorflow_judge.py write FOLDER   writes plain.tfrecord and gzip.tfrecord of records.json
python tensorflow_judge.py parse SHARD    prints one line of JSON for each record

records.json lists records as feature name to list of values; {"file": name} stands for the bytes of
a file of the folder.
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
    "image/object/mask": tf.string,
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
KINDS = {float: tf.float32, int: tf.int64, str: tf.string, dict: tf.string}


def write(folder: Path) -> None:
    records = json.loads((folder / "records.json").read_text())
    for name, compression in (("plain", ""), ("gzip", "GZIP")):
        options = tf.io.TFRecordOptions(compression_type=compression)
        with tf.io.TFRecordWriter(str(folder / f"{name}.tfrecord"), options) as writer:
            for record in records:
                features = {key: feature(folder, key, values) for key, values in record.items()}
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())


def feature(folder: Path, key: str, values: list) -> tf.train.Feature:
    # An empty list has a kind too.
    kind = {**LISTS, **SCALARS}.get(key) or KINDS[type(values[0])]
    if kind == tf.string:
        values = [
            (folder / value["file"]).read_bytes() if isinstance(value, dict) else value.encode()
            for value in values
        ]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if kind == tf.int64:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def parse(shard: str) -> None:
    description = {name: tf.io.VarLenFeature(kind) for name, kind in LISTS.items()}
    description |= {name: tf.io.FixedLenFeature([], kind) for name, kind in SCALARS.items()}
    for record in tf.data.TFRecordDataset(shard):
        parsed = tf.io.parse_single_example(record, description)
        document = {name: parsed[name].values.numpy().tolist() for name in LISTS}
        document |= {name: parsed[name].numpy() for name in SCALARS}
        masks = document.pop("image/object/mask")
        document["masks"] = [tf.io.decode_png(mask)[..., 0].numpy().tolist() for mask in masks]
        pixels = tf.io.decode_image(document["image/encoded"], channels=3).numpy()
        document["pixels"] = [list(pixels.shape), hashlib.sha256(pixels.tobytes()).hexdigest()]
        document["image/encoded"] = hashlib.sha256(document["image/encoded"]).hexdigest()
        print(json.dumps(document, default=plain))


def plain(value):
    return value.decode() if isinstance(value, bytes) else value.item()


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        parse(sys.argv[2])

"""The life of one image: a tour of the code that stops once in every part of it.

    a JPEG and a line of COCO json -> record -> shard -> order -> read -> decode -> transforms
    -> batch -> normalise -> network -> assigner -> losses -> step -> checkpoint
    -> detection -> COCO metrics

Every function called here is the one that a real run calls. What Ray adds is only where they run:
``distributed/`` converts shards as tasks, streams blocks to workers and detects in parallel.
Tensors are named with their axes: B images, H W pixels, N anchors, K classes, G padded boxes.
"""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from rayeffdet.data.block import table_to_examples
from rayeffdet.data.coco import read_coco
from rayeffdet.data.coco_example import make_example
from rayeffdet.data.convert import convert_shard, shard_name
from rayeffdet.data.decode import decode_image
from rayeffdet.data.example import decode_example, encode_example
from rayeffdet.data.index import index_shard, join_shards
from rayeffdet.data.loader import evaluation_sample, load_batches
from rayeffdet.data.order import records_at
from rayeffdet.data.tfrecord import iterate_records
from rayeffdet.distributed.ingest import _places, read_block
from rayeffdet.evaluate.build import build_postprocess
from rayeffdet.evaluate.detect import detect
from rayeffdet.evaluate.results import metrics_of_parts, part_of
from rayeffdet.model.efficientdet import EfficientDet, normalise
from rayeffdet.ops.assigner import BACKGROUND, assign_targets
from rayeffdet.ops.boxes import pairwise_iou_xyxy
from rayeffdet.ops.losses import detection_loss
from rayeffdet.spec.load import with_values
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import (
    build_architecture,
    build_epochs,
    build_sample,
    build_shuffle,
    build_step_settings,
    build_trainee,
    input_size,
    padding_rgb,
)
from rayeffdet.train.checkpoint import Checkpoint, save_checkpoint
from rayeffdet.train.detector import load_detector
from rayeffdet.train.optim import flatten_optimizer
from rayeffdet.train.step import World, train_step

# What a user would write in a spec file.
SPEC = with_values(
    Spec(),
    {
        "dataset.num_classes": 3,
        "dataset.augmentation.random_crop_min_scale": 0.6,
        "dataset.augmentation.random_crop_max_scale": 1.2,
        "model.name": "efficientdet-d0",
        "model.input_width": 192,
        "model.input_height": 128,
        "train.batch_size": 1,
        "encryption_key": "a passphrase",
    },
    where="tour",
)
CLASS_NAMES = {1: "window", 2: "door"}
# This process is the only training worker.
WORLD = World(rank=0, size=1, device=torch.device("cpu"))

# The picture is 240 x 120 pixels, blue, with one red door.
WIDTH, HEIGHT = 240, 120
DOOR_XYXY = (60, 20, 130, 100)
RED, BLUE = (200, 30, 30), (30, 60, 160)


def test_the_life_of_one_image(tmp_path):
    shard = from_a_jpeg_to_a_shard(tmp_path)
    row = from_the_shard_to_a_row(shard)
    batch = from_the_row_to_a_batch(row)
    trainee = from_the_batch_to_a_trained_step(batch)
    path = from_the_trainee_to_a_checkpoint(trainee, str(tmp_path / "efficientdet-d0_001.tlt"))
    from_the_checkpoint_to_metrics(path, row)


def from_a_jpeg_to_a_shard(folder):
    # A user has a folder of JPEG files and a COCO annotation file; boxes are x, y, width, height.
    picture = Image.new("RGB", (WIDTH, HEIGHT), BLUE)
    x1, y1, x2, y2 = DOOR_XYXY
    ImageDraw.Draw(picture).rectangle((x1, y1, x2 - 1, y2 - 1), RED)
    (folder / "images").mkdir()
    picture.save(folder / "images" / "house.jpg", quality=95, subsampling=0)
    box_xywh = [x1, y1, x2 - x1, y2 - y1]
    annotations = {
        "images": [{"id": 917, "file_name": "house.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"id": 1, "image_id": 917, "category_id": 2, "bbox": box_xywh}],
        "categories": [{"id": i, "name": name} for i, name in CLASS_NAMES.items()],
    }
    (folder / "instances.json").write_text(json.dumps(annotations))

    # data/coco checks the file, data/coco_example the image: what is unusable becomes a warning.
    coco_set = read_coco(str(folder / "instances.json"), str(folder / "images"))
    assert (len(coco_set.images), coco_set.categories, coco_set.warnings) == (1, CLASS_NAMES, ())
    example, warnings = make_example(coco_set, 0, include_masks=False)
    assert warnings == []
    assert (example.source_id, example.height, example.width) == ("917", HEIGHT, WIDTH)
    assert example.boxes_xyxy.tolist() == [list(DOOR_XYXY)]

    # data/example makes a record of it in the schema of NVIDIA TAO; the JPEG's bytes are untouched.
    payload = encode_example(example)
    assert decode_example(payload, where="tour").encoded == example.encoded
    assert example.encoded == (folder / "images" / "house.jpg").read_bytes()

    # data/convert writes whole shards of records; dataset_convert runs this as Ray tasks.
    report = convert_shard(
        annotations_file=str(folder / "instances.json"),
        image_dir=str(folder / "images"),
        results_dir=str(folder),
        tag="train",
        shard=0,
        num_shards=1,
        include_masks=False,
    )
    assert (report.num_images, report.boxes_per_class) == (1, {"1": 0, "2": 1})
    path = str(folder / shard_name("train", 0, 1))
    assert list(iterate_records(path)) == [(0, payload)]
    return path


def from_the_shard_to_a_row(path):
    # data/index reads every shard once: where its records lie, and whether all is well with them.
    index = join_shards([index_shard(path, num_classes=SPEC.dataset.num_classes)])
    assert (index.num_records, index.class_counts, index.class_names) == (1, {2: 1}, {2: "door"})

    # data/order: records form an endless stream of shuffled passes. An epoch is a stretch of it, a
    # step a stretch of that, of which each worker takes its share. With one record, position 3 of
    # the stream is that record in the fourth epoch.
    epochs = build_epochs(SPEC, num_records=index.num_records, num_workers=WORLD.size)
    share = epochs.share(3, 0, rank=WORLD.rank, world_size=WORLD.size)
    assert (epochs.steps, list(share)) == (1, [3])
    assert records_at(share, index.shard_sizes, build_shuffle(SPEC)) == [0]

    # distributed/ingest: this is what a read task of Ray Data does for a block of records. They
    # travel as an Arrow table, still encoded.
    places = _places(index, share, build_shuffle(SPEC))
    assert places == [(path, 0, 3)]
    table = read_block(places)
    (row,) = table_to_examples(table)
    where, position, example = row
    assert (where, position, example.source_id) == (f"{path}: offset 0", 3, "917")
    return row


def from_the_row_to_a_batch(row):
    # data/decode gives upright RGB pixels; an error would name the file and the offset.
    where, _, example = row
    picture = decode_image(example.encoded, where=where)
    assert (picture.size, picture.mode) == ((WIDTH, HEIGHT), "RGB")

    # data/transforms flips, scales and crops into the network's input; boxes follow the picture.
    # All that is random depends on seed and position alone, so a sample can be made anywhere.
    image_3HW = torch.empty(3, *input_size(SPEC), dtype=torch.uint8)
    sample = build_sample(SPEC, build_architecture(SPEC))(row, image_3HW)
    ((x1, y1, x2, y2),) = sample.boxes_xyxy.round().astype(int)
    is_red_HW = image_3HW[0].int() - image_3HW[2] > 40
    assert is_red_HW[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].all()
    assert is_red_HW.sum() == pytest.approx((x2 - x1) * (y2 - y1), rel=0.05)

    # data/loader decodes in threads beside the training loop and collates. Labels are channels of
    # the network, category id - 1; rows of padding have label -1.
    (batch,) = load_batches(
        [[row]],
        build_sample(SPEC, build_architecture(SPEC)),
        size_hw=input_size(SPEC),
        max_instances=SPEC.dataset.max_instances_per_image,
        num_threads=1,
        prefetch=SPEC.dataset.loader.prefetch_size,
    )
    assert torch.equal(batch.images_B3HW[0], image_3HW)
    assert np.array_equal(batch.boxes_BG4[0, :1], sample.boxes_xyxy)
    assert batch.labels_BG.tolist() == [[1] + 15 * [-1]]
    assert batch.source_ids == ("917",)
    return batch


def from_the_batch_to_a_trained_step(batch):
    # model/scaling describes a network layer by layer; train/build puts beside it all that changes
    # while training: optimizer, average, loss scale.
    torch.manual_seed(SPEC.train.random_seed)
    trainee = build_trainee(SPEC, EfficientDet(build_architecture(SPEC)), WORLD)

    # Only now, on the device, do bytes become floats: ImageNet's mean is 0.
    images_B3HW = normalise(batch.images_B3HW, build_architecture(SPEC))
    assert (images_B3HW.shape, images_B3HW.dtype) == ((1, 3, 128, 192), torch.float32)

    # model/: EfficientNet, BiFPN and two heads answer for each anchor of ops/anchors. Levels 3 to 7
    # have 16 x 24 down to 1 x 2 cells, of nine anchors each.
    num_anchors = 9 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2)
    class_logits_BNK, box_deltas_BN4 = trainee.network(images_B3HW)
    assert class_logits_BNK.shape == (1, num_anchors, 2)
    assert box_deltas_BN4.shape == (1, num_anchors, 4)
    assert trainee.anchors_N4.shape == (num_anchors, 4)
    # A fresh network thinks little of every anchor: about 1 %.
    assert class_logits_BNK.sigmoid().mean().item() == pytest.approx(0.01, abs=0.005)

    # ops/assigner: the answers to learn. Anchors that overlap the door by half are to say "door".
    targets = assign_targets(trainee.anchors_N4, batch.boxes_BG4, batch.labels_BG)
    is_positive_N = targets.class_ids_BN[0] == 1
    iou_N = pairwise_iou_xyxy(batch.boxes_BG4[0, :1], trainee.anchors_N4)[0]
    assert torch.equal(is_positive_N, (iou_N >= 0.5) | (iou_N == iou_N.max()))
    assert targets.num_positives_B.item() == is_positive_N.sum() >= 1
    assert (targets.class_ids_BN[0][~is_positive_N] == BACKGROUND).all()

    # ops/losses: focal loss of all anchors, Huber loss of the positive ones.
    normaliser = targets.num_positives_B.sum() + 1
    losses = detection_loss(
        class_logits_BNK, box_deltas_BN4, targets, trainee.anchors_N4, normaliser=normaliser
    )
    assert losses.total.item() == pytest.approx(losses.cls.item() + 50 * losses.box.item())

    # train/step does all of this and updates the weights and their average.
    before = trainee.network.class_head.predict.pointwise.bias.detach().clone()
    result = train_step(
        trainee,
        batch,
        step=0,
        learning_rate=0.01,
        settings=build_step_settings(SPEC, WORLD.device),
        world=WORLD,
    )
    assert result.loss == pytest.approx(losses.total.item(), rel=1e-4)
    assert not torch.equal(trainee.network.class_head.predict.pointwise.bias, before)
    return trainee


def from_the_trainee_to_a_checkpoint(trainee, path):
    # train/checkpoint: one file that rebuilds the network by itself, and from which training goes
    # on with the same bits. It is encrypted where the spec has a key.
    optimizer, optimizer_meta = flatten_optimizer(trainee.optimizer, trainee.network)
    checkpoint = Checkpoint(
        architecture=trainee.network.architecture.to_dict(),
        class_names=CLASS_NAMES,
        input_size=input_size(SPEC),
        normalisation={},
        spec=SPEC.public_dict(),
        epoch=1,
        step=1,
        model=trainee.network.state_dict(),
        ema=trainee.ema.state_dict(),
        optimizer=optimizer,
        optimizer_meta=optimizer_meta,
    )
    save_checkpoint(path, checkpoint, encryption_key=SPEC.encryption_key)
    return path


def from_the_checkpoint_to_metrics(path, row):
    # train/detector: evaluation and inference need nothing but the file and its key.
    detector = load_detector(path, spec=SPEC, device=WORLD.device)
    assert (detector.input_size, detector.class_names) == (input_size(SPEC), CLASS_NAMES)

    def batches():
        return load_batches(
            [[row]],
            partial(evaluation_sample, padding_rgb=padding_rgb(detector.network.architecture)),
            size_hw=detector.input_size,
            max_instances=1,
            num_threads=1,
            prefetch=0,
        )

    # Evaluation never varies the picture: 240 x 120 fits 192 x 128 at 0.8, with padding below it.
    (batch,) = batches()
    assert batch.scales_B.item() == pytest.approx(1 / 0.8)
    assert (batch.images_B3HW[0, :, 96:] == torch.tensor([124, 116, 104])[:, None, None]).all()

    # evaluate/detect: network and ops/postprocess. After one step it cannot know anything yet, but
    # what it says lies inside the original picture, best first.
    settings = build_postprocess(SPEC)
    (found,) = detect(
        detector.network, batches(), anchors_N4=detector.anchors_N4, settings=settings
    )
    assert len(found.scores) == settings.max_detections
    assert (np.diff(found.scores) <= 0).all()
    assert set(found.category_ids.tolist()) <= set(CLASS_NAMES)
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()

    # evaluate/results and evaluate/coco: parts of all workers become the numbers of pycocotools.
    metrics = metrics_of_parts([part_of([found])], class_names=CLASS_NAMES, val_json_file="")
    assert 0 <= metrics["AP"] < 0.5
    assert (metrics["num_images"], metrics["num_truths"]) == (1, 1)

    # A network that has learnt its lesson gives the assigner's answers. The way back is exact: the
    # door is found where the annotation file had it, and AP is 1.
    class AnswerKey(torch.nn.Module):
        architecture = detector.network.architecture

        def forward(self, images_B3HW):
            boxes_BG4 = torch.tensor([[DOOR_XYXY]]) * 0.8
            targets = assign_targets(detector.anchors_N4, boxes_BG4, torch.tensor([[1]]))
            is_door_BN = targets.class_ids_BN == 1
            logits_BN = torch.where(is_door_BN, 5.0, -5.0)
            logits_BNK = torch.stack([torch.full_like(logits_BN, -5.0), logits_BN], dim=-1)
            return logits_BNK, targets.box_deltas_BN4

    (found,) = detect(AnswerKey(), batches(), anchors_N4=detector.anchors_N4, settings=settings)
    np.testing.assert_allclose(found.boxes_xyxy[0], DOOR_XYXY, atol=0.01)
    assert (found.category_ids[0], found.scores[0] > 0.99) == (2, True)
    metrics = metrics_of_parts([part_of([found])], class_names=CLASS_NAMES, val_json_file="")
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["per_class"]["door"]["AP"] == pytest.approx(1)
    assert metrics["per_class"]["window"]["AP"] == -1  # There is none to be found.

"""Images and boxes: COCO json, TFRecord shards, decoding, augmentation."""

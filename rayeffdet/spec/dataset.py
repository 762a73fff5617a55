"""The `dataset` section: where the records are, and how they are read and varied."""

from typing import Annotated

from annotated_types import Gt

from rayeffdet.spec.section import (
    Count,
    Flag,
    Integer,
    ListOf,
    Positive,
    PositiveInt,
    Section,
    Text,
)


class LoaderSection(Section):
    """How records are fed to the training loop."""

    prefetch_size: Count = 2
    """Batches made ready ahead of the training loop; 0 makes each when it is asked for."""

    shuffle_file: Flag = True
    """Shuffles the order of the shards before every pass over the training records."""

    shuffle_buffer: Count = 10000
    """Records among which the next one is drawn; 0 or 1 keeps their order. Numbers are shuffled,
    not images, so that a large buffer costs no memory."""

    cycle_length: PositiveInt = 32
    """Shards that are read in turn."""

    block_length: PositiveInt = 16
    """Consecutive records taken from a shard before the next one's turn."""


class AugmentationSection(Section):
    """How training images are varied; evaluation never varies them."""

    rand_hflip: Flag = True
    """Mirrors every second image from left to right."""

    random_crop_min_scale: Positive = 0.1
    """Smallest factor by which the image is scaled relative to the network's input."""

    random_crop_max_scale: Positive = 2.0
    """Largest factor by which the image is scaled; above 1 the image is cropped to the input."""

    auto_color_distortion: Flag = False
    """Changes colour, contrast, brightness or sharpness of every image by a random amount."""

    auto_translate_xy: Flag = False
    """Shifts every image along one axis by up to 75 pixels."""


class DatasetSection(Section):
    """The records to train and evaluate on."""

    loader: LoaderSection = LoaderSection()
    """How records are fed to the training loop."""

    augmentation: AugmentationSection = AugmentationSection()
    """How training images are varied."""

    train_tfrecords: ListOf[str] = ()
    """Training shards: paths, folders, globs or URIs; empty: the shards tagged `train` that
    dataset_convert left in the same results_dir."""

    val_tfrecords: ListOf[str] = ()
    """Validation shards: paths, folders, globs or URIs; empty: the shards tagged `val` that
    dataset_convert left in the same results_dir."""

    val_json_file: Text = ""
    """COCO annotations to evaluate against; empty: the truth in the validation records."""

    train_dirs: ListOf[str] = ()
    """Kept from TAO; images are read from the records only."""

    val_dirs: ListOf[str] = ()
    """Kept from TAO; images are read from the records only."""

    num_classes: Annotated[Integer, Gt(1)] = 91
    """Largest category id + 1, since id 0 is the background."""

    max_instances_per_image: PositiveInt = 100
    """Boxes kept per image; the rest is dropped with a counted warning."""

    skip_crowd_during_training: Flag = True
    """Leaves boxes marked as crowd out of training."""

    use_fake_data: Flag = False
    """Repeats the first training batch in place of all others, to look for faults."""

"""The `train` section, which train and retrain read."""

from typing import Annotated, Literal

from annotated_types import Lt
from pydantic import Field

from rayeffdet.spec.section import (
    UNQUOTED,
    Count,
    Decay,
    Flag,
    Mapping,
    NonNegative,
    Positive,
    PositiveInt,
    Section,
    Text,
)

Precision = Annotated[Literal[True, False, "bf16", "fp16"], UNQUOTED]


class OptimizerSection(Section):
    """The optimizer."""

    name: Literal["sgd", "adam"] = "sgd"
    """Plain momentum SGD, or Adam with `momentum` as its first beta."""

    momentum: Decay = 0.9
    """Momentum; 0 is none."""


class LrScheduleSection(Section):
    """The learning rate over the run; it is used as written, whatever the number of workers."""

    name: Literal["cosine", "soft_anneal"] = "cosine"
    """cosine: linear rise, half a cosine to 0; soft_anneal: exponential rise, flat, fall."""

    warmup_epoch: Count = 5
    """Epochs over which the rate rises from warmup_init to learning_rate; 0 starts at the top."""

    warmup_init: Annotated[NonNegative, Lt(1)] = 0.0001
    """Rate at the first step of the warm-up; with soft_anneal also at the end of the run."""

    learning_rate: Positive = 0.2
    """Highest rate; the paper's rule is 0.08 * global batch / 64."""

    annealing_epoch: Count = 10
    """Epoch at which soft_anneal starts to fall; cosine does not use it."""


class TrainSection(Section):
    """Training, and retraining of a pruned network."""

    optimizer: OptimizerSection = OptimizerSection()
    """The optimizer."""

    lr_schedule: LrScheduleSection = LrScheduleSection()
    """The learning rate over the run."""

    batch_size: PositiveInt = 8
    """Images per worker and step; the global batch is this times the number of workers."""

    num_epochs: PositiveInt = 300
    """Epochs of the whole run, those before a resume included."""

    num_examples_per_epoch: PositiveInt | None = None
    """Images that make an epoch, over all workers; null: the number of training records."""

    checkpoint: Text = ""
    """Weights to start from: a checkpoint, or a .safetensors or .pth file of timm, torchvision or
    effdet; empty: random weights."""

    resume_training_checkpoint_path: Text = ""
    """Checkpoint to go on from; empty: the last one in the results folder, if any."""

    init_epoch: Count = 0
    """Number of the first epoch of a run that resumes nothing."""

    pruned_model_path: Text = ""
    """Pruned checkpoint whose network is trained; `checkpoint` is then not read."""

    checkpoint_interval: PositiveInt = 10
    """Epochs between checkpoints; the last epoch always leaves one."""

    validation_interval: PositiveInt | None = None
    """Epochs between evaluations; null: checkpoint_interval; the last epoch is always evaluated."""

    amp: Precision = False
    """Mixed precision: true takes what a GPU does best and is left out on CPUs; bf16 and fp16 ask
    for one of them anywhere."""

    qat: Flag = False
    """Quantisation-aware training."""

    moving_average_decay: Decay = 0.9999
    """Decay of the weights' moving average, which is what evaluation uses; 0 turns it off."""

    l2_weight_decay: NonNegative = 0.00004
    """Factor of half the sum of squared convolution weights in the loss."""

    l1_weight_decay: NonNegative = 0.0
    """Factor of half the sum of absolute convolution weights in the loss."""

    clip_gradients_norm: NonNegative = 10.0
    """Largest norm of each gradient and of all together; 0 turns clipping off."""

    random_seed: Annotated[Count, Lt(2**32)] = 42
    """Seed of weights, shuffling and augmentation."""

    image_preview: Flag = True
    """Writes a picture of the first training batch, as the network sees it, with its boxes."""

    skip_checkpoint_variables: Text = "-predict*"
    """Kept from TAO, which does not use it either."""

    label_smoothing: Decay = 0.0
    """Share of the class target that is spread evenly over both outcomes."""

    box_loss_weight: NonNegative = 50.0
    """Weight of the Huber loss on box codes; 0 drops it."""

    iou_loss_type: Literal["", "iou", "giou", "diou", "ciou"] = ""
    """Overlap loss that is added; empty: none."""

    iou_loss_weight: NonNegative = 1.0
    """Weight of the overlap loss."""

    sync_batch_norm: Flag = False
    """Shares batch statistics between workers instead of keeping them per worker."""

    deterministic: Flag = False
    """Uses only operations that give the same bits in every run; slower."""

    results_dir: Text = ""
    """Folder of this task; empty: results_dir/train."""

    wandb: Mapping = Field(default_factory=dict)
    """Kept from TAO; nothing is sent to Weights & Biases."""

    clearml: Mapping = Field(default_factory=dict)
    """Kept from TAO; nothing is sent to ClearML."""

"""The whole spec."""

from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import Field

from rayeffdet.spec.dataset import DatasetSection
from rayeffdet.spec.model import ModelSection
from rayeffdet.spec.ray import RaySection
from rayeffdet.spec.section import (
    Count,
    Flag,
    Integer,
    ListOf,
    Mapping,
    PositiveInt,
    Section,
    TaskName,
    Text,
)
from rayeffdet.spec.tasks import (
    DatasetConvertSection,
    EvaluateSection,
    ExportSection,
    InferenceSection,
    PruneSection,
)
from rayeffdet.spec.tensorrt import GenTrtEngineSection
from rayeffdet.spec.train import TrainSection
from rayeffdet.spec.tune import TuneSection


class Spec(Section):
    """Everything that a run can be told."""

    tasks: ListOf[TaskName] = ()
    """Tasks to run in this order when the command line names none; empty: train."""

    results_dir: Annotated[str, MinLen(1)] = "results"
    """Path or URI under which every task writes, each to a folder of its own name."""

    encryption_key: Text = ""
    """Passphrase of checkpoints; empty: they are not encrypted."""

    num_gpus: PositiveInt = 1
    """Training workers, a GPU each where there are GPUs; ray.num_workers goes before it."""

    gpu_ids: ListOf[Count] = (0,)
    """GPUs of this machine to use; on a remote cluster Ray chooses them."""

    dataset: DatasetSection = DatasetSection()
    """The records to train and evaluate on."""

    model: ModelSection = ModelSection()
    """The network and its anchors."""

    train: TrainSection = TrainSection()
    """Training, and retraining of a pruned network."""

    evaluate: EvaluateSection = EvaluateSection()
    """COCO evaluation."""

    prune: PruneSection = PruneSection()
    """Removal of the filters that matter least."""

    export: ExportSection = ExportSection()
    """Export to ONNX."""

    inference: InferenceSection = InferenceSection()
    """Detection on a folder of images."""

    dataset_convert: DatasetConvertSection = DatasetConvertSection()
    """Conversion of COCO data to TFRecord shards."""

    ray: RaySection = RaySection()
    """Where the work runs."""

    tune: TuneSection = TuneSection()
    """A search over spec fields."""

    gen_trt_engine: GenTrtEngineSection = GenTrtEngineSection()
    """Kept from TAO Deploy."""

    data_format: Literal["channels_last"] = "channels_last"
    """Kept from TAO, which has only this value."""

    model_name: Text = ""
    """Kept from TAO, which does not use it either."""

    num_processes: Integer = -1
    """Kept from TAO; ray.num_workers says how many processes train."""

    multi_node: Flag = False
    """Kept from TAO; the Ray cluster decides on how many nodes a run spreads."""

    mpi_args: Mapping = Field(default_factory=dict)
    """Kept from TAO; nothing is started through MPI."""

    cuda_blocking: Flag = False
    """Kept from TAO; set CUDA_LAUNCH_BLOCKING in the environment instead."""

    def task_dir(self, task: str) -> str:
        """Returns the folder of a task: its section's results_dir, else results_dir/<task>.

        retrain has no section of its own, so that train.results_dir does not move it.
        """
        own = getattr(getattr(self, task, None), "results_dir", "")
        return own or f"{self.results_dir.rstrip('/')}/{task}"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values, the encryption key included, to travel to other processes."""
        return self.model_dump(mode="json")

    def public_dict(self) -> dict[str, Any]:
        """Returns plain JSON values without the encryption key, to be written to files."""
        return self.to_dict() | {"encryption_key": ""}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Spec":
        """Returns the spec that `to_dict` or `public_dict` described."""
        return cls.model_validate(values)

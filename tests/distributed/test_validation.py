"""What workers share before the network is evaluated or saved; two real processes over gloo."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rayeffdet.distributed.validation import share_statistics
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.spec.load import with_values
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import build_architecture, build_trainee
from rayeffdet.train.step import World

NUM_WORKERS = 2
SPEC = with_values(
    Spec(),
    {"model.input_width": 64, "model.input_height": 64, "train.moving_average_decay": 0.9},
    where="test",
)
NORM = "backbone.stem.norm"


def run_worker(rank, folder):
    """Gives each worker statistics of its own, shares them twice, and writes what it then has."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=NUM_WORKERS
    )
    torch.manual_seed(0)
    world = World(rank, NUM_WORKERS, torch.device("cpu"))
    trainee = build_trainee(SPEC, EfficientDet(build_architecture(SPEC)), world)
    live, averaged = trainee.network.state_dict(), trainee.ema.state_dict()
    live[f"{NORM}.running_mean"].fill_(1 + 2 * rank)
    averaged[f"{NORM}.running_var"].fill_(10 * (1 + rank))
    share_statistics(trainee, world)
    once = {name: tensor.clone() for name, tensor in live.items()}
    share_statistics(trainee, world)
    torch.save({"once": once, "live": live, "averaged": averaged}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("workers"))
    mp.spawn(run_worker, (folder,), nprocs=NUM_WORKERS)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(NUM_WORKERS)]


def test_every_worker_gets_the_mean_of_live_and_averaged_statistics(states):
    for state in states:
        assert state["live"][f"{NORM}.running_mean"].unique().tolist() == [2.0]
        assert state["averaged"][f"{NORM}.running_var"].unique().tolist() == [15.0]


def test_the_mean_of_equal_statistics_changes_no_bit(states):
    for state in states:
        assert all(torch.equal(state["once"][name], state["live"][name]) for name in state["live"])


def test_weights_and_the_other_statistics_stay_as_they_were(states):
    torch.manual_seed(0)
    fresh = EfficientDet(build_architecture(SPEC)).state_dict()
    for name, tensor in fresh.items():
        if not name.startswith(NORM):
            assert torch.equal(states[1]["live"][name], tensor), name

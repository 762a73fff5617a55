from dataclasses import replace

import pytest
import torch

from rayeffdet.data.loader import load_batches
from rayeffdet.data.order import records_at
from rayeffdet.errors import DataError, RunError
from rayeffdet.model.efficientdet import EfficientDet
from rayeffdet.model.scaling import Architecture
from rayeffdet.spec.root import Spec
from rayeffdet.train.build import (
    build_architecture,
    build_epochs,
    build_learning_rate,
    build_loop_settings,
    build_sample,
    build_shuffle,
    build_step_settings,
    build_trainee,
    input_size,
)
from rayeffdet.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from rayeffdet.train.loop import EpochDone, LoopSettings, StepDone, train_epochs
from rayeffdet.train.optim import flatten_optimizer, restore_optimizer
from rayeffdet.train.step import StepSettings, World

CPU = World(rank=0, size=1, device=torch.device("cpu"))
SHARDS = (4, 2)
# D1, since drop-connect draws random numbers in it; all augmentation is on.
RUN = {
    "model.name": "efficientdet-d1",
    "train.num_epochs": 4,
    "train.checkpoint_interval": 2,
    "train.lr_schedule.warmup_epoch": 1,
    "train.lr_schedule.learning_rate": 0.02,
    "dataset.augmentation.auto_color_distortion": True,
    "dataset.augmentation.auto_translate_xy": True,
}


def run(trainee, spec, records, *, first_epoch=0, save=lambda *_: "", evaluate=lambda _: {}):
    """Trains as a worker does, with the records at hand in place of shards."""
    epochs = build_epochs(spec, num_records=len(records), num_workers=1)

    def batches(epoch):
        shares = (epochs.share(epoch, s, rank=0, world_size=1) for s in range(epochs.steps))
        rows = (
            [
                (f"record {number}", position, records[number])
                for position, number in zip(
                    share, records_at(share, SHARDS, build_shuffle(spec)), strict=True
                )
            ]
            for share in shares
        )
        sample = build_sample(spec, build_architecture(spec))
        return load_batches(
            rows, sample, size_hw=(64, 64), max_instances=100, num_threads=2, prefetch=2
        )

    return train_epochs(
        trainee,
        first_epoch=first_epoch,
        batches=batches,
        learning_rate=build_learning_rate(spec, steps_per_epoch=epochs.steps, num_workers=1),
        evaluate=evaluate,
        save=save,
        settings=build_loop_settings(spec, epochs),
        step_settings=build_step_settings(spec, CPU.device),
        world=CPU,
    )


def state_of(trainee):
    optimizer, _ = flatten_optimizer(trainee.optimizer, trainee.network)
    groups = {
        "model": trainee.network.state_dict(),
        "ema": trainee.ema.state_dict(),
        "optimizer": optimizer,
    }
    return {
        f"{group}.{name}": tensor.clone()
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }


def different(a, b):
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def saver(trainee, spec, path):
    def save(epoch, metrics):
        tensors, meta = flatten_optimizer(trainee.optimizer, trainee.network)
        checkpoint = Checkpoint(
            architecture=trainee.network.architecture.to_dict(),
            class_names={},
            input_size=input_size(spec),
            normalisation={},
            spec=spec.public_dict(),
            epoch=epoch + 1,
            step=3 * (epoch + 1),
            metrics=metrics,
            model=trainee.network.state_dict(),
            ema=trainee.ema.state_dict(),
            optimizer=tensors,
            optimizer_meta=meta,
        )
        save_checkpoint(path, checkpoint)
        return path

    return save


def resumed(path):
    """Rebuilds everything from the file alone."""
    checkpoint = load_checkpoint(path)
    network = EfficientDet(Architecture.from_dict(checkpoint.architecture))
    network.load_state_dict(checkpoint.model)
    trainee = build_trainee(Spec.from_dict(checkpoint.spec), network, CPU)
    trainee.ema.load_state_dict(checkpoint.ema)
    restore_optimizer(trainee.optimizer, network, checkpoint.optimizer, checkpoint.optimizer_meta)
    return trainee, checkpoint


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_stopping_and_resuming_from_a_file_gives_the_bits_of_a_run_that_never_stopped(
    tmp_path, make_spec, make_trainee, records, optimizer
):
    spec = make_spec(RUN | {"train.optimizer.name": optimizer})
    whole = make_trainee(spec)
    whole_steps = [e.result for e in run(whole, spec, records) if isinstance(e, StepDone)]

    path = str(tmp_path / "a.tlt")
    stopped = make_trainee(spec)
    for event in run(stopped, spec, records, save=saver(stopped, spec, path)):
        if isinstance(event, EpochDone) and event.checkpoint:
            break
    trainee, checkpoint = resumed(path)
    assert checkpoint.epoch == 2
    rest = run(trainee, spec, records, first_epoch=checkpoint.epoch)
    rest_steps = [e.result for e in rest if isinstance(e, StepDone)]

    assert rest_steps == whole_steps[6:]
    assert different(state_of(trainee), state_of(whole)) == []


def test_one_seed_gives_one_result_to_the_last_bit_and_another_seed_another(
    make_spec, make_trainee, records
):
    def trained(seed):
        spec = make_spec(RUN | {"train.random_seed": seed, "train.num_epochs": 2})
        trainee = make_trainee(spec)
        torch.seed()  # What else has drawn numbers must not matter.
        events = list(run(trainee, spec, records))
        return state_of(trainee), [e.result for e in events if isinstance(e, StepDone)]

    first, again, other = trained(1), trained(1), trained(2)
    assert again[1] == first[1]
    assert different(again[0], first[0]) == []
    assert different(other[0], first[0])


def test_events_tell_every_step_and_epoch_in_order(make_spec, make_trainee, records):
    spec = make_spec({"train.num_epochs": 3, "train.checkpoint_interval": 2})
    calls = []

    def evaluate(epoch):
        calls.append(("evaluate", epoch))
        return {"AP": epoch / 10}

    def save(epoch, metrics):
        calls.append(("save", epoch, metrics))
        return f"{epoch}.tlt"

    events = list(run(make_trainee(spec), spec, records, evaluate=evaluate, save=save))
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [(e.epoch, e.step) for e in steps] == [(n // 3, n + 1) for n in range(9)]
    assert [e for e in events if isinstance(e, EpochDone)] == [
        EpochDone(0, 3, {}, None),
        EpochDone(1, 6, {"AP": 0.1}, "1.tlt"),
        EpochDone(2, 9, {"AP": 0.2}, "2.tlt"),
    ]
    assert events.index(EpochDone(0, 3, {}, None)) == 3
    assert calls == [
        ("evaluate", 1),
        ("save", 1, {"AP": 0.1}),
        ("evaluate", 2),
        ("save", 2, {"AP": 0.2}),
    ]
    rate = build_learning_rate(spec, steps_per_epoch=3, num_workers=1)
    assert [e.learning_rate for e in steps] == [rate(step) for step in range(9)]
    assert all(e.num_images == 2 and e.num_truncated == 0 for e in steps)
    assert all(0 <= e.data_wait_s <= e.seconds for e in steps)


def test_training_goes_on_in_training_mode_after_an_evaluation(make_spec, make_trainee, records):
    spec = make_spec({"train.num_epochs": 2, "train.validation_interval": 1})
    trainee = make_trainee(spec)

    def evaluate(_):
        trainee.network.eval()
        return {}

    modes = [
        trainee.network.training
        for event in run(trainee, spec, records, evaluate=evaluate)
        if isinstance(event, StepDone)
    ]
    assert modes == [True] * 6


def test_nothing_is_left_to_do_after_the_last_epoch(make_spec, make_trainee, records):
    spec = make_spec({"train.num_epochs": 2})
    assert list(run(make_trainee(spec), spec, records, first_epoch=2)) == []


def test_a_loss_that_is_not_finite_ends_the_run_before_anything_is_saved(
    make_spec, make_trainee, records
):
    spec = make_spec({"train.num_epochs": 1})
    trainee = make_trainee(spec)
    saved, events = [], run(trainee, spec, records, save=lambda *_: saved.append(1))
    next(events)
    with torch.no_grad():
        trainee.network.backbone.stem.conv.weight.fill_(float("inf"))
    with pytest.raises(RunError, match=r"step 2: not finite: .*images picture \d, picture \d;"):
        next(events)
    assert saved == []


def test_a_record_that_cannot_be_decoded_ends_the_run_with_its_place(
    make_spec, make_trainee, records
):
    spec = make_spec({"train.num_epochs": 1})
    broken = [*records[:5], replace(records[5], encoded=b"no image")]
    with pytest.raises(DataError, match="record 5: not a JPEG"):
        list(run(make_trainee(spec), spec, broken))


def settings(**changes):
    values = {
        "num_epochs": 10,
        "steps_per_epoch": 3,
        "checkpoint_interval": 4,
        "validation_interval": 3,
        "start_eval_epoch": 1,
    }
    return LoopSettings(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "checkpointed", "evaluated"),
    [
        ({}, [4, 8, 10], [3, 6, 9, 10]),
        ({"start_eval_epoch": 6}, [4, 8, 10], [6, 9, 10]),
        ({"start_eval_epoch": 50}, [4, 8, 10], [10]),
        ({"checkpoint_interval": 5, "validation_interval": 10}, [5, 10], [10]),
        ({"num_epochs": 1, "checkpoint_interval": 1, "validation_interval": 1}, [1], [1]),
    ],
)
def test_intervals_count_from_one_and_the_last_epoch_always_counts(
    changes, checkpointed, evaluated
):
    chosen = settings(**changes)
    epochs = range(chosen.num_epochs)
    assert [epoch + 1 for epoch in epochs if chosen.is_checkpointed(epoch)] == checkpointed
    assert [epoch + 1 for epoch in epochs if chosen.is_evaluated(epoch)] == evaluated


def test_settings_are_read_only():
    for one in (settings(), StepSettings({}, 0.0, 0.0, None, 1)):
        with pytest.raises(AttributeError):
            one.seed = 2

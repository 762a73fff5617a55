import json
import pickle
import zipfile

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rayeffdet.errors import CheckpointError
from rayeffdet.train.checkpoint import (
    Checkpoint,
    checkpoint_name,
    from_bytes,
    is_state_dict,
    load_checkpoint,
    save_checkpoint,
    to_bytes,
)
from rayeffdet.train.ema import Ema
from rayeffdet.train.optim import build_optimizer, flatten_optimizer, restore_optimizer


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    return model.to(memory_format=torch.channels_last)


def checkpoint_of(network, **changes):
    fields = {
        "architecture": {"name": "efficientdet-d0", "blocks": [[3, 1], [5, 2]]},
        "class_names": {1: "disc", 2: 'a "star"', 17: "環"},
        "input_size": (128, 192),
        "normalisation": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "spec": {"train": {"lr_schedule": {"name": "cosine"}}, "encryption_key": ""},
        "epoch": 5,
        "step": 105,
        "metrics": {"AP": 0.25, "per_class": {"disc": {"AP": None}}},
        "model": network.state_dict(),
        "extra": {"position": [3, 7]},
    }
    return Checkpoint(**{**fields, **changes})


PLAIN = to_bytes(checkpoint_of(network()))


def problem_of(blob, passphrase=""):
    with pytest.raises(CheckpointError) as caught:
        from_bytes(blob, passphrase=passphrase, name="a.tlt")
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("a.tlt: ")
    return str(caught.value)


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("key", ["", "tlt_encode"])
def test_every_field_comes_back_from_the_file(tmp_path, key):
    model = network()
    saved = checkpoint_of(model, ema=network(seed=1).state_dict())
    path = str(tmp_path / "new" / "a.tlt")
    save_checkpoint(path, saved, encryption_key=key)
    loaded = load_checkpoint(path, encryption_key=key)
    for name in Checkpoint.__dataclass_fields__:
        if name not in ("model", "ema", "optimizer"):
            assert getattr(loaded, name) == getattr(saved, name), name
    assert_same(loaded.model, saved.model)
    assert_same(loaded.ema, saved.ema)
    assert loaded.optimizer == {}


def test_weights_come_back_to_the_last_bit_in_every_type():
    tensors = {
        "half": torch.tensor([1.0, float("inf"), 6e-8]).half(),
        "bfloat": torch.randn(3).bfloat16(),
        "double": torch.randn(2, 2).double(),
        "count": torch.tensor(2**40),
        "empty": torch.zeros(0, 3),
        "view": torch.randn(4, 6)[:, ::2],
    }
    blob = to_bytes(checkpoint_of(network(), model=tensors))
    assert_same(from_bytes(blob, name="").model, tensors)


def test_without_an_average_there_is_none():
    assert from_bytes(PLAIN, name="").ema is None


def test_tensors_that_share_memory_are_stored_apart():
    model = network()
    loaded = from_bytes(to_bytes(checkpoint_of(model, ema=model.state_dict())), name="")
    assert_same(loaded.ema, loaded.model)


def train(model, optimizer, ema, first, last):
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step)
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
        ema.update(model, step + 1)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_resumed_training_ends_in_the_same_bits_as_one_that_was_never_stopped(name):
    def parts(seed):
        model = network(seed)
        build = {"name": name, "momentum": 0.9, "l2_weight_decay": 1e-3}
        return model, build_optimizer(model, **build), Ema(model, 0.99)

    model, optimizer, ema = parts(seed=0)
    train(model, optimizer, ema, 0, 5)
    tensors, meta = flatten_optimizer(optimizer, model)
    blob = to_bytes(
        checkpoint_of(model, step=5, ema=ema.state_dict(), optimizer=tensors, optimizer_meta=meta)
    )
    train(model, optimizer, ema, 5, 10)

    resumed, resumed_optimizer, resumed_ema = parts(seed=1)
    loaded = from_bytes(blob, name="")
    resumed.load_state_dict(loaded.model)
    resumed_ema.load_state_dict(loaded.ema)
    restore_optimizer(resumed_optimizer, resumed, loaded.optimizer, loaded.optimizer_meta)
    train(resumed, resumed_optimizer, resumed_ema, loaded.step, 10)

    assert_same(resumed.state_dict(), model.state_dict())
    assert_same(resumed_ema.state_dict(), ema.state_dict())
    assert_same(
        flatten_optimizer(resumed_optimizer, resumed)[0], flatten_optimizer(optimizer, model)[0]
    )


def test_training_on_does_not_change_bytes_already_made():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    blob = to_bytes(checkpoint_of(model))
    with torch.no_grad():
        model[0].weight.zero_()
    assert_same(from_bytes(blob, name="").model, before)


def test_a_plain_file_is_a_safetensors_file_with_one_json_document(tmp_path):
    path = tmp_path / "a.tlt"
    path.write_bytes(PLAIN)
    with safetensors.safe_open(path, "pt") as file:
        assert all(name.startswith("model.") for name in file.keys())  # noqa: SIM118
        document = json.loads(file.metadata()["rayeffdet"])
    assert document["epoch"] == 5
    assert document["class_names"]["17"] == "環"


def test_not_a_number_in_a_document_is_refused_before_anything_is_written():
    with pytest.raises(ValueError, match="JSON"):
        to_bytes(checkpoint_of(network(), metrics={"AP": float("nan")}))


@settings(max_examples=60, deadline=None)
@given(kept=st.integers(39, len(PLAIN) - 1))
def test_a_file_that_was_cut_short_is_called_so(kept):
    problem = problem_of(PLAIN[:kept])
    assert "cut short" in problem
    assert f"{kept:,}" in problem


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, len(PLAIN) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused(position, bit):
    blob = bytearray(PLAIN)
    blob[position] ^= 1 << bit
    problem_of(bytes(blob))


@pytest.mark.parametrize("found", [b"cosine", b"efficientdet-d0", b'"shape"'])
def test_a_changed_description_is_damage(found):
    problem = problem_of(PLAIN.replace(found, found[:-1] + b"X"))
    assert "damaged" in problem


def test_a_changed_weight_is_damage():
    assert "damaged" in problem_of(PLAIN[:-1] + bytes([PLAIN[-1] ^ 1]))


def test_bytes_after_the_end_are_damage():
    assert "damaged" in problem_of(PLAIN + b"\0")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    path = tmp_path_factory.mktemp("sealed") / "a.tlt"
    save_checkpoint(str(path), checkpoint_of(network()), encryption_key="tlt_encode")
    return path.read_bytes()


def test_a_sealed_file_shows_no_name_and_no_weight(sealed):
    assert b"cosine" not in sealed
    assert b"rayeffdet checkpoint" in sealed


def test_a_sealed_file_asks_for_its_key(sealed):
    assert "set encryption_key" in problem_of(sealed)


def test_faults_of_a_sealed_file_are_told_apart(sealed):
    assert "not the key" in problem_of(sealed, "wrong")
    assert "cut short" in problem_of(sealed[:-100], "tlt_encode")
    assert "damaged" in problem_of(sealed[:-1] + bytes([sealed[-1] ^ 1]), "tlt_encode")


def test_a_key_does_not_stop_a_plain_file_from_being_read():
    assert from_bytes(PLAIN, passphrase="tlt_encode", name="").epoch == 5


def test_a_newer_format_is_called_so():
    newer = to_bytes(checkpoint_of(network(), format_version=2))
    assert "has format 2" in problem_of(newer)


@pytest.fixture
def foreign(tmp_path):
    """Writes files of other programs and returns their paths by kind."""
    weights = {"conv_stem.weight": torch.zeros(2, 3)}
    torch.save(weights, tmp_path / "zip.pth")
    torch.save(weights, tmp_path / "pickle.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(weights, tmp_path / "bare.safetensors")
    safetensors.torch.save_file(weights, tmp_path / "timm.safetensors", {"format": "pt"})
    with zipfile.ZipFile(tmp_path / "nvidia.tlt", "w") as archive:
        archive.writestr("train_graph.json", "{}")
        archive.writestr("emackpt-5.index", b"\0" * 64)
    (tmp_path / "empty.tlt").write_bytes(b"")
    (tmp_path / "noise.tlt").write_bytes(bytes(range(7, 250)))
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2], protocol=4))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("zip.pth", "give it as train.checkpoint"),
        ("pickle.pth", "give it as train.checkpoint"),
        ("bare.safetensors", "give it as train.checkpoint"),
        ("timm.safetensors", "give it as train.checkpoint"),
        ("nvidia.tlt", "probably an NVIDIA .tlt"),
        ("empty.tlt", "is empty"),
        ("noise.tlt", "is not a checkpoint of rayeffdet"),
        ("list.pkl", "is not a checkpoint of rayeffdet"),
        ("nowhere.tlt", "there is no such file"),
        (".", "cannot be read"),
    ],
)
@pytest.mark.parametrize("key", ["", "nvidia_tlt"])
def test_a_file_of_another_kind_is_named_by_its_content(foreign, file, says, key):
    path = str(foreign / file)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, encryption_key=key)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("zip.pth", True),
        ("pickle.pth", True),
        ("bare.safetensors", True),
        ("timm.safetensors", True),
        ("nvidia.tlt", False),
        ("noise.tlt", False),
    ],
)
def test_state_dicts_of_other_programs_are_told_from_checkpoints(foreign, file, expected):
    assert is_state_dict(str(foreign / file)) is expected


def test_own_checkpoints_are_no_state_dicts(tmp_path, sealed):
    for name, blob in (("plain", PLAIN), ("sealed", sealed)):
        (tmp_path / name).write_bytes(blob)
        assert not is_state_dict(str(tmp_path / name))


def test_the_file_name_carries_model_and_epoch():
    assert checkpoint_name("efficientdet-d0", 5) == "efficientdet-d0_005.tlt"
    assert checkpoint_name("efficientdet-d7x", 1200) == "efficientdet-d7x_1200.tlt"

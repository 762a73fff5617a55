import argparse
import io

import pytest
import safetensors.torch
import torch

from rayeffdet.errors import CheckpointError
from rayeffdet.model.weight_files import parse_state_dict


def as_pth(document: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def test_safetensors_are_told_by_content() -> None:
    content = safetensors.torch.save({"a": torch.ones(2)})
    assert torch.equal(parse_state_dict(content, name="weights.pth")["a"], torch.ones(2))


@pytest.mark.parametrize("wrapper", ["state_dict", "state_dict_ema", "model"])
def test_pth_wrappers_come_off(wrapper: str) -> None:
    content = as_pth({"epoch": 3, "args": argparse.Namespace(lr=1), wrapper: {"a": torch.ones(2)}})
    assert list(parse_state_dict(content, name="x.pth")) == ["a"]


def test_averaged_weights_win() -> None:
    content = as_pth({"state_dict": {"a": torch.ones(1)}, "state_dict_ema": {"a": torch.zeros(1)}})
    assert parse_state_dict(content, name="x.pth")["a"].item() == 0


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a checkpoint ran",)


def test_a_pth_with_code_is_refused_and_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pth: neither"):
        parse_state_dict(as_pth({"a": Malicious()}), name="x.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "neither a safetensors file nor a PyTorch file"),
        (b"hello world, not weights", "neither a safetensors file nor a PyTorch file"),
        (safetensors.torch.save({"a": torch.ones(9)})[:-5], "damaged safetensors file"),
        (as_pth({"a": torch.ones(9)})[:-50], "neither a safetensors file nor a PyTorch file"),
        (as_pth([1, 2]), "no named tensors"),
    ],
)
def test_unusable_files_get_one_line(content: bytes, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected) as caught:
        parse_state_dict(content, name="w.bin")
    assert str(caught.value).startswith("w.bin: ")
    assert "\n" not in str(caught.value)

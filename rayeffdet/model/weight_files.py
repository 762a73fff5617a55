"""Files of weights that others wrote: safetensors and PyTorch's own, told by content."""

import argparse
import io
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rayeffdet.errors import CheckpointError

# Keys that training scripts nest the tensors under; averaged weights are the better ones.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def parse_state_dict(content: bytes, *, name: str) -> dict[str, Tensor]:
    """Returns the tensors in the bytes of a safetensors or ``.pth`` file, wrappers taken off.

    The kind is told by content. Nothing in a ``.pth`` file is executed.

    Args:
        content: The whole file.
        name: The file's name for messages.

    Raises:
        CheckpointError: The bytes are damaged, hold no tensors or want to run code.
    """
    document = (
        _load_safetensors(content, name) if _is_safetensors(content) else _load_pth(content, name)
    )
    for wrapper in _WRAPPERS:
        if isinstance(document, Mapping) and isinstance(document.get(wrapper), Mapping):
            document = document[wrapper]
            break
    tensors = dict(document) if isinstance(document, Mapping) else {}
    tensors = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{name}: holds no named tensors; a state dict is needed")
    return tensors


def _is_safetensors(content: bytes) -> bool:
    return content[8:9] == b"{"


def _load_safetensors(content: bytes, name: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{name}: damaged safetensors file: {error}") from error


def _load_pth(content: bytes, name: str) -> Any:
    try:
        # Training scripts leave their arguments in the file: plain values, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what a foreign pickle raises has no common type
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{name}: neither a safetensors file nor a PyTorch file of plain tensors: {reason}"
        ) from error

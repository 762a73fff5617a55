"""Checkpoint files: weights, averages, optimizer state and one JSON document, without pickle.

A plain file is a safetensors file with the groups ``model.``, ``ema.`` and ``optimizer.``. Its
metadata holds the JSON document under ``rayeffdet`` and under ``sha256`` the digest of the whole
file, taken with zeros in the digest's place. A file with a key is that payload, sealed.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rayeffdet import storage
from rayeffdet.errors import CheckpointError
from rayeffdet.train import seal

FORMAT_VERSION = 1
_SEAL_HEADER = b"rayeffdet checkpoint, format 1\n"
_NO_DIGEST = b"0" * 64
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors format
_HEAD_BYTES = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Everything that evaluates, prunes, exports or goes on training a network.

    Attributes:
        architecture: ``Architecture.to_dict()``: every layer's width.
        class_names: Category id to name.
        input_size: Height and width in pixels.
        normalisation: ``mean`` and ``std`` per channel, for pixels in 0..1.
        spec: ``Spec.to_dict()`` of the run that wrote it.
        epoch: Epochs finished.
        step: Optimizer steps taken: the position in the schedule.
        metrics: The latest evaluation, finite numbers.
        model: The network's state dict.
        ema: The averaged state under the same names; None when there is no average.
        optimizer: ``flatten_optimizer``'s tensors; empty in a file that only serves inference.
        optimizer_meta: ``flatten_optimizer``'s document.
        extra: What else a run needs to go on: data position, random state; JSON.
        format_version: That of the file it was read from.
    """

    architecture: dict[str, Any]
    class_names: dict[int, str]
    input_size: tuple[int, int]
    normalisation: dict[str, Any]
    spec: dict[str, Any]
    epoch: int
    step: int
    model: dict[str, Tensor]
    metrics: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Tensor] | None = None
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    optimizer_meta: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


_GROUPS = ("model", "ema", "optimizer")
_DOCUMENT_FIELDS = tuple(name for name in Checkpoint.__dataclass_fields__ if name not in _GROUPS)


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """Returns the plain file; tensors are copied to the host, so training may go on after it.

    Raises:
        ValueError: A document holds not-a-number or an infinity, for which JSON has no word.
    """
    document = {name: getattr(checkpoint, name) for name in _DOCUMENT_FIELDS}
    metadata = {
        "rayeffdet": json.dumps(document, allow_nan=False),
        "sha256": _NO_DIGEST.decode(),
    }
    tensors = {
        f"{group}.{name}": _to_host(tensor)
        for group in _GROUPS
        for name, tensor in (getattr(checkpoint, group) or {}).items()
    }
    blob = safetensors.torch.save(tensors, metadata)
    digest = hashlib.sha256(blob).hexdigest().encode()
    return blob.replace(b'"sha256":"' + _NO_DIGEST, b'"sha256":"' + digest, 1)


def from_bytes(blob: bytes, *, passphrase: str = "", name: str) -> Checkpoint:
    """Returns the checkpoint that ``to_bytes`` wrote, sealed or not; its tensors are on the host.

    Args:
        blob: The whole file.
        passphrase: The key of a sealed file; a plain one needs none and ignores it.
        name: What to call the blob in errors: its path.

    Raises:
        CheckpointError: The key is missing or wrong, the file was cut short or changed, is of
            another kind (an NVIDIA ``.tlt``, say), or of a newer format.
    """
    if seal.is_sealed(blob):
        if not passphrase:
            raise CheckpointError(f"{name}: the file is encrypted: set encryption_key")
        blob = seal.open_sealed(blob, passphrase=passphrase, name=name)
    if not _is_plain(blob):
        raise CheckpointError(f"{name}: {_other_kind(blob)}")
    document = _checked_document(blob, name=name)
    if document["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{name}: the file has format {document['format_version']}, this rayeffdet reads"
            f" format {FORMAT_VERSION}; use the rayeffdet that wrote it or a newer one"
        )
    document["class_names"] = {int(key): text for key, text in document["class_names"].items()}
    document["input_size"] = tuple(document["input_size"])
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    for key, tensor in safetensors.torch.load(blob).items():
        group, _, tensor_name = key.partition(".")
        groups[group][tensor_name] = tensor
    return Checkpoint(
        **document,
        model=groups["model"],
        ema=groups["ema"] or None,
        optimizer=groups["optimizer"],
    )


def save_checkpoint(path: str, checkpoint: Checkpoint, *, encryption_key: str = "") -> None:
    """Writes the file atomically, sealed when there is a key; path or URI.

    Raises:
        RunError: The storage refuses the write.
    """
    blob = to_bytes(checkpoint)
    if encryption_key:
        blob = seal.seal(blob, passphrase=encryption_key, header=_SEAL_HEADER)
    storage.write_atomic(path, blob)


def load_checkpoint(path: str, *, encryption_key: str = "") -> Checkpoint:
    """Returns the checkpoint of a file by path or URI; its tensors are on the host.

    Raises:
        CheckpointError: There is no such file, or ``from_bytes`` refuses it.
    """
    return from_bytes(_read(path), passphrase=encryption_key, name=path)


def is_state_dict(path: str) -> bool:
    """Tells a state dict of another program, for ``model.weights``, from a checkpoint.

    Raises:
        CheckpointError: There is no such file, or it cannot be read.
    """
    return _is_state_dict(_read(path, _HEAD_BYTES))


def checkpoint_name(model_name: str, epoch: int) -> str:
    """Returns the file name of a checkpoint: ``efficientdet-d0_005.tlt`` after five epochs."""
    return f"{model_name}_{epoch:03d}.tlt"


def _to_host(tensor: Tensor) -> Tensor:
    """Returns a contiguous copy: safetensors takes neither channels_last nor shared memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _read(path: str, num_bytes: int = -1) -> bytes:
    try:
        with storage.open_input(path) as file:
            return file.read(num_bytes)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _is_plain(blob: bytes) -> bool:
    """Tells by the first bytes whether ``to_bytes`` made this, whole or not."""
    starts = (b'{"__metadata__":{"rayeffdet":"', b'{"__metadata__":{"sha256":"')
    return blob.startswith(starts, _LENGTH_BYTES)


def _checked_document(blob: bytes, *, name: str) -> dict[str, Any]:
    """Returns the JSON document of a plain file after holding every byte against the digest."""
    header_end = _LENGTH_BYTES + int.from_bytes(blob[:_LENGTH_BYTES], "little")
    if header_end > _LONGEST_HEADER:
        raise CheckpointError(seal.damaged(name))
    header = blob[_LENGTH_BYTES:header_end]
    ends = map(int, re.findall(rb'"data_offsets":\[\d+,(\d+)\]', header))
    whole = header_end + max(ends, default=0)
    if len(blob) < whole:
        raise CheckpointError(seal.cut_short(name, found=len(blob), whole=whole))
    digest = _DIGEST.search(header)
    if digest is None or digest[1] != _digest_with_zeros_at(blob, _LENGTH_BYTES + digest.start(1)):
        raise CheckpointError(seal.damaged(name))
    document: dict[str, Any] = json.loads(json.loads(header)["__metadata__"]["rayeffdet"])
    return document


def _digest_with_zeros_at(blob: bytes, start: int) -> bytes:
    digest = hashlib.sha256(blob[:start])
    digest.update(_NO_DIGEST)
    digest.update(memoryview(blob)[start + len(_NO_DIGEST) :])
    return digest.hexdigest().encode()


def _other_kind(head: bytes) -> str:
    """Says what a file is that this project did not write, and what to do with it."""
    if not head:
        return "the file is empty; use another checkpoint"
    if _is_state_dict(head):
        return (
            "holds weights of another program and no description of a network;"
            " give it as train.checkpoint"
        )
    if head.startswith(b"PK"):
        return (
            "is a zip archive, probably an NVIDIA .tlt, which only NVIDIA's closed EFF library"
            " opens; start from timm, torchvision or effdet weights instead (train.checkpoint)"
        )
    return (
        "is not a checkpoint of rayeffdet, nor a state dict; if NVIDIA TAO wrote it, only TAO can"
        " read it: start from timm, torchvision or effdet weights instead (train.checkpoint)"
    )


def _is_state_dict(head: bytes) -> bool:
    """Tells torch's zip and pickle files and the safetensors files of other programs."""
    torch_zip = head.startswith(b"PK") and b"/data.pkl" in head[:_HEAD_BYTES]
    torch_pickle = head.startswith(b"\x80\x02")
    return torch_zip or torch_pickle or (head[8:10] == b'{"' and not _is_plain(head))

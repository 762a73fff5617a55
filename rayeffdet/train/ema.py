"""Exponential moving average of a network's weights and batch statistics."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rayeffdet.errors import CheckpointError


class Ema:
    """A moving average of every parameter and float buffer, started from the weights themselves.

    Integer buffers (the counters of batch norm) are copied, so that the average is a whole state
    of the network. Names are those of ``model.state_dict()``: always pass the bare network, not a
    wrapped or compiled one.

    Args:
        model: The network, already on its device.
        decay: Upper limit of the weight of the past, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._shadow = {name: value.clone() for name, value in model.state_dict().items()}
        self._averaged = [name for name, value in self._shadow.items() if value.is_floating_point()]
        self._copied = [name for name in self._shadow if name not in set(self._averaged)]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average by ``1 - min(decay, (1 + step) / (10 + step))`` towards the weights.

        Args:
            model: The network after its optimizer step.
            step: Optimizer steps taken, this one included: 1 after the first.
        """
        live = model.state_dict()
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            _pick(self._shadow, self._averaged), _pick(live, self._averaged), weight
        )
        if self._copied:
            torch._foreach_copy_(_pick(self._shadow, self._copied), _pick(live, self._copied))

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Gives the network the averaged state inside the block and its own one back after it.

        Whatever the block changes in the network's state, batch statistics included, is undone.
        """
        live = _pick(model.state_dict(), self._shadow)
        own = [value.clone() for value in live]
        torch._foreach_copy_(live, list(self._shadow.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(live, own)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the average under the network's own names: the live tensors, not copies."""
        return dict(self._shadow)

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over an average, bit for bit; the tensors given are copied.

        Raises:
            CheckpointError: The names or shapes are not those of this network.
        """
        misfits = sorted(
            name
            for name in self._shadow.keys() | tensors.keys()
            if name not in self._shadow
            or name not in tensors
            or self._shadow[name].shape != tensors[name].shape
        )
        if misfits:
            raise CheckpointError(
                f"the averaged weights do not fit the network: {len(misfits)} tensors are missing,"
                f" unknown or of another shape, the first is {misfits[0]}; use the checkpoint of"
                " the same architecture"
            )
        torch._foreach_copy_(list(self._shadow.values()), _pick(tensors, self._shadow))


def _pick(tensors: Mapping[str, Tensor], names: Iterable[str]) -> list[Tensor]:
    return [tensors[name] for name in names]

"""Optimizers and their saved state, the L1 penalty and gradient clipping."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from rayeffdet.errors import CheckpointError


def build_optimizer(
    model: nn.Module, *, name: str, momentum: float, l2_weight_decay: float
) -> Optimizer:
    """Returns plain momentum SGD, or Adam with beta1 = momentum, over the trainable parameters.

    The decay is coupled: its gradient ``l2_weight_decay * w`` joins the loss gradient, after
    clipping, for convolution kernels only (tensors of more than one dimension), never for biases,
    batch norm or fusion weights. The rate is 0 until the training step sets it.

    Args:
        model: The network, already on its device and with its frozen parts frozen.
        name: ``sgd`` or ``adam``.
        momentum: Weight of the running gradient, in [0, 1).
        l2_weight_decay: Factor of half the sum of squared kernels.

    Raises:
        ValueError: The name is neither of the two.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if _is_kernel(p)], "weight_decay": l2_weight_decay},
        {"params": [p for p in trainable if not _is_kernel(p)], "weight_decay": 0.0},
    ]
    fused = all(parameter.is_cuda for parameter in trainable)
    if name == "sgd":
        return SGD(groups, lr=0.0, momentum=momentum, fused=fused, foreach=not fused)
    if name == "adam":
        return Adam(groups, lr=0.0, betas=(momentum, 0.999), fused=fused, foreach=not fused)
    raise ValueError(f"{name!r} is neither 'sgd' nor 'adam'")


def l1_penalty(model: nn.Module) -> Tensor:
    """Returns half the sum of absolute values of the trainable kernels: a differentiable scalar.

    The kernels are those that the L2 decay of ``build_optimizer`` acts on.
    """
    kernels: list[Tensor] = [p for p in model.parameters() if p.requires_grad and _is_kernel(p)]
    return 0.5 * torch.stack(torch._foreach_norm(kernels, 1)).sum()


@torch.no_grad()
def clip_gradients_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Returns the global norm before clipping, and clips each gradient, then all together.

    First every gradient's own L2 norm is cut to ``max_norm``, then the L2 norm over all the cut
    gradients. Both factors come from the norms alone, so the gradients are read once and scaled
    once.

    Args:
        parameters: Those without a gradient are passed over; at least one has one.
        max_norm: The limit of both cuts; 0 changes nothing.

    Returns:
        A scalar tensor on the gradients' device; not finite when a gradient is not.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    total: Tensor = torch.linalg.vector_norm(norms)
    if max_norm > 0:
        own_scales = (max_norm / norms).clamp(max=1.0)
        global_norm = torch.linalg.vector_norm(norms.clamp(max=max_norm))
        scales = own_scales * (max_norm / global_norm).clamp(max=1.0)
        torch._foreach_mul_(gradients, scales.unbind())
    return total


def flatten_optimizer(
    optimizer: Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the state as ``<parameter name>.<state name>`` to tensor, and a JSON document.

    The tensors are the live ones: serialise them before the next step. Rate, momentum and decay
    are no state: they follow from the spec and the step.
    """
    tensors = {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return tensors, {"name": type(optimizer).__name__}


def restore_optimizer(
    optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Gives a fresh optimizer the state that ``flatten_optimizer`` returned, bit for bit.

    The tensors are copied, into the memory format of their parameters. A parameter that had no
    state, since it had no gradient yet, gets none.

    Raises:
        CheckpointError: The state is another optimizer's, or belongs to a parameter that this one
            does not train or that has another shape.
    """
    own_name = type(optimizer).__name__
    if meta["name"] != own_name:
        raise CheckpointError(
            f"the checkpoint holds the state of {meta['name']}, but train.optimizer.name asks for"
            f" {own_name}; use the same optimizer or start a new run"
        )
    order = [p for group in optimizer.param_groups for p in group["params"]]
    index_of = {id(parameter): index for index, parameter in enumerate(order)}
    parameters = {name: p for name, p in model.named_parameters() if id(p) in index_of}
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition(".")
        parameter = parameters.get(name)
        if parameter is None or value.shape not in (parameter.shape, torch.Size()):
            raise CheckpointError(
                f"the checkpoint holds optimizer state {full_name} of shape {list(value.shape)},"
                " which no trained parameter of this network has; use the same architecture and"
                " frozen parts or start a new run"
            )
        # Fused kernels need the state in the strides of its parameter.
        own = torch.empty_like(parameter, dtype=value.dtype) if value.ndim else value.clone()
        state.setdefault(index_of[id(parameter)], {})[key] = own.copy_(value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _is_kernel(parameter: Tensor) -> bool:
    return parameter.ndim > 1

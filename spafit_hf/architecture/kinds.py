"""What kind of module a module is: one answer for whoever finds, plans, wraps or reads."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from transformers.pytorch_utils import Conv1D


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix LoRA can go on: nn.Linear and its quantized kinds, or the Conv1D of GPT-2."""
    return isinstance(module, (nn.Linear, Conv1D))


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm with a weight, with or without a bias. By name: models bring classes of their own."""
    return (isinstance(module, nn.LayerNorm) or "norm" in type(module).__name__.lower()) and has_weight(module)


def takes_delta(module: nn.Module) -> bool:
    """Whether a delta can be added to a module's bias: a matrix, or a norm with a bias over its last dimension.

    A matrix without a bias takes the delta as one. A norm without a bias does not, nor do those whose features are not
    the last dimension (batch and group norms), where a vector of their width would be added along the wrong one.
    """
    if is_linear(module):
        return True
    bias = module._parameters.get("bias")
    return is_norm(module) and bias is not None and bias.dim() == 1 and not _channels_first(module)


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a module writes to itself in training: a batch norm, to what it has seen of its inputs."""
    return isinstance(module, _NormBase) and module.track_running_stats


def in_out(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a matrix."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features  # a quantized weight has another shape, these are always true
    rows, columns = module.get_parameter("weight").shape
    return rows, columns  # the Conv1D of GPT-2 is transposed


def has_weight(module: nn.Module) -> bool:
    """Whether a module has a weight of its own; the Identity that stands for a missing norm has none."""
    return "weight" in module._parameters and module._parameters["weight"] is not None


def _channels_first(module: nn.Module) -> bool:
    name = type(module).__name__
    return (
        isinstance(module, (_NormBase, nn.GroupNorm))
        or any(word in name for word in ("BatchNorm", "GroupNorm", "2d", "2D"))
        or getattr(module, "data_format", "") == "channels_first"  # transformers' vision norms are either
    )

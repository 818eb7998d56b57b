"""What kind of module a module is: one answer for whoever finds, plans, wraps or reads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from transformers.pytorch_utils import Conv1D

from spafit_hf.architecture.experts import expert_biases


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix LoRA can go on: nn.Linear and its quantized kinds, or the Conv1D of GPT-2."""
    return isinstance(module, (nn.Linear, Conv1D))


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm with a weight, with or without a bias. By name: models bring classes of their own."""
    return (isinstance(module, nn.LayerNorm) or "norm" in type(module).__name__.lower()) and has_weight(module)


def takes_delta(module: nn.Module) -> bool:
    """Whether a delta can be added to a module's bias: a matrix, a norm with a bias over its last dimension, or
    experts with biases.

    A matrix without a bias takes the delta as one. A norm without a bias does not, nor do those whose features are not
    the last dimension (batch and group norms), where a vector of their width would be added along the wrong one.
    """
    if is_linear(module) or expert_biases(module):
        return True
    bias = module._parameters.get("bias")
    return is_norm(module) and bias is not None and bias.dim() == 1 and not _channels_first(module)


def biases_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """What a module's delta is added to, by name: its bias, those of its experts, or nothing."""
    bias = module._parameters.get("bias")
    return expert_biases(module) if bias is None else {"bias": bias}


def split_delta(module: nn.Module, delta: torch.Tensor) -> dict[str, torch.Tensor]:
    """A module's delta as what is added to each of `biases_of`: experts have one, (experts, outputs of all biases)."""
    biases = expert_biases(module)
    if not biases:
        return {"bias": delta}
    return dict(zip(biases, delta.split([each.shape[-1] for each in biases.values()], dim=-1), strict=True))


def biases_with(module: nn.Module, delta: torch.Tensor) -> dict[str, torch.Tensor]:
    """A module's biases with a delta added, each in its own type, by name."""
    parts, biases = split_delta(module, delta), biases_of(module)
    return {key: (bias + parts[key].to(bias.device)).to(bias.dtype) for key, bias in biases.items()}


def delta_between(module: nn.Module, biases: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Inverse of adding a `split_delta`: the fp32 delta that makes a module's biases these, by name."""
    own = biases_of(module).items()
    return torch.cat([biases[key].float() - bias.detach().to(biases[key].device).float() for key, bias in own], dim=-1)


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

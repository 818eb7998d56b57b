"""The long way against a short way: what a short cut has to pass on a model before it is believed.

    long way     the model as it is        -> values
    short way    the same rows, cheaper    -> the same, but for rounding?

What is run, and which values are looked at, is for each short cut to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

ROWS = 4
"""Of a batch that is run both ways."""

#: Largest difference over the largest value that rounding explains.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TF32_TOLERANCE = 1e-2


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """Largest difference over the largest value that rounding explains, in the autocast that is on at the moment.

    The dtype is that of the values, which may be fp32 under autocast all the same, after a norm.
    """
    limit = TOLERANCE[dtype]
    if torch.is_autocast_enabled(device.type):
        limit = max(limit, TOLERANCE[torch.get_autocast_dtype(device.type)])
    if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        limit = max(limit, TF32_TOLERANCE)
    return limit


@dataclass(frozen=True)
class Difference:
    """Where two ways lie furthest apart."""

    name: str = ""
    by: float = 0.0
    """Largest difference of the value of that name; infinite for NaN and for other shapes."""
    scale: float = 0.0
    """What it is set against."""

    @property
    def relative(self) -> float:
        """Over the scale, where there is one."""
        return self.by / self.scale if self.scale else self.by


def difference(
    long: Mapping[str, torch.Tensor], short: Mapping[str, torch.Tensor], scale: float | None = None
) -> Difference:
    """The value that differs most; what is no number with a fraction is passed over.

    Args:
        long, short: name -> what the long and the short way give.
        scale: what differences are set against; None: the largest of each value's own.
    """
    worst = Difference()
    for name, value in long.items():
        if not value.is_floating_point() or not value.numel():
            continue
        by = math.inf
        if value.shape == short[name].shape:
            wide = torch.promote_types(value.dtype, torch.float32)
            by = float((value.to(wide) - short[name].to(wide)).abs().max())
        own = float(value.abs().max()) if scale is None else scale
        found = Difference(name, math.inf if math.isnan(by) else by, own)
        if found.relative > worst.relative:
            worst = found
    return worst


def tensors_of(output: Any) -> dict[str, torch.Tensor]:
    """What a model returns, by name: its tensors of numbers with a fraction."""
    if not isinstance(output, Mapping):
        values = output if isinstance(output, tuple) else (output,)
        output = {f"output {index}": value for index, value in enumerate(values)}
    return {
        name: value
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel()
    }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it a model has no dropout; afterwards every module is as it was."""
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in was:
            module.training = training


@contextmanager
def both_ways(refusal: type[ValueError]) -> Iterator[None]:
    """Within it a model is run both ways: whatever it stumbles over becomes a refusal, with the reason."""
    try:
        yield
    except refusal:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        # A model may do between its parts, or with a row alone, what was not foreseen. It still trains.
        raise refusal(f"one batch could not be run both ways: {type(error).__name__}: {error}") from error

"""fp32 masters: what trains whole (a head, a new pooler) is fp32, whatever type the base is stored in.

    optimizer -> weight in fp32 -> rounded to the type of the states, for the time of a pass -> as the base would

A step of 1e-5 is lost on a weight of 1 in bfloat16, and fp16 has no squares of small gradients. LoRA is fp32 by PEFT
already, deltas from the start. A pass rounds, so that a reader that holds the weights in the base's type (plain PEFT)
computes the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

HALF = (torch.float16, torch.bfloat16)


def make_masters(module: nn.Module) -> None:
    """Turn the parameters of an adapter's own copy of a module into fp32; it goes on to compute in the base's type."""
    halves = {parameter.dtype for parameter in module.parameters()}.intersection(HALF)
    if not halves:
        return
    for parameter in module.parameters():
        if parameter.dtype in HALF:
            parameter.data = parameter.data.float()
    module.register_forward_pre_hook(partial(_round, halves.pop()), with_kwargs=True)
    module.register_forward_hook(_unround, always_call=True)


# Functions of this file and not closures: a model with hooks is copied and pickled.


def _round(stored: torch.dtype, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    states = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    # The whole model may be cast later; an embedding sees no states.
    dtype = next((value.dtype for value in states if value.is_floating_point()), stored)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.is_floating_point() and parameter.dtype != dtype:
                # What stands in the dictionary is found before the parameter of that name, which stays as it is.
                vars(part)[name] = parameter.to(dtype)


def _unround(module: nn.Module, _args: Any, _output: Any) -> None:
    for part in module.modules():
        for name in part._parameters:
            vars(part).pop(name, None)

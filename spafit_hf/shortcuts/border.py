"""Where the frozen part of a model ends, seen in one forward pass.

    before the border                        | after it
    embeddings, layers 0 .. N1               | layers N1+1 .., final norm, pooler, head
    nothing trains, no dropout, can be kept  |

Models differ in what lies before their first layer, so the pass is watched: a module whose every call ends before the
last frozen layer does belongs to the prefix, one that is first called after it does not. A module that is never called
(a dict of parameters, a weight that its parent reads) belongs to its parent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from spafit_hf.architecture import find_architecture
from spafit_hf.shortcuts.probe import evaluating
from spafit_hf.tuner.plain import base_of, plain_view

ADAPTERS = (BaseTunerLayer, AuxiliaryTrainingWrapper)
"""What PEFT puts in a module's place. Which of its adapters are active is not seen in its weights."""

# Model types whose layers hand a position bias from one to the next, which layer 0 computes from the length alone.
SHARED_POSITION_BIAS = ("t5", "mt5")


class NotCacheable(ValueError):
    """The frozen prefix of this model cannot come from a cache. The message says why, and what would help."""


@dataclass(frozen=True)
class Border:
    """The end of a model's frozen prefix. Names are those of the model inside PEFT's wrapper."""

    stack: str
    """Name of the list of layers, such as "bert.encoder.layer"."""
    layers: tuple[str, ...]
    """The frozen leading layers; the states are what the last of them returns."""
    last_layer: str
    """The last layer of the stack, frozen or not."""
    before: tuple[str, ...]
    """Modules outside the layers that only run before the border: embeddings and their parts."""
    started: frozenset[str]
    """Modules that begin to run before the border, whether they end before it or not."""
    after: frozenset[str]
    """Modules that first run after the border."""
    width: int
    """Values per token."""
    dtype: torch.dtype
    """Of the states as the model computes them."""
    returns: int
    """How many values a layer returns; 0 where it is the states alone, not in a tuple."""

    @property
    def length(self) -> int:
        """Number of frozen layers: N1 + 1."""
        return len(self.layers)

    def comes_before(self, parameter: str) -> bool:
        """Whether states may depend on a parameter: unless its module, or the nearest one around that, runs after."""
        name = parameter.rpartition(".")[0]
        while name and name not in self.started and name not in self.after:
            name = name.rpartition(".")[0]
        return name not in self.after


def frozen_layers(base: nn.Module) -> tuple[str, tuple[str, ...], str]:
    """The list of layers, its frozen leading layers and its last layer, by name.

    Only the first stack counts: a decoder reads what the encoder says, and its own inputs besides.

    Raises:
        NotCacheable: when there are no such layers.
    """
    try:
        stack = find_architecture(plain_view(base)).stacks[0]
    except ValueError as error:
        raise NotCacheable(str(error)) from error
    frozen: list[str] = []
    for layer in stack.layers:
        modules = list(base.get_submodule(layer.path).modules())
        wrapped = any(isinstance(module, ADAPTERS) for module in modules)
        if wrapped or any(parameter.requires_grad for module in modules for parameter in module.parameters()):
            break
        frozen.append(layer.path)
    if not frozen:
        raise NotCacheable(f"{stack.layers[0].path} is not frozen, so there is nothing to keep; N1 must be 0 or more.")
    return stack.path, tuple(frozen), stack.layers[-1].path


def find_border(model: nn.Module, inputs: Mapping[str, Any]) -> Border:
    """Watch a forward pass and find the border.

    Args:
        model: the model that trains, wrapped by PEFT or plain, on its device.
        inputs: a batch, as keyword arguments of the model's forward.

    Raises:
        NotCacheable: when no leading layer is frozen, something trains or holds an adapter that may run before the
            border, or the layers do not run one after the other, once each.
    """
    base = base_of(model)
    _check_plain(base)
    _check_outside(model, base)
    stack, frozen, last = frozen_layers(base)
    calls, output = _watch(base, inputs, frozen)
    _check_order(calls, frozen)
    border_time = next(end for name, _, end in calls if name == frozen[-1])
    first_start: dict[str, int] = {}
    last_end: dict[str, int] = {}
    for name, start, end in calls:
        first_start[name] = min(start, first_start.get(name, start))
        last_end[name] = max(end, last_end.get(name, end))
    inside = tuple(f"{layer}." for layer in frozen)
    before = tuple(name for name, end in last_end.items() if end <= border_time and not f"{name}.".startswith(inside))
    states = output[0] if isinstance(output, tuple) else output
    if not isinstance(states, torch.Tensor) or states.dim() != 3:
        raise NotCacheable(f"{frozen[-1]} does not return states of shape (rows, tokens, width).")
    if isinstance(output, tuple) and model_type_of(base) not in SHARED_POSITION_BIAS:
        extra = [type(value).__name__ for value in output[1:] if value is not None]
        if extra:
            raise NotCacheable(f"{frozen[-1]} returns more than its states ({', '.join(extra)}).")
    border = Border(
        stack=stack,
        layers=frozen,
        last_layer=last,
        before=before,
        started=frozenset(name for name, start in first_start.items() if start < border_time),
        after=frozenset(name for name, start in first_start.items() if start > border_time),
        width=states.shape[-1],
        dtype=states.dtype,
        returns=len(output) if isinstance(output, tuple) else 0,
    )
    _check_before(base, border)
    return border


def model_type_of(base: nn.Module) -> str:
    """The model type in its configuration; "" where there is none."""
    return str(base.config.model_type) if isinstance(base, PreTrainedModel) else ""


def _check_plain(base: nn.Module) -> None:
    """Refuse models whose layers or weights are not simply there."""
    if isinstance(base, PreTrainedModel):
        config = base.config.to_dict()
        dropped = [name for name in ("layerdrop", "encoder_layerdrop") if config.get(name)]
        if dropped:
            raise NotCacheable(f"{dropped[0]} = {config[dropped[0]]} skips layers at random; set it to 0.")
        recorded = [name for name in ("output_hidden_states", "output_attentions") if config.get(name)]
        if recorded:
            raise NotCacheable(f"config.{recorded[0]} asks for values of layers that would not run; set it to False.")
    for name, module in base.named_modules():
        if "_hf_hook" in vars(module):
            raise NotCacheable(f"accelerate moves the weights of {name or 'the model'} in and out of the device.")
        for parameter in module.parameters(recurse=False):
            if "ds_id" in vars(parameter) or type(parameter).__name__ == "DTensor" or parameter.is_meta:
                raise NotCacheable(f"{name} is not whole on this process (sharded, or without values).")


def _check_outside(model: nn.Module, base: nn.Module) -> None:
    """Refuse wrappers that change what the model is given."""
    if isinstance(model, PeftModel) and any(config.is_prompt_learning for config in model.peft_config.values()):
        raise NotCacheable("a learned prompt goes in before the first layer; train an adapter of the upper layers.")
    inside = set(base.parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter not in inside:
            raise NotCacheable(f"{name} trains outside of the base model; freeze it with requires_grad_(False).")


def _check_before(base: nn.Module, border: Border) -> None:
    """Refuse what trains, and adapters, where states may depend on them."""
    for name, parameter in base.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and border.comes_before(name):
            raise NotCacheable(f"{name} trains and may run before {border.layers[-1]} ends; freeze it.")
    for name, module in base.named_modules():
        if isinstance(module, ADAPTERS) and border.comes_before(f"{name}."):
            raise NotCacheable(f"{name}, before {border.layers[-1]} ends, holds an adapter; merge or delete it.")


def _watch(
    base: nn.Module, inputs: Mapping[str, Any], frozen: tuple[str, ...]
) -> tuple[list[tuple[str, int, int]], Any]:
    """Every call of a module as (name, start, end), and what the last frozen layer returned."""
    calls: list[tuple[str, int, int]] = []
    running: dict[str, list[int]] = {}
    kept: list[Any] = []
    clock = iter(range(1_000_000_000))
    handles = []
    for name, module in base.named_modules():
        if not name:
            continue

        def begin(_module: nn.Module, _args: Any, name: str = name) -> None:
            running.setdefault(name, []).append(next(clock))

        def finish(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            calls.append((name, running[name].pop(), next(clock)))
            if name == frozen[-1]:
                kept.append(output)

        handles.append(module.register_forward_pre_hook(begin))
        handles.append(module.register_forward_hook(finish))
    try:
        with evaluating(base), torch.no_grad():
            base(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not kept:
        raise NotCacheable(f"{frozen[-1]} does not run in a forward pass.")
    return calls, kept[0]


def _check_order(calls: list[tuple[str, int, int]], frozen: tuple[str, ...]) -> None:
    ran = [name for name, _, _ in sorted(calls, key=lambda call: call[1]) if name in set(frozen)]
    if tuple(ran) != frozen:
        raise NotCacheable(f"the layers of {frozen[0].rpartition('.')[0]} do not run once each, one after the other.")

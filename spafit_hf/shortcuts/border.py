"""Where the frozen part of a model ends, seen in one forward pass.

    before the border                        | after it
    embeddings, layers 0 .. N1               | layers N1+1 .., final norm, pooler, head
    nothing trains, no dropout, can be kept  |

Models differ in what lies before their first layer, so the pass is watched: a module whose every call ends before the
last frozen layer does belongs to the prefix, one that is first called after it does not. A module that is never called
(a dict of parameters, a weight that its parent reads) belongs to its parent.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from spafit_hf.architecture import find_architecture
from spafit_hf.architecture.find import model_type_of
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


def frozen_layers(base: nn.Module) -> tuple[tuple[str, ...], str]:
    """The frozen leading layers of a model and its last layer, by name.

    Only the first stack counts: a decoder reads what the encoder says, and its own inputs besides.

    Raises:
        NotCacheable: when there are no such layers.
    """
    try:
        stack = find_architecture(plain_view(base)).stacks[0]
    except ValueError as error:
        raise NotCacheable(str(error)) from error
    if stack.depth:
        raise NotCacheable(f"{stack.path} holds one set of weights for all of its layers, so none is a prefix.")
    if stack.layers[0].more:
        raise NotCacheable(f"the layers of {stack.path} are in several lists, and no module is one of them.")
    frozen: list[str] = []
    for layer in stack.layers:
        modules = list(base.get_submodule(layer.path).modules())
        wrapped = any(isinstance(module, ADAPTERS) for module in modules)
        if wrapped or any(parameter.requires_grad for module in modules for parameter in module.parameters()):
            break
        frozen.append(layer.path)
    if not frozen:
        raise NotCacheable(f"{stack.layers[0].path} is not frozen, so there is nothing to keep; N1 must be 0 or more.")
    return tuple(frozen), stack.layers[-1].path


def find_border(model: nn.Module, inputs: Mapping[str, Any]) -> Border:
    """Watch a forward pass (`inputs` are its keyword arguments) and find the border.

    Raises:
        NotCacheable: when no leading layer is frozen, something trains or holds an adapter that may run before the
            border, or the layers do not run one after the other, once each.
    """
    base = base_of(model)
    _check_model(model, base)
    frozen, last = frozen_layers(base)
    started, ended, returned = _watch(base, inputs, frozen[-1])
    ran = sorted((time, name) for name in frozen for time in started.get(name, ()))
    if tuple(name for _, name in ran) != frozen:
        raise NotCacheable(f"the layers of {frozen[0].rpartition('.')[0]} do not run once each, one after the other.")
    output = returned[0]
    states, *extras = output if isinstance(output, tuple) else (output,)
    if not isinstance(states, torch.Tensor) or states.dim() != 3:
        raise NotCacheable(f"{frozen[-1]} does not return states of shape (rows, tokens, width).")
    more = [type(value).__name__ for value in extras if value is not None]
    if more and model_type_of(base) not in SHARED_POSITION_BIAS:
        raise NotCacheable(f"{frozen[-1]} returns more than its states ({', '.join(more)}).")
    end = ended[frozen[-1]][0]
    inside = tuple(f"{layer}." for layer in frozen)
    border = Border(
        layers=frozen,
        last_layer=last,
        before=tuple(name for name, times in ended.items() if times[-1] <= end and not f"{name}.".startswith(inside)),
        started=frozenset(name for name, times in started.items() if times[0] < end),
        after=frozenset(name for name, times in started.items() if times[0] > end),
        width=states.shape[-1],
        dtype=states.dtype,
        returns=len(output) if isinstance(output, tuple) else 0,
    )
    _check_before(base, border)
    return border


def _check_model(model: nn.Module, base: nn.Module) -> None:
    """Refuse models whose layers or weights are not simply there, and wrappers that change what they are given."""
    if isinstance(base, PreTrainedModel):
        config = base.config.to_dict()
        for name in ("layerdrop", "encoder_layerdrop"):
            if config.get(name):
                raise NotCacheable(f"{name} = {config[name]} skips layers at random; set it to 0.")
        for name in ("mask_time_prob", "mask_feature_prob"):
            if config.get("apply_spec_augment") and config.get(name):
                raise NotCacheable(
                    f"{name} = {config[name]} masks what goes into the first layer anew in each step; set "
                    "apply_spec_augment to False."
                )
        for name in ("output_hidden_states", "output_attentions"):
            if config.get(name):
                raise NotCacheable(f"config.{name} asks for values of layers that would not run; set it to False.")
    for name, module in base.named_modules():
        if "_hf_hook" in vars(module):
            raise NotCacheable(f"accelerate moves the weights of {name or 'the model'} in and out of the device.")
        for parameter in module.parameters(recurse=False):
            if "ds_id" in vars(parameter) or type(parameter).__name__ == "DTensor" or parameter.is_meta:
                raise NotCacheable(f"{name} is not whole on this process (sharded, or without values).")
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
    base: nn.Module, inputs: Mapping[str, Any], last: str
) -> tuple[dict[str, list[int]], dict[str, list[int]], list[Any]]:
    """Name -> when the module's calls started; when they ended; and what those of the module `last` returned."""
    started: dict[str, list[int]] = {}
    ended: dict[str, list[int]] = {}
    returned: list[Any] = []
    clock = itertools.count()

    def begin(name: str, _module: nn.Module, _args: Any) -> None:
        started.setdefault(name, []).append(next(clock))

    def finish(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        ended.setdefault(name, []).append(next(clock))
        if name == last:
            returned.append(output)

    with ExitStack() as hooks, evaluating(base), torch.no_grad():
        for name, module in base.named_modules():
            if name:
                hooks.enter_context(module.register_forward_pre_hook(partial(begin, name)))
                hooks.enter_context(module.register_forward_hook(partial(finish, name)))
        base(**inputs)
    return started, ended, returned

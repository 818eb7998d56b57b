"""A module that answers for another, and is itself again afterwards."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import nn

from spafit_hf.shortcuts.stand_in import StandIn, standing_in

X = torch.ones(1, 2)


def twice(forward: Any, *args: Any) -> torch.Tensor:
    return 2 * forward(*args)


def test_it_answers_for_the_module_and_not_for_its_copy() -> None:
    module = nn.Linear(2, 2)
    own = module(X)
    stand_in = StandIn(module, twice)
    assert torch.equal(module(X), 2 * own)
    assert torch.equal(copy.deepcopy(module)(X), own)
    assert list(inspect.signature(module.forward).parameters) == ["input"]
    stand_in.detach()
    assert "forward" not in vars(module)


def test_a_forward_of_the_instance_comes_back() -> None:
    module = nn.Linear(2, 2)
    module.forward = placed = lambda x: x  # type: ignore[method-assign]  # as accelerate puts one there
    stand_in = StandIn(module, twice)
    assert torch.equal(module(X), 2 * X)
    stand_in.detach()
    assert module.forward is placed


def test_what_wraps_it_by_then_stays() -> None:
    module = nn.Linear(2, 2)
    stand_in = StandIn(module, twice)
    inner = module.forward
    module.forward = outer = lambda x: inner(x) + 1  # type: ignore[method-assign]
    own = module.weight.detach() @ X[0] + module.bias.detach()
    stand_in.detach()
    assert module.forward is outer
    assert torch.allclose(module(X), own + 1)  # what it wraps does nothing any more


def test_all_are_themselves_again_after_an_error() -> None:
    modules = [nn.Linear(2, 2), nn.Linear(2, 2)]
    with pytest.raises(ZeroDivisionError), standing_in(modules, lambda index, forward, x: forward(x) + 1 // index):
        [module(X) for module in reversed(modules)]
    assert not any("forward" in vars(module) for module in modules)

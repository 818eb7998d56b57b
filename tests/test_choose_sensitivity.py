"""Gradients on models whose gradients are known, and what follows from them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import tiny
from torch import nn
from transformers.pytorch_utils import Conv1D

from spafit_hf.architecture import Layer, find_architecture
from spafit_hf.choose.sensitivity import choose_n2, kappa_shares, measure, paying_roles, shares
from spafit_hf.strategy import EVERY_ROLE, LORA_ROLES, ROLES

ONE = 1
"""The layer that matters."""


class OneLayer(nn.Module):
    """Three layers of six matrices, of which the loss sees the "value" of one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({role: nn.Linear(2, 1) for role in LORA_ROLES}) for _ in range(3))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:
        for layer in self.layers:
            for part in layer.values():
                part(x)
        return SimpleNamespace(loss=((self.layers[ONE]["value"](x)[:, 0] - labels) ** 2).mean())


def test_only_the_layer_that_matters_has_a_gradient() -> None:
    model = OneLayer().requires_grad_(False)
    layers = [
        Layer(f"layers.{at}", {role: (f"layers.{at}.{role}",) if role in LORA_ROLES else () for role in EVERY_ROLE})
        for at in range(3)
    ]
    batches = [{"x": torch.randn(4, 2), "labels": torch.randn(4)} for _ in range(3)]
    found = measure(model, layers, batches)
    part, bias, weight = model.layers[ONE]["value"], [], []
    for batch in batches:
        error = (part(batch["x"])[:, 0] - batch["labels"])[:, None]
        bias.append(float((2 * error.mean()) ** 2))
        weight.append(float((2 * error * batch["x"]).mean(0).square().sum()))
    expected = {role: pytest.approx(sum(bias) / 3 if role == "value" else 0.0) for role in LORA_ROLES}
    assert found.biases[ONE] == expected
    norm = sum(float(model.layers[ONE][role].weight.square().sum()) for role in LORA_ROLES)
    assert found.relative == (0.0, pytest.approx((sum(weight) / 3 / norm) ** 0.5), 0.0)
    assert choose_n2(found.relative, -1) == ONE - 1
    assert paying_roles(found.biases, -1) == ("value",)
    # The model is as it was.
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_delta_on_a_key_changes_nothing() -> None:
    model = tiny("bert")
    layers = find_architecture(model).stacks[0].layers
    batch = {"input_ids": torch.randint(3, 40, (4, 6)), "labels": torch.tensor([0, 1, 1, 0])}
    for layer in measure(model, layers, [batch]).biases:
        assert list(layer) == list(ROLES)
        assert layer["key"] < 1e-9 * max(layer.values())  # softmax does not see what is added to every score


def test_n2_is_below_the_fewest_last_layers_with_half_of_the_score() -> None:
    assert choose_n2([1, 1, 1, 1, 1, 1], -1) == 2
    assert choose_n2([9, 9, 1, 1, 1, 1], 1) == 3  # of what lies beyond N1
    assert choose_n2([0, 0, 0, 0, 9], 1) == 3
    assert choose_n2([0, 0, 9, 1, 1], 1) == 1  # no group 2
    assert choose_n2([0, 0, 0], 0) == 1


def test_the_roles_that_pay_hold_nine_tenths_beyond_n1() -> None:
    biases = [{"query": 50.0, "value": 0.0}, {"query": 1.0, "value": 60.0, "output": 31.0, "key": 8.0}]
    assert paying_roles(biases, 0) == ("value", "output")
    assert paying_roles(biases, -1) == ("query", "value", "output")


def test_kappa_ranks_layers_of_well_conditioned_matrices_first() -> None:
    model = tiny("bert")
    layers = find_architecture(model).stacks[0].layers
    for name in layers[2].names(LORA_ROLES):
        nn.init.orthogonal_(model.get_submodule(name).weight)
    found = kappa_shares(model, layers)
    assert found[2] == max(found)
    assert sum(found) == pytest.approx(1)
    assert shares([0, 0]) == (0.5, 0.5)


def test_kappa_of_other_matrices_is_refused() -> None:
    model = tiny("gpt2")
    layers = find_architecture(model).stacks[0].layers
    assert isinstance(model.get_submodule(layers[0].names(["output"])[0]), Conv1D)
    with pytest.raises(ValueError, match=r"nn\.Linear alone"):
        kappa_shares(model, layers)

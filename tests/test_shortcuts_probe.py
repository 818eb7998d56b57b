"""What a short cut has to pass: a difference that is no number is the largest, and a model is left as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from spafit_hf.shortcuts.probe import both_ways, difference, evaluating, tolerance

LONG = {"states": torch.tensor([100.0, 1.0]), "logits": torch.tensor([0.1, -0.1]), "indices": torch.tensor([3])}


def test_the_value_that_differs_most_over_its_own_size() -> None:
    found = difference(LONG, {"states": LONG["states"] + 1, "logits": LONG["logits"] + 0.01})
    assert found.name == "logits"
    assert found.relative == pytest.approx(0.1)
    assert difference(LONG, {"states": LONG["states"] + 1, "logits": LONG["logits"] + 0.01}, 100).name == "states"
    assert difference(LONG, LONG).relative == 0


@pytest.mark.parametrize("odd", [torch.tensor([math.nan, 100.0]), torch.tensor([100.0])], ids=["NaN", "shape"])
def test_what_cannot_be_compared_is_infinitely_far(odd: torch.Tensor) -> None:
    found = difference(LONG, {"states": odd, "logits": LONG["logits"] + 0.05})
    assert (found.name, found.relative) == ("states", math.inf)


def test_doubles_are_compared_as_doubles() -> None:
    one = {"states": torch.tensor([1.0], dtype=torch.float64)}
    assert difference(one, {"states": one["states"] + 1e-12}).relative < tolerance(torch.float64, torch.device("cpu"))


def test_autocast_widens_what_rounding_explains() -> None:
    cpu = torch.device("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert tolerance(torch.float32, cpu) == tolerance(torch.bfloat16, cpu)
    assert tolerance(torch.float32, cpu) < 1e-3


def test_every_module_is_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()).eval())
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False, False]


def test_what_a_model_stumbles_over_is_a_refusal() -> None:
    class Refused(ValueError):
        pass

    with pytest.raises(Refused, match="both ways: IndexError: list"), both_ways(Refused):
        _ = [][0]
    with pytest.raises(Refused, match="its own"), both_ways(Refused):
        raise Refused("its own")
    with pytest.raises(MemoryError), both_ways(Refused):
        raise MemoryError

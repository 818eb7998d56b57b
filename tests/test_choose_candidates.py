"""The cuts that are tried, and what they cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from spafit_hf.choose.budget import Budget
from spafit_hf.choose.candidates import CONTROL, REFERENCE, Candidate, costed, proposed, within
from spafit_hf.planner import build_model, plan
from spafit_hf.strategy import Strategy

LORA = {"r": 4, "lora_alpha": 8.0}


@pytest.fixture(scope="module")
def candidates(base_folder: Path) -> list[Candidate]:
    cuts = proposed(str(base_folder), 4, 0, 2, ("value", "output"), 0, LORA)
    return costed(build_model(base_folder, 2), cuts, 16, 8, 12)


def test_no_two_train_the_same(candidates: list[Candidate]) -> None:
    strategies = [Strategy.from_dict(each.strategy) for each in candidates]
    trained = [
        str([(stratum.what(), layers) for stratum, layers in each.resolve(4) if layers and stratum.trains])
        for each in strategies
    ]
    assert trained.pop(1) != trained[0]  # the control, which on so few layers is one of the others
    assert len(set(trained)) == len(trained)
    names = [each.name for each in candidates]
    assert names[:5] == [REFERENCE, CONTROL, "data-0-2", "spafit-8-16-II", "data-0-2-biases"]
    assert len(set(names)) == len(names)
    chosen = strategies[4]
    assert [(stratum.name, stratum.biases) for stratum in chosen.strata] == [
        ("group 1", ()), ("group 2", ("value", "output")), ("group 3", ("output",)),
    ]  # fmt: skip
    assert {stratum.r for each in strategies for stratum in each.strata if stratum.lora} == {4}


def test_costs_are_the_planners(base_folder: Path, candidates: list[Candidate]) -> None:
    found = plan(build_model(base_folder, 2), Strategy.from_dict(candidates[2].strategy))
    assert candidates[2].parameters == found.trainable_parameters
    assert candidates[2].memory > found.weight_bytes
    assert candidates[2].step_flops == found.flops(1, 8, cached_prefix=True).total
    assert [each.frozen for each in candidates if each.name.startswith("data-0")] == [1, 1, 1]


def test_what_is_over_the_budget_is_left_out_but_for_what_it_is_set_against(candidates: list[Candidate]) -> None:
    least, reference = min(each.parameters for each in candidates), candidates[0]
    fit = within(candidates, Budget(parameters=least))
    assert {REFERENCE, CONTROL} < {each.name for each in fit}
    assert all(each.parameters == least for each in fit if each.name not in (REFERENCE, CONTROL))
    assert reference.over(Budget(parameters=least)) == f"{reference.parameters:,} parameters train, and {least:,} may"
    assert "a step takes" in reference.over(Budget(memory=1000))
    with pytest.raises(ValueError, match=r"no cut is within the budget: of .* parameters train, and 5 may; raise"):
        within(candidates, Budget(parameters=5))

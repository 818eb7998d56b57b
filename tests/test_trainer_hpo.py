"""Hyperparameter search: every trial trains the model its own values describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from scripts import tiny
from transformers import TrainerCallback

from spafit_hf import SpafitTrainer, SpafitTrainingArguments, get_spafit_model

pytest.importorskip("optuna")


class Watch(TrainerCallback):
    """What each run really trained."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        wrapped = isinstance(model, PeftModel)
        self.seen.append(
            {
                "strategy": model.peft_config["default"].strategy["name"] if wrapped else "full",
                "r": model.peft_config["default"].r if wrapped else 0,
                "rates": {group["kind"]: group["initial_lr"] for group in kwargs["optimizer"].param_groups},
                "lora": {n: p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n},
            }
        )


def searcher(folder: Path, model_init: Any = None, **fields: Any) -> tuple[SpafitTrainer, Watch]:
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 2}
    watch = Watch()
    args = SpafitTrainingArguments(str(folder), **{**quiet, "eval_strategy": "steps", "eval_steps": 2, **fields})
    run = SpafitTrainer(
        None,
        args,
        train_dataset=tiny.dataset(16),
        eval_dataset=tiny.dataset(8, seed=1),
        processing_class=tiny.tokenizer(),
        model_init=model_init or (lambda: tiny.bert(layers=4, seed=torch.initial_seed())),
        callbacks=[watch],
    )
    return run, watch


Choices = dict[str, list[Any]]


def search(run: SpafitTrainer, choices: Choices, trials: int = 5, **kwargs: Any) -> tuple[list[dict[str, Any]], Any]:
    """Random trials over `choices`; what each was proposed, in order, and the best run."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    proposed: dict[int, dict[str, Any]] = {}

    def space(trial: Any) -> dict[str, Any]:
        values = {name: trial.suggest_categorical(name, options) for name, options in choices.items()}
        if values.get("strategy", "spafit").startswith("spafit") and "bounds" in values:
            values["n1"], values["n2"] = (int(bound) for bound in values["bounds"].split())
        values.pop("bounds", None)
        proposed[trial.number] = values
        return values

    sampler = optuna.samplers.RandomSampler(seed=3)
    best = run.hyperparameter_search(space, n_trials=trials, backend="optuna", sampler=sampler, **kwargs)
    return [proposed[number] for number in sorted(proposed)], best


@pytest.mark.parametrize("arity", [0, 1])
def test_every_trial_trains_its_own_values(arity: int, tmp_path: Path) -> None:
    given: list[Any] = []
    no_argument = lambda: tiny.bert(layers=4)  # noqa: E731  # Trainer asks for the number of arguments
    one_argument = lambda trial: given.append(trial) or tiny.bert(layers=4)  # noqa: E731
    run, watch = searcher(tmp_path, one_argument if arity else no_argument)
    assert isinstance(run.model, PeftModel)
    choices: Choices = {
        "strategy": ["spafit-4-9-I", "spafit-8-12-II", "lora-I"],
        "lora_r": [2, 3, 4, 5],
        "learning_rate": [1e-3, 2e-3, 3e-3],
        "head_learning_rate": [1e-2, 2e-2],
    }
    proposed, best = search(run, choices)
    assert len({tuple(values.values()) for values in proposed}) > 2
    for values, seen in zip(proposed, watch.seen, strict=True):
        assert seen["strategy"] == values["strategy"]
        assert seen["r"] == values["lora_r"]
        assert seen["rates"]["lora"] == values["learning_rate"]
        assert seen["rates"]["head"] == values["head_learning_rate"]
    assert best.hyperparameters in proposed
    if arity:
        assert [trial.params["lora_r"] for trial in given[1:]] == [values["lora_r"] for values in proposed]


def test_bounds_of_one_trial_do_not_stay_for_the_next(tmp_path: Path) -> None:
    run, watch = searcher(tmp_path)
    before = run.args.to_dict()
    proposed, _ = search(run, {"strategy": ["spafit-4-9-II", "full", "bitfit"], "bounds": ["0 1", "1 3"]}, trials=8)
    assert {"full", "bitfit"} < {values["strategy"] for values in proposed}
    for values, seen in zip(proposed, watch.seen, strict=True):
        bounds = f"spafit-{values['n1']}-{values['n2']}-II-absolute" if "n1" in values else values["strategy"]
        assert seen["strategy"] == bounds
    # and nothing of the last trial stays in the arguments, whose best values a script sets itself
    assert run.args.to_dict() == before


def test_the_best_values_train_again(tmp_path: Path) -> None:
    run, watch = searcher(tmp_path)
    _, best = search(run, {"lora_r": [2, 3], "lora_dropout": [0.0, 0.1]}, trials=2)
    for name, value in best.hyperparameters.items():
        setattr(run.args, name, value)
    run.train()
    assert watch.seen[-1]["r"] == best.hyperparameters["lora_r"]


def test_a_trial_is_the_run_that_its_values_describe(tmp_path: Path) -> None:
    run, _ = searcher(tmp_path / "search")
    objectives: list[float] = []
    proposed, _ = search(
        run,
        {"lora_r": [2, 4], "seed": [1, 2, 3]},
        trials=3,
        compute_objective=lambda metrics: objectives.append(metrics["eval_loss"]) or metrics["eval_loss"],
    )
    for values, objective in zip(proposed, objectives, strict=True):
        alone, _ = searcher(tmp_path / "alone", **values)
        alone.train()
        assert alone.evaluate()["eval_loss"] == objective


def test_values_are_cast_and_checked(tmp_path: Path) -> None:
    run, watch = searcher(tmp_path)
    proposed, _ = search(run, {"lora_r": [2.0, 4.0]}, trials=1)
    assert watch.seen[0]["r"] == int(proposed[0]["lora_r"])
    with pytest.raises(ValueError, match="lora_r is 0"):
        search(run, {"lora_r": [0]}, trials=1)
    assert run.args.lora_r == 64


def test_a_full_trial_learns_at_one_rate(tmp_path: Path) -> None:
    def init() -> Any:
        model = tiny.bert(layers=4)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):
                    parameter.fill_(0.0 if "pooler" in name else 0.1)  # a pooler that was never trained
        return model

    run, watch = searcher(tmp_path, init)
    assert isinstance(run.model, PeftModel)
    search(run, {"strategy": ["full"], "learning_rate": [1e-2]}, trials=1)
    assert set(watch.seen[0]["rates"].values()) == {1e-2}


def test_a_model_init_may_wrap_the_model_itself(tmp_path: Path) -> None:
    run, watch = searcher(tmp_path, lambda trial: get_spafit_model(tiny.bert(layers=4), "lora-I"))
    run.train()
    assert watch.seen[0]["strategy"] == "lora-I"


def test_repeated_training_starts_from_the_same_model(tmp_path: Path) -> None:
    run, watch = searcher(tmp_path)
    run.train()
    first = tiny.state(run.model)
    torch.rand(5)
    run.train()
    assert tiny.differences(watch.seen[0]["lora"], watch.seen[1]["lora"]) == []
    assert tiny.differences(first, tiny.state(run.model)) == []

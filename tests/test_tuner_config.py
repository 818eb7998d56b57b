"""The configuration: what it refuses, what a plan writes into it, and that the same facts give the same bytes."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from models import tiny
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from programs import Program

from spafit_hf import SpafitConfig, Strategy, Stratum, get_spafit_model, plan, save_adapter
from spafit_hf.tuner import SpafitModel, SpafitPeftType

os.environ.pop("PYTHONHASHSEED", None)  # the fork server would begin with it, too
TWO_SETTINGS = Strategy(
    strata=(
        Stratum((0, 1), lora=("query",), r=2, lora_alpha=4, lora_dropout=0.5, use_rslora=True),
        Stratum((2, -1), lora=("query", "value"), biases=("output",), r=4, lora_alpha=4),
    ),
    name="two settings",
)


def test_peft_finds_the_method_by_its_name():
    assert PEFT_TYPE_TO_CONFIG_MAPPING["SPAFIT"] is SpafitConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING["SPAFIT"] is SpafitModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING["SPAFIT"] == "lora_"
    assert SpafitConfig().peft_type is SpafitPeftType.SPAFIT


def test_without_a_strategy_it_is_lora_config():
    ours, theirs = SpafitConfig(task_type="SEQ_CLS").to_dict(), LoraConfig(task_type="SEQ_CLS").to_dict()
    extra = {"strategy", "bias_modules", "module_settings", "labels"}
    assert {key: value for key, value in ours.items() if key not in extra | {"peft_type"}} == {
        key: value for key, value in theirs.items() if key != "peft_type"
    }


def test_from_plan_names_every_module():
    the_plan = plan(tiny("bert"), "spafit-4-9-II")
    config = SpafitConfig.from_plan(the_plan, task_type="SEQ_CLS")
    assert config.target_modules == set(the_plan.lora)
    assert config.bias_modules == sorted(the_plan.biases)
    assert config.modules_to_save == ["classifier"]
    assert (config.r, config.lora_alpha, config.rank_pattern, config.module_settings) == (64, 128, {}, {})
    assert config.strategy == the_plan.strategy.to_dict()


def test_strata_keep_their_own_settings():
    model = get_spafit_model(tiny("bert"), TWO_SETTINGS)
    early = model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    late = model.get_submodule("base_model.model.bert.encoder.layer.3.attention.self.query")
    assert (early.r, early.scaling) == ({"default": 2}, {"default": pytest.approx(4 / 2**0.5)})
    assert (late.r, late.scaling) == ({"default": 4}, {"default": 1})
    assert early.lora_dropout["default"].p == 0.5
    assert not hasattr(late.lora_dropout["default"], "p")


@pytest.mark.parametrize("with_lora", [{"r": 8, "lora_alpha": 16}, {"lora_dropout": 0.1}, {"use_rslora": True}])
def test_lora_settings_beside_a_strategy_replace_its_own(with_lora):
    config = SpafitConfig(strategy="spafit-4-9-II", **with_lora)
    assert config.strategy == Strategy.from_name("spafit-4-9-II", **with_lora)
    model = get_spafit_model(tiny("bert"), "spafit-4-9-II", **with_lora)
    assert model.peft_config["default"].strategy == config.strategy.to_dict()
    for name, value in with_lora.items():
        assert getattr(model.peft_config["default"], name) == value


@pytest.mark.parametrize(
    "also",
    [
        {"target_modules": ["query"]},
        {"layers_to_transform": [0]},
        {"layers_pattern": "layer"},
        {"rank_pattern": {"query": 2}},
        {"exclude_modules": ["query"]},
    ],
)
def test_a_strategy_and_modules_by_name_contradict_each_other(also):
    if "layers_pattern" in also:
        also = {**also, "layers_to_transform": [0]}
    for make in (SpafitConfig, partial(get_spafit_model, tiny("bert"))):
        with pytest.raises(ValueError, match=r"strategy and .* were both given"):
            make(strategy="bitfit", **also)


def test_from_plan_refuses_what_the_plan_decides():
    the_plan = plan(tiny("bert"), "spafit-4-9-II")
    with pytest.raises(ValueError, match="r follows from the plan"):
        SpafitConfig.from_plan(the_plan, r=8)


@pytest.mark.parametrize(
    "setting",
    [
        {"bias": "all"},
        {"lora_bias": True},
        {"trainable_token_indices": [1]},
        {"modules_to_save": ["pooler"]},
        {"megatron_core": "os"},
    ],
)
def test_what_no_folder_holds_is_refused_before_training(setting):
    for make in (
        lambda: get_spafit_model(tiny("bert"), "lora-II", **setting),
        lambda: get_peft_model(tiny("bert"), SpafitConfig(strategy="lora-II", **setting)),
    ):
        with pytest.raises(ValueError, match=f"^{next(iter(setting))} is .*; leave it out"):
            make()


def test_what_is_no_model_and_no_name_is_said():
    with pytest.raises(ValueError, match="a model is 'bert'; load it first"):
        get_spafit_model("bert", "lora-II")
    for name in ("", "a.b", "lora_x", "query", "classifier", 3):
        with pytest.raises(ValueError, match=f"adapter_name is {name!r}; it must not"):
            get_spafit_model(tiny("bert"), "lora-II", name)


def test_full_fine_tuning_has_no_adapter():
    with pytest.raises(ValueError, match="full fine-tuning trains the base itself"):
        get_spafit_model(tiny("bert"), "full")


@pytest.mark.parametrize("settings", [{"r": 4}, {"lora_alpha": 2}, {"nonsense": 1}])
def test_unknown_module_settings_are_refused(settings):
    with pytest.raises(ValueError, match="allowed are"):
        SpafitConfig(target_modules=["query"], module_settings={"query": settings})


def test_unknown_task_types_and_strategies_are_refused():
    with pytest.raises(ValueError, match="Invalid task type"):
        SpafitConfig(task_type="NONSENSE")
    with pytest.raises(ValueError, match="spafit-4-9"):
        SpafitConfig(strategy="spafit-4-9-III")


@pytest.mark.parametrize("strategy", ["spafit-4-9-II", "bitfit", "lora-I", "linear-probe", TWO_SETTINGS])
def test_saved_and_read_again_it_is_the_same(strategy, tmp_path):
    config = SpafitConfig.from_plan(plan(tiny("bert"), strategy), task_type="SEQ_CLS")
    config.save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    assert type(again) is SpafitConfig
    # What a configuration does not change by being saved: sets have become lists, and it is for inference now.
    assert {**again.to_dict(), "inference_mode": False} == config.to_dict()
    assert again.is_planned


def test_a_planned_configuration_can_be_changed_by_replace():
    config = SpafitConfig.from_plan(plan(tiny("bert"), "spafit-4-9-II"))
    assert replace(config, lora_dropout=0.3).lora_dropout == 0.3
    assert replace(config, lora_dropout=0.3).target_modules == config.target_modules


def write_all(folder: Path) -> None:
    for form in ("peft", "native"):
        for name in ("bert", "llama"):
            model = get_spafit_model(tiny(name), TWO_SETTINGS)
            for parameter in model.parameters():
                parameter.data.fill_(0.5)
            save_adapter(model, folder / f"{form}-{name}", form=form)


def test_the_same_weights_give_the_same_bytes_in_another_process(tmp_path):
    # Strings hash differently there, so sets come in another order: what forks it began with a seed of its own.
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    call = "import pathlib, test_tuner_config as t; t.write_all(pathlib.Path('there')); print(hash('a'))"
    log = tmp_path / "log"
    assert Program(["-c", call], tmp_path, {**os.environ, "PYTHONPATH": paths}, log).wait() == 0, log.read_text()
    assert log.read_text().split()[-1] != str(hash("a"))
    write_all(tmp_path / "here")
    files = sorted(path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*") if path.is_file())
    assert len(files) == 12
    for file in files:
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes(), file

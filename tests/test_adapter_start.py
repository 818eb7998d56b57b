"""An adapter that starts where another one ended: the same encoder before the first step, a head of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, assert_equal, inputs, logits, stir, tiny
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_trainer import bert, trainer
from test_tuner_model import BOTH

from spafit_hf import Strategy, get_spafit_model, load_adapter, save_adapter
from spafit_hf.adapter import AdapterError, start_from
from spafit_hf.trainer.facts import facts_of_run


def source(folder: Path, name: str = "bert", strategy: Any = BOTH, labels: int = 3, **kwargs: Any) -> Path:
    """A folder whose adapter has random values everywhere."""
    model = get_spafit_model(tiny(name, labels), strategy)
    stir(model)
    save_adapter(model, folder, **kwargs)
    return folder


def state(model: PeftModel) -> dict[str, torch.Tensor]:
    return {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, "peft") for name in FAMILIES if name != "vit"), *((name, "native") for name in ("bert", "llama", "t5"))],
)
def test_the_encoder_is_the_source_and_the_head_is_not(name: str, form: str, tmp_path: Path) -> None:
    folder = source(tmp_path / "a", name, form=form)
    model = get_spafit_model(tiny(name, 2), BOTH).eval()
    before = state(model)
    start_from(model, folder)
    after = state(model)
    loaded = load_adapter(tiny(name, 3), folder).state_dict()
    assert set(before) == set(after) == set(loaded)
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed == {key for key in after if "lora_" in key and not torch.equal(loaded[key], before[key])}
    assert all(torch.equal(after[key], loaded[key]) for key in changed)
    assert len(changed) > 20


def test_it_answers_as_the_source_with_the_source_s_head(tmp_path: Path) -> None:
    folder = source(tmp_path / "a", labels=2)
    torch.manual_seed(1)
    model = get_spafit_model(tiny("bert"), BOTH)
    start_from(model, folder)
    loaded = load_adapter(tiny("bert"), folder)
    head = {key: tensor for key, tensor in loaded.state_dict().items() if ".modules_to_save." in key}
    model.load_state_dict(head, strict=False)
    assert torch.equal(logits(model, inputs("bert")), logits(loaded, inputs("bert")))


def test_what_the_source_does_not_train_starts_as_ever(tmp_path: Path) -> None:
    folder = source(tmp_path / "a", strategy=Strategy.from_name("lora-I", r=4, lora_alpha=8))
    model = get_spafit_model(tiny("bert"), Strategy.from_name("lora-II", r=4, lora_alpha=8))
    before = state(model)
    start_from(model, folder)
    stored = load_adapter(tiny("bert", 3), folder).state_dict()
    own = [key for key in before if "lora_" in key and key not in stored]
    assert own
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in own)


DORA = Strategy.from_name("lora-I", r=4, lora_alpha=8, use_dora=True)


def test_dora_s_magnitudes_come_along(tmp_path: Path) -> None:
    folder = source(tmp_path / "a", strategy=DORA)
    model = get_spafit_model(tiny("bert"), DORA)
    start_from(model, folder)
    loaded = load_adapter(tiny("bert", 3), folder).state_dict()
    found = {key: tensor for key, tensor in model.state_dict().items() if "magnitude" in key}
    assert_equal(found, {key: loaded[key] for key in found})
    assert found


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (Strategy.from_name("lora-I", r=4, lora_alpha=8), "changes the bias of bert.embeddings.LayerNorm"),
        (Strategy.from_name("bitfit"), "changes LoRA of bert.encoder.layer.2"),
        (Strategy.from_dict(BOTH.to_dict()).with_lora(r=8), "has rank 4, scaling 2, without DoRA in "),
        (Strategy.from_dict(BOTH.to_dict()).with_lora(lora_alpha=4), "scaling 1, without DoRA here; train with"),
        (Strategy.from_dict(BOTH.to_dict()).with_lora(use_rslora=True), "scaling 4"),
        (Strategy.from_dict(BOTH.to_dict()).with_lora(use_dora=True), "with DoRA here"),
    ],
)
def test_another_kind_of_adapter_is_refused(own: Strategy, reason: str, tmp_path: Path) -> None:
    folder = source(tmp_path / "a")
    model = get_spafit_model(tiny("bert"), own)
    before = state(model)
    with pytest.raises(AdapterError, match=reason):
        start_from(model, folder)
    assert_equal(state(model), before)


def test_another_base_is_refused(tmp_path: Path) -> None:
    model = get_spafit_model(tiny("bert", seed=1), BOTH)
    before = state(model)
    with pytest.raises(AdapterError, match="does not belong to this base"):
        start_from(model, source(tmp_path / "a"))
    assert_equal(state(model), before)


def test_a_broken_folder_is_refused(tmp_path: Path) -> None:
    folder = source(tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    broken = load_file(weights)
    last = sorted(broken)[-1]
    broken[last] = torch.full_like(broken[last], torch.nan)
    save_file(broken, weights)
    model = get_spafit_model(tiny("bert"), BOTH)
    before = state(model)
    with pytest.raises(AdapterError, match="NaN or infinity"):
        start_from(model, folder)
    assert_equal(state(model), before)


# ---- the trainer ----


def earlier(folder: Path) -> Path:
    """The folder of a run on the rows that tests train on."""
    run = trainer(folder, strategy="spafit-4-9-II")
    run.train()
    run.save_model()
    return folder


def test_a_training_starts_from_an_adapter(tmp_path: Path) -> None:
    folder = earlier(tmp_path / "first")
    run = trainer(tmp_path / "second", strategy="spafit-4-9-II", init_adapter=str(folder))
    loaded = load_adapter(bert(), folder).state_dict()
    own = run.model.state_dict()
    lora = [key for key in own if "lora_" in key]
    assert lora
    assert all(torch.equal(own[key], loaded[key]) for key in lora)
    assert all(not torch.equal(own[key], loaded[key]) for key in own if ".modules_to_save." in key)
    run.train()
    assert any(not torch.equal(run.model.state_dict()[key], loaded[key]) for key in lora)


def test_the_card_names_it_without_its_path(tmp_path: Path) -> None:
    folder = earlier(tmp_path / "first")
    run = trainer(tmp_path / "second", strategy="spafit-4-9-II", init_adapter=f"{folder}/")
    shown = facts_of_run(run).all_hyperparameters
    assert shown["init_adapter"] == "first"
    assert str(tmp_path) not in json.dumps(shown)
    assert "init_adapter" not in facts_of_run(trainer(tmp_path / "third", strategy="bitfit")).all_hyperparameters


def test_full_fine_tuning_has_no_adapter_to_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="full fine-tuning trains none; leave it out"):
        trainer(tmp_path, strategy="full", init_adapter=str(tmp_path))


def test_a_model_with_an_adapter_has_started(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model has an adapter already; leave it out"):
        trainer(tmp_path, get_spafit_model(bert(), "bitfit"), init_adapter=str(tmp_path))


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        trainer(tmp_path, strategy="bitfit", init_adapter=str(tmp_path))

"""The method on models of every family: the base keeps every bit, whatever is trained, switched, mixed or merged."""

from __future__ import annotations

import copy
import io
import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from models import (
    BUILDS,
    COMPOSED,
    FAMILIES,
    WIDTH,
    assert_equal,
    base_tensors,
    composed,
    inputs,
    logits,
    stir,
    tensors,
    tiny,
    tiny_generator,
    train,
    transformers_takes_adapters,
)
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import AutoModelForSequenceClassification, BigBirdConfig, BigBirdForQuestionAnswering
from transformers.models.mobilebert.modeling_mobilebert import NoNorm

from spafit_hf import SpafitConfig, Strategy, Stratum, get_spafit_model, load_adapter, plan, save_adapter
from spafit_hf.adapter import AdapterError
from spafit_hf.strategy import ROLES
from spafit_hf.tuner import DeltaLayer
from spafit_hf.tuner.plain import plain_view

ALL = list(FAMILIES)
GENERATORS = [name for name, family in FAMILIES.items() if family.generator is not None]
WITH_EVERY_BIAS = [name for name, family in FAMILIES.items() if family.every_bias]

# Deltas on all layers and outside them, and in half of the layers LoRA beside the delta on one and the same module.
BOTH = Strategy(
    strata=(
        Stratum((0.0, 0.5), biases=ROLES),
        Stratum((0.5, 1.0), lora=("query", "value", "output"), biases=ROLES, r=4, lora_alpha=8),
    ),
    outer_biases=True,
    name="both",
)
STRATEGIES = {"spafit": "spafit-4-9-II", "bitfit": "bitfit", "lora": "lora-II", "probe": "linear-probe", "both": BOTH}


def second_adapter(model: PeftModel, strategy: Any = "bitfit", name: str = "b", seed: int = 1) -> None:
    model.add_adapter(name, SpafitConfig(strategy=strategy, task_type=model.peft_config["default"].task_type))
    stir(model, name, seed=seed)
    model.eval()


def two_adapters(name: str, num_labels: int = 2) -> PeftModel:
    torch.manual_seed(0)  # LoRA A starts at random
    model = get_spafit_model(tiny(name, num_labels), Strategy.from_name("spafit-4-9-II", r=4))
    stir(model)
    second_adapter(model)
    return model


def outputs_of_each(model: PeftModel, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name in list(model.peft_config):
        model.set_adapter(name)
        found[name] = logits(model, batch)
    with model.disable_adapter():
        found["__base__"] = logits(model, batch)
    return found


# ---- the plan and the tuner agree ----


class ScaleNorm(nn.Module):
    """A norm of one's own, which no list of classes knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.norm(dim=-1, keepdim=True) * self.weight + self.bias


def bert_with_norms_of_its_own() -> nn.Module:
    model = tiny("bert")
    for layer in model.bert.encoder.layer:
        layer.output.LayerNorm = ScaleNorm(WIDTH)
    return model


def modules_with(part: str, model: PeftModel) -> set[str]:
    """Names of the modules in which the adapter has a part: "lora_A" or "lora_delta"."""
    return {name for name, layer in model.get_base_model().named_modules() if "default" in getattr(layer, part, ())}


@pytest.mark.parametrize("strategy", ["spafit-8-12-II", "bitfit"])
@pytest.mark.parametrize("name", COMPOSED)
def test_what_a_plan_names_is_what_gets_wrapped(name, strategy):
    the_plan = plan(composed(name), strategy)
    model = get_spafit_model(composed(name), strategy)
    assert modules_with("lora_delta", model) == set(the_plan.biases)
    assert modules_with("lora_A", model) == set(the_plan.lora)
    heads = {key for key, part in model.get_base_model().named_modules() if isinstance(part, ModulesToSaveWrapper)}
    assert heads == set(the_plan.head)


@pytest.mark.parametrize("strategy", ["spafit-4-9-II", "bitfit"])
@pytest.mark.parametrize(
    ("make", "kind", "takes"),
    [
        (bert_with_norms_of_its_own, ScaleNorm, True),
        (lambda: composed("mobilebert", "cpu"), NoNorm, True),
        (lambda: composed("conformer", "cpu"), nn.BatchNorm1d, False),
    ],
)
def test_a_norm_gets_a_delta_or_a_note(make, kind, takes, strategy):
    base = make()
    batch = inputs("bert") if takes else {"input_values": torch.randn(2, 320)}
    expected, the_plan = logits(base, batch), plan(base, strategy)
    of_kind = {name for name, module in base.named_modules() if isinstance(module, kind)}
    assert bool(of_kind & set(the_plan.biases)) == takes
    assert any(kind.__name__ in note and "left alone" in note for note in the_plan.notes) != takes

    model = get_spafit_model(base, strategy)
    assert torch.equal(logits(model, batch), expected)
    assert modules_with("lora_delta", model) == set(the_plan.biases)
    stir(model)
    changed = logits(model, batch)
    assert not torch.equal(changed, expected)
    if takes:
        torch.testing.assert_close(logits(model.merge_and_unload(), batch), changed)


def test_a_model_that_takes_no_tokens_is_wrapped_plainly():
    """PEFT's class for sequence to sequence passes `input_ids` on, which Whisper does not take."""
    sizes = {"d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": 4, "vocab_size": 40}
    heads = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("attention_heads", "ffn_dim")}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    base = hf.WhisperForConditionalGeneration(hf.WhisperConfig(**sizes, **heads, **tokens, max_source_positions=8))
    batch = {"input_features": torch.randn(2, 4, 16), "labels": torch.randint(5, 40, (2, 3))}
    expected = logits(base, batch)
    model = get_spafit_model(base, "spafit-8-12-II", r=2)
    assert model.peft_config["default"].task_type is None
    assert torch.equal(logits(model, batch), expected)
    assert model.generate(batch["input_features"], max_new_tokens=2, suppress_tokens=None).shape[0] == 2


# ---- the base keeps every bit ----


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *((name, strategy) for name in ALL for strategy in ("spafit", "both")),
        *((name, strategy) for name in ("bert", "gpt2", "llama") for strategy in ("bitfit", "lora", "probe")),
    ],
)
def test_training_changes_the_outputs_and_nothing_of_the_base(name, strategy):
    base, batch = tiny(name, 3), inputs(name)
    expected, before = logits(base, batch), tensors(base)
    model = get_spafit_model(base, STRATEGIES[strategy])
    assert torch.equal(logits(model, batch), expected)

    train(model, batch)
    assert not torch.equal(logits(model, batch), expected)
    assert_equal(base_tensors(model), before)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), expected)

    plain = model.unload()
    assert type(plain) is FAMILIES[name].classifier
    assert torch.equal(logits(plain, batch), expected)
    assert_equal(tensors(plain), before)


@pytest.mark.parametrize("name", BUILDS)
def test_everything_that_should_train_gets_a_gradient_and_nothing_else(name):
    model = get_spafit_model(tiny(name), BOTH).train()
    batch = inputs(name)
    model(**batch, labels=torch.zeros(4, dtype=torch.long)).loss.backward()
    for key, parameter in model.named_parameters():
        ours = "lora_" in key or "modules_to_save.default" in key
        assert parameter.requires_grad == ours, key
        assert (parameter.grad is not None) == ours, key


@pytest.mark.parametrize("name", BUILDS)
def test_deleting_adapters_gives_the_base_back(name):
    base, batch = tiny(name, 3), inputs(name)
    expected, before, labels = logits(base, batch), tensors(base), dict(base.config.id2label)
    model = two_adapters(name, 3)
    outputs = outputs_of_each(model, batch)
    model.set_adapter("b")
    model.delete_adapter("b")
    assert model.active_adapters == ["default"]
    assert torch.equal(logits(model, batch), outputs["default"])
    model.delete_adapter("default")
    assert torch.equal(logits(base, batch), expected)
    assert_equal(base_tensors(base), before)
    assert base.config.id2label == labels
    assert not [key for key, _ in model.named_parameters() if "lora_" in key or "modules_to_save" in key]


@pytest.mark.parametrize("name", BUILDS)
def test_a_second_adapter_of_other_strata_leaves_the_first_alone(name):
    batch = inputs(name)
    torch.manual_seed(0)
    alone = get_spafit_model(tiny(name), Strategy.from_name("spafit-4-9-II", r=4))
    stir(alone)
    expected = logits(alone, batch)
    model = two_adapters(name)
    outputs = outputs_of_each(model, batch)
    assert torch.equal(outputs["default"], expected)
    assert torch.equal(outputs["__base__"], logits(tiny(name), batch))
    assert not torch.equal(outputs["b"], outputs["default"])
    # The plan of the second one reads the model through the first one's layers.
    names = {key for key, layer in model.get_base_model().named_modules() if isinstance(layer, DeltaLayer)}
    assert names >= set(model.peft_config["b"].bias_modules)


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal", "mica"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_initializations_that_start_at_the_base(name, init):
    batch = inputs(name)
    model = get_spafit_model(tiny(name), "spafit-4-9-II", r=4, init_lora_weights=init)
    assert torch.allclose(logits(model, batch), logits(tiny(name), batch), atol=2e-6)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), logits(tiny(name), batch))


def test_each_stratum_says_how_its_lora_starts(tmp_path):
    starts = ("gaussian", "orthogonal", "default", "")
    strata = [
        {"layers": [layer, layer], "lora": ["query"], "r": 4} | ({"init_lora_weights": start} if start else {})
        for layer, start in enumerate(starts)
    ]
    strategy = Strategy.from_dict({"strata": strata})
    assert Strategy.from_dict(strategy.to_dict()) == strategy
    assert "init_lora_weights" not in strategy.strata[3].to_dict()
    base, batch = tiny("bert"), inputs("bert")
    expected = logits(base, batch)
    model = get_spafit_model(base, strategy, init_lora_weights="orthogonal")
    assert torch.allclose(logits(model, batch), expected, atol=1e-6)
    layers = [layer.attention.self.query for layer in model.get_base_model().bert.encoder.layer]
    assert [bool(layer.lora_B["default"].weight.any()) for layer in layers] == [False, True, False, True]
    kaiming = 0.25  # the bound of its uniform draw on 16 inputs; gaussian has that as its deviation
    assert [bool((layer.lora_A["default"].weight.abs() > kaiming).any()) for layer in layers[:3:2]] == [True, False]
    stir(model)
    assert save_adapter(model, tmp_path) == "absolute"
    plain = PeftModel.from_pretrained(tiny("bert"), tmp_path)
    assert torch.equal(logits(plain, batch), logits(model, batch))
    save_adapter(model, tmp_path / "native", form="native")
    assert json.loads((tmp_path / "native/adapter_config.json").read_text())["module_settings"] == {}
    PeftModel.save_pretrained(model, tmp_path / "peft")
    for folder in ("native", "peft"):
        assert torch.equal(logits(load_adapter(tiny("bert"), tmp_path / folder), batch), logits(model, batch))


def test_initializing_away_from_the_base_includes_the_deltas():
    model = get_spafit_model(tiny("bert"), "bitfit", init_lora_weights=False)
    assert all(parameter.any() for key, parameter in model.named_parameters() if "lora_delta" in key)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_initializations_that_rewrite_the_base_are_left_to_peft(init, tmp_path):
    with pytest.raises(ValueError, match=f"'{init}' moves a part of the base's weights .* Use PEFT's LoraConfig"):
        get_spafit_model(tiny("bert"), "spafit-4-9-II", r=4, init_lora_weights=init)
    rewriting = SpafitConfig(target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=init, r=4)
    model = get_spafit_model(tiny("bert"), "bitfit")
    with pytest.raises(ValueError, match="moves a part of the base's weights"):
        model.add_adapter("b", rewriting)
    model = get_peft_model(tiny("bert"), rewriting)  # LoraConfig, name for name
    assert torch.allclose(logits(model, inputs("bert")), logits(tiny("bert"), inputs("bert")), atol=1e-5)
    with pytest.raises(ValueError, match="moves a part of the base's weights"):
        model.add_adapter("b", SpafitConfig(strategy="bitfit", task_type="SEQ_CLS"))
    with pytest.raises(AdapterError, match="has changed the base's weights; save it as PEFT does"):
        save_adapter(model, tmp_path)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"use_rslora": True}, {"lora_dropout": 0.4}])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_settings_pass_through_to_lora(name, settings):
    base, batch = tiny(name), inputs(name)
    expected, before = logits(base, batch), tensors(base)
    model = get_spafit_model(base, "spafit-4-9-II", r=4, **settings)
    assert torch.allclose(logits(model, batch), expected, atol=1e-6)
    layers = [layer for layer in model.modules() if isinstance(layer, DeltaLayer) and layer.has_lora("default")]
    assert len(layers) == len(model.peft_config["default"].target_modules)
    if "use_dora" in settings:
        assert all(layer.use_dora["default"] for layer in layers)
    elif "use_rslora" in settings:
        assert all(layer.scaling["default"] == pytest.approx(128 / 4**0.5) for layer in layers)
    else:
        assert all(layer.lora_dropout["default"].p == 0.4 for layer in layers)
        model.train()
        stir(model)
        assert not torch.equal(model(**batch).logits, model(**batch).logits)
    train(model, batch)
    assert_equal(base_tensors(model), before)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), expected)


def test_deltas_of_an_adapter_that_comes_after_dora():
    model = get_spafit_model(tiny("bert"), "lora-II", r=4, use_dora=True)
    model.add_adapter("b", SpafitConfig(strategy="bitfit"))
    model.set_adapter("b")
    deltas = {key: parameter for key, parameter in model.named_parameters() if key.endswith(".lora_delta.b")}
    assert len(deltas) == len(plan(tiny("bert"), "bitfit").biases)
    assert all(parameter.requires_grad for parameter in deltas.values())
    model.delete_adapter("b")
    assert not any(".lora_delta.b" in key for key, _ in model.named_parameters())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit"])
def test_a_half_precision_base_keeps_its_dtype_and_deltas_stay_fp32(name):
    base = tiny(name).to(torch.bfloat16)
    batch = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs(name).items()}
    expected, before = logits(base, batch), tensors(base)
    model = get_spafit_model(base, BOTH)
    assert torch.equal(logits(model, batch), expected)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            assert parameter.dtype == torch.float32, key
    train(model, batch)
    assert_equal(base_tensors(model), before)
    assert not torch.equal(logits(model, batch), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_trains_whole_is_fp32_on_a_base_in_half_precision(dtype, tmp_path):
    base = tiny("bert").to(dtype)
    expected = logits(base, inputs("bert"))
    model = get_spafit_model(base, "linear-probe")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert torch.equal(logits(model, inputs("bert")), expected)
    copied = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(copied, inputs("bert")), expected)
    head = next(p for p in model.parameters() if p.requires_grad)
    before = head.detach().clone()
    optimizer = torch.optim.SGD([head], lr=1e-3)  # lost on half of the weights in their own type
    model(**inputs("bert"), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    optimizer.step()
    assert (head != before).all()
    save_adapter(model, tmp_path)
    again = load_adapter(tiny("bert").to(dtype), tmp_path)
    assert torch.equal(logits(again, inputs("bert")), logits(model, inputs("bert")))
    assert torch.equal(next(p for name, p in again.named_parameters() if "modules_to_save" in name), head)
    theirs = PeftModel.from_pretrained(tiny("bert").to(dtype), tmp_path)
    assert torch.equal(logits(theirs, inputs("bert")), logits(model, inputs("bert")))
    assert logits(model.float(), inputs("bert")).dtype == torch.float32


def test_without_autocast_deltas_have_the_dtype_of_the_base():
    base = tiny("bert").to(torch.bfloat16)
    model = get_peft_model(base, SpafitConfig(strategy=BOTH, task_type="SEQ_CLS"), autocast_adapter_dtype=False)
    assert {p.dtype for key, p in model.named_parameters() if "lora_" in key} == {torch.bfloat16}


# ---- labels ----


def test_the_configuration_names_the_outputs_of_the_active_head():
    base = tiny("bert", 3)
    base.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    model = get_spafit_model(base, "spafit-4-9-II")
    other = {"num_labels": 3, "id2label": {"0": "a", "1": "b", "2": "c"}, "problem_type": "multi_label_classification"}
    model.add_adapter("b", SpafitConfig(strategy="bitfit", task_type="SEQ_CLS", labels=other))
    assert base.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    model.set_adapter("b")
    assert base.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert base.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert base.config.problem_type == "multi_label_classification"
    with model.disable_adapter():
        assert base.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
        assert base.config.problem_type is None
    assert base.config.id2label == {0: "a", 1: "b", 2: "c"}
    model.delete_adapter("b")
    assert base.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    model.add_adapter("c", SpafitConfig(strategy="bitfit", task_type="SEQ_CLS", labels=other))
    model.set_adapter("c")
    assert model.unload().config.id2label == {0: "no", 1: "maybe", 2: "yes"}


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_labels_are_those_of_the_model_however_it_is_wrapped(name):
    for wrap in (
        lambda base: get_spafit_model(base, "bitfit"),
        lambda base: get_peft_model(base, SpafitConfig(strategy="bitfit")),
    ):
        labels = wrap(tiny(name, 3)).peft_config["default"].labels
        assert labels["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert get_spafit_model(tiny_generator("gpt2"), "bitfit").peft_config["default"].labels is None


# ---- batches that mix adapters ----


@pytest.mark.parametrize("name", BUILDS)
def test_each_row_of_a_batch_has_its_own_adapter(name):
    model, batch = two_adapters(name), inputs(name)
    outputs = outputs_of_each(model, batch)
    names = ["b", "__base__", "default", "b"]
    mixed = logits(model, batch, adapter_names=names)
    for row, adapter in enumerate(names):
        assert torch.allclose(mixed[row], outputs[adapter][row], atol=2e-6), adapter
    assert torch.allclose(logits(model, batch, adapter_names=["__base__"] * 4), outputs["__base__"], atol=2e-6)


def test_mixed_batches_say_what_they_cannot_do():
    model, batch = two_adapters("bert"), inputs("bert")
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): nonsense. Loaded are: b, default"):
        logits(model, batch, adapter_names=["b", "nonsense", "b", "b"])
    with pytest.raises(ValueError, match="should be the same as the number of inputs"):
        logits(model, batch, adapter_names=["b"])
    model.train()
    with pytest.raises(ValueError, match="in training mode"):
        model(**batch, adapter_names=["b"] * 4)


class OfTwo(nn.Module):
    """A head that takes two tensors, or gives two."""

    def __init__(self, gives: bool) -> None:
        super().__init__()
        self.lin, self.head = nn.Linear(4, 4), nn.GRU(4, 4) if gives else nn.Bilinear(4, 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lin(x))[0] if isinstance(self.head, nn.GRU) else self.head(self.lin(x), x)


@pytest.mark.parametrize("gives", [False, True])
def test_a_mixed_batch_through_a_head_of_two_tensors_is_refused(gives: bool) -> None:
    config = SpafitConfig(target_modules=["lin"], modules_to_save=["head"], init_lora_weights=False)
    model = get_peft_model(OfTwo(gives), config, "a")
    model.add_adapter("b", copy.deepcopy(config))
    with pytest.raises(TypeError, match="Mixed batching is only supported for"):
        model.eval()(torch.ones(2, 4), adapter_names=["a", "b"])


@pytest.mark.parametrize(
    ("name", "beams"), [*((name, 1) for name in GENERATORS), *((name, 3) for name in ("gpt2", "llama", "t5"))]
)
def test_generation_with_mixed_adapters(name, beams):
    model = get_spafit_model(tiny_generator(name), Strategy.from_name("spafit-4-9-II", r=4))
    stir(model)
    second_adapter(model)
    batch = inputs(name)
    arguments = {**batch, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": beams}
    expected = {}
    for adapter in ("default", "b"):
        model.set_adapter(adapter)
        expected[adapter] = model.generate(**arguments)
    with model.disable_adapter():
        expected["__base__"] = model.generate(**arguments)
    assert torch.equal(expected["__base__"], tiny_generator(name).generate(**arguments))
    names = ["b", "__base__", "default", "b"]
    mixed = model.generate(**arguments, adapter_names=names)
    for row, adapter in enumerate(names):
        assert torch.equal(mixed[row], expected[adapter][row])


# ---- merge ----


@pytest.mark.parametrize(
    ("name", "strategy"),
    [*((name, "both") for name in WITH_EVERY_BIAS), *((name, "spafit") for name in ("bert", "gpt2", "bart", "vit"))],
)
def test_merging_computes_the_same_and_unmerging_restores_every_bit(name, strategy):
    base, batch = tiny(name, 3), inputs(name)
    before = tensors(base)
    model = get_spafit_model(base, STRATEGIES[strategy])
    stir(model, std=0.05)
    expected = logits(model, batch)
    model.merge_adapter()
    assert torch.allclose(logits(model, batch), expected, atol=5e-6)
    with pytest.raises(AssertionError):
        assert_equal(base_tensors(model), before)
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()  # as where one of two adapters was merged, each norm on which it has no part
    assert_equal(base_tensors(model), before)
    assert torch.equal(logits(model, batch), expected)

    merged = model.merge_and_unload(safe_merge=True)
    assert type(merged) is FAMILIES[name].classifier
    assert sorted(merged.state_dict()) == sorted(before)
    assert torch.allclose(logits(merged, batch), expected, atol=5e-6)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama-bias"])
def test_merging_two_adapters_in_any_order(name, dora):
    base, batch = tiny(name), inputs(name)
    before = tensors(base)
    model = get_spafit_model(base, Strategy.from_name("spafit-4-9-II", r=4, use_dora=dora))
    stir(model, std=0.03)
    second_adapter(model, BOTH)
    outputs = outputs_of_each(model, batch)
    model.merge_adapter(["default", "b"])
    model.unmerge_adapter()
    assert_equal(base_tensors(model), before)
    model.merge_adapter(["b"])
    with pytest.warns(UserWarning, match="Already following adapters were merged b"):
        model.merge_adapter(["default"])
    model.unmerge_adapter()
    assert_equal(base_tensors(model), before)
    for adapter, expected in outputs.items():
        if adapter != "__base__":
            model.set_adapter(adapter)
            assert torch.equal(logits(model, batch), expected)


@pytest.mark.parametrize("name", [name for name in ALL if name not in WITH_EVERY_BIAS])
def test_merging_where_a_module_has_no_bias_is_refused_with_nothing_merged(name):
    base, batch = tiny(name), inputs(name)
    before = tensors(base)
    model = get_spafit_model(base, "spafit-4-9-II")
    stir(model)
    expected = logits(model, batch)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"has no bias.*Nothing was merged.*save_adapter"):
            merge()
        assert_equal(base_tensors(model), before)
        assert not any(layer.merged for layer in model.modules() if isinstance(layer, DeltaLayer))
        assert torch.equal(logits(model, batch), expected)


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "lora_delta"])
def test_a_safe_merge_that_finds_nan_leaves_nothing_merged(part):
    base, batch = tiny("bert"), inputs("bert")
    before = tensors(base)
    model = get_spafit_model(base, "spafit-4-9-II", r=4)
    stir(model)
    key, broken = [(key, p) for key, p in model.named_parameters() if part in key][-1]
    good = broken.data.clone()
    broken.data.fill_(float("nan"))
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="NaNs detected"):
            merge(safe_merge=True)
        assert_equal(base_tensors(model), before)
        assert not any(layer.merged for layer in model.modules() if isinstance(layer, DeltaLayer)), key
    broken.data = good
    expected = logits(model, batch)
    model.merge_adapter(safe_merge=True)
    assert torch.allclose(logits(model, batch), expected, atol=5e-6)
    model.unmerge_adapter()
    assert_equal(base_tensors(model), before)


def test_a_failed_merge_keeps_what_was_merged_before():
    model = two_adapters("bert")
    model.merge_adapter(["b"])
    merged = base_tensors(model)
    for parameter in [p for key, p in model.named_parameters() if ".lora_B.default" in key][-1:]:
        parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_adapter(["default"], safe_merge=True)
    assert_equal(base_tensors(model), merged)
    model.unmerge_adapter()
    assert_equal(base_tensors(model), tensors(tiny("bert")))


def test_disabling_and_unloading_undo_a_merge():
    batch = inputs("bert")
    model = two_adapters("bert")
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), logits(tiny("bert"), batch))
    model = two_adapters("bert")
    model.merge_adapter()
    assert_equal(tensors(model.unload()), tensors(tiny("bert")))


# ---- combinations ----


@pytest.mark.parametrize("kind", ["linear", "svd", "cat"])
def test_weighted_combinations_of_lora_and_deltas(kind):
    model = get_spafit_model(tiny_generator("gpt2"), Strategy.from_name("spafit-4-9-II", r=4, use_rslora=True))
    stir(model)
    second_adapter(model, Strategy.from_name("spafit-8-12-I", r=4))
    model.add_weighted_adapter(["default", "b"], [0.25, 0.75], "mean", combination_type=kind, svd_rank=8)
    for key, layer in model.get_base_model().named_modules():
        if not isinstance(layer, DeltaLayer):
            continue
        pairs = [("default", 0.25), ("b", 0.75)]
        deltas = [weight * layer.lora_delta[name] for name, weight in pairs if name in layer.lora_delta]
        if deltas:
            assert torch.allclose(layer.lora_delta["mean"], sum(deltas), atol=1e-6), key
        if kind == "linear":
            continue  # a rough approximation for LoRA, by PEFT's own words
        weights = [weight * layer.get_delta_weight(name) for name, weight in pairs if layer.has_lora(name)]
        if weights:
            assert torch.allclose(layer.get_delta_weight("mean"), sum(weights), atol=1e-4), key
    model.set_adapter("mean")
    assert torch.isfinite(logits(model, inputs("gpt2"))).all()
    with pytest.raises(ValueError, match="nonsense does not exist"):
        model.add_weighted_adapter(["default", "nonsense"], [1, 1], "c")


def test_combinations_where_ranks_differ_and_of_dora(tmp_path):
    low, high = Stratum((0, 1), lora=("query",), r=2), Stratum((2, 3), lora=("query",), r=4)
    model = get_spafit_model(tiny_generator("llama"), Strategy((low, high)))
    stir(model)
    second_adapter(model, Strategy((low, high)))
    model.add_weighted_adapter(["default", "b"], [0.5, 0.5], "mean", combination_type="linear")
    model.save_pretrained(tmp_path, selected_adapters=["mean"])  # refuses ranks that its configuration does not tell
    second_adapter(model, Strategy((replace(high, layers=(0, 3)),)), "other")
    second_adapter(model, Strategy((replace(high, use_dora=True),)), "dora")
    for name, words in (("other", r"q_proj has LoRA of ranks \[2, 4\].*take 'cat' or 'svd'"), ("dora", "has DoRA")):
        with pytest.raises(ValueError, match=words):
            model.add_weighted_adapter(["default", name], [1, 1], "sum", combination_type="linear")
    assert "sum" not in model.peft_config


@pytest.mark.parametrize("kind", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_sparsifying_combinations_of_deltas_alone(kind):
    model = get_spafit_model(tiny_generator("gpt2"), "bitfit")
    stir(model)
    second_adapter(model, "bitfit")
    model.add_weighted_adapter(["default", "b"], [0.5, 0.5], "mean", combination_type=kind, density=0.5)
    model.set_adapter("mean")
    assert torch.isfinite(logits(model, inputs("gpt2"))).all()
    assert any(parameter.any() for key, parameter in model.named_parameters() if "lora_delta.mean" in key)


# ---- other ways in and out ----


@pytest.mark.parametrize(
    ("name", "strategy", "low_cpu_mem_usage"),
    [
        *(("bert", strategy, low) for strategy in ("spafit", "bitfit", "probe", "both") for low in (False, True)),
        *(
            (name, strategy, low)
            for name in ("gpt2", "llama", "t5")
            for strategy, low in (("spafit", True), ("both", False))
        ),
    ],
)
def test_peft_saves_and_loads_the_method_by_itself(name, strategy, low_cpu_mem_usage, tmp_path):
    batch = inputs(name)
    model = get_spafit_model(tiny(name, 3), STRATEGIES[strategy])
    stir(model)
    PeftModel.save_pretrained(model, tmp_path)
    again = PeftModel.from_pretrained(tiny(name, 3), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert again.peft_config["default"].labels == model.peft_config["default"].labels


@transformers_takes_adapters
def test_transformers_adds_saves_and_loads_the_method_by_itself(tmp_path):
    batch = inputs("bert")
    model = tiny("bert")
    model.add_adapter(SpafitConfig(strategy=BOTH, task_type="SEQ_CLS"), "a")
    assert torch.equal(logits(model, batch), logits(tiny("bert"), batch))
    stir(model, "a")
    expected = logits(model, batch)
    model.add_adapter(SpafitConfig(strategy="spafit-4-9-II", task_type="SEQ_CLS"), "b")
    stir(model, "b", seed=3)
    model.set_adapter("a")
    assert torch.equal(logits(model, batch), expected)
    model.disable_adapters()
    assert torch.equal(logits(model, batch), logits(tiny("bert"), batch))
    model.enable_adapters()
    model.set_adapter("a")
    model.save_pretrained(tmp_path / "adapter")
    base = tiny("bert")
    base.load_adapter(tmp_path / "adapter")
    assert torch.equal(logits(base, batch), expected)


def test_auto_model_opens_a_folder_of_the_method(tmp_path):
    batch = inputs("bert")
    tiny("bert").save_pretrained(tmp_path / "base")
    model = get_spafit_model(AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"), BOTH)
    stir(model)
    PeftModel.save_pretrained(model, tmp_path / "adapter")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_copies_are_independent():
    batch = inputs("bert")
    model = two_adapters("bert")
    expected = logits(model, batch)
    twin = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    unpickled = torch.load(buffer, weights_only=False)
    stir(model, seed=9)
    for other in (twin, unpickled):
        assert torch.equal(logits(other, batch), expected)
        assert not torch.equal(logits(model, batch), expected)


@pytest.mark.slow
def test_adapters_on_torchs_own_layers_count_in_eval_mode(tmp_path: Path) -> None:
    """There torch hands the weights of a layer to one function, and calls none of its modules."""

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        return nn.ModuleDict({"body": nn.TransformerEncoder(layer, 2)}).eval()

    strata = (Stratum((0.0, 1.0), lora=("intermediate",), biases=("output", "output_norm"), r=2, lora_alpha=4),)
    x, padding = torch.randn(2, 5, 16), torch.arange(5).repeat(2, 1) > 3
    model = get_spafit_model(fresh(), Strategy(strata=strata))
    stir(model)
    expected = model.eval().body(x, src_key_padding_mask=padding)
    save_adapter(model, tmp_path)
    plain = PeftModel.from_pretrained(fresh(), tmp_path)
    with torch.no_grad():
        base = fresh().body(x, src_key_padding_mask=padding)
        found = model.body(x, src_key_padding_mask=padding)
        merged = copy.deepcopy(model).merge_and_unload().body(x, src_key_padding_mask=padding)
        torch.backends.mha.set_fastpath_enabled(False)  # as the plan says of plain PEFT
        try:
            by_plain = plain.eval().body(x, src_key_padding_mask=padding)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        unloaded = model.unload().body(x, src_key_padding_mask=padding)
    for each in (found, merged, by_plain):
        assert torch.allclose(each[:, :4], expected[:, :4], atol=1e-5)
    assert not torch.allclose(base[:, :4], expected[:, :4], atol=1e-2)
    assert torch.equal(unloaded, base)
    assert any("set_fastpath_enabled(False)" in note for note in plan(fresh(), Strategy(strata=strata)).notes)


def test_torch_compile_sees_one_graph():
    batch = inputs("bert")
    kinds = ({"kind": "series"}, {"kind": "parallel"})
    strata = [replace(each, bottleneck=kind) for each, kind in zip(BOTH.strata, kinds, strict=True)]
    model = get_spafit_model(tiny("bert"), replace(BOTH, strata=strata))
    stir(model)
    compiled = torch.compile(model.get_base_model(), backend="eager", fullgraph=True)
    assert torch.allclose(logits(compiled, batch), logits(model, batch), atol=1e-6)


def test_a_table_of_strata_follows_the_line_of_peft(capsys):
    get_peft_model(
        tiny("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    ).print_trainable_parameters()
    assert capsys.readouterr().out.count("\n") == 1
    get_spafit_model(tiny("bert"), "spafit-4-9-II").print_trainable_parameters()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("trainable params: 16,690 || all params: ")
    assert "16,690" in "\n".join(rest)
    assert any("group 2" in line and "every bias" in line for line in rest)


def test_wrapping_twice_is_refused():
    model = get_spafit_model(tiny("bert"), "bitfit")
    with pytest.raises(ValueError, match="wrapped by PEFT already"):
        get_spafit_model(model.get_base_model(), "bitfit")


@pytest.mark.parametrize("name", BUILDS)
def test_the_plain_view_is_the_model_without_wrappers(name):
    model = two_adapters(name)
    view = plain_view(model.get_base_model())
    assert_equal(tensors(view), tensors(tiny(name)))
    assert [key for key, _ in view.named_modules()] == [key for key, _ in tiny(name).named_modules()]
    for key, parameter in view.named_parameters():
        assert parameter.data_ptr() in {p.data_ptr() for p in model.parameters()}, key
    assert any(isinstance(module, DeltaLayer) for module in model.modules())


def test_modules_named_by_hand_need_no_strategy():
    batch = inputs("bert")
    config = SpafitConfig(
        task_type="SEQ_CLS",
        target_modules=["query"],
        bias_modules=r".*layer\.[01]\.output\.(dense|LayerNorm)",
        exclude_modules=["3.attention.self.query"],
    )
    model = get_peft_model(tiny("bert"), config)
    layers = {key for key, layer in model.get_base_model().named_modules() if isinstance(layer, DeltaLayer)}
    assert layers == {
        *(f"bert.encoder.layer.{index}.attention.self.query" for index in (0, 1, 2)),
        *(f"bert.encoder.layer.{index}.output.{module}" for index in (0, 1) for module in ("LayerNorm", "dense")),
    }
    assert torch.equal(logits(model, batch), logits(tiny("bert"), batch))
    train(model, batch)
    assert not torch.equal(logits(model, batch), logits(tiny("bert"), batch))


def test_the_names_of_a_plan_are_whole_names():
    """Sam 3 has a text_projection, and its text encoder has one too, which no plan names."""
    model = nn.ModuleDict({"projection": nn.Linear(2, 2), "inner": nn.ModuleDict({"projection": nn.Linear(2, 2)})})
    for strategy, count in (("bitfit", 1), (None, 2)):
        config = SpafitConfig(strategy=strategy, bias_modules=["projection"])
        wrapped = get_peft_model(copy.deepcopy(model), config)
        assert sum(isinstance(module, DeltaLayer) for module in wrapped.modules()) == count


def test_a_norm_among_the_target_modules_gets_a_delta():
    model = get_peft_model(tiny("bert"), SpafitConfig(target_modules=["query", "output.LayerNorm"]))
    norm = model.get_submodule("base_model.model.bert.encoder.layer.0.output.LayerNorm")
    assert list(norm.lora_delta) == ["default"]
    assert not norm.has_lora("default")


# ---- a head that does not train ----

NO_HEAD = Strategy(name="x", strata=(Stratum((0.5, 1.0), lora=("query",), biases=ROLES, r=4),), head=False)


@pytest.mark.parametrize("name", ["bert", "roberta", "llama", "bart"])
def test_a_head_that_the_strategy_leaves_alone_is_left_alone(name: str, tmp_path: Path) -> None:
    base = tiny(name, 3)
    before = tensors(base)
    model = get_spafit_model(base, NO_HEAD)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == plan(tiny(name, 3), NO_HEAD).trainable_parameters
    assert not any("modules_to_save" in key for key, _ in model.named_parameters())
    stir(model)
    save_adapter(model, tmp_path)
    loaded = load_adapter(tiny(name, 3), tmp_path)
    torch.testing.assert_close(logits(loaded, inputs(name)), logits(model, inputs(name)), atol=1e-6, rtol=0)
    assert_equal(base_tensors(loaded), before)


def test_a_head_that_peft_would_save_twice():
    """PEFT trains modules called qa_outputs by itself, here one within the head."""
    config = BigBirdConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64
    )
    model = get_spafit_model(BigBirdForQuestionAnswering(config), "spafit-4-9-II", r=2)
    assert model.peft_config["default"].task_type is None
    head = model.get_base_model().qa_classifier.modules_to_save["default"]
    assert isinstance(head.qa_outputs, torch.nn.Linear)


def test_a_head_with_batch_norms_is_refused_before_training():
    model = tiny("bert", 2)
    model.classifier = torch.nn.Sequential(torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 2))
    with pytest.raises(ValueError, match=r"the head keeps classifier\.0\.running_mean, .* no adapter folder holds it"):
        get_spafit_model(model, "spafit-4-9-II")
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_what_batch_norms_have_seen_stays_as_it_is() -> None:
    """No adapter folder holds it, so a reader would compute something else."""
    base = tiny("bert")
    base.bert.add_module("seen", nn.BatchNorm1d(4))
    wrapped = get_spafit_model(base, "lora-II", r=2).train()
    wrapped.get_base_model().bert.seen(torch.randn(8, 4) + 3)
    assert not base.bert.seen.running_mean.any()
    assert base.bert.encoder.layer[0].attention.self.dropout.training


def test_what_python_shows_once_is_not_shown_again_for_every_adapter() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(2):
            warnings.warn("once", stacklevel=1)
            get_spafit_model(tiny("bert"), "spafit-4-9-II")
    assert [str(each.message) for each in shown].count("once") == 1

"""Adapters from folders: many on one base, each with its own strata, head and labels, and the base keeps every bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import FAMILIES, assert_equal, base_tensors, inputs, logits, stir, tensors, tiny, tiny_generator, train
from peft import LoraConfig, PeftModel, get_peft_model
from test_tuner_model import BOTH

from spafit_hf import SpafitConfig, Strategy, get_spafit_model, load_adapter, save_adapter
from spafit_hf.adapter import AdapterError, load, load_base, merge_adapter
from spafit_hf.adapter.folder import KEY_PREFIX, TensorName
from spafit_hf.tuner import DeltaLayer

STRATEGIES = {"spafit": "spafit-4-9-II", "bitfit": "bitfit", "lora": "lora-II", "probe": "linear-probe", "both": BOTH}
NAMES = {1: None, 2: {0: "no", 1: "yes"}, 3: {0: "entailment", 1: "neutral", 2: "contradiction"}}


def write(
    folder: Path, name: str, strategy: Any = "spafit-4-9-II", num_labels: int = 2, seed: int = 0, **kwargs: Any
) -> torch.Tensor:
    """Save an adapter with weights of its own; its logits."""
    base = tiny(name, num_labels)
    if NAMES[num_labels]:
        base.config.id2label = NAMES[num_labels]
    torch.manual_seed(seed)
    model = get_spafit_model(base, strategy, **{"r": 4, **kwargs.pop("lora", {})})
    stir(model, seed=seed)
    save_adapter(model, folder, **kwargs)
    return logits(model, inputs(name))


# ---- one adapter ----


@pytest.mark.parametrize(
    ("name", "strategy", "form"),
    [
        *((name, "spafit", "auto") for name in FAMILIES),
        *((name, "both", "auto") for name in ("bert", "gpt2", "llama", "t5", "bart", "vit")),
        *((name, strategy, "auto") for name in ("bert", "llama", "t5") for strategy in ("bitfit", "lora", "probe")),
        *(("bert", strategy, "native") for strategy in STRATEGIES),
        *((name, "spafit", "native") for name in ("gpt2", "llama", "t5", "vit")),
    ],
)
def test_what_was_saved_computes_the_same_on_a_fresh_base(name, strategy, form, tmp_path):
    expected = write(tmp_path, name, STRATEGIES[strategy], 3, form=form)
    for outputs in (2, 3) if name in ("bert", "llama", "t5") else (2,):  # another head, and one of the same size
        base = tiny(name, outputs)
        plain, before, labels = logits(base, inputs(name)), tensors(base), dict(base.config.id2label)
        model = load_adapter(base, tmp_path)
        found = logits(model, inputs(name))
        if strategy == "both" and form == "auto":
            # Absolute biases are read as differences, which a sum with LoRA in between rounds in another place.
            assert torch.allclose(found, expected, atol=3e-6)
        else:
            assert torch.equal(found, expected)
        assert model.config.id2label == NAMES[3]
        assert getattr(base, "num_labels", 3) == 3
        assert_equal(base_tensors(model), before)
        with model.disable_adapter():
            assert torch.equal(logits(model, inputs(name)), plain)
            assert base.config.id2label == labels
        assert_equal(tensors(model.unload()), before)
        assert base.config.id2label == labels
        assert getattr(base, "num_labels", outputs) == outputs


def from_parts(folder: Path) -> Any:
    return transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(folder, folder)


@pytest.mark.parametrize(
    ("saved", "load_model"),
    [
        ("BertForMaskedLM", transformers.BertForSequenceClassification.from_pretrained),  # without a pooler
        ("BertForMaskedLM", from_parts),  # without cross attention
        ("BertModel", transformers.BertForMaskedLM.from_pretrained),  # without a head
    ],
)
def test_what_the_checkpoint_did_not_bring_travels_with_the_adapter(saved, load_model, tmp_path):
    getattr(transformers, saved)(FAMILIES["bert"].config()).save_pretrained(tmp_path / "base")
    batch = inputs("bert") | ({"decoder_input_ids": inputs("bert")["input_ids"]} if load_model is from_parts else {})
    model = get_spafit_model(load_model(tmp_path / "base"), "spafit-4-9-II", r=4)
    stir(model)
    expected = logits(model, batch)
    save_adapter(model, tmp_path / "adapter")
    for seed, read in enumerate((load_adapter, PeftModel.from_pretrained), start=1):
        torch.manual_seed(seed)  # another random pooler in the base
        assert torch.equal(logits(read(load_model(tmp_path / "base"), tmp_path / "adapter"), batch), expected)
    if load_model is transformers.BertForSequenceClassification.from_pretrained:
        assert torch.equal(logits(load_adapter(tmp_path / "base", tmp_path / "adapter"), batch), expected)
        merge_adapter(load_model(tmp_path / "base"), tmp_path / "adapter", tmp_path / "merged")
        merged = load_model(tmp_path / "merged")
        assert torch.allclose(logits(merged, batch), expected, atol=1e-6)
        with pytest.raises(AdapterError, match=r"declares 'bert\.pooler\.dense' as a module to save"):
            load_adapter(merged, tmp_path / "adapter")  # here it is pretrained, and no adapter may replace it


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_language_models(name, tmp_path):
    batch = inputs(name)
    model = get_spafit_model(tiny_generator(name), "spafit-4-9-II", r=4)
    stir(model)
    save_adapter(model, tmp_path)
    again = load_adapter(tiny_generator(name), tmp_path)
    assert type(again) is type(model)
    arguments = {**batch, "max_new_tokens": 5, "min_new_tokens": 5, "num_beams": 2, "do_sample": False}
    assert torch.equal(again.generate(**arguments), model.eval().generate(**arguments))


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"use_rslora": True}, {"lora_dropout": 0.5}])
@pytest.mark.parametrize("form", ["peft", "native"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_settings_of_lora_survive(name, form, lora, tmp_path):
    expected = write(tmp_path, name, lora=lora, form=form)
    model = load_adapter(tiny(name), tmp_path)
    assert torch.equal(logits(model, inputs(name)), expected)
    for key, value in lora.items():
        assert getattr(model.peft_config["default"], key) == value


@pytest.mark.parametrize("form", ["peft", "native"])
@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "eva", "mica"])
def test_however_lora_was_initialized_the_adapter_is_for_the_base(init, form, tmp_path):
    torch.manual_seed(0)
    model = get_spafit_model(tiny("bert"), "spafit-4-9-II", r=4, init_lora_weights=init)
    stir(model, std=0.02)
    save_adapter(model, tmp_path, form=form)
    for again in (load_adapter(tiny("bert"), tmp_path), PeftModel.from_pretrained(tiny("bert"), tmp_path)):
        assert torch.allclose(logits(again, inputs("bert")), logits(model, inputs("bert")), atol=1e-5)
        assert again.peft_config["default"].init_lora_weights is True
        with again.disable_adapter():
            if not (form == "peft" and isinstance(again.peft_config["default"], LoraConfig)):
                assert torch.equal(logits(again, inputs("bert")), logits(tiny("bert"), inputs("bert")))


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_a_base_in_half_precision(name, tmp_path):
    base = tiny(name).to(torch.bfloat16)
    model = get_spafit_model(base, "spafit-4-9-II", r=4)
    stir(model)
    expected = logits(model, inputs(name))
    for form in ("auto", "native"):
        save_adapter(model, tmp_path / form, form=form)
        again = load_adapter(tiny(name).to(torch.bfloat16), tmp_path / form)
        assert torch.equal(logits(again, inputs(name)), expected)
        assert {p.dtype for key, p in again.named_parameters() if "lora_" in key} == {torch.float32}
    # With a bias or without one, a sum is rounded where plain PEFT rounds it.
    theirs = PeftModel.from_pretrained(tiny(name).to(torch.bfloat16), tmp_path / "auto")
    assert torch.equal(logits(theirs, inputs(name)), expected)
    # An adapter of the base in full precision fits its half, and the other way round: it is the same base.
    load_adapter(tiny(name), tmp_path / "native")


def test_training_goes_on_where_it_stopped(tmp_path):
    write(tmp_path, "bert")
    base = tiny("bert")
    before = tensors(base)
    model = load_adapter(base, tmp_path, is_trainable=True)
    trainable = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trainable == {
        key for key, p in get_spafit_model(tiny("bert"), "spafit-4-9-II", r=4).named_parameters() if p.requires_grad
    }
    expected = logits(model, inputs("bert"))
    train(model, inputs("bert"))
    assert not torch.equal(logits(model, inputs("bert")), expected)
    assert_equal(base_tensors(model), before)
    assert not any(p.requires_grad for p in load_adapter(tiny("bert"), tmp_path).parameters())


@pytest.mark.parametrize("form", ["peft", "native"])
def test_saved_again_it_is_the_same_file(form, tmp_path):
    write(tmp_path / "a", "bert", form=form)
    save_adapter(load_adapter(tiny("bert"), tmp_path / "a"), tmp_path / "b", form=form)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


# ---- several on one base ----


def test_nine_adapters_of_different_strata_and_heads_on_one_base(tmp_path):
    batch = inputs("bert")
    expected = {}
    for index, strategy in enumerate([*STRATEGIES.values(), "lora-I", "spafit-8-12-I", "spafit-4-14-II", "bitfit"]):
        outputs = index % 3 + 1
        expected[f"task{index}"] = write(tmp_path / f"task{index}", "bert", strategy, outputs, seed=index)
    base = tiny("bert", 2)
    before = tensors(base)
    model = base
    for name in expected:
        model = load_adapter(model, tmp_path / name, adapter_name=name)
    assert isinstance(model, PeftModel)
    assert model.active_adapters == ["task0"]
    for name in [*expected, *reversed(expected)]:
        model.set_adapter(name)
        assert torch.allclose(logits(model, batch), expected[name], atol=1e-6), name
        outputs = expected[name].shape[1]
        assert model.config.num_labels == outputs
        assert model.config.id2label == (NAMES[outputs] or {0: "LABEL_0"})
    assert_equal(base_tensors(model), before)

    three = [name for name in expected if expected[name].shape[1] == 3]
    names = [three[0], three[1], three[0], three[2]]
    mixed = logits(model, batch, adapter_names=names)
    for row, name in enumerate(names):
        assert torch.allclose(mixed[row], expected[name][row], atol=2e-6)
    with pytest.raises(ValueError, match=r"different numbers of outputs \(task0: 1, task1: 2\)"):
        logits(model, batch, adapter_names=["task0", "task1", "task0", "task1"])
    with pytest.raises(ValueError, match=r"different numbers of outputs \(__base__: 2, task0: 1\)"):
        logits(model, batch, adapter_names=["task0", "__base__", "task0", "task0"])

    for name in list(expected):
        model.set_adapter(name)
        model.delete_adapter(name)
    assert_equal(base_tensors(base), before)
    assert torch.equal(logits(base, batch), logits(tiny("bert", 2), batch))


@pytest.mark.parametrize("name", ["roberta", "distilbert", "gpt2", "llama", "t5", "bart", "vit"])
def test_two_adapters_with_heads_of_different_sizes(name, tmp_path):
    batch = inputs(name)
    first = write(tmp_path / "a", name, "spafit-4-9-II", 1, seed=1)
    second = write(tmp_path / "b", name, "bitfit", 3, seed=2)
    model = load_adapter(tiny(name, 2), tmp_path / "a", adapter_name="a")
    model = load_adapter(model, tmp_path / "b", adapter_name="b")
    assert torch.equal(logits(model, batch), first)
    model.set_adapter("b")
    assert torch.allclose(logits(model, batch), second, atol=1e-6)
    assert model.config.num_labels == 3
    model.set_adapter("a")
    assert torch.equal(logits(model, batch), first)
    assert model.config.num_labels == 1


def test_beside_an_adapter_that_is_being_trained(tmp_path):
    expected = write(tmp_path, "bert", "bitfit", 3, seed=5, lora={"r": 2})
    model = get_spafit_model(tiny("bert"), "spafit-4-9-II", r=4).train()
    load_adapter(model, tmp_path, adapter_name="other")
    assert model.training
    assert model.active_adapters == ["default"]
    trainable = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("default" in key for key in trainable)
    train(model, inputs("bert"))
    model.set_adapter("other")
    assert torch.allclose(logits(model, inputs("bert")), expected, atol=1e-6)


def test_the_dropout_of_a_further_adapter_is_off(tmp_path):
    write(tmp_path / "a", "bert", "bitfit")
    expected = write(tmp_path / "b", "bert", lora={"lora_dropout": 0.5}, seed=1)
    model = load_adapter(tiny("bert"), tmp_path / "a", adapter_name="a")
    load_adapter(model, tmp_path / "b", adapter_name="b").set_adapter("b")
    with torch.no_grad():
        assert torch.equal(model(**inputs("bert")).logits, expected)


# ---- labels ----


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification", "single_label_classification"])
def test_label_names_and_problem_type_survive(problem_type, tmp_path):
    base = tiny("bert", 3, problem_type=problem_type)
    base.config.id2label = NAMES[3]
    save_adapter(get_spafit_model(base, "bitfit"), tmp_path)
    for outputs in (1, 2, 3):
        model = load_adapter(tiny("bert", outputs), tmp_path)
        assert model.config.id2label == NAMES[3]
        assert model.config.label2id == {"entailment": 0, "neutral": 1, "contradiction": 2}
        assert model.config.problem_type == problem_type
        targets = torch.zeros(4, 3) if problem_type == "multi_label_classification" else torch.zeros(4).long()
        assert torch.isfinite(model(**inputs("bert"), labels=targets).loss)
    regression = tiny("bert", 1, problem_type="regression")
    save_adapter(get_spafit_model(regression, "bitfit"), tmp_path / "regression")
    model = load_adapter(tiny("bert", 3), tmp_path / "regression")
    assert model.config.problem_type == "regression"
    assert torch.isfinite(model(**inputs("bert"), labels=torch.zeros(4)).loss)


# ---- finding the base ----


def test_the_base_is_loaded_by_the_name_that_the_adapter_gives(tmp_path):
    tiny("bert").bert.save_pretrained(tmp_path / "base")
    model = get_spafit_model(load_bert(tmp_path / "base", 3), "spafit-4-9-II", r=4)
    stir(model)
    save_adapter(model, tmp_path / "adapter")
    expected = logits(model, inputs("bert"))
    for base in (None, tmp_path / "base", str(tmp_path / "base")):
        assert torch.equal(logits(load_adapter(base, tmp_path / "adapter"), inputs("bert")), expected)
    assert load_base(None, tmp_path / "adapter").config.num_labels == 3
    with pytest.raises(AdapterError, match=r"nowhere.* cannot be loaded"):
        load_adapter(str(tmp_path / "nowhere"), tmp_path / "adapter")


def load_bert(folder: Path, num_labels: int) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=num_labels)


def test_an_adapter_that_names_no_base_asks_for_one(tmp_path):
    write(tmp_path, "bert")
    with pytest.raises(AdapterError, match="does not name its base; give one"):
        load_adapter(None, tmp_path)
    write(tmp_path / "vit", "vit")
    with pytest.raises(AdapterError, match="from which no model class follows"):
        load_adapter(str(tmp_path), tmp_path / "vit")


def test_a_folder_has_no_revision(tmp_path):
    write(tmp_path, "bert")
    with pytest.raises(AdapterError, match="drop the revision"):
        load_adapter(tiny("bert"), tmp_path, revision="main")


# ---- what cannot be loaded onto a model ----


@pytest.mark.parametrize("name", ["", "a.b", "lora_x", "__base__", "query", "layer"])
def test_names_that_no_adapter_can_have(name, tmp_path):
    write(tmp_path, "bert")
    base = tiny("bert")
    with pytest.raises(AdapterError, match="cannot name an adapter"):
        load_adapter(base, tmp_path, adapter_name=name)
    assert_equal(tensors(base), tensors(tiny("bert")))


def test_long_patterns_are_looked_up_and_mean_the_same(tmp_path, monkeypatch):
    model = get_spafit_model(tiny("bert"), "lora-II", r=4)
    stir(model)
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["alpha_pattern"] = {name: 2 + index for index, name in enumerate(config["target_modules"])}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    one = load_adapter(tiny("bert"), tmp_path)
    monkeypatch.setattr(load, "MANY_NAMES", 0)
    tried = []
    for module in ("peft.tuners.lora.model", "spafit_hf.tuner.model"):
        monkeypatch.setattr(f"{module}.get_pattern_key", lambda keys, name: (tried.extend(keys), name)[1])
    other = load_adapter(tiny("bert"), tmp_path)
    assert tried == []
    assert torch.equal(logits(one, inputs("bert")), logits(other, inputs("bert")))
    assert one.peft_config["default"].to_dict() == other.peft_config["default"].to_dict()


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
def test_a_wrapper_of_torch_is_taken_off(wrap, tmp_path):
    expected = write(tmp_path, "bert")
    base = tiny("bert")
    loaded = load_adapter(wrap(base), tmp_path)
    assert loaded.get_base_model() is base
    assert torch.equal(logits(loaded, inputs("bert")), expected)


def test_a_name_is_used_once(tmp_path):
    write(tmp_path, "bert")
    model = load_adapter(tiny("bert"), tmp_path)
    with pytest.raises(AdapterError, match=r"has an adapter 'default' already; choose an adapter_name other than"):
        load_adapter(model, tmp_path)


def test_the_plain_model_cannot_be_wrapped_twice(tmp_path):
    write(tmp_path, "bert")
    base = tiny("bert")
    load_adapter(base, tmp_path, adapter_name="a")
    with pytest.raises(AdapterError, match=r"already has adapters.*give the PeftModel"):
        load_adapter(base, tmp_path, adapter_name="b")


def test_beside_another_method_nothing_is_loaded(tmp_path):
    write(tmp_path, "bert")
    model = get_peft_model(tiny("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with pytest.raises(AdapterError, match="wrapped for LoraModel"):
        load_adapter(model, tmp_path, adapter_name="b")


def test_onto_a_model_without_weights_nothing_is_loaded(tmp_path):
    save_adapter(get_spafit_model(tiny("bert"), "bitfit"), tmp_path)
    with pytest.raises(AdapterError, match="on the meta device or offloaded; load it into memory"):
        load_adapter(tiny("bert").to("meta"), tmp_path)


def test_onto_a_merged_model_nothing_is_loaded(tmp_path):
    write(tmp_path, "bert")
    model = load_adapter(tiny("bert"), tmp_path, adapter_name="a")
    model.merge_adapter()
    with pytest.raises(AdapterError, match=r"\['a'\] are merged.*unmerge_adapter"):
        load_adapter(model, tmp_path, adapter_name="b")


@pytest.mark.parametrize("wrapped_already", [False, True])
def test_a_failure_in_the_middle_leaves_nothing_behind(wrapped_already, tmp_path, monkeypatch):
    write(tmp_path, "bert")
    base = tiny("bert", 3)
    model = get_spafit_model(base, "bitfit").eval() if wrapped_already else base
    expected, before = logits(model, inputs("bert")), tensors(model)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("spafit_hf.adapter.load._fill", fail)
    with pytest.raises(MemoryError):
        load_adapter(model, tmp_path, adapter_name="b")
    assert torch.equal(logits(model, inputs("bert")), expected)
    assert model.config.num_labels == 3
    assert_equal(tensors(model), before)
    if wrapped_already:
        assert list(model.peft_config) == ["default"]
    else:
        assert not any(isinstance(module, DeltaLayer) for module in base.modules())


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "head", "meta"])
def test_tensors_that_are_not_those_of_the_parameters_are_not_half_loaded(change, tmp_path, monkeypatch):
    write(tmp_path, "bert", "bitfit", form="native")
    read = load.verify_and_read

    def changed(folder: Path, plain: torch.nn.Module) -> Any:
        adapter, stored = read(folder, plain)
        key = next(key for key in stored if key.startswith(f"{KEY_PREFIX}bert"))
        module = adapter.tensors[key].module
        if change == "missing":
            del adapter.tensors[key]
        elif change == "head":
            del adapter.tensors[f"{KEY_PREFIX}classifier.weight"]
        elif change == "unknown":
            name = TensorName("bert.nowhere", "lora_delta")
            adapter.tensors[str(name)], stored[str(name)] = name, stored[key]
            adapter = dataclasses.replace(adapter, bias_modules=(*adapter.bias_modules, "bert.nowhere"))
        elif change == "shape":
            stored[key] = stored[key][:1]  # which would be broadcast
            assert module in adapter.bias_modules
        return adapter, stored

    monkeypatch.setattr(load, "verify_and_read", changed)
    base = tiny("bert", 2)
    if change == "meta":
        base = base.to("meta")
    reason = "offloaded" if change == "meta" else "did not find their places"
    with pytest.raises(AdapterError, match=reason):
        load_adapter(base, tmp_path)
    assert not any(isinstance(module, DeltaLayer) for module in base.modules())


@pytest.mark.parametrize("is_trainable", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_trains_after_loading(strategy, is_trainable, tmp_path):
    write(tmp_path, "bert", STRATEGIES[strategy])
    model = load_adapter(tiny("bert", 2), tmp_path, is_trainable=is_trainable)
    trained = {
        name
        for name, parameter in get_spafit_model(tiny("bert"), STRATEGIES[strategy]).named_parameters()
        if parameter.requires_grad
    }
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found == (trained if is_trainable else set())
    assert model.peft_config["default"].init_lora_weights is True


# ---- what plain PEFT wrote ----


@pytest.mark.parametrize(
    ("name", "task_type", "bias"),
    [
        *(("bert", task_type, bias) for task_type in ("SEQ_CLS", None) for bias in ("none", "lora_only", "all")),
        *((name, "SEQ_CLS", "all") for name in ("roberta", "gpt2", "llama", "qwen2", "t5")),
        *((name, None, "lora_only") for name in ("gpt2", "llama", "t5")),
    ],
)
def test_adapters_of_plain_lora(name, task_type, bias, tmp_path):
    batch = inputs(name)
    model = get_peft_model(tiny(name, 3), LoraConfig(task_type=task_type, bias=bias, r=4))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    base = tiny(name, 3)
    before = tensors(base)
    again = load_adapter(base, tmp_path)
    assert torch.allclose(logits(again, batch), expected, atol=5e-6)
    assert_equal(base_tensors(again), before)
    if task_type is not None and name != "t5":  # of T5's head PEFT knows nothing
        again = load_adapter(tiny(name, 2), tmp_path)
        assert torch.allclose(logits(again, batch), expected, atol=5e-6)
        assert again.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}},
        {"target_modules": "all-linear"},
        {"target_modules": ["query", "key"], "exclude_modules": ["layer.1.attention.self.query"]},
        {"lora_bias": True},
        {"layers_to_transform": [1, 2], "layers_pattern": "layer"},
    ],
)
def test_settings_of_plain_lora(settings, tmp_path):
    model = get_peft_model(tiny("bert"), LoraConfig(task_type="SEQ_CLS", r=4, **settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    again = load_adapter(tiny("bert"), tmp_path)
    assert torch.allclose(logits(again, inputs("bert")), logits(model, inputs("bert")), atol=5e-6)


def test_two_towers_that_are_one_module(tmp_path):
    def fresh():
        towers = torch.nn.ModuleDict({"query": tiny("bert")})
        towers["document"] = towers["query"]
        return towers

    model = get_spafit_model(fresh(), "spafit-4-9-II")
    stir(model)
    save_adapter(model, tmp_path)
    expected = logits(model.document, inputs("bert"))
    for read in (load_adapter, PeftModel.from_pretrained):
        assert torch.equal(logits(read(fresh(), tmp_path).document, inputs("bert")), expected)


def test_the_native_form_that_peft_wrote(tmp_path):
    model = get_spafit_model(tiny("bert", 3), BOTH)
    stir(model)
    PeftModel.save_pretrained(model, tmp_path)
    again = load_adapter(tiny("bert", 2), tmp_path)
    assert torch.equal(logits(again, inputs("bert")), logits(model, inputs("bert")))
    assert again.peft_config["default"].strategy == BOTH.to_dict()
    assert again.config.num_labels == 3
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "SPAFIT"
    assert SpafitConfig(strategy=config["strategy"]).strategy == Strategy.from_dict(BOTH.to_dict())


def test_a_head_that_plain_peft_saved_by_the_end_of_its_name(tmp_path: Path) -> None:
    """PEFT declares "classifier" for DistilBERT and saves pre_classifier, too."""
    base = tiny("distilbert")
    plain = get_peft_model(tiny("distilbert"), LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"]))
    with torch.no_grad():
        plain.get_submodule("base_model.model.pre_classifier.modules_to_save.default").weight.add_(1.0)
    plain.save_pretrained(str(tmp_path / "adapter"))
    loaded = load_adapter(base, tmp_path / "adapter")
    batch = inputs("distilbert")
    assert torch.equal(logits(loaded, batch), logits(plain, batch))

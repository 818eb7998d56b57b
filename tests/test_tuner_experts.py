"""LoRA on experts that are one tensor for all: as a stratum names them, in files, merges, resumed runs, caches."""

from __future__ import annotations

import copy
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import yaml
from models import MIXTURES, assert_equal, inputs, logits, mixture, stir, tensors, tiny, train
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from scripts import tiny as scripts
from scripts.runs import ROWS, losses, spafit_trainer
from test_predictor import WORDS, make_tokenizer

from benchmarks import architectures
from spafit_hf import Strategy, get_spafit_model, load_adapter, plan, save_adapter
from spafit_hf.adapter import AdapterError, export_adapter, merge_adapter, start_from, verify_adapter
from spafit_hf.adapter.write import portable_obstacle
from spafit_hf.card.facts import CardFacts
from spafit_hf.card.strata import drawing, in_words
from spafit_hf.cli import main
from spafit_hf.predictor import SpafitPredictor
from spafit_hf.strategy import ROLES
from spafit_hf.trainer.facts import layers_of_plan
from spafit_hf.tuner import SpafitConfig

STRATEGY: dict[str, Any] = {
    "name": "own",
    "strata": [
        {"layers": [1, 1], "lora": ["query"], "r": 2, "lora_dropout": 0.5, "init_lora_weights": "gaussian"},
        {"layers": [2, 2], "lora": ["experts"], "r": 2, "lora_alpha": 4, "name": "third"},
        {"layers": [3, 3], "lora": ["value", "experts"], "r": 3, "lora_alpha": 9, "use_rslora": True},
    ],
}
INPUTS = inputs("llama")
OUTER = "base_model.model.model.layers.3.mlp.experts.lora_A.weight"


def stirred(name: str = "Mixtral", strategy: Any = STRATEGY, seed: int = 0) -> PeftModel:
    """An adapter as if trained for long."""
    torch.manual_seed(seed)
    model = get_spafit_model(mixture(name), strategy)
    stir(model, seed=seed)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `stirred()`."""
    made = tmp_path_factory.mktemp("experts")
    assert save_adapter(stirred(), made) == "absolute"
    return made


def assert_can_be_undone(model: PeftModel, base: torch.Tensor, trained: torch.Tensor) -> None:
    """Disabled it computes what the base does; merged what it was trained to, and unmerged that to the bit."""
    with model.disable_adapter():
        assert torch.equal(logits(model, INPUTS), base)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model, INPUTS), trained)
    model.unmerge_adapter()
    assert torch.equal(logits(model, INPUTS), trained)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_train_travel_and_leave_no_trace(name: str, tmp_path: Path) -> None:
    base = mixture(name)
    expected, before, order = logits(base, INPUTS), tensors(base), [key for key, _ in base.named_parameters()]
    the_plan = plan(base, STRATEGY)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The following .*_pattern keys did not match")
        model = get_spafit_model(base, STRATEGY)
    assert torch.equal(logits(model, INPUTS), expected)
    started = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
    assert sum(each.numel() for each in started.values()) == the_plan.trainable_parameters
    train(model, INPUTS)
    assert not [key for key, p in model.named_parameters() if key in started and torch.equal(p, started[key])]
    trained = logits(model, INPUTS)
    assert not torch.equal(trained, expected)

    assert save_adapter(model, tmp_path) == "absolute"
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in stored.items()} == the_plan.tensors
    with warnings.catch_warnings():  # PEFT follows the ranks of parameters, and says that it ignored them
        warnings.filterwarnings("ignore", "The following .*_pattern keys did not match")
        plain = PeftModel.from_pretrained(mixture(name), tmp_path)
    assert torch.equal(logits(plain, INPUTS), trained)
    loaded = load_adapter(mixture(name), tmp_path)
    assert torch.equal(logits(loaded, INPUTS), trained)
    assert save_adapter(loaded, tmp_path / "again") == "absolute"
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()

    assert_can_be_undone(model, expected, trained)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(logits(merged, INPUTS), trained)
    untouched = {key: tensor for key, tensor in tensors(merged).items() if ".layers.0." in key}
    assert_equal(untouched, {key: before[key] for key in untouched})
    model.merge_adapter()
    unloaded = model.unload()
    assert [key for key, _ in unloaded.named_parameters()] == order
    assert_equal(tensors(unloaded), before)


def test_each_expert_has_lora_of_its_own() -> None:
    model = stirred()
    outer = model.get_base_model().model.layers[3].mlp.experts
    inner = outer.base_layer
    weights = mixture("Mixtral").model.layers[3].mlp.experts
    for wrapper, weight in ((inner, weights.gate_up_proj), (outer, weights.down_proj)):
        a = wrapper.lora_A["default"].weight.reshape(4, 3, -1)  # experts, rank, inputs
        b = wrapper.lora_B["default"].weight.reshape(-1, 3, 4)  # outputs, rank, experts
        added = torch.stack([b[:, :, expert] @ a[expert] for expert in range(4)])
        assert wrapper.scaling["default"] == 9 / 3**0.5
        wrapper.merge()
        torch.testing.assert_close(wrapper.get_param(), weight + 9 / 3**0.5 * added)


def test_several_adapters_on_one_base(folder: Path, tmp_path: Path) -> None:
    native, other = tmp_path / "native", tmp_path / "other"
    assert export_adapter(mixture("Mixtral"), folder, native, "native") == "native"
    save_adapter(stirred(seed=1), other)
    model = load_adapter(mixture("Mixtral"), folder)
    model = load_adapter(model, native, adapter_name="native")
    model = load_adapter(model, other, adapter_name="other")
    alone = logits(load_adapter(mixture("Mixtral"), other), INPUTS)
    first = logits(model, INPUTS)
    for name, expected in (("native", first), ("other", alone)):
        model.set_adapter(name)
        assert torch.equal(logits(model, INPUTS), expected)
    with pytest.raises(ValueError, match="has LoRA on experts, which see tokens and no rows: no batch of this model"):
        logits(model, INPUTS, adapter_names=["other", "default", "__base__", "other"])
    with pytest.raises(ValueError, match=r"does not support targeting nn\.Parameter"):
        model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both")
    elsewhere = {"strata": [{"layers": [0, 1], "lora": ["experts"], "r": 2}]}
    save_adapter(stirred(strategy=elsewhere), tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match="beside the adapter 'default': one of the two has LoRA on other experts"):
        load_adapter(model, tmp_path / "elsewhere", adapter_name="elsewhere")
    model.delete_adapter("other")
    model.set_adapter("default")
    assert torch.equal(logits(model, INPUTS), first)
    assert_equal(tensors(model.unload()), tensors(mixture("Mixtral")))


def test_a_folder_of_experts_alone_merges_and_starts_another(folder: Path, tmp_path: Path) -> None:
    alone = {"strata": [{"layers": [0.5, 1.0], "lora": ["experts"], "r": 2}], "head": False}
    model = stirred("Qwen3Moe", alone)
    expected = logits(model, INPUTS)
    save_adapter(model, tmp_path / "alone")
    assert json.loads((tmp_path / "alone" / "adapter_config.json").read_text())["target_modules"] == []
    assert torch.equal(logits(PeftModel.from_pretrained(mixture("Qwen3Moe"), tmp_path / "alone"), INPUTS), expected)
    merged = merge_adapter(mixture("Qwen3Moe"), tmp_path / "alone", tmp_path / "merged")
    torch.testing.assert_close(logits(type(merged).from_pretrained(tmp_path / "merged"), INPUTS), expected)

    again = get_spafit_model(mixture("Mixtral"), STRATEGY)
    start_from(again, folder)
    stored = load_file(folder / "adapter_model.safetensors")[OUTER]
    assert torch.equal(again.state_dict()[OUTER.replace(".weight", ".default.weight")], stored)
    wide = copy.deepcopy(STRATEGY)
    wide["strata"][1]["lora_alpha"] = 8
    with pytest.raises(AdapterError, match=r"of model.layers.2.mlp.experts\S* has rank 2, scaling 2,.* scaling 4"):
        start_from(get_spafit_model(mixture("Mixtral"), wide), folder)


BIASES = "base_model.model.model.layers.3.mlp.experts.down_proj_bias"


def test_biases_of_experts_train_travel_and_leave_no_trace(tmp_path: Path) -> None:
    base = mixture("GptOss")
    expected, before = logits(base, INPUTS), tensors(base)
    the_plan = plan(base, "spafit-4-9-II")
    assert the_plan.tensors[BIASES] == (4, 16)
    assert not any("frozen biases" in note for note in the_plan.notes)
    model = get_spafit_model(base, "spafit-4-9-II")
    assert torch.equal(logits(model, INPUTS), expected)
    train(model, INPUTS)
    trained = logits(model, INPUTS)
    delta = model.get_base_model().model.layers[3].mlp.experts.lora_delta["default"]
    assert (delta.detach() != 0).any(0).all()  # of each bias

    folder = tmp_path / "folder"
    assert save_adapter(model, folder) == "absolute"
    stored = load_file(folder / "adapter_model.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in stored.items()} == the_plan.tensors
    torch.testing.assert_close(
        stored[BIASES], base.model.layers[3].mlp.experts.base_layer.down_proj_bias + delta[:, 48:]
    )
    assert torch.equal(logits(PeftModel.from_pretrained(mixture("GptOss"), folder), INPUTS), trained)
    assert export_adapter(mixture("GptOss"), folder, tmp_path / "native", "native") == "native"
    for source in (folder, tmp_path / "native"):
        assert torch.equal(logits(load_adapter(mixture("GptOss"), source), INPUTS), trained)
    again = get_spafit_model(mixture("GptOss"), "spafit-4-9-II")
    start_from(again, folder)
    started = again.get_base_model().model.layers[3].mlp.experts.lora_delta["default"]
    torch.testing.assert_close(started, delta)
    set_peft_model_state_dict(again, {key: tensor + 0.5 for key, tensor in stored.items()})
    torch.testing.assert_close(started, delta + 0.5)

    assert_can_be_undone(model, expected, trained)
    merged = merge_adapter(mixture("GptOss"), folder, tmp_path / "merged")
    torch.testing.assert_close(logits(type(merged).from_pretrained(tmp_path / "merged"), INPUTS), trained)
    assert_equal(tensors(model.unload()), before)


def test_rows_with_different_biases_of_experts(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(folders):
        save_adapter(stirred("GptOss", "bitfit", seed=seed), folder)
    alone = [logits(load_adapter(mixture("GptOss"), folder), INPUTS) for folder in folders]
    model = load_adapter(mixture("GptOss"), folders[0])
    model = load_adapter(model, folders[1], adapter_name="b")
    mixed = logits(model, INPUTS, adapter_names=["b", "default", "__base__", "b"])
    rows = [alone[1][0], alone[0][1], logits(mixture("GptOss"), INPUTS)[2], alone[1][3]]
    torch.testing.assert_close(mixed, torch.stack(rows))

    headless = Strategy.from_name("bitfit").to_dict() | {"head": False}
    model = stirred("GptOss", headless)
    model.add_adapter("b", SpafitConfig(strategy=headless))
    stir(model, "b", seed=1)
    model.add_weighted_adapter(["default", "b"], [0.5, 0.25], "both")
    experts = model.get_base_model().model.layers[2].mlp.experts
    torch.testing.assert_close(
        experts.lora_delta["both"], 0.5 * experts.lora_delta["default"] + 0.25 * experts.lora_delta["b"]
    )

    served = SpafitPredictor(mixture("GptOss"), tokenizer=make_tokenizer())
    for folder in folders:
        served.add(folder, folder.name)
    ids = dict(make_tokenizer()(WORDS[:5], is_split_into_words=True, return_tensors="pt"))
    found = served.predict_all(" ".join(WORDS[:5]))
    for folder in folders:
        expected = logits(load_adapter(mixture("GptOss"), folder), {"input_ids": ids["input_ids"]}).softmax(-1)[0]
        torch.testing.assert_close(torch.tensor(list(found[folder.name].scores.values())), expected)
    assert torch.equal(logits(served.model, INPUTS), logits(mixture("GptOss"), INPUTS))


def test_replicas_have_the_biases_of_experts() -> None:
    model = stirred("GptOss", "bitfit")
    layer = model.get_base_model().model.layers[2].mlp.experts
    states = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    routed = torch.tensor([[0, 1]] * 3 + [[2, 3]] * 3), torch.full((6, 2), 0.5)
    expected = layer(states, *routed)
    replicas = [each._replicate_for_data_parallel() for each in (layer.base_layer, layer.lora_delta)]
    for replica, parameters in zip(
        replicas, (layer.base_layer._parameters, layer.lora_delta._parameters), strict=True
    ):
        replica._former_parameters = parameters.copy()  # type: ignore[assignment]
        for key, parameter in parameters.items():
            setattr(replica, key, parameter.data)
    twin = layer._replicate_for_data_parallel()
    twin.base_layer, twin.lora_delta = replicas
    assert torch.equal(twin(states, *routed), expected)


def test_biases_of_experts_that_do_not_fit(tmp_path: Path) -> None:
    save_adapter(stirred("GptOss", "bitfit"), tmp_path / "good")
    stored = load_file(tmp_path / "good" / "adapter_model.safetensors")
    for change, reason in (
        ({BIASES: None}, "down_proj_bias is missing beside its other biases: the file is cut"),
        ({BIASES: torch.zeros(4, 17)}, r"has shape \[4, 17\]; .* asks for \[4, 16\]"),
        ({BIASES.replace("down", "side"): torch.zeros(4, 16)}, "it has side_proj_bias for experts; allowed are"),
        (
            {BIASES.replace(".mlp.experts", ".mlp"): torch.zeros(4, 16)},
            "it has down_proj_bias for a GptOssMLP; allowed",
        ),
    ):
        shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
        (tmp_path / "bad" / "spafit_config.json").unlink()
        changed = {key: tensor for key, tensor in (stored | change).items() if tensor is not None}
        save_file(changed, tmp_path / "bad" / "adapter_model.safetensors")
        with pytest.raises(AdapterError, match=reason):
            verify_adapter(tmp_path / "bad", mixture("GptOss"))

    save_adapter(stirred("GptOss"), tmp_path / "lora")
    for first, second in (("good", "lora"), ("lora", "good")):
        model = load_adapter(mixture("GptOss"), tmp_path / first)
        expected = logits(model, INPUTS)
        with pytest.raises(AdapterError, match=r"has deltas on \S*\.2\.mlp\.experts, where the other has"):
            load_adapter(model, tmp_path / second, adapter_name="other")
        assert torch.equal(logits(model, INPUTS), expected)


def test_where_experts_have_lora_their_biases_stay_and_the_plan_says_so() -> None:
    both = {"strata": [{"layers": [2, 3], "lora": ["query", "experts"], "biases": ROLES, "r": 2}]}
    the_plan = plan(mixture("GptOss"), both)
    assert BIASES not in the_plan.tensors
    assert any(note.startswith("frozen biases of experts: mlp.experts.gate_up_proj_bias") for note in the_plan.notes)
    assert "e\n" in plan(mixture("GptOss"), "bitfit").layer_table()
    part = {"strata": [{"layers": [2, 3], "biases": ["intermediate", "query"]}]}
    assert BIASES not in plan(mixture("GptOss"), part).tensors


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
            "parameters are not named in full",
        ),
        ({"target_parameters": "mlp.experts.down_proj"}, "target_parameters is 'mlp.experts.down_proj'"),
        ({"target_parameters": None}, "holds LoRA for model.layers.2.mlp.experts, which .* does not target"),
        ({"r": 5}, "model.layers.2.mlp.experts.down_proj: LoRA A is .* says rank 5"),
        ({"rank_pattern": {"v_proj": 3}}, r"lora_A.weight has shape \[12, 16\]; .* asks for \[8, 16\]"),
    ],
    ids=repr,
)
def test_what_a_folder_says_of_experts_must_be_what_it_holds(
    folder: Path, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    data = json.loads((folder / "adapter_config.json").read_text())
    for file in ("adapter_model.safetensors", "spafit_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps(data | change))
    with pytest.raises(AdapterError, match=reason):
        verify_adapter(tmp_path, mixture("Mixtral"))


def test_experts_of_another_size_and_parameters_that_are_no_experts(folder: Path, tmp_path: Path) -> None:
    verify_adapter(folder, mixture("Mixtral"))
    stored = load_file(folder / "adapter_model.safetensors")
    for file in ("adapter_config.json", "spafit_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    wide = {OUTER: torch.zeros(15, 24), OUTER.replace("_A", "_B"): torch.zeros(16, 15)}  # as of five experts
    save_file(stored | wide, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=re.escape(f"{OUTER} has shape [15, 24]; MixtralForSequenceClassification")):
        verify_adapter(tmp_path, mixture("Mixtral"))

    text = (folder / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(text.replace("3.mlp.experts.", "3.self_attn.k_proj."))
    moved = {key.replace("3.mlp.experts.", "3.self_attn.k_proj."): tensor for key, tensor in stored.items()}
    save_file(moved, tmp_path / "adapter_model.safetensors")
    with pytest.raises(
        AdapterError, match=r"LoRA on model.layers.3.self_attn.k_proj.\w+, which is no tensor of experts"
    ):
        verify_adapter(tmp_path, mixture("Mixtral"))


def test_experts_whose_names_plain_peft_changes_are_left_to_this_package() -> None:
    kind = hf.UnlimitedOcrForConditionalGeneration
    with torch.device("meta"):
        base = kind(architectures.tiny(kind.config_class, ()))
    config = SpafitConfig.from_plan(plan(base, {"strata": [{"layers": [0.0, 1.0], "lora": ["experts"], "r": 2}]}))
    why = "PEFT takes model.language_model.layers.1.mlp.experts for a module of an earlier release"
    assert str(portable_obstacle(config, {}, base)).startswith(why)


def test_refusals(folder: Path) -> None:
    with pytest.raises(ValueError, match="init_lora_weights='orthogonal' is nothing for LoRA on experts"):
        get_spafit_model(mixture("Mixtral"), STRATEGY, init_lora_weights="orthogonal")
    with pytest.raises(ValueError, match="strategy and target_parameters were both given"):
        SpafitConfig(strategy="lora-I", target_parameters=["mlp.experts.down_proj"])
    served = SpafitPredictor(mixture("Mixtral"), tokenizer=make_tokenizer())
    with pytest.raises(AdapterError, match=r"has LoRA on experts, .* Merge it into its base \(spafit merge\)"):
        served.add(folder, "experts")


def test_checkpointed_activations_change_nothing() -> None:
    gradients = []
    biases = {"layers": [0, 1], "biases": ROLES}
    for checkpointed in (False, True):
        model = stirred("GptOss", {"strata": [biases, *STRATEGY["strata"][1:]]}).train()
        if checkpointed:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model(**INPUTS, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert_equal(*gradients)


def test_a_run_reads_a_prefix_resumes_and_a_card_says_what_it_trained(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"strata": [{"layers": [0.5, 1.0], "lora": ["query", "experts"], "r": 2}]}))
    vocabulary = {"vocab_size": len(scripts.VOCABULARY), "pad_token_id": 0}

    def run(name: str, **given: Any) -> Any:
        fields = {"strategy": str(file), "lora_r": 2, "num_train_epochs": 2, "first_token_only": "off"}
        return spafit_trainer(tmp_path / name, mixture("Mixtral", **vocabulary), **{**fields, **given})

    whole = run("whole", save_strategy="steps", save_steps=4)
    whole.train()
    resumed = run("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert scripts.differences(scripts.state(whole.model), scripts.state(resumed.model)) == []
    cached = run("cached", prefix_cache=str(tmp_path / "cache"), prefix_cache_dtype="float32")
    cached.train()
    assert cached.prefix_cache.use.read == 2 * ROWS
    assert losses(cached) == pytest.approx(losses(whole), abs=1e-6)

    facts = CardFacts(method="own", layers=layers_of_plan(whole.plan))
    assert in_words(facts).endswith("layers 2 to 3 train LoRA of rank 2 on query and experts")
    drawn = drawing(facts)
    assert "layer  q k v o n  | i o n  | e" in drawn
    assert drawn.endswith("; e experts.")


def test_the_command_plans_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(STRATEGY))
    mixture("GptOss").config.save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), str(tmp_path / "own.yaml"), "--num-labels", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trainable_parameters"] == plan(mixture("GptOss"), STRATEGY).trainable_parameters
    assert found["groups"][2]["experts"][0] == "model.layers.2.mlp.experts.gate_up_proj"


def test_adapters_without_experts_hold_no_word_of_them(tmp_path: Path) -> None:
    save_adapter(get_spafit_model(tiny("bert"), "spafit-4-9-II"), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_parameters"] is None
    assert "experts" not in (tmp_path / "spafit_config.json").read_text()
    assert "experts" not in json.dumps(plan(tiny("bert"), Strategy.from_name("lora-II")).to_dict())

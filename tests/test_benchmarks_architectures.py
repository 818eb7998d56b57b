"""The sweep over model classes: the types that are used most work, and a row says what became of a class."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.architectures import check, classes, fill, read, table, verdict

#: Of each type that is loaded most from the Hub the class that it is fine-tuned as.
MOST_USED = (
    "BertForSequenceClassification", "RobertaForSequenceClassification", "DistilBertForTokenClassification",
    "XLMRobertaForTokenClassification", "DebertaV2ForSequenceClassification", "ElectraForQuestionAnswering",
    "MPNetForSequenceClassification", "ModernBertForSequenceClassification", "CamembertForMaskedLM",
    "GPT2LMHeadModel", "OPTForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
    "Qwen3ForCausalLM", "Gemma2ForCausalLM", "Phi3ForCausalLM", "GPTNeoXForCausalLM", "BloomForCausalLM",
    "Qwen2MoeForCausalLM", "T5ForConditionalGeneration", "BartForConditionalGeneration", "MarianMTModel",
    "PegasusForConditionalGeneration", "WhisperForConditionalGeneration", "Wav2Vec2ForCTC", "HubertForCTC",
    "ViTForImageClassification", "LlavaForConditionalGeneration",
)  # fmt: skip


#: One of each kind of layers: experts, Mamba, layers of two kinds, stages, lists side by side.
OTHER_KINDS = (
    "MixtralForCausalLM", "MambaForCausalLM", "JambaForSequenceClassification", "PvtV2ForImageClassification",
    "XLMForSequenceClassification",
)  # fmt: skip


@pytest.mark.parametrize("name", [*MOST_USED, *OTHER_KINDS])
def test_what_is_used_most_works_in_plain_peft_too(name: str) -> None:
    row = check(name, classes()[name][1])
    assert row["status"] == "works", row


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

"""The bench on a toy model: every method is measured, every figure is there, and the command prints them."""

from __future__ import annotations

import argparse
import json
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from programs import python
from transformers import BertConfig, GPT2Config

from benchmarks.steps import BenchResult, BenchSettings, adapters, measure
from benchmarks.steps.__main__ import main
from benchmarks.steps.ladder import Rung, climb, ladder_table
from benchmarks.steps.measure import make_methods
from benchmarks.steps.memory import PeakMemory, peak_memory, saved_activation_bytes
from benchmarks.steps.methods import Method, load_config, make_batches, new_model, sharing, stock


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64
    ).save_pretrained(folder)
    return str(folder)


ENDINGS = ("", " cached", " cached + first token")
TWO = ("lora-II", "spafit-8-16-II")
METHODS = ("full", "bitfit", "spafit_hf lora-II", *TWO)


@pytest.fixture(scope="module", autouse=True)
def _loads() -> Iterator[None]:
    """One load where a benchmark takes the median of several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "LOADS", 1)
        yield


@pytest.fixture(scope="module")
def result(base: str) -> BenchResult:
    shape = {"batch": 4, "batches": 2, "max_tokens": 16, "lora_r": 2}
    return measure(BenchSettings(base, METHODS, rounds=2, memory=False, **shape))


def test_every_method_is_measured_in_fp32_and_in_bf16(result: BenchResult) -> None:
    found = {each.method: each for each in result.methods}
    live = [*METHODS[:-1], *(f"spafit-8-16-II{ending}" for ending in ENDINGS)]
    assert list(found) == [*live, *(f"{name}, bf16" for name in live)]
    for name in live:
        assert found[f"{name}, bf16"].theory == found[name].theory
        assert found[f"{name}, bf16"].trained_parameters == found[name].trained_parameters
        assert found[f"{name}, bf16"].saved_activation_bytes != found[name].saved_activation_bytes
    assert found["lora-II"].ratio == 1
    assert found["lora-II"].theory == found["spafit_hf lora-II"].theory == 1
    assert all(each.step_seconds > 0 and each.tokens_per_second > 0 for each in result.methods)
    assert all(len(each.all_seconds) == 2 for each in result.methods)
    live, cached, first = (found["spafit-8-16-II" + ending] for ending in ENDINGS)
    assert cached.build_seconds > 0 == live.build_seconds
    assert first.theory < cached.theory < live.theory < 1 < found["full"].theory
    assert cached.weight_bytes < live.weight_bytes
    assert cached.trained_parameters == live.trained_parameters < found["lora-II"].trained_parameters
    assert first.saved_activation_bytes < live.saved_activation_bytes < found["lora-II"].saved_activation_bytes
    assert cached.adapter_bytes == live.adapter_bytes
    assert found["full"].adapter_bytes is None
    assert cached.epochs_seconds[2] > cached.epochs_seconds[1] > cached.epochs_seconds[0] > cached.build_seconds


def test_the_baselines_are_stock(base: str) -> None:
    config = load_config(base)
    lora = stock(new_model(config), "lora-II", 2)
    assert lora.peft_config["default"].peft_type == "LORA"
    names = {name for name, parameter in lora.named_parameters() if parameter.requires_grad}
    assert sum("lora_A" in name for name in names) == 6 * 4
    bitfit = stock(new_model(config), "bitfit", 2)
    trained = {name for name, parameter in bitfit.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if not name.endswith("bias")} == {"classifier.weight"}


def test_frozen_weights_are_shared_and_trained_ones_are_not(base: str) -> None:
    plain = new_model(load_config(base))
    lora, bitfit = stock(sharing(plain), "lora-II", 2), stock(sharing(plain), "bitfit", 2)
    weight = "bert.encoder.layer.0.output.dense.weight"
    here = plain.get_parameter(weight).data_ptr()
    assert lora.get_base_model().get_parameter(weight).data_ptr() == here == bitfit.get_parameter(weight).data_ptr()
    bias = weight.replace("weight", "bias")
    assert bitfit.get_parameter(bias).data_ptr() != plain.get_parameter(bias).data_ptr()
    assert torch.equal(bitfit.get_parameter(bias), plain.get_parameter(bias))


def test_activations_are_counted_once() -> None:
    linear = torch.nn.Linear(8, 4, bias=False)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: torch.Tensor) -> argparse.Namespace:
            return argparse.Namespace(loss=self.linear(x).sum() + self.linear(x).sum())

    method = Method("toy", Model(), torch.optim.SGD(linear.parameters(), lr=0.1))
    assert saved_activation_bytes(method, {"x": torch.randn(5, 8)}) == 5 * 8 * 4


def test_counted_activations_are_freed() -> None:
    outputs: list[weakref.ref[torch.Tensor]] = []

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> argparse.Namespace:
            output = self.linear(x).tanh()  # which its own gradient reads
            outputs.append(weakref.ref(output))
            return argparse.Namespace(loss=output.sum())

    model = Model()
    method = Method("toy", model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert saved_activation_bytes(method, {"x": torch.randn(5, 8)}) > 5 * 4 * 4
    assert outputs[0]() is None


def test_batches_are_grouped_and_of_sentence_length(base: str) -> None:
    batches = make_batches(BenchSettings(batch=16, batches=8), load_config(base))
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    padded = sum(batch["input_ids"].numel() for batch in batches)
    assert 1 <= padded / real < 1.25
    assert max(batch["input_ids"].shape[1] for batch in batches) <= 64
    whole = make_batches(BenchSettings(batch=2, batches=2, full_length=True), load_config(base))
    assert [int(batch["attention_mask"].sum()) for batch in whole] == [128, 128]


def test_what_a_model_does_not_allow_for_is_left_out(tmp_path: Path) -> None:
    GPT2Config(vocab_size=60, n_embd=16, n_layer=6, n_head=2, pad_token_id=0).save_pretrained(tmp_path)
    settings = BenchSettings(str(tmp_path), TWO, batch=2, max_tokens=8, batches=1, bf16=False)
    config = load_config(settings.base)
    told: list[str] = []
    methods = make_methods(settings, new_model(config), make_batches(settings, config), tmp_path / "c", told.append)
    assert [method.name for method in methods] == ["lora-II", "spafit-8-16-II", "spafit-8-16-II cached"]
    assert f"spafit-8-16-II{ENDINGS[-1]} is left out" in told[-1]
    assert "reads more than the first token" in told[-1]


@pytest.mark.slow
def test_command(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[measure.__module__]
    monkeypatch.setattr(module, "peak_memory", lambda name, settings: PeakMemory(None, 60_000_000))
    small = ["--rounds", "1", "--batch", "2", "--max-tokens", "8", "--lora-r", "2", "--full-length", "--no-bf16"]
    main(["--base", base, *small, "--methods", "lora-II", "--clock", "cpu", "--json", str(tmp_path / "b.json")])
    printed = capsys.readouterr().out
    assert "| lora-II |" in printed
    assert "random weights, fp32; batches" in printed
    assert "the process had a core" in printed
    facts = json.loads((tmp_path / "b.json").read_text())
    (lora,) = facts["methods"]
    assert lora["process_peak_bytes"] == 60_000_000
    assert facts["machine"]["threads"] >= 1


@pytest.mark.slow
def test_memory_is_that_of_a_process(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(python(tmp_path)))
    shape = {"batch": 2, "batches": 1, "max_tokens": 8, "lora_r": 2}
    found = peak_memory("spafit-8-16-II cached + first token, bf16", BenchSettings(base, TWO, **shape))
    assert found is not None
    assert found.process > 50_000_000
    assert found.steps is None or found.steps <= found.process


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertConfig(vocab_size=60, **sizes).save_pretrained(tmp_path)
    shape = {"batch": 2, "batches": 1, "max_tokens": 8, "full_length": True, "lora_r": 2}
    result = measure(BenchSettings(str(tmp_path), ("lora-II",), rounds=2, memory=False, compile="eager", **shape))
    assert [each.method for each in result.methods] == ["lora-II", "lora-II, bf16", "lora-II, bf16, compiled"]
    assert "compiled by eager where the name says so" in result.table()
    assert max(result.methods[-1].all_seconds) < 1, "compiled again after the first step"


def test_batches_grow_until_memory_ends(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Method.step

    def small(self: Method, batch: dict[str, torch.Tensor]) -> None:
        if len(batch["labels"]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        step(self, batch)

    monkeypatch.setattr(Method, "step", small)
    settings = BenchSettings(base, TWO, batch=1, max_tokens=8, lora_r=2, compile="eager")  # which has no rungs
    rungs = list(climb(settings, up_to=16))
    live = ("lora-II", *(f"spafit-8-16-II{ending}" for ending in ENDINGS))
    assert [(each.row, each.batch) for each in rungs] == [
        (name + precision, batch) for precision in ("", ", bf16") for name in live for batch in (1, 4, 16)
    ]
    assert {each.batch for each in rungs if each.step_seconds is None} == {16}
    assert rungs[0].tokens_per_second is not None
    assert "| lora-II | 16 | out of memory | | |" in ladder_table(rungs)
    assert "| x | 2 | 500.0 | 16 | 3 |" in ladder_table([Rung("x", 2, 0.5, 16.0, 3_000_000)])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"max_tokens": 2}, "max_tokens is 2"),
        ({"clock": "sun"}, "allowed are wall, cpu"),
        ({"methods": ("full",)}, "add lora-II"),
        ({"device": "cuda"}, "PyTorch sees none"),
    ],
)
def test_wrong_settings(given: dict[str, object], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=reason):
        BenchSettings(**given)


def test_no_such_method(base: str) -> None:
    with pytest.raises(ValueError, match="lora-III"):
        measure(BenchSettings(base, ("lora-II", "lora-III"), rounds=1, batch=1, max_tokens=8, memory=False))


def test_no_such_base() -> None:
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_config("/nowhere/at/all")

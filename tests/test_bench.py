"""The bench on a toy model: every method is measured, every figure is there, and the command prints them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from spafit_hf import bench
from spafit_hf.bench import BASELINES, BenchResult, BenchSettings, make_batches, measure, saved_activation_bytes
from spafit_hf.cli import bench as command


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def result(base: str) -> BenchResult:
    return measure(BenchSettings(base=base, rounds=3, batch=4, batches=2, max_tokens=16, lora_r=2))


def test_every_method_is_measured(result: BenchResult) -> None:
    found = {each.method: each for each in result.methods}
    assert list(found) == [
        *BASELINES,
        *("spafit-4-9-II", "spafit-4-9-II cached", "spafit-8-16-II", "spafit-8-16-II cached"),
    ]
    assert found["lora-II"].ratio == 1
    assert found["lora-II"].theory == 1
    assert all(each.step_seconds > 0 and each.tokens_per_second > 0 for each in result.methods)
    live, cached = found["spafit-8-16-II"], found["spafit-8-16-II cached"]
    assert cached.build_seconds > 0 == live.build_seconds
    assert cached.theory is not None
    assert live.theory is not None
    assert cached.theory < live.theory < 1
    assert cached.weight_bytes < live.weight_bytes
    assert cached.trained_parameters == live.trained_parameters < found["lora-II"].trained_parameters
    assert live.saved_activation_bytes < found["lora-II"].saved_activation_bytes
    assert cached.adapter_bytes == live.adapter_bytes
    assert found["full"].adapter_bytes is None
    assert cached.epochs_seconds[2] > cached.epochs_seconds[1] > cached.epochs_seconds[0] > cached.build_seconds


def test_the_baselines_are_stock(base: str) -> None:
    settings, config = BenchSettings(lora_r=2), bench._config(base)
    lora = bench._stock_peft(bench._new_model(config), "lora-II", settings.lora_r)
    assert lora.peft_config["default"].peft_type == "LORA"
    names = {name for name, parameter in lora.named_parameters() if parameter.requires_grad}
    assert sum("lora_A" in name for name in names) == 6 * 4
    bitfit = bench._stock_peft(bench._new_model(config), "bitfit", 2)
    trained = {name for name, parameter in bitfit.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if not name.endswith("bias")} == {"classifier.weight"}


def test_activations_are_counted_once() -> None:
    linear = torch.nn.Linear(8, 4, bias=False)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: torch.Tensor) -> argparse.Namespace:
            return argparse.Namespace(loss=self.linear(x).sum() + self.linear(x).sum())

    method = bench._Method("toy", Model(), torch.optim.SGD(linear.parameters(), lr=0.1))
    assert saved_activation_bytes(method, {"x": torch.randn(5, 8)}) == 5 * 8 * 4


def test_batches_are_grouped_and_of_sentence_length(base: str) -> None:
    settings = BenchSettings(batch=16, batches=8)
    batches = make_batches(settings, bench._config(base))
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    padded = sum(batch["input_ids"].numel() for batch in batches)
    assert 1 <= padded / real < 1.25
    assert max(batch["input_ids"].shape[1] for batch in batches) <= 64


def test_command(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    small = ["--rounds", "1", "--batch", "2", "--max-tokens", "8", "--lora-r", "2", "--strategies", "spafit-4-9-II"]
    files = ["--json", str(tmp_path / "b.json"), "--picture", str(tmp_path / "b.png")]
    args = parser.parse_args(["bench", "--base", base, *small, *files])
    assert args.run(args) == 0
    printed = capsys.readouterr().out
    assert "| lora-II |" in printed
    assert "random weights, fp32" in printed
    assert "cores" in printed
    facts = json.loads((tmp_path / "b.json").read_text())
    assert len(facts["methods"]) == 6
    assert facts["machine"]["threads"] >= 1
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="rounds is 0"):
        BenchSettings(rounds=0)
    with pytest.raises(ValueError, match="cannot be loaded"):
        bench._config("/nowhere/at/all")

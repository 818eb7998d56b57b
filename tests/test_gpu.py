"""On a GPU what holds on a CPU: the trainer in every precision, the prefix cache and the predictor.

Each test runs on both kinds of device, so that none of it is first tried where a GPU is. What the device computes is
compared with a plain run on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import test_readme
import torch
from peft import PeftModel
from programs import python
from scripts import tiny
from scripts.runs import ROWS, losses, spafit_trainer
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, DataCollatorWithPadding

from spafit_hf import SpafitTrainer, get_spafit_model, load_adapter, save_adapter
from spafit_hf.predictor import SpafitPredictor

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
EPOCHS = 2


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def base() -> BertForSequenceClassification:
    """A layer for each stratum. Its first loss would set `problem_type`, and it would be compiled again for that."""
    return tiny.bert(layers=3, dropout=0.0, problem_type="single_label_classification")


def trained(folder: Path, device: str, **fields: Any) -> SpafitTrainer:
    trainer = spafit_trainer(folder, base(), use_cpu=device == "cpu", num_train_epochs=EPOCHS, seed=3, **fields)
    trainer.train()
    assert {parameter.device.type for parameter in trainer.model.parameters()} == {device}
    return trainer


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of three texts, on the CPU in fp32."""
    device = next(model.parameters()).device
    batch = tiny.tokenizer()([row["text"] for row in tiny.sentences(3, seed=5)], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**batch.to(device)).logits.float().cpu()


@pytest.fixture(scope="module")
def plain_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(trained(tmp_path_factory.mktemp("plain"), "cpu"))


@pytest.mark.parametrize(
    ("fields", "tolerance"),
    [
        pytest.param({}, 1e-4, id="fp32"),
        pytest.param({"bf16": True}, 5e-2, id="bf16"),
        pytest.param({"fp16": True}, 1e-2, id="fp16"),
        pytest.param({"torch_compile": True}, 1e-4, id="compile", marks=pytest.mark.slow),
        pytest.param({"activation_checkpointing": True}, 1e-4, id="checkpointing"),
    ],
)
def test_a_run_is_that_of_a_cpu_and_its_adapter_opens_there(
    fields: dict[str, Any], tolerance: float, device: str, plain_losses: list[float], tmp_path: Path
) -> None:
    if "torch_compile" in fields:
        backend = "inductor" if device == "cuda" else "eager"
        one_length = DataCollatorWithPadding(tiny.tokenizer(), padding="max_length", max_length=16)  # compiled once
        fields = fields | {"torch_compile_backend": backend, "collator": one_length}
    trainer = trained(tmp_path, device, **fields)
    assert losses(trainer) == pytest.approx(plain_losses, abs=tolerance)
    trainer.save_model()
    expected = logits(trainer.model)
    opened = load_adapter(base(), tmp_path)
    plain = PeftModel.from_pretrained(base(), str(tmp_path))
    for model in (opened, plain):
        assert torch.allclose(logits(model), expected, atol=tolerance / 10)
    assert not tiny.differences(tiny.state(trainer.model.unload().cpu()), tiny.state(base()))


@pytest.mark.parametrize("drop", [False, True])
def test_the_prefix_cache_changes_no_loss(drop: bool, device: str, plain_losses: list[float], tmp_path: Path) -> None:
    fields = {"prefix_cache": str(tmp_path / "cache"), "prefix_cache_dtype": "float32"}
    trainer = trained(tmp_path, device, **fields, prefix_cache_drop_weights=drop)
    assert losses(trainer) == pytest.approx(plain_losses, abs=1e-4)
    assert trainer.prefix_cache is not None, trainer.prefix_cache_refused
    assert trainer.prefix_cache.use.computed == ROWS + drop * len(trainer.eval_dataset)
    assert trainer.prefix_cache.use.read >= EPOCHS * ROWS
    mixed = trained(tmp_path, device, **fields, bf16=True)  # other states: nothing of the first run is read
    assert losses(mixed) == pytest.approx(plain_losses, abs=5e-2)
    assert mixed.prefix_cache is not None, mixed.prefix_cache_refused
    assert mixed.prefix_cache.use.computed == ROWS


def test_the_predictor_answers_as_on_a_cpu(device: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny.bert().base_model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    text, names = "the film was very good", ("spafit-4-9-II", "lora-II", "bitfit")
    predictor = SpafitPredictor(folder, device=device)
    for seed, name in enumerate(names):
        write_adapter(folder, name, tmp_path / name, seed)
        predictor.add(tmp_path / name, name)
    together = predictor.predict_all(text)
    for name in names:
        alone = load_adapter(AutoModelForSequenceClassification.from_pretrained(folder), tmp_path / name).eval()
        with torch.no_grad():
            expected = alone(**tiny.tokenizer()(text, return_tensors="pt")).logits[0].softmax(-1)
        for answer in (together[name], predictor.predict([text], adapter=name)[0]):
            assert list(answer.scores.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def write_adapter(base: Path, strategy: str, folder: Path, seed: int) -> None:
    """An adapter with random values."""
    torch.manual_seed(seed)
    model = get_spafit_model(AutoModelForSequenceClassification.from_pretrained(base), strategy)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    save_adapter(model, folder)


@pytest.mark.gpu
@NO_GPU
def test_the_readme_runs_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test_readme.test_the_code_runs(tmp_path, monkeypatch, capsys)  # Trainer and predictor take the GPU by themselves
    assert torch.cuda.max_memory_allocated() > 0


@pytest.mark.slow
def test_the_script_runs_whatever_there_is(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
    hidden = {"PYTHON": str(python(tmp_path)), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([script, tmp_path], env=os.environ | hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.pop("device") == "cpu"
    assert {name: part["status"] for name, part in summary.items()} == {"tests": 0, "steps": 0, "predictor": 0}
    assert "1 passed" in (tmp_path / "tests.log").read_text()
    steps = json.loads((tmp_path / "steps.json").read_text())
    assert "spafit-8-16-II cached, bf16" in [row["method"] for row in steps["methods"]]
    assert [rung["batch"] for rung in steps["ladder"] if rung["row"] == "lora-II"] == [2, 8]
    (predictor,) = json.loads((tmp_path / "predictor.json").read_text())
    assert predictor["tokens"]["16"]["largest_difference"] < 1e-5

"""The command as a user meets it: what it prints, what it writes, and how it says no."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from spafit_hf.cli import ONEDNN_CACHES, ONEDNN_ENTRIES, main


def test_evaluate_repeats_the_result(trained: Path, reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained), "--validation_file", str(reviews), "--text_columns", "review",
                 "--label_column", "verdict", "--json"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["validation"]["accuracy"] > 0.8


def test_merge_writes_a_folder_for_pipeline(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(trained), str(tmp_path / "merged")]) == 0
    assert str(tmp_path / "merged") in capsys.readouterr().out
    classify = pipeline("text-classification", str(tmp_path / "merged"))
    assert [found["label"] for found in classify(["a warm film", "a dull film"])] == ["good", "bad"]


def test_export_and_back_gives_the_same_tensors(trained: Path, tmp_path: Path) -> None:
    assert main(["export", str(trained), str(tmp_path / "native"), "--to", "native"]) == 0
    assert main(["export", str(tmp_path / "native"), str(tmp_path / "peft"), "--to", "peft"]) == 0
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (trained, tmp_path / "peft"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_evaluate_refuses_other_labels(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.csv").write_text("text,label\na warm film,yes\na dull film,no\n")
    assert main(["evaluate", str(trained), "--validation_file", str(tmp_path / "other.csv")]) == 2
    assert "the model's labels are ['bad', 'good']" in capsys.readouterr().err


def test_an_output_in_use_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(trained), str(trained)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


def test_unknown_words_on_the_command_line() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", "somewhere", "--nonsense"])
    assert stop.value.code == 2


def test_the_command_line_bounds_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = ONEDNN_CACHES
    monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(other, "500")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert (os.environ[one], os.environ[other]) == (ONEDNN_ENTRIES, "500")

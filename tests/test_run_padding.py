"""Figures that depend on the padding beside a row come with a warning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from models import tiny, tiny_generator
from test_predictor import WORDS, make_tokenizer

from spafit_hf.cli import main
from spafit_hf.run.padding import warn_of_padding

ROWS = Dataset.from_dict(
    {"input_ids": [[7, 8, 9, 2], [7, 8, 9, 10, 11, 12, 13, 2]], "attention_mask": [[1] * 4, [1] * 8], "label": [0, 1]}
)


@pytest.mark.parametrize(
    ("family", "side", "warned"), [("gpt2", "left", True), ("gpt2", "right", False), ("llama", "left", False)]
)
def test_padding_on_the_side_that_changes_answers(
    family: str, side: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = tiny(family).train(), make_tokenizer(padding_side=side)
    with torch.no_grad():  # random tables of positions are too small to be seen
        for parameter in model.parameters():
            parameter.mul_(3)
    warn_of_padding(model, tokenizer, ROWS)
    assert ("Padding on the left changes a row's logits" in caplog.text) is warned
    assert model.training


def test_a_decoder_without_a_token_for_padding_is_measured_as_it_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tiny_generator("gpt2", pad_token_id=None).save_pretrained(tmp_path / "base")
    make_tokenizer(pad=False).save_pretrained(tmp_path / "base")
    rows = "".join(f"{' '.join(WORDS[: 2 + row])},{'yes' if row % 2 else 'no'}\n" for row in range(6))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    files = ["--validation_file", str(tmp_path / "rows.csv")]
    output, base = str(tmp_path / "run"), str(tmp_path / "base")
    command = ["train", "--train_file", files[1], *files, "--base", base, "--output_dir", output, "--lora_r", "2"]
    assert main([*command, "--num_train_epochs", "1", "--use_cpu", "--report_to", "none"]) == 0
    expected = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]["validation"]["loss"]
    capsys.readouterr()
    caplog.clear()
    assert main(["evaluate", output, *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["validation"]["loss"] == pytest.approx(expected, abs=1e-6)
    assert [record for record in caplog.records if record.name.startswith("spafit_hf")] == []

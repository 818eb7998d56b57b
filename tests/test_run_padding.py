"""Figures that depend on the padding beside a row come with a warning."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from models import tiny
from test_predictor import make_tokenizer

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

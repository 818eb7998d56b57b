"""Every reader of an adapter folder, in one process that has another seed than the training: what each computes.

python readers.py BASE FOLDER ROWS.csv SCRATCH    prints {reader: logits, scores or loss}
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from spafit_hf import SpafitPredictor, load_adapter
from spafit_hf.cli import main


def printed(*command: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*command]) == 0
    return out.getvalue()


def all_readers(base: str, folder: str, rows: str, scratch: str) -> dict[str, Any]:
    torch.manual_seed(77)
    texts = [line.split(",")[0] for line in Path(rows).read_text(encoding="utf-8").splitlines()[1:]]
    batch = AutoTokenizer.from_pretrained(base)(texts, padding=True, return_tensors="pt")

    def logits(model: Any) -> list[list[float]]:
        with torch.no_grad():
            return model.eval()(**batch).logits.tolist()

    def plain() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(base)

    printed("merge", folder, f"{scratch}/merged")
    predictor = SpafitPredictor(base, device="cpu")
    predictor.add(folder, "a")
    by_command = [json.loads(line) for line in printed("predict", folder, "--json", *flags(texts)).splitlines()]
    measured = json.loads(printed("evaluate", folder, "--validation_file", rows, "--labels", "no,yes", "--json"))
    return {
        "load_adapter by name": logits(load_adapter(None, folder)),
        "load_adapter": logits(load_adapter(plain(), folder)),
        "plain PEFT": logits(PeftModel.from_pretrained(plain(), folder)),
        "plain PEFT by name": logits(AutoPeftModelForSequenceClassification.from_pretrained(folder)),
        "merge": logits(AutoModelForSequenceClassification.from_pretrained(f"{scratch}/merged")),
        "predictor": [list(each.scores.values()) for each in predictor.predict(texts, adapter="a")],  # type: ignore[union-attr]
        "predict": [list(each["scores"].values()) for each in by_command],
        "evaluate": measured["validation"]["loss"],
    }


def flags(texts: list[str]) -> list[str]:
    return [part for text in texts for part in ("--text", text)]


if __name__ == "__main__":
    print(json.dumps(all_readers(*sys.argv[1:])))

"""A folder of `spafit reproduce` with made-up runs whose truth is known: skill by method, noise by row and by seed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from spafit_hf.data.figures import compute, jsonable
from spafit_hf.data.glue import TASKS

TRAINED = {
    "full": 22_700_000, "bitfit": 25_000, "lora-I": 440_000, "lora-II": 590_000, "spafit-4-9-I": 270_000,
    "spafit-4-9-II": 350_000, "spafit-8-12-II": 290_000, "linear-probe": 1_200, "lora-II-equal": 351_000,
    "random-cut": 350_000,
}  # fmt: skip


def make_grid(
    output: Path,
    skill: Mapping[str, float],
    tasks: Sequence[str] = ("mrpc", "rte"),
    seeds: Sequence[int] = (0, 1, 2),
    rates: Sequence[float] = (1e-3,),
    search: Sequence[float] = (),
    rows: int = 400,
    held_out: bool = True,
    spread: float = 0.01,
    change: Mapping[tuple[str, str, float, int], Mapping[str, Any] | None] | None = None,
) -> Path:
    """Write the folder.

    Args:
        output: made if it is not there.
        skill: method -> probability of a right answer at the first rate; each further rate costs 3 points.
        tasks: of GLUE.
        seeds: of the runs of the table.
        rates: of the table.
        search: of the search before it, with one seed.
        rows: of every validation set.
        held_out: whether rates and epochs are chosen on a part of train.
        spread: standard deviation of the skill over seeds.
        change: (task, method, rate, seed) -> what is different in the result of that run of the table; None leaves
            the result out.

    Returns:
        The folder.
    """
    cells, lines = [], []
    for task in tasks:
        rng = np.random.default_rng(zlib.crc32(task.encode()))
        found = TASKS[task]
        labels = (
            rng.uniform(0, 5, rows).astype(np.float32)
            if found.regression
            else rng.integers(len(found.labels), size=rows)
        )
        hard = rng.normal(0, 0.1, rows)  # a row is hard for every method
        runs = [("main", rate, seed) for rate in rates for seed in seeds] + [("search", rate, 0) for rate in search]
        for method, right in skill.items():
            for stage, rate, seed in runs:
                key = f"{task}-{method}-{stage}-{rate:g}-{seed}"
                cells.append(
                    {"key": key, "task": task, "method": method, "learning_rate": rate, "seed": seed, "stage": stage}
                )
                at = right - 0.03 * [*rates, *search].index(rate) + rng.normal(0, spread)
                correct = rng.random(rows) < np.clip(at + hard, 0, 1)
                result = _result(cells[-1], labels, correct, rng, held_out)
                different = (change or {}).get((task, method, rate, seed), {}) if stage == "main" else {}
                if different is None:
                    continue
                predictions = result.pop("predictions")
                result |= different
                lines.append(json.dumps(result))
                folder = output / "cells" / key
                folder.mkdir(parents=True, exist_ok=True)
                if result["best"]:
                    save_file({"labels": labels, "best_predictions": predictions}, folder / "rows.safetensors")
    grid = {
        "format": 1, "preset": "modern", "base": "some/encoder", "tasks": list(tasks), "methods": list(skill),
        "seeds": list(seeds), "settings": {"num_train_epochs": 3, "max_train_rows": 4000}, "cells": cells,
        "made_with": {},
    }  # fmt: skip
    (output / "grid.json").write_text(json.dumps(grid), encoding="utf-8")
    (output / "results.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return output


def _result(
    cell: Mapping[str, Any], labels: np.ndarray, correct: np.ndarray, rng: np.random.Generator, held_out: bool
) -> dict[str, Any]:
    task = TASKS[cell["task"]]
    if task.regression:
        predictions = np.where(correct, labels, rng.uniform(0, 5, len(labels))).astype(np.float32)
    else:
        predictions = np.where(correct, labels, (labels + 1) % len(task.labels))
    figures = jsonable(compute(task.metrics, predictions, labels))
    score = {"epoch": 3, "score": figures[task.main_metric], "figures": figures}
    chosen = {"best": figures[task.main_metric], "last": figures[task.main_metric]}
    return {
        **cell, "format": 1, "status": "done", "error": "", "figure": task.main_metric, "best": score, "last": score,
        "chosen_on": "train part" if held_out else "validation", "selection": chosen if held_out else None,
        "history": [], "trained_parameters": TRAINED[cell["method"]], "total_parameters": 22_700_000,
        "train_rows": 3000, "validation_rows": len(labels), "selection_rows": 300 if held_out else 0,
        "seconds": 60.0, "epochs": 3, "base": {"name": "some/encoder", "digest": "ab12"}, "strategy": {},
        "data": {"fingerprint": "cd"}, "settings": {}, "machine": {"processor": "x86_64", "cores": 2, "device": "cpu"},
        "versions": {"torch": "2.13.0", "python": "3.11.2"}, "predictions": predictions,
    }  # fmt: skip

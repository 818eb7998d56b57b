"""A cell of spafit reproduce: what is kept of it gives its figures again; what goes wrong with it is a result."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from reproduce_run import kept, small_work

from spafit_hf.data.figures import compute
from spafit_hf.data.glue import get_task
from spafit_hf.reproduce import cell
from spafit_hf.reproduce.backends import Local
from spafit_hf.reproduce.cell import Outcome, run_cell
from spafit_hf.reproduce.grid import Cell
from spafit_hf.reproduce.results import STATES
from spafit_hf.reproduce.run import run_grid
from spafit_hf.reproduce.work import Work
from spafit_hf.run import BaseArguments


def outcome(work: Work, task: str, method: str, rate: float = 5e-3, **more: Any) -> Outcome:
    job = work.job(Cell(task, method, rate, 0, "main"))
    return run_cell(replace(job, settings=job.settings | more), work.data[task])


def test_rows_give_the_figures_of_every_cell(base_folder: Path, glue: Path, tmp_path: Path) -> None:
    rates: dict[str, Any] = {"search_rates": {"full": (1e-3, 5e-3)}, "learning_rates": {"spafit": (5e-3,)}}
    level = logging.getLogger("spafit_hf").level
    assert run_grid(small_work(base_folder, glue, tmp_path, seeds=(0,), **rates), Local()) == {"done": 8}
    assert logging.getLogger("spafit_hf").level == level
    for result in kept(tmp_path):
        rows = safetensors.numpy.load_file(tmp_path / "cells" / result["key"] / "rows.safetensors")
        task = get_task(result["task"])
        assert len(rows["labels"]) == result["validation_rows"]
        for name in ("best", "last"):
            predictions, logits = rows[f"{name}_predictions"], rows[f"{name}_logits"]
            assert compute(task.metrics, predictions, rows["labels"]) == result[name]["figures"]
            assert result[name]["score"] == result[name]["figures"][result["figure"]]
            assert logits.dtype == np.float16
            assert logits.shape == (len(predictions), task.num_labels)
            kinds = (np.float32, np.float32) if task.regression else (np.int64, np.int64)
            assert (rows["labels"].dtype, predictions.dtype) == kinds
            if not task.regression:
                assert (logits.argmax(axis=1) == predictions).all()
        epochs = {each["epoch"]: each for each in result["history"]}
        assert list(epochs) == ([1] if result["stage"] == "search" else [1, 2])
        chosen = {epoch: each["selection"][result["figure"]] for epoch, each in epochs.items()}
        assert result["best"]["epoch"] == max(chosen, key=lambda epoch: chosen[epoch])
        assert result["selection"] == {
            "best": max(chosen.values()), "last": chosen[result["last"]["epoch"]]
        }  # fmt: skip
        assert epochs[result["last"]["epoch"]]["validation"] == result["last"]["figures"]


def test_the_main_cells_take_the_rate_that_the_search_found(base_folder: Path, glue: Path, tmp_path: Path) -> None:
    rates: dict[str, Any] = {"learning_rates": {}, "search_rates": {"others": (1e-4, 5e-3)}}
    what = {"tasks": ("cola",), "methods": ("full",), "search_rows": 16, **rates}
    run_grid(small_work(base_folder, glue, tmp_path, **what), Local())
    found = {stage: [line for line in kept(tmp_path) if line["stage"] == stage] for stage in ("search", "main")}
    assert {line["train_rows"] for line in found["search"]} == {16}
    assert {line["train_rows"] for line in found["main"]} == {40}
    best = max(found["search"], key=lambda line: line["selection"]["best"])
    assert {line["learning_rate"] for line in found["main"]} == {best["learning_rate"]}
    assert len(found["main"]) == 2


def test_without_rows_held_out_the_epoch_is_the_best_on_validation(
    base_folder: Path, glue: Path, tmp_path: Path
) -> None:
    work = small_work(base_folder, glue, tmp_path, selection_rows=0)
    result = outcome(work, "stsb", "full").result
    assert (result["chosen_on"], result["selection"], result["selection_rows"]) == ("validation", None, 0)
    assert result["best"]["score"] == max(each["validation"]["pearson"] for each in result["history"])


def test_held_out_rows_are_in_no_other_split(base_folder: Path, glue: Path, tmp_path: Path) -> None:
    splits = small_work(base_folder, glue, tmp_path).data["cola"].text.splits
    texts = {name: set(split["sentence"]) for name, split in splits.items()}
    assert {name: split.num_rows for name, split in splits.items()} == {"train": 40, "validation": 36, "selection": 4}
    assert not texts["train"] & texts["selection"]


@pytest.mark.parametrize("task", ["cola", "stsb"])
def test_a_cell_that_diverges_says_so(task: str, base_folder: Path, glue: Path, tmp_path: Path) -> None:
    work = small_work(base_folder, glue, tmp_path)
    found = outcome(work, task, "full", 1e30)
    assert found.result["status"] == "diverged"
    assert "no finite numbers" in found.result["error"]
    assert found.result["last"] == {"epoch": 1, "score": None, "figures": dict.fromkeys(get_task(task).metrics)}
    assert len(found.result["history"]) == 1  # nothing more is learned from it
    assert found.rows is not None
    predictions = safetensors.numpy.load(found.rows)["last_predictions"]
    assert np.isnan(predictions).all() if task == "stsb" else (predictions == -1).all()


def test_a_cell_that_fails_says_why(base_folder: Path, glue: Path, tmp_path: Path) -> None:
    work = small_work(base_folder, glue, tmp_path)
    found = outcome(work, "cola", "full", first_token_only="backwards")
    assert found.result["status"] == "failed"
    assert "backwards" in found.result["error"]
    assert (found.result["best"], found.rows) == (None, None)


def test_a_base_that_is_gone_is_no_failure(base_folder: Path, glue: Path, tmp_path: Path) -> None:
    work = small_work(base_folder, glue, tmp_path)
    job = replace(work.job(Cell("cola", "full", 1e-3, 0, "main")), place=BaseArguments(str(tmp_path / "gone")))
    with pytest.raises(OSError, match="gone' cannot be loaded"):
        run_cell(job, work.data["cola"])


def test_what_a_library_says_of_a_full_disk_is_no_failure(
    base_folder: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(cell, "prepare", full)
    work = small_work(base_folder, glue, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        outcome(work, "cola", "full")


def test_hidden_states_are_shared_and_whole(base_folder: Path, glue: Path, tmp_path: Path) -> None:
    methods = ("spafit-8-16-II", "spafit-8-12-I", "linear-probe", "full", "spafit-8-16-II-uncached")
    work = small_work(base_folder, glue, tmp_path, methods=methods, num_train_epochs=1.0)
    first = outcome(work, "cola", "spafit-8-16-II").result
    (states,) = (path for path in (tmp_path / STATES).iterdir() if path.is_dir())
    before = {path: path.stat().st_mtime_ns for path in states.rglob("*.states")}
    assert before
    outcome(work, "cola", "spafit-8-12-I")
    assert {path: path.stat().st_mtime_ns for path in states.rglob("*.states")} == before
    for method, cached in (("linear-probe", True), ("full", False), ("spafit-8-16-II-uncached", False)):
        assert bool(work.job(Cell("cola", method, 1e-3, 0, "main")).states) is cached
    # A pass that was stopped is made again, from its beginning: what it has left is not read.
    states.rename(f"{states}.part")
    again = outcome(work, "cola", "spafit-8-16-II").result
    assert again["history"] == first["history"]


def test_a_key_holds_what_sets_the_result(base_folder: Path, glue: Path, tmp_path: Path) -> None:
    one = Cell("cola", "full", 1e-3, 0, "main")
    job = small_work(base_folder, glue, tmp_path).job(one)
    assert small_work(base_folder, glue, tmp_path / "b", methods=("full",)).job(one).key == job.key
    others = [
        replace(job, cell=replace(one, seed=1)),
        replace(job, cell=replace(one, learning_rate=2e-3)),
        replace(job, base={**job.base, "digest": "another"}),
        replace(job, data={"fingerprint": "another"}),
        replace(job, versions={**job.versions, "torch": "1.0"}),
        replace(job, strategy={**job.strategy, "name": "another"}),
        *(replace(job, settings={**job.settings, name: "another"}) for name in job.settings),
    ]
    assert len({job.key, *(other.key for other in others)}) == len(others) + 1
    moved = replace(job, states="/elsewhere", place=replace(job.place, base="/elsewhere"))
    assert moved.key == job.key

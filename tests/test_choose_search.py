"""The search on trainings that are made up: who goes on, what is compared, and that a stopped one goes on."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from datasets import Dataset, DatasetDict

from spafit_hf.choose import search
from spafit_hf.choose.candidates import CONTROL, REFERENCE, Candidate
from spafit_hf.choose.clock import Clock, Stage
from spafit_hf.choose.search import JOURNAL, Search, Trainings
from spafit_hf.data import TextData
from spafit_hf.reproduce.cell import Job, Outcome
from spafit_hf.reproduce.results import IN_RESULT
from spafit_hf.reproduce.work import base_of_grid
from spafit_hf.run import RunData

pytest.importorskip("optuna")

SKILL = {REFERENCE: 0.8, CONTROL: 2.0, "big": 1.5, "small": 1.4995, "poor": 0.5, "worst": 0.1}
"""Candidate -> how sure of the right class it is; the control is the best and may not win."""


def candidate(name: str, parameters: int = 100) -> Candidate:
    return Candidate(name, "", {}, parameters, 1000, len(name) % 3, 10, 5, 2)


CANDIDATES = [candidate(name, 50 if name == "small" else 100) for name in SKILL]


def rows(count: int, validation: int) -> RunData:
    def split(n: int) -> Dataset:
        return Dataset.from_dict({"text": ["a"] * n, "label": [at % 2 for at in range(n)]})

    text = TextData(
        DatasetDict({"train": split(count), "validation": split(validation)}), ("text",), "x", labels=("b", "g")
    )
    return RunData(text, "made up", ("accuracy",), lambda prediction: {})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Name, seed and rows of each training that a search asks for; the trainings follow from these alone."""
    asked: list[tuple[str, int, int]] = []

    def run_cell(job: Job, data: RunData) -> Outcome:
        name, seed = job.cell.method, job.cell.seed
        asked.append((name, seed, data.text.splits["train"].num_rows))
        result = dict.fromkeys(IN_RESULT) | {"format": 1, "key": job.key, "status": "done", "error": ""}
        result |= {"figure": "accuracy", "seconds": 2.0}
        if name == "failing":
            return Outcome({**result, "status": "failed", "error": "it broke.", "last": None}, None)
        labels = np.asarray(data.text.splits["validation"]["label"])
        # A row is as hard for each candidate.
        noise = np.random.default_rng(seed).normal(size=len(labels))
        own = np.random.default_rng(zlib.crc32(name.encode()) + seed).normal(0, 0.05, len(labels))
        margin = np.where(labels == 1, 1, -1) * (SKILL.get(name, 1) + noise + own)
        logits = np.stack([-margin, margin], axis=1).astype(np.float16)
        predictions = logits.argmax(axis=1)
        result["last"] = {"score": float((predictions == labels).mean())}
        logits *= np.float16(np.inf if name == "beyond" else 1)
        kept = {"labels": labels, "last_predictions": predictions, "last_logits": logits}
        return Outcome(result, safetensors.numpy.save(kept))

    monkeypatch.setattr(search, "run_cell", run_cell)
    return asked


def make(folder: Path, base: Path, kept: list[Stage], show: Callable[[str], None] = lambda line: None) -> Search:
    bases = dict.fromkeys(("rung", "final"), base_of_grid(str(base)))
    data = {"rung": rows(400, 200), "final": rows(450, 300)}
    trainings = Trainings(folder, bases, {"learning_rate": 1e-3}, data, show)
    return Search(trainings, Clock(1e3, 3.0, {"rung": 200, "final": 300}), list(kept), kept.append)


def whole(found: Search) -> tuple[Candidate, dict[str, Any]]:
    pick = found.halve(CANDIDATES, {CONTROL}, 400, 3, 400.0)
    found.final([pick, CANDIDATES[0]], 450, 3, 200.0)
    return pick, found.compare(pick.name, REFERENCE, "accuracy")


def everything(found: Search) -> str:
    return json.dumps({stage: {name: [run.kept for run in runs] for name, runs in each.items()}
                       for stage, each in found.scores.items()})  # fmt: skip


def test_the_better_half_goes_on_and_the_cheapest_of_the_best_wins(
    trained: list[tuple[str, int, int]], base_folder: Path, tmp_path: Path
) -> None:
    kept: list[Stage] = []
    found = make(tmp_path, base_folder, kept)
    pick, comparison = whole(found)
    assert list(found.scores["rung 1"]) == list(SKILL)
    # Half of the five that may win, and the control, which may not.
    assert list(found.scores["rung 2"]) == [REFERENCE, CONTROL, "big", "small"]
    assert pick.name == "small"  # "big" is the better by less than its standard error, with twice the parameters
    assert list(found.scores["final"]) == ["small", REFERENCE]
    assert comparison["mean"] > 0
    assert comparison["low"] < comparison["mean"] < comparison["high"]
    assert comparison["error"] == pytest.approx((comparison["rows"] + comparison["over_seeds"]) ** 0.5)
    assert not comparison["constant"]
    # Each rung's candidates on the same rows, with every seed.
    assert [stage.name for stage in kept] == ["rung 1", "rung 2", "final"]
    for name in SKILL:
        assert [(seed, count) for which, seed, count in trained if which == name][:3] == [
            (seed, kept[0].rows) for seed in (0, 1, 2)
        ]
    from optuna import load_study
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL)))
    study = load_study(study_name="suggest", storage=storage)
    assert [trial.user_attrs["candidate"] for trial in study.trials] == list(SKILL)


def test_a_search_that_was_stopped_comes_to_the_same_end(
    trained: list[tuple[str, int, int]], base_folder: Path, tmp_path: Path
) -> None:
    undisturbed = make(tmp_path / "whole", base_folder, [])
    expected = whole(undisturbed)
    count = len(trained)
    for after in (2, 20, 31):
        trained.clear()

        def stop(line: str) -> None:
            if len(trained) == after:  # noqa: B023
                raise KeyboardInterrupt

        kept: list[Stage] = []
        with pytest.raises(KeyboardInterrupt):
            whole(make(tmp_path / str(after), base_folder, kept, stop))
        again = make(tmp_path / str(after), base_folder, kept)
        assert whole(again) == expected
        assert everything(again) == everything(undisturbed)
        assert len(trained) == count  # no training twice


def test_equal_stages_are_not_trained_twice(
    trained: list[tuple[str, int, int]], base_folder: Path, tmp_path: Path
) -> None:
    found = make(tmp_path, base_folder, [])
    found.halve(CANDIDATES, {CONTROL}, 400, 1, 1e6)
    assert len(trained) == 3 * len(CANDIDATES)
    assert found.scores["rung 2"][REFERENCE][0].loss == found.scores["rung 1"][REFERENCE][0].loss


def test_what_cannot_be_trained_is_not_chosen(
    trained: list[tuple[str, int, int]], base_folder: Path, tmp_path: Path
) -> None:
    two = [candidate("failing", 1), candidate("poor")]
    assert make(tmp_path / "one", base_folder, []).halve(two, set(), 400, 1, 400.0).name == "poor"
    with pytest.raises(ValueError, match=r"no candidate could be trained: it broke\."):
        make(tmp_path / "none", base_folder, []).halve(two[:1], set(), 400, 1, 400.0)
    with pytest.raises(ValueError, match=r"failing could not be trained: it broke\. Lower --learning_rate"):
        make(tmp_path / "final", base_folder, []).final(two, 450, 1, 400.0)
    with pytest.raises(ValueError, match=r"beyond could not be trained: its logits are beyond what float16 holds\."):
        make(tmp_path / "beyond", base_folder, []).final([candidate("beyond"), two[1]], 450, 1, 400.0)


def test_the_clock_plans_what_the_time_allows_and_learns() -> None:
    clock = Clock(1000.0, 3.0, {"rung": 10, "final": 10})
    stage = clock.largest("rung 1", CANDIDATES, 10_000, 3, 400.0)
    assert 32 < stage.rows < 10_000
    assert (
        clock.seconds(CANDIDATES, stage) <= 0.85 * 400 < clock.seconds(CANDIDATES, Stage("rung 1", stage.rows + 1, 1))
    )
    assert clock.largest("final", CANDIDATES[:2], 50, 3, 400.0) == Stage("final", 50, 3)  # all rows, so more epochs
    clock.note(CANDIDATES, stage, 2 * clock.seconds(CANDIDATES, stage))
    assert clock.largest("rung 2", CANDIDATES, 10_000, 3, 400.0).rows < stage.rows
    assert len(Clock(1e6, 3.0, {"rung": 10}).affordable(CANDIDATES, 400, 1000.0)) == 6
    assert len(Clock(500.0, 3.0, {"rung": 10}).affordable(CANDIDATES, 400, 400.0)) == 4
    with pytest.raises(ValueError, match=r"time leaves 1 min 0 s for trainings, and 32 rows for each take .*; raise"):
        Clock(500.0, 3.0, {"rung": 10}).affordable(CANDIDATES, 400, 60.0)

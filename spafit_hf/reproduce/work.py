"""A grid on real data and a real base: jobs with their keys, and the rates that searches have found.

tasks --load_data, hold_out--> rows --+
base  --digest, plan-----------------+--> Job per cell
method, seed --strategy_of-----------+
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import AutoConfig

from spafit_hf.data import LABEL
from spafit_hf.files import digest
from spafit_hf.names import is_remote, resolve_base
from spafit_hf.reproduce.cell import Job, key_versions
from spafit_hf.reproduce.grid import Cell, Grid
from spafit_hf.reproduce.methods import Methods, flops
from spafit_hf.reproduce.results import FORMAT, STATES
from spafit_hf.run import BaseArguments, DataArguments, RunData, hold_out, load_data

BASE_FILES = (".json", ".safetensors", ".bin", ".txt", ".model")
"""Endings of the files of a base's folder that count: configuration, weights, tokenizer."""


class Work:
    """A grid with its rows, its base and its methods.

    Raises:
        ValueError: where rows or base cannot be loaded.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.folder = Path(grid.output)
        self.methods = Methods(grid)
        self.data = {task: load_rows(grid, task) for task in grid.tasks}
        self.fingerprints = {task: fingerprint(data) for task, data in self.data.items()}
        self.base, self.place = base_of_grid(grid.base)
        self.versions = key_versions()
        self.job = functools.cache(self._job)
        self.cost = functools.cache(self._cost)

    def jobs(self, results: Mapping[str, Mapping[str, Any]]) -> list[tuple[Cell, Job | None]]:
        """The cells in their order, with their jobs; None where the search for the rate goes on."""
        rates: dict[tuple[str, str], float | None] = {}
        found: list[tuple[Cell, Job | None]] = []
        for cell in self.grid.wanted():
            if cell.learning_rate is None:
                pair = cell.task, cell.method
                if pair not in rates:
                    rates[pair] = self._found_rate(*pair, results)
                cell = replace(cell, learning_rate=rates[pair])
            found.append((cell, None if cell.learning_rate is None else self.job(cell)))
        return found

    def _found_rate(self, task: str, method: str, results: Mapping[str, Mapping[str, Any]]) -> float | None:
        """The best rate of a search, the lowest of equals; None while a cell of it is missing."""
        searched: dict[float, float] = {}
        for rate in sorted(self.grid.rates_of(method)[0]):
            result = results.get(self.job(Cell(task, method, rate, self.grid.seeds[0], "search")).key)
            if result is None:
                return None
            score = result["selection"]["best"] if result["selection"] else (result["best"] or {}).get("score")
            searched[rate] = -math.inf if score is None or result["status"] != "done" else score
        return max(searched, key=lambda rate: searched[rate])

    def _cost(self, cell: Cell) -> float:
        """FLOPs of a cell, whatever its rate."""
        splits = self.data[cell.task].text.splits
        rows = splits["train"].num_rows, sum(split.num_rows for name, split in splits.items() if name != "train")
        return flops(self.methods, cell, *rows)

    def _job(self, cell: Cell) -> Job:
        """The job of a cell whose rate is known."""
        grid = self.grid
        settings: dict[str, Any] = {name: getattr(grid, name) for name in _SETTINGS}
        settings["per_device_train_batch_size"] = grid.batch_of(cell.task)
        if cell.stage == "search":
            settings |= {"num_train_epochs": grid.search_epochs, "search_rows": grid.search_rows}
        prefix = self.methods.prefix(cell.method, cell.seed)
        settings["prefix_cache"] = bool(prefix)
        mark = self.fingerprints[cell.task]
        states = self.folder.absolute() / STATES / f"{cell.task}-{mark[:8]}-{prefix}{'-bf16' * grid.bf16}"
        return Job(
            cell=cell,
            settings=settings,
            strategy=self.methods.strategy(cell.method, cell.seed).to_dict(),
            base=self.base,
            data={"fingerprint": mark},
            versions=self.versions,
            place=self.place,
            states=str(states) if prefix else "",
        )

    def description(self, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """What `grid.json` holds."""
        grid = self.grid
        return {
            "format": FORMAT,
            "preset": grid.preset,
            "base": self.base["name"],
            "tasks": grid.tasks,
            "methods": grid.methods,
            "seeds": grid.seeds,
            "settings": grid.settings,
            "made_with": {"base": self.base["digest"], "data": self.fingerprints, "versions": self.versions},
            "cells": [{"key": job.key if job else "", **asdict(cell)} for cell, job in self.jobs(results)],
        }


_SETTINGS = (
    "num_train_epochs", "max_train_rows", "max_validation_rows", "selection_rows", "max_length", "weight_decay",
    "warmup_steps", "lora_r", "lora_alpha", "head_factor", "train_sampling_strategy", "first_token_only", "bf16",
)  # fmt: skip


def load_rows(grid: Grid, task: str) -> RunData:
    """A task's train, selection and first validation rows, in memory: they travel to workers."""
    arguments = DataArguments(task=task, data_dir=grid.data_dir, max_validation_rows=grid.max_validation_rows)
    data = hold_out(load_data(arguments), grid.selection_rows, grid.max_train_rows)
    columns = (*data.text.columns, LABEL)
    splits = {}
    for name in ("train", data.text.evaluation_splits[0], "selection"):
        if name in data.text.splits:
            split = data.text.splits[name].select_columns(columns)
            splits[name] = Dataset.from_dict({column: split[column][:] for column in columns}, split.features)
    # Its own asks the Hub for GLUE's metric, and cannot travel; a cell's Recorder computes the same figures without.
    return replace(data, text=replace(data.text, splits=DatasetDict(splits)), compute_metrics=None)


def fingerprint(data: RunData) -> str:
    """A hash of the rows of every split, in their order."""
    rows = hashlib.sha256()
    for name, split in data.text.splits.items():
        rows.update(json.dumps([name, split.to_dict()]).encode())
    return rows.hexdigest()[:20]


def base_of_grid(base: str) -> tuple[dict[str, str], BaseArguments]:
    """A base's name without a path and its digest, and where it is loaded from.

    Raises:
        ValueError: when it cannot be read.
    """
    place = resolve_base(base)
    if is_remote(place):
        try:
            commit = AutoConfig.from_pretrained(place)._commit_hash
        except OSError as error:
            raise ValueError(f"the base {base!r} cannot be read: {error}") from error
        return {"name": base, "digest": commit}, BaseArguments(base, commit)
    files = [path for path in sorted(Path(place).iterdir()) if path.suffix in BASE_FILES and path.is_file()]
    name = base if place != base else Path(base).resolve().name
    return {"name": name, "digest": digest(*files, named=True)[:20]}, BaseArguments(base)

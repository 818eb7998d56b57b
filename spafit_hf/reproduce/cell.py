"""A cell: one training run whose every evaluation is kept row by row, and none of whose weights are.

    Job --+                         +--> result.json   figures of each epoch, the best and the last
    data -+--> SpafitTrainer.train -+--> rows          labels, predictions and logits of the validation set

The epoch is chosen on rows that were held out of train, where there are some, and on the validation set otherwise.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from datasets import DatasetDict
from filelock import FileLock
from transformers import EvalPrediction, PrinterCallback, TrainerCallback
from transformers.utils.logging import get_verbosity, set_verbosity

from spafit_hf.data import jsonable
from spafit_hf.data.figures import REGRESSION, compute
from spafit_hf.files import is_disk_full
from spafit_hf.names import __version__
from spafit_hf.reproduce.grid import Cell
from spafit_hf.reproduce.results import FORMAT
from spafit_hf.run import BaseArguments, RunData, parameters_of, prepare, quiet
from spafit_hf.run.train import AnyTrainer
from spafit_hf.trainer import SpafitTrainingArguments
from spafit_hf.trainer.arguments import NOT_SET
from spafit_hf.trainer.machine import machine, versions
from spafit_hf.words import first_line

#: What a cell can die of and stay a result. What the disk or a network does (OSError) is not the cell's doing.
FAILURES = (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AttributeError, AssertionError)


@dataclass(frozen=True)
class Job:
    """A cell with everything that sets its result, and where a worker finds its base."""

    cell: Cell
    settings: dict[str, Any]
    strategy: dict[str, Any]
    base: dict[str, str]
    """Its name without a path, and its digest."""
    data: dict[str, str]
    """The fingerprint of its rows."""
    versions: dict[str, str]
    place: BaseArguments
    states: str = ""
    """The folder with the hidden states of its rows; "" for no prefix cache."""

    @property
    def key(self) -> str:
        """A hash of everything that sets the result: the name of the cell's folder."""
        facts = {name: getattr(self, name) for name in ("settings", "strategy", "data", "versions")}
        facts |= {**asdict(self.cell), "base": self.base["digest"]}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Outcome:
    """What a cell gave."""

    result: dict[str, Any]
    rows: bytes | None
    """A safetensors file; None for a cell that failed."""


def key_versions() -> dict[str, str]:
    """Versions that set a result."""
    return versions(("torch", "transformers", "peft")) | {"spafit-hf": __version__}


def run_cell(job: Job, data: RunData) -> Outcome:
    """Train a cell. What goes wrong with it is a result too.

    Args:
        job: the cell.
        data: train, validation and, where the grid holds rows out, selection.

    Raises:
        OSError: for what is not the cell's doing: a full disk, a base that cannot be read, other versions here than
            those that the grid was begun with.
    """
    if key_versions() != job.versions:
        raise OSError(f"this worker has {key_versions()}, and the grid was begun with {job.versions}; install those.")
    start = time.perf_counter()
    try:
        with quiet(), levels_kept():
            result, rows = _train(job, data)
    except FAILURES as error:
        if is_disk_full(error):  # libraries wrap it
            raise OSError(errno.ENOSPC, first_line(error)) from error
        if isinstance(error.__cause__, OSError):  # of a base that is gone, or of a Hub that is away
            raise OSError(first_line(error)) from error
        return lost(job, data, f"{type(error).__name__}: {first_line(error)}")
    return Outcome(_facts(job, data) | result | {"seconds": round(time.perf_counter() - start, 2)}, rows)


@contextmanager
def levels_kept() -> Iterator[None]:
    """A trainer sets the levels of this package's and transformers' logs; they are the caller's again after that."""
    package, level, verbosity = logging.getLogger("spafit_hf"), logging.getLogger("spafit_hf").level, get_verbosity()
    try:
        yield
    finally:
        package.setLevel(level)
        set_verbosity(verbosity)


def lost(job: Job, data: RunData, reason: str) -> Outcome:
    """The outcome of a cell that failed."""
    return Outcome(_facts(job, data) | {"status": "failed", "error": reason}, None)


def _facts(job: Job, data: RunData) -> dict[str, Any]:
    """What a result says of any cell, trained or not."""
    rows = {name: split.num_rows for name, split in data.text.splits.items()}
    return {
        **{"format": FORMAT, "key": job.key, "status": "done", "error": "", **asdict(job.cell)},
        **{"figure": data.main_figure, "best": None, "last": None, "selection": None, "history": []},
        "chosen_on": "train part" if "selection" in rows else "validation",
        **{"trained_parameters": None, "total_parameters": None, "train_rows": _train_rows(job, data)},
        **{"validation_rows": rows[data.text.evaluation_splits[0]], "selection_rows": rows.get("selection", 0)},
        **{"seconds": 0.0, "epochs": job.settings["num_train_epochs"], "base": job.base, "data": job.data},
        **{"strategy": job.strategy, "settings": job.settings, "machine": machine(), "versions": versions()},
    }


def _train_rows(job: Job, data: RunData) -> int:
    there = data.text.splits["train"].num_rows
    return min(job.settings.get("search_rows") or there, there)


def _train(job: Job, data: RunData) -> tuple[dict[str, Any], bytes]:
    if job.states:
        _fill(job, data)
    # A search may take a share of the rows.
    train = data.text.splits["train"].select(range(_train_rows(job, data)))
    data = replace(data, text=replace(data.text, splits=DatasetDict({**data.text.splits, "train": train})))
    with tempfile.TemporaryDirectory() as scratch:
        trainer, splits = _trainer(job, data, scratch, job.states)
        recorder = Recorder(data)
        trainer.compute_metrics = recorder.compute_metrics
        parts = {"validation": data.text.evaluation_splits[0], "selection": "selection"}
        trainer.eval_dataset = {part: splits[name] for part, name in parts.items() if name in splits}
        trainer.add_callback(recorder)
        trainer.train()
    trained, total = parameters_of(trainer)
    losses = {entry["epoch"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    result = recorder.result(losses) | {"trained_parameters": trained, "total_parameters": total}
    return result, safetensors.numpy.save(recorder.rows())


def _trainer(job: Job, data: RunData, scratch: str, states: str) -> tuple[AnyTrainer, DatasetDict]:
    settings, rate = job.settings, job.cell.learning_rate
    assert rate is not None
    same = ("num_train_epochs", "per_device_train_batch_size", "weight_decay", "warmup_steps", "bf16",
            "train_sampling_strategy", "first_token_only")  # fmt: skip
    args = SpafitTrainingArguments(
        output_dir=scratch,
        strategy=json.dumps(job.strategy),
        learning_rate=rate,
        head_learning_rate=settings["head_factor"] * rate or NOT_SET,
        seed=job.cell.seed,
        per_device_eval_batch_size=64,
        prefix_cache=states or "off",
        use_cpu=machine()["devices"] == 0,  # bf16 without a GPU asks for it
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # a loss that is no number has to show
        log_level="error",
        report_to="none",
        disable_tqdm=True,
        **{name: settings[name] for name in same},
    )
    if args.n_gpu > 1:  # DataParallel would multiply the batch
        raise OSError(f"{args.n_gpu} GPUs, and a cell is for one: --backend processes, or CUDA_VISIBLE_DEVICES=0.")
    trainer, splits = prepare(data, job.place, args, list(data.text.splits), settings["max_length"])
    trainer.remove_callback(PrinterCallback)
    return trainer, splits


def _fill(job: Job, data: RunData) -> None:
    """Compute the hidden states of all rows, unless they are there.

    All in one pass, in batches that are always the same: how a row's states are rounded depends on the rows beside it,
    and a grid that was stopped within that pass must not give other figures than one that was not.
    """
    place = Path(job.states)
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if place.is_dir():
            return
        part = Path(f"{place}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        with tempfile.TemporaryDirectory() as scratch:
            trainer, splits = _trainer(job, data, scratch, str(part))
            trainer.compute_metrics = None
            for split in splits.values():
                trainer.evaluate(split)
        part.rename(place)


class Recorder(TrainerCallback):
    """Keeps what each evaluation of a training gave, row by row.

    Args:
        data: its figures, and whether labels are numbers.
    """

    def __init__(self, data: RunData) -> None:
        self.figures = data.figures
        self.regression = data.figures[0] in REGRESSION
        self.chosen_on = "selection" if "selection" in data.text.splits else "validation"
        self.labels = np.empty(0)
        self.logits: dict[float, np.ndarray] = {}
        """Epoch -> logits of the validation rows, float32 (rows, outputs)."""
        self.scores: dict[float, dict[str, dict[str, float | None]]] = {}
        """Epoch -> validation, selection -> figures."""
        self._seen: tuple[np.ndarray, np.ndarray] = (self.labels, self.labels)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Trainer's; undefined where a row's logits are."""
        raw: Any = prediction.predictions
        logits = np.asarray(raw[0] if isinstance(raw, tuple) else raw, dtype=np.float32)
        labels = np.asarray(prediction.label_ids, dtype=np.float32 if self.regression else np.int64)
        self._seen = logits, labels
        if not np.isfinite(logits).all():
            return dict.fromkeys(self.figures, math.nan)
        return compute(self.figures, predictions_of(logits, self.regression), labels)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Trainer calls it after the evaluation of each part; nothing comes after logits that are no numbers."""
        part = "selection" if any(name.startswith("eval_selection_") for name in metrics) else "validation"
        figures = {name: metrics[f"eval_{part}_{name}"] for name in self.figures}
        self.scores.setdefault(state.epoch, {})[part] = jsonable(figures)
        logits, labels = self._seen
        if part == "validation":
            self.logits[state.epoch], self.labels = logits, labels
        if not np.isfinite(logits).all():
            control.should_training_stop = True

    @property
    def epochs(self) -> dict[str, float]:
        """The best and the last."""

        def worth(epoch: float) -> float:
            value = self.scores[epoch][self.chosen_on][self.figures[0]]
            return -math.inf if value is None else value

        return {"best": max(sorted(self.scores), key=worth), "last": max(self.scores)}  # the first of equals

    def rows(self) -> dict[str, np.ndarray]:
        """The tensors of `rows.safetensors`."""
        tensors = {"labels": self.labels}
        for name, epoch in self.epochs.items():
            tensors[f"{name}_predictions"] = predictions_of(self.logits[epoch], self.regression)
            with np.errstate(over="ignore"):  # beyond float16's range is infinite
                tensors[f"{name}_logits"] = self.logits[epoch].astype(np.float16)
        return tensors

    def result(self, losses: Mapping[float, float]) -> dict[str, Any]:
        """What `result.json` holds of a training.

        Args:
            losses: epoch -> mean loss of its steps.
        """
        epochs, main = self.epochs, self.figures[0]
        sound = all(map(math.isfinite, losses.values())) and np.isfinite(self.logits[epochs["last"]]).all()
        result: dict[str, Any] = {
            "status": "done" if sound else "diverged",
            "error": "" if sound else "the loss or the predictions are no finite numbers; lower the learning rate.",
        }
        for name, epoch in epochs.items():
            figures = self.scores[epoch]["validation"]
            result[name] = {"epoch": _short(epoch), "score": figures[main], "figures": figures}
        if self.chosen_on == "selection":
            result["selection"] = {name: self.scores[epoch]["selection"][main] for name, epoch in epochs.items()}
        result["history"] = [
            {
                "epoch": _short(epoch),
                "selection": None,
                **self.scores[epoch],
                **jsonable({"loss": losses.get(epoch, math.nan)}),
            }
            for epoch in sorted(self.scores)
        ]
        return result


def predictions_of(logits: np.ndarray, regression: bool) -> np.ndarray:
    """A value (float32) or a class id (int64) per row; -1 for a class that the logits do not tell."""
    if regression:
        return logits[:, 0]
    return np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)


def _short(epoch: float) -> float:
    return int(epoch) if float(epoch).is_integer() else epoch

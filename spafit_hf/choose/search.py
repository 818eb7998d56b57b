"""The search: candidates at few rows, the better half of them at more, and the one that is left at all rows.

    rung 1   all candidates x three seeds   few rows     --better half-->
    rung 2   half of them x three seeds     more rows    --the cheapest within a standard error of the best-->
             (where the time is short, few candidates and one rung with the time of both)
    final    that one and spafit-4-9-II x three seeds, all rows as far as the time allows, on the validation set

Candidates of a rung train on the same rows with the same seeds, and read the states of frozen layers from one cache
for each N1. They start with the head that was trained for the gradients, so that few rows show what a cut adds to it;
the final starts as any training does. Rungs are measured on rows held out of train, by loss: a figure stands still
while a model still calls every row the larger class, and the loss does not.

Optuna decides who goes on (`study.journal` opens in its dashboard). What has been trained is kept as cells, as `spafit
reproduce` keeps them, so a search that was stopped goes on with the same command and comes to the same end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from scipy.special import log_softmax

from spafit_hf.choose.candidates import Candidate
from spafit_hf.choose.clock import SEEDS, Clock, Stage, rung_shares
from spafit_hf.reproduce.cell import Job, key_versions, run_cell
from spafit_hf.reproduce.grid import Cell
from spafit_hf.reproduce.results import ROWS_FILE, STATES, Results, read_rows
from spafit_hf.reproduce.statistics import difference, resampled
from spafit_hf.reproduce.work import fingerprint
from spafit_hf.run import BaseArguments, RunData, figures_text
from spafit_hf.words import SpafitError

JOURNAL = "study.journal"


@dataclass(frozen=True)
class Trained:
    """One training."""

    loss: float
    """Mean over the rows measured on; infinite for one that failed."""
    figure: float | None
    seconds: float
    error: str
    rows: Mapping[str, np.ndarray]
    """Labels, predictions and losses of the rows measured on; {} for one that failed."""

    @property
    def kept(self) -> dict[str, Any]:
        """What `suggest.json` holds of it."""
        loss = self.loss if math.isfinite(self.loss) else None
        return {"loss": loss, "figure": self.figure, "seconds": self.seconds, "error": self.error}


class Trainings:
    """Trains what has not been trained, and reads what has.

    Args:
        folder: of the search.
        bases: of the rungs and of the final, as `base_of_grid` gives them.
        settings: of every cell, but for epochs and rows.
        data: of the rungs, whose validation split is held out of train, and of the final.
        show: given a line for each training when it is done.
    """

    def __init__(
        self,
        folder: Path,
        bases: Mapping[str, tuple[dict[str, str], BaseArguments]],
        settings: Mapping[str, Any],
        data: Mapping[str, RunData],
        show: Callable[[str], None],
    ) -> None:
        self.folder, self.settings, self.show = folder, settings, show
        self.bases, self.data = bases, data
        self.marks = {name: {"fingerprint": fingerprint(each)} for name, each in data.items()}
        self.results = Results(folder)

    def run(self, candidate: Candidate, stage: Stage, seed: int) -> Trained:
        """Train a candidate, unless that was done."""
        data, (base, place) = self.data[stage.kind], self.bases[stage.kind]
        states = self.folder.absolute() / STATES / f"first-{candidate.frozen}" if candidate.frozen else ""
        settings = {**self.settings, "num_train_epochs": float(stage.epochs), "search_rows": stage.rows}
        job = Job(
            cell=Cell(data.task or "text", candidate.name, settings["learning_rate"], seed, stage.kind),
            settings=settings | {"prefix_cache": bool(states)},
            strategy=candidate.strategy,
            base=base,
            data=self.marks[stage.kind],
            versions=key_versions(),
            place=place,
            states=str(states),
        )
        if job.key not in self.results.known:
            if stage.kind == "rung" and not Path(place.base).is_dir():
                raise SpafitError(
                    f"{place.base} is gone, which the rungs of a search train, and one is left to train; take another "
                    "--output_dir: the search begins anew there."
                )
            # Tokens and states of the rows that this stage does not use would cost as much as those that it does.
            train = data.text.splits["train"].select(range(stage.rows))
            splits = DatasetDict({**data.text.splits, "train": train})
            outcome = run_cell(job, replace(data, text=replace(data.text, splits=splits)))
            self.results.add(outcome.result, outcome.rows)
            result = outcome.result
            gave = figures_text({result["figure"]: result["last"]["score"]}) if outcome.rows else result["error"]
            self.show(f"{stage.name}: {candidate.name}, seed {seed}: {gave} in {result['seconds']:.0f} s")
        return self._read(job.key, data.labelled.regression)

    def _read(self, key: str, regression: bool) -> Trained:
        result = self.results.known[key]
        error = result["error"]
        if result["status"] == "done":
            rows = read_rows(self.folder, key)
            if rows is None:
                place = self.results.cell(key)
                raise SpafitError(f"{place} has no {ROWS_FILE}. Remove the folder and run the same command again.")
            labels, predictions = rows["labels"], rows["last_predictions"]
            if regression:
                losses = (predictions.astype(np.float64) - labels) ** 2  # logits are in float16
            else:
                logits = rows["last_logits"].astype(np.float64)
                with np.errstate(invalid="ignore"):
                    losses = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
            if np.isfinite(losses).all():
                kept = {"labels": labels, "predictions": predictions, "losses": losses}
                return Trained(float(losses.mean()), result["last"]["score"], result["seconds"], "", kept)
            error = "its logits are beyond what float16 holds."
        return Trained(math.inf, None, result["seconds"], error, {})


class Search:
    """Halving over stages, each planned when the one before has shown what trainings take.

    Args:
        trainings: where they run.
        clock: what they take.
        planned: the stages of a search that goes on.
        keep: given every stage when it is planned, so that it can be kept.
    """

    def __init__(
        self, trainings: Trainings, clock: Clock, planned: Sequence[Stage], keep: Callable[[Stage], None]
    ) -> None:
        self.trainings, self.clock, self.keep = trainings, clock, keep
        self.planned = {stage.name: stage for stage in planned}
        self.scores: dict[str, dict[str, list[Trained]]] = {}
        """Stage -> candidate -> a training per seed."""

    def halve(
        self, candidates: Sequence[Candidate], barred: Collection[str], rows: int, epochs: int, seconds: float
    ) -> Candidate:
        """The candidate that is left after the rungs.

        Args:
            candidates: that take part.
            barred: names of those that are never left out and never chosen: the control, the reference.
            rows, epochs: to train on at most.
            seconds: that rungs and final may take together.

        Raises:
            SpafitError: where none could be trained.
        """
        study = _study(self.trainings.folder / JOURNAL)
        trials = {each.name: study.ask() for each in candidates}
        for name, trial in trials.items():
            trial.set_user_attr("candidate", name)
            trial.set_user_attr("barred", name in barred)
        alive, last = list(candidates), dict[str, float]()
        for step, share in enumerate(rung_shares(len(candidates))):
            if step:
                alive = [each for each in alive if not trials[each.name].should_prune()]
            found = self._stage(f"rung {step + 1}", alive, rows, epochs, share * seconds)
            last |= {each.name: mean_loss(found[each.name]) for each in alive}
            for each in alive:
                trials[each.name].report(last[each.name], step)
        for name, trial in trials.items():
            study.tell(trial, last[name])
        able = [each for each in alive if each.name not in barred and math.isfinite(last[each.name])]
        if not able:
            error = next(one.error for runs in found.values() for one in runs if one.error)
            raise SpafitError(f"no candidate could be trained: {error}")
        best = min(able, key=lambda each: last[each.name])
        gaps = [lost(found[each.name], found[best.name]) for each in able]
        near = [each for each, (gap, error) in zip(able, gaps, strict=True) if gap <= error]
        return min(near, key=lambda each: (each.parameters, each.step_flops))

    def final(self, candidates: Sequence[Candidate], rows: int, epochs: int, seconds: float) -> None:
        """Train what is compared at the end, on all rows as far as the time allows.

        Raises:
            SpafitError: where one could not be trained.
        """
        for name, runs in self._stage("final", candidates, rows, epochs, seconds).items():
            if error := next((one.error for one in runs if one.error), ""):
                raise SpafitError(f"{name} could not be trained: {error} Lower --learning_rate.")

    def compare(self, own: str, other: str, figure: str) -> dict[str, Any]:
        """The difference of two candidates in the final's figure, by the paired bootstrap, and in loss."""
        trained = [self.scores["final"][name] for name in (own, other)]
        runs = [one.rows for each in trained for one in each]
        draws = resampled(figure, runs[0]["labels"], np.stack([rows["predictions"] for rows in runs]), SEEDS[0])
        found = difference(draws[:, : len(SEEDS)] - draws[:, len(SEEDS) :])
        gap, error = lost(*trained)
        return {
            **asdict(found),
            **{"error": found.error, "low": found.low, "high": found.high},
            "constant": all(np.ptp(rows["predictions"]) == 0 for rows in runs),
            **{"loss": gap, "loss_error": error},
        }

    def _stage(
        self, name: str, candidates: Sequence[Candidate], rows: int, epochs: int, seconds: float
    ) -> dict[str, list[Trained]]:
        stage = self.planned.get(name)
        if stage is None:
            stage = self.clock.largest(name, candidates, rows, epochs, seconds)
            self.keep(stage)
        counts = f"{len(candidates)} candidates x {len(SEEDS)} seeds, {stage.rows:,} rows, epochs: {stage.epochs}"
        self.trainings.show(f"{name}: {counts}")
        found: dict[str, list[Trained]] = {each.name: [] for each in candidates}
        for seed in SEEDS:
            for each in candidates:
                found[each.name].append(self.trainings.run(each, stage, seed))
        self.scores[name] = found
        self.clock.note(candidates, stage, sum(one.seconds for runs in found.values() for one in runs))
        return found


def mean_loss(trained: Sequence[Trained]) -> float:
    """Over seeds; infinite where one of them failed."""
    return sum(each.loss for each in trained) / len(trained)


def lost(own: Sequence[Trained], other: Sequence[Trained]) -> tuple[float, float]:
    """How much more loss trainings have than others of the same rows and seeds, and the standard error of that.

    The error is that of the mean difference, by other rows and by other seeds.
    """
    gaps = np.stack([one.rows["losses"] - two.rows["losses"] for one, two in zip(own, other, strict=True)])
    seeds, rows = gaps.shape
    variance = gaps.mean(axis=0).var(ddof=1) / rows + gaps.mean(axis=1).var(ddof=1) / seeds
    return float(gaps.mean()), math.sqrt(variance)


def _study(journal: Path) -> Any:
    """A study whose journal is written anew: what it holds follows from the cells.

    Raises:
        SpafitError: where Optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage
    except ImportError as error:
        raise SpafitError("spafit suggest needs Optuna: pip install spafit-hf[hpo].") from error

    class BetterHalf(optuna.pruners.BasePruner):
        """Of what may be chosen the better half of a rung goes on, and what is barred from that goes along."""

        def prune(self, study: Any, trial: Any) -> bool:
            runs = [each for each in study.get_trials(deepcopy=False) if not each.user_attrs["barred"]]
            step = trial.last_step
            order = sorted(runs, key=lambda each: (each.intermediate_values[step], each.number))
            return trial.number in [each.number for each in order[math.ceil(len(order) / 2) :]]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal.unlink(missing_ok=True)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.create_study(storage=storage, study_name="suggest", pruner=BetterHalf())

"""Where to cut a base for a task: states and gradients propose, a search and a comparison decide.

rows + base --probes, gradients--> N1, N2, biases that pay --candidates--> halving --> final --> OUT

OUT/begun.json     what is wanted, what was measured before the search, and the stages as they were planned
    cells/         a folder per training           study.journal   Optuna's
    states/        hidden states of frozen layers, and base/, the base with a trained head; gone at the end
    suggest.json   everything measured, and from it strategy.yaml, report.md, suggest.png
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from transformers import PrinterCallback

from spafit_hf.choose.budget import Budget
from spafit_hf.choose.candidates import CONTROL, REFERENCE, Candidate, costed, proposed, within
from spafit_hf.choose.options import Options
from spafit_hf.choose.probe import probe_layers, read_states
from spafit_hf.choose.reader import reader_of
from spafit_hf.choose.report import RESULT_FILE, write_outputs
from spafit_hf.choose.search import SEEDS, Clock, Search, Stage, Trainings
from spafit_hf.choose.sensitivity import HEAD_EPOCHS, choose_n2, kappa_shares, measure, paying_roles
from spafit_hf.choose.verdict import decide
from spafit_hf.data.tokens import logger as notices
from spafit_hf.files import Fields, check_folder, write_whole
from spafit_hf.planner import build_model, plan
from spafit_hf.reproduce.cell import key_versions, levels_kept
from spafit_hf.reproduce.results import STATES, as_line, parsed_json, require
from spafit_hf.reproduce.work import base_of_grid, fingerprint
from spafit_hf.run import BaseArguments, DataArguments, RunData, hold_out, load_data, prepare
from spafit_hf.trainer import SpafitTrainingArguments
from spafit_hf.trainer.machine import machine, versions
from spafit_hf.tuner.plain import base_of
from spafit_hf.words import SpafitError, listing

BEGUN_FILE, HEADED = "begun.json", "base"
IN_BEGUN = (
    "asked", "headed", "layers", "reads", "probe_rows", "probes", "sensitivity", "kappa", "cut", "candidates",
    "flops_per_second", "start_seconds", "seconds", "stages",
)  # fmt: skip
"""What the first holds."""
SELECTION_ROWS = 256
"""Held out of train to measure rungs on, at most a tenth of it."""
PROBE_ROWS = 1000
"""Train rows that the probes read."""
GRADIENT_ROWS = 256
"""Of these, the first, on which gradients are taken; the head is trained on twice as many."""


@contextmanager
def _first_notice_alone() -> Iterator[None]:
    """That rows are too long is shown the first time: each training tokenizes rows of the same task."""
    times = itertools.count()

    def first(record: logging.LogRecord) -> bool:
        return not next(times)

    notices.addFilter(first)
    try:
        yield
    finally:
        notices.removeFilter(first)


@_first_notice_alone()
def suggest(
    base: str,
    arguments: DataArguments,
    budget: Budget,
    output: Path,
    options: Options,
    show: Callable[[str], None],
) -> dict[str, Any]:
    """Search a cut and write what was found.

    Args:
        base: Hub id or folder of the pretrained model, or embedded.
        arguments: which rows.
        budget: of the search and of the cut.
        output: folder of the search; one that was stopped goes on.
        options: how to train.
        show: given a line for each step.

    Returns:
        What `suggest.json` holds.

    Raises:
        ValueError: for rows, a base or a budget that cannot be, and a folder that is in use by something else.
    """
    check_folder(output)
    rungs, final = split(load_data(arguments), options.seed)
    known, place = base_of_grid(base)
    asked = {
        "base": known,
        "data": {"title": final.title, "fingerprint": fingerprint(final)},
        "limits": {"parameters": budget.parameters, "memory": budget.memory},
        "options": asdict(options),
        "versions": key_versions(),
    }
    begun = _begun(output, asked)
    if begun is None:
        show(f"reading {base}: states and gradients of every layer")
        begun = {"asked": asked, **_analysis(base, place, rungs, options, output / HEADED), "stages": []}
        write_whole(output / BEGUN_FILE, as_line(begun))
    read, file = Fields(SpafitError).read, output / BEGUN_FILE
    every = [read(Candidate, each, f"a candidate of {file}") for each in begun["candidates"]]
    planned = [read(Stage, each, f"a stage of {file}") for each in begun["stages"]]

    def keep(stage: Stage) -> None:
        begun["stages"].append(asdict(stage))
        write_whole(output / BEGUN_FILE, as_line(begun))

    data = {"rung": rungs, "final": final}
    bases = {"rung": (begun["headed"], BaseArguments(str(output / HEADED))), "final": (known, place)}
    trainings = Trainings(output, bases, options.settings, data, show)
    held = {kind: each.text.splits[each.text.evaluation_splits[0]].num_rows for kind, each in data.items()}
    clock = Clock(begun["flops_per_second"], begun["start_seconds"], held)
    search = Search(trainings, clock, planned, keep)
    rows = {"rungs": rungs.text.splits["train"].num_rows, "train": final.text.splits["train"].num_rows}
    seconds, epochs = budget.time - begun["seconds"], options.num_train_epochs
    if not begun["stages"]:  # another time would have been enough for others
        begun["tried"] = [each.name for each in clock.affordable(within(every, budget), rows["rungs"], seconds)]
    candidates = {each.name: each for each in every if each.name in begun["tried"]}
    # The reference is in the final in any case; more parameters learn faster on few rows, so a rung would favour it.
    barred = {CONTROL, REFERENCE, *(each.name for each in candidates.values() if each.over(budget))}
    pick = reference = candidates[REFERENCE]
    comparison = None
    if not candidates.keys() <= barred:
        pick = search.halve(list(candidates.values()), barred, rows["rungs"], epochs, seconds)
        search.final([pick, reference], rows["train"], epochs, seconds - clock.measured)
        comparison = search.compare(pick.name, REFERENCE, final.main_figure)
    recommended, verdict = decide(pick, reference, comparison, bool(reference.over(budget)))
    default = DataArguments()
    flags = {name: value for name, value in vars(arguments).items() if value != getattr(default, name)}
    found = {
        **begun,
        "budget": asdict(budget),
        "flags": {**flags, "base": base},
        "output": str(output),
        "title": final.title,
        "figure": final.main_figure,
        "regression": final.labelled.regression,
        "rows": {**rows, "selection": held["rung"], "validation": held["final"]},
        "seeds": SEEDS,
        "candidates": [
            {
                **asdict(each),
                "over": each.over(budget),
                "tried": each.name in candidates,
                "scores": {
                    name: [one.kept for one in runs[each.name]]
                    for name, runs in search.scores.items()
                    if each.name in runs
                },
            }
            for each in every
        ],
        "pick": pick.name,
        "comparison": comparison,
        "recommended": recommended,
        "verdict": verdict,
        "training_seconds": round(clock.measured, 2),
        "machine": machine(),
        "versions": versions(),
    }
    write_whole(output / RESULT_FILE, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    for name in (STATES, HEADED):
        shutil.rmtree(output / name, ignore_errors=True)
    write_outputs(output)
    return found


def split(data: RunData, seed: int) -> tuple[RunData, RunData]:
    """The rows of the rungs, whose validation split is held out of train, and those of the final.

    Raises:
        SpafitError: for rows without labels, and too few of them to hold some out.
    """
    first = data.text.evaluation_splits[0]
    # The first rows of a stage have to be rows of any kind: files are often sorted by label.
    shuffled = {"train": data.text.splits["train"].shuffle(seed=seed), first: data.text.splits[first]}
    final = replace(data, text=replace(data.labelled, splits=DatasetDict(shuffled)))
    held = hold_out(final, SELECTION_ROWS).text.splits
    rows = held["selection"].num_rows if "selection" in held else 0, held[first].num_rows
    if min(rows) < 2:
        raise SpafitError(
            f"of {shuffled['train'].num_rows} train rows of {data.title} {rows[0]} can be held out, and {rows[1]} are "
            "there to validate on; a search needs 2 of either, and so 20 train rows or more."
        )
    rungs = {"train": held["train"], "validation": held["selection"]}
    return replace(final, text=replace(final.text, splits=DatasetDict(rungs))), final


def _begun(output: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """What a search that was stopped has in its folder; None for a new one.

    Raises:
        SpafitError: for a folder with something else in it.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / BEGUN_FILE
    if not path.exists():
        if any(output.iterdir()):
            raise SpafitError(f"{output} is in use and holds no search; name a new folder with --output_dir.")
        return None
    remedy = "Take another --output_dir: the search begins anew there."
    begun: dict[str, Any] = parsed_json(path.read_bytes(), str(path), remedy)
    require(begun, IN_BEGUN, str(path), remedy)
    require(begun, ["tried"] if begun["stages"] else [], str(path), remedy)
    require(begun["asked"], asked, f"asked of {path}", remedy)
    if not begun["stages"]:  # limits choose what is tried, and nothing was
        begun["asked"]["limits"] = asked["limits"]
    for name, value in json.loads(as_line(asked)).items():
        if begun["asked"][name] != value:
            differ = _differences(begun["asked"][name], value)
            raise SpafitError(
                f"{output} holds a search with {OTHER[name]}, {differ}; take another --output_dir, or what it was "
                "begun with."
            )
    return begun


OTHER = {
    "base": "another base",
    "data": "other data",
    "limits": "another budget",
    "options": "other options",
    "versions": "other versions",
}


def _differences(before: Any, now: Any) -> str:
    """What a folder has and what was given, in words: of mappings the values that differ."""
    if isinstance(before, dict):
        odd = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return listing([f"{name} {_differences(before.get(name), now.get(name))}" for name in odd])
    found, given = ("none" if each is None else each for each in (before, now))
    return f"{found} and not {given}"


def _analysis(base: str, place: BaseArguments, data: RunData, options: Options, headed: Path) -> dict[str, Any]:
    """What is measured before the search: probes, gradients, the cut that they propose, candidates, a step's time.

    The base with the trained head goes to `headed`.
    """
    start = time.perf_counter()
    train = data.text.splits["train"]
    train = train.select(range(min(PROBE_ROWS, train.num_rows)))
    few = replace(
        data, text=replace(data.text, splits=DatasetDict({"train": train, "validation": train.select(range(1))}))
    )
    with levels_kept(), tempfile.TemporaryDirectory() as scratch:
        args = SpafitTrainingArguments(
            output_dir=scratch,
            strategy="linear-probe",
            learning_rate=options.learning_rate,
            num_train_epochs=HEAD_EPOCHS,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=16,
            seed=options.seed,
            prefix_cache=f"{scratch}/states",
            bf16=options.bf16,
            use_cpu=machine()["devices"] == 0,
            save_strategy="no",
            log_level="error",
            report_to="none",
            disable_tqdm=True,
        )
        prepared = time.perf_counter()
        trainer, splits = prepare(few, place, args, ["train", "validation"], options.max_length)
        starting = time.perf_counter() - prepared
        trainer.remove_callback(PrinterCallback)
        assert trainer.plan is not None
        architecture, rows = trainer.plan.architecture, splits["train"]
        if len(architecture.stacks) > 1:
            raise SpafitError(f"suggest reads bases with one stack of layers, and {base} has several.")
        model, layers = base_of(trainer.model), architecture.stacks[0].layers
        last = "score" in architecture.head
        states, labels = read_states(reader_of(model), trainer.get_eval_dataloader(rows), last=last)
        probes = probe_layers(states, labels, data.main_figure, data.labelled.regression, options.seed)
        trainer.train_dataset = rows.select(range(min(2 * GRADIENT_ROWS, len(rows))))
        trainer.train()
        some = rows.select(range(min(GRADIENT_ROWS, len(rows))))
        begun = time.perf_counter()
        with trainer.accelerator.autocast():
            sensitivity = measure(model, layers, trainer.get_eval_dataloader(some))
        took = time.perf_counter() - begun
    if not all(map(math.isfinite, sensitivity.relative)):
        raise SpafitError(
            f"gradients at a head that was trained at the rate {options.learning_rate:g} are no finite numbers; lower "
            "--learning_rate."
        )
    kappa = kappa_shares(model, layers) if options.score == "kappa" else None
    trainer.model.merge_and_unload().save_pretrained(headed)
    trainer.processing_class.save_pretrained(headed)  # type: ignore[union-attr]
    n2 = choose_n2(kappa or sensitivity.relative, probes.n1)
    roles = paying_roles(sensitivity.biases, probes.n1)
    lora = {"r": options.lora_r, "lora_alpha": options.lora_alpha}
    cuts = proposed(base, len(layers), probes.n1, n2, roles, options.seed, lora)
    lengths = rows["length"][:]
    tokens = max(1, round(float(np.mean(lengths)))), int(max(lengths))
    empty = build_model(base, data.labelled.num_labels)
    work = len(some) * plan(empty, "full").flops(1, max(1, round(float(np.mean(lengths[: len(some)]))))).total
    return {
        "headed": base_of_grid(str(headed))[0],
        "layers": len(layers),
        "reads": f"the {'last' if last else 'first'} token and the mean over tokens",
        "probe_rows": len(labels),
        "probes": asdict(probes),
        "sensitivity": asdict(sensitivity),
        "kappa": kappa,
        "cut": {"n1": probes.n1, "n2": n2, "roles": roles},
        "candidates": [asdict(each) for each in costed(empty, cuts, options.per_device_train_batch_size, *tokens)],
        "flops_per_second": work / took,
        "start_seconds": round(starting, 2),
        "seconds": round(time.perf_counter() - start, 2),
    }

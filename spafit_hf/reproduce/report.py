"""The report of a grid: a folder's results -> report.md, report.html, report.csv and pictures.

It reads results alone, in any order of theirs, and the same results give the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spafit_hf.data.glue import TASKS
from spafit_hf.reproduce.findings import OURS, findings
from spafit_hf.reproduce.pages import Block, html, markdown
from spafit_hf.reproduce.pictures import draw_pictures
from spafit_hf.reproduce.statistics import DRAWS, Difference, holm, signed_rank
from spafit_hf.reproduce.summary import SAYS_NOTHING, Entry, Summary, summarize
from spafit_hf.reproduce.text import MISSING, interval, points, rate_text, signed, title
from spafit_hf.words import duration, figure_name, listed, listing

ALPHA = 0.05
NOT_WORSE = "Not worse by more than 1 point"


def write_report(output: Path) -> list[Path]:
    """Write the report of a folder of `spafit reproduce` into that folder.

    Args:
        output: holds grid.json, results.jsonl and cells/.

    Returns:
        The files: report.md, report.html, report.csv and the pictures in report/.

    Raises:
        SpafitError: results that no report can be made from, with what to do.
    """
    summary = summarize(output)
    pictures = draw_pictures(summary, output / "report")
    blocks = _blocks(summary, {path.stem: path for path in pictures})
    pages = {
        "report.md": markdown(blocks, output),
        "report.html": html(blocks, blocks[0][1]),
        "report.csv": _csv(summary),
    }
    for name, text in pages.items():
        (output / name).write_text(text, encoding="utf-8", newline="")
    return [*(output / name for name in pages), *pictures]


def _blocks(summary: Summary, pictures: Mapping[str, Path]) -> list[Block]:
    def picture(name: str, text: str) -> list[Block]:
        return [("img", pictures[name], text)] if name in pictures else []

    blocks: list[Block] = [
        ("h1", f"{_count(len(summary.methods), 'method')} on {_count(len(summary.tasks), 'task')} of GLUE"),
        *(("p", text) for text in _opening(summary)),
        ("h2", "What the paper claims, and what these runs say"),
        ("table", ("Claim", "Found: mean difference (95 %)", "Verdict"), findings(summary), "l"),
        ("h2", "Scores"),
        ("p", "Mean over seeds at the chosen rate, ± standard deviation over seeds. Last line: the standard error of "
              "one run's score, which as many other validation rows would bring."),
        _scores(summary),
        *picture("parameters", "Score over trained parameters, a panel for each task"),
        ("h2", "Against full fine-tuning"),
        *_over_tasks(summary),
        *picture("differences", "Differences to full fine-tuning, methods by tasks"),
        ("h2", "Task by task"),
    ]  # fmt: skip
    for task in summary.tasks:
        blocks += _task(summary, task)
    blocks += picture("rates", "Score over learning rate, a panel for each task")
    blocks += [("h2", "What is missing"), *_missing(summary), ("h2", "How to read this")]
    return [*blocks, *(("p", text) for text in READING), ("p", f"Settings: {_pairs(summary.grid['settings'])}.")]


READING = (
    "Scores and differences are in points, of which 100 are perfect. The paper's (arXiv:2405.00201, Table 2) are of "
    "BERT-large-cased: the best of its authors' runs on the validation set, their number, seeds and spread unsaid. "
    "Best of all runs counts the same way here, over all rates and seeds, how many in brackets; it grows with "
    "that number. To compare methods, take the mean.",
    f"Intervals hold 95 %. Both sides have the same rows and seeds: {DRAWS:,} draws of validation rows with "
    "replacement, and the seeds by components of variance, since three seeds are too few to draw from. With one seed "
    "the interval is over rows alone, and too narrow by what seeds bring.",
    "Not worse by more than 1 point: yes where all of the interval is above -1, no where all is below, else cannot "
    "tell. Verdicts on single tasks and on claims are not adjusted for their number; the test over tasks is (Holm).",
    "A run that failed has no score. A run that diverged counts with the score of its chosen epoch, and a score that "
    "is undefined, such as the correlation with a constant, as 0. The rate is the one with the best mean over seeds, "
    "the lower of two that are equal; a run that diverged counts as 0 there.",
)


def _opening(summary: Summary) -> list[str]:
    grid, results = summary.grid, summary.results
    status = Counter(cell["status"] for cell in results)
    states = [f"{status[state]} {state}" for state in ("done", "diverged", "failed")]
    seeds = listing([str(seed) for seed in grid["seeds"]])
    opening = (
        f"{_count(len(grid['cells']), 'run')} of {grid['base']}, seeds {seeds}{', preset ' * bool(grid['preset'])}"
        f"{grid['preset']}: {listed(states)}, {len(summary.missing)} missing."
    )
    if not results:
        return [opening]
    spent = duration(sum(cell["seconds"] for cell in results))
    where = listing(sorted({_pairs(cell["machine"]) for cell in results}), "; and")
    versions: dict[str, set[str]] = {}
    for cell in results:
        for name, version in cell["versions"].items():
            versions.setdefault(name, set()).add(version)
    installed = listed(f"{name} {listing(sorted(found))}" for name, found in sorted(versions.items()))
    texts = [f"{opening} They took {spent} ({where}). Versions: {installed}.", _choices(summary)]
    if SAYS_NOTHING in summary.tasks:
        texts.append(
            f"{TASKS[SAYS_NOTHING].title} says nothing: its validation rows repeat train sentences with the other "
            "label, so that the larger class is the best answer. It is left out of every average and test over tasks."
        )
    return texts


def _choices(summary: Summary) -> str:
    """What rates and epochs were chosen on, in words."""
    there = [entry for entry in summary.entries.values() if entry.cells]
    words = {"train part": "on rows held out of train", "validation": "on the validation set"}
    words["one rate"] = "before these runs (on what, they do not say)"
    epochs = listing(sorted({words[cell["chosen_on"]] for entry in there for cell in entry.cells}))
    rates = listing(sorted({words[entry.rate_from] for entry in there}))
    much = "; what was chosen there scores too high there" if words["validation"] in rates + epochs else ""
    return f"Scores are on the official validation sets. Rates were chosen {rates}, epochs {epochs}{much}."


def _scores(summary: Summary) -> Block:
    planned = [
        task for task in summary.counted if all((task, method) in summary.entries for method in summary.methods)
    ]
    rows = []
    for method in summary.methods:
        entries = [summary.entries.get((task, method)) for task in summary.tasks]
        trained = _mean(entry.average_of("trained_parameters") for entry in entries if entry)
        means = [summary.entries[task, method].mean for task in planned]
        average = MISSING if None in means else points(_mean(means))
        rows.append([title(method), _whole(trained), *map(_cell, entries), average])
    errors = [_mean(entry.error for entry in summary.entries.values() if entry.task == task) for task in summary.tasks]
    rows.append(["standard error", "", *map(points, errors), ""])
    header = ["Method", "Trained", *(_task_title(task) for task in summary.tasks)]
    last = f"Mean of {listed(TASKS[task].title for task in planned)}"
    if len(planned) < 2:
        return "table", header, [row[:-1] for row in rows], "lr"
    return "table", [*header, "Mean" if planned == summary.counted else last], rows, "lr"


def _mean_text(entry: Entry) -> str:
    return points(entry.mean) + ("" if entry.spread is None else f" ± {points(entry.spread)}")


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "not planned"
    if not entry.cells:
        return "failed" if entry.failed else MISSING
    runs = "" if len(entry.cells) == entry.wanted else f" ({len(entry.cells)} of {entry.wanted})"
    return _mean_text(entry) + runs


def _over_tasks(summary: Summary) -> list[Block]:
    rows, tests = [], []
    for method in summary.methods:
        there = summary.means(method), summary.means("full")
        means = [there[0][task] - there[1][task] for task in summary.counted if task in there[0] and task in there[1]]
        if method != "full" and means:
            found, _ = summary.over(summary.counted, method, "full")
            tests.append((len(means), *signed_rank(means)))
            rows.append([title(method), str(len(means)), *_difference(found)])
    if not rows:
        return [("p", "No task has runs of full fine-tuning and of another method.")]
    for row, (_, statistic, p), after in zip(rows, tests, holm([p for *_, p in tests]), strict=True):
        row += [f"{statistic:g}", f"{p:.3f}", f"{after:.3f}"]
    most = max(count for count, *_ in tests)
    least = 2.0 ** (1 - most)
    can = "can" if least * len(rows) <= ALPHA else "cannot, whatever the scores,"
    note = (
        f"Over tasks: Wilcoxon's signed rank test on task means, two-sided and exact, with Holm's adjustment for "
        f"{_count(len(rows), 'method')}. On {_count(most, 'task')} its p is at least {least:.3g}, and "
        f"{min(1.0, least * len(rows)):.3g} after Holm for the first of them: it {can} fall below {ALPHA:g}."
    )
    header = ("Method", "Tasks", "Mean difference (95 %)", NOT_WORSE, "Signed rank", "p", "p (Holm)")
    return [("p", note), ("table", header, rows, "lrrlr")]


def _task(summary: Summary, task: str) -> list[Block]:
    entries = [entry for (name, _), entry in summary.entries.items() if name == task]
    about = figure_name(entries[0].figure)
    cell = next((cell for entry in entries for cell in entry.cells), None)
    if cell is not None:
        train, validation = list(TASKS[task].rows.values())[:2]
        about += f" on {cell['validation_rows']:,} of {validation:,} validation rows, "
        about += f"trained on {cell['train_rows']:,} of {train:,}"
        about += f", {cell['selection_rows']:,} held out" if cell["selection_rows"] else ""
    header = (
        "Method", "Rate", "Runs", "Mean ± seeds", "± rows", "Last epoch", "Best of all runs", "Paper", "Best - paper",
        "To full (95 %)", NOT_WORSE, "Trained", "A run",
    )  # fmt: skip
    rows = [_line(entry, summary.difference(task, entry.method, "full")) for entry in entries]
    blocks: list[Block] = [("h3", _task_title(task)), ("p", f"{about}."), ("table", header, rows, "lrrrrrrrrrlr")]
    found = summary.difference(task, OURS, "lora-II")
    if found is not None:
        text = f"{title(OURS)} less {title('lora-II')}: {interval(found)}; not worse by more than 1 point"
        blocks.append(("p", f"{text}: {_verdict(found)}."))
    return blocks


def _line(entry: Entry, full: Difference | None) -> list[str]:
    diverged = sum(cell["status"] == "diverged" for cell in entry.cells)
    counts = [(entry.failed, "failed"), (diverged, "diverged"), (entry.undefined, "as 0")]
    runs = [f"{len(entry.cells)} of {entry.wanted}", *(f"{number} {word}" for number, word in counts if number)]
    seconds = entry.average_of("seconds")
    return [
        title(entry.method),
        f"{rate_text(entry.rate)} (of {len(entry.rates)})",
        listed(runs),
        _mean_text(entry),
        points(entry.error),
        points(entry.last),
        f"{points(entry.best)} ({len(entry.best_of_all)})",
        "none" if entry.paper is None else f"{100 * entry.paper:.0f}",
        "none" if entry.paper is None else signed(entry.to_paper),
        *(["", ""] if entry.method == "full" else _difference(full)),
        _whole(entry.average_of("trained_parameters")),
        MISSING if seconds is None else duration(seconds),
    ]


def _difference(found: Difference | None) -> list[str]:
    return [MISSING, MISSING] if found is None else [interval(found), _verdict(found)]


def _verdict(found: Difference) -> str:
    return found.not_worse + (" (one seed)" if found.seeds == 1 else "")


def _missing(summary: Summary) -> list[Block]:
    gone = [(cell, "missing", "") for cell in summary.missing]
    gone += [(cell, cell["status"], cell["error"]) for cell in summary.results if cell["status"] != "done"]
    seeds: dict[tuple[str, ...], list[str]] = {}
    for cell, state, why in gone:
        place = TASKS[cell["task"]].title, title(cell["method"]), rate_text(cell["learning_rate"])
        seeds.setdefault((*place, cell["stage"], state, why), []).append(str(cell["seed"]))
    rows = [(*kind, listed(found)) for kind, found in seeds.items()]
    header = ("Task", "Method", "Rate", "Stage", "State", "Why", "Seeds")
    blocks: list[Block] = [("table", header, rows, "llrl")] if rows else []
    lacking = [entry for entry in summary.entries.values() if entry.cells and entry.drawn is None]
    if lacking:
        names = listed(f"{title(entry.method)} on {TASKS[entry.task].title}" for entry in lacking)
        blocks.append(("p", f"Predictions, and so intervals, of {names}."))
    if summary.strangers:
        text = f"{_count(summary.strangers, 'result')} of runs that the grid does not name: in no number above."
        blocks.append(("p", text))
    return blocks or [("p", "Nothing: every run that was planned came to its end.")]


def _csv(summary: Summary) -> str:
    """One line per task and method; scores are shares of 1."""
    lines: list[dict[str, Any]] = []
    for (task, method), entry in summary.entries.items():
        full = None if method == "full" else summary.difference(task, method, "full")
        lines.append({
            "task": task, "method": method, "figure": entry.figure, "learning_rate": entry.rate,
            "rate_chosen_on": entry.rate_from,
            "epoch_chosen_on": listed(sorted({cell["chosen_on"] for cell in entry.cells})),
            "runs_wanted": entry.wanted, "runs_scored": len(entry.cells), "failed": entry.failed,
            "counted_as_0": entry.undefined, "mean": entry.mean, "sd": entry.spread,
            "rows_standard_error": entry.error, "last_epoch_mean": entry.last, "best_of_all_runs": entry.best,
            "all_runs": len(entry.best_of_all), "paper": entry.paper, "best_minus_paper": entry.to_paper,
            "to_full": full and full.mean, "to_full_low": full and full.low, "to_full_high": full and full.high,
            "to_full_seeds": full and full.seeds, "not_worse_by_1_point": full and full.not_worse,
            **{field: entry.average_of(field) for field in (
                "trained_parameters", "total_parameters", "seconds", "validation_rows", "train_rows")},
        })  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(lines[0])
    for line in lines:
        values = (f"{value:.8g}" if isinstance(value, float) else value for value in line.values())
        writer.writerow([MISSING if value is None or value == "" else value for value in values])
    return text.getvalue()


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _whole(number: float | None) -> str:
    return MISSING if number is None else f"{number:,.0f}"


def _task_title(task: str) -> str:
    return TASKS[task].title + (" (says nothing)" if task == SAYS_NOTHING else "")


def _pairs(values: Mapping[str, Any]) -> str:
    """num_train_epochs 3, bf16 true; what is empty is left out."""
    there = sorted((name, value) for name, value in values.items() if value or isinstance(value, (bool, int)))
    words = [value if isinstance(value, str) else json.dumps(value, sort_keys=True) for _, value in there]
    return listed(f"{name} {word}" for (name, _), word in zip(there, words, strict=True))

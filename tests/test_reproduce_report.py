"""The report of made-up runs whose truth is known."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grids import make_grid
from safetensors.numpy import load_file, save_file

from spafit_hf.data.glue import PAPER_SCORES
from spafit_hf.reproduce.findings import findings
from spafit_hf.reproduce.report import write_report
from spafit_hf.reproduce.summary import summarize
from spafit_hf.words import SpafitError

SKILL = {"full": 0.86, "bitfit": 0.70, "lora-II": 0.85, "spafit-4-9-II": 0.86, "lora-II-equal": 0.80}
NO_SCORE: dict[str, Any] = {"best": None, "last": None, "selection": None}
EVIL = "out of memory | <script>alert(1)</script> `x`"
CHANGE: dict[tuple[str, str, float, int], Mapping[str, Any] | None] = {
    **{("rte", "bitfit", 1e-3, seed): None for seed in range(3)},
    ("rte", "lora-II", 1e-3, 1): {"status": "failed", "error": EVIL, **NO_SCORE},
    ("mrpc", "lora-II", 1e-3, 2): {"status": "diverged", "error": "the loss is no finite number", **NO_SCORE},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("grid")
    make_grid(place, SKILL, tasks=("mrpc", "rte", "wnli"), search=(2e-3, 5e-4), change=CHANGE)
    write_report(place)
    return place


@pytest.fixture
def words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures stay as they are: drawing them is nearly all the work of a report."""
    monkeypatch.setattr("spafit_hf.reproduce.report.draw_pictures", lambda summary, folder: [*folder.glob("*.png")])


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def lines_of(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "report.csv").open(encoding="utf-8") as file:
        return {(line["task"], line["method"]): line for line in csv.DictReader(file)}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("report*") if path.is_file()} | {
        path.name: path.read_bytes() for path in (folder / "report").iterdir()
    }


def row_of(folder: Path, start: str) -> list[str]:
    """The cells of the first line of a table in the Markdown that starts so."""
    line = next(line for line in (folder / "report.md").read_text().splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def results_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_the_same_results_give_the_same_bytes_in_any_order(folder: Path, copy: Path) -> None:
    lines = (copy / "results.jsonl").read_text().splitlines()
    random.Random(0).shuffle(lines)
    (copy / "results.jsonl").write_text("\n".join(lines) + "\n")
    before = files_of(folder)
    assert {"report.md", "report.html", "report.csv", "parameters.png", "differences.png", "rates.png"} == set(before)
    write_report(copy)
    assert files_of(copy) == before


def test_the_table_is_the_results(folder: Path) -> None:
    found = lines_of(folder)
    assert set(found) == {(task, method) for task in ("mrpc", "rte", "wnli") for method in SKILL}
    runs = [r for r in results_of(folder) if (r["task"], r["method"]) == ("mrpc", "full")]
    scores = [run["best"]["score"] for run in runs if run["stage"] == "main"]
    line = found["mrpc", "full"]
    assert float(line["mean"]) == pytest.approx(np.mean(scores))
    assert float(line["sd"]) == pytest.approx(np.std(scores, ddof=1))
    assert (line["runs_scored"], line["all_runs"], line["learning_rate"]) == ("3", "5", "0.001")
    assert float(line["best_of_all_runs"]) == pytest.approx(max(run["best"]["score"] for run in runs))
    assert float(line["best_minus_paper"]) == pytest.approx(
        float(line["best_of_all_runs"]) - PAPER_SCORES["mrpc"]["full"]
    )
    share = float(found["rte", "full"]["mean"])
    assert float(found["rte", "full"]["rows_standard_error"]) == pytest.approx((share * (1 - share) / 400) ** 0.5)


def test_what_is_missing_failed_or_diverged_is_shown_and_counted(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert "75 runs" in text.splitlines()[2]
    assert "70 done, 1 diverged, 1 failed, 3 missing" in text
    assert row_of(folder, "BitFit")[3] == "missing"
    assert lines_of(folder)["rte", "bitfit"]["mean"] == "missing"
    assert "| RTE | BitFit | 1e-3 | main | missing |  | 0, 1, 2 |" in text
    assert "| RTE | LoRA-II | 1e-3 | main | failed | out of memory" in text
    assert "| MRPC | LoRA-II | 1e-3 | main | diverged | the loss is no finite number | 2 |" in text
    assert "3 of 3, 1 diverged, 1 as 0" in text
    assert "2 of 3, 1 failed" in text
    scores = [
        r["best"]["score"]
        for r in results_of(folder)
        if r["best"] and (r["task"], r["method"], r["stage"]) == ("mrpc", "lora-II", "main")
    ]
    assert float(lines_of(folder)["mrpc", "lora-II"]["mean"]) == pytest.approx(sum(scores) / 3)


def test_words_of_others_are_words_on_both_pages(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "out of memory \\| &lt;script&gt;" in (folder / "report.md").read_text()

    class Sources(HTMLParser):
        found: list[str]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [value or "" for name, value in attrs if name in ("src", "href")]

    parser = Sources()
    parser.found = []
    parser.feed(page)
    assert len(parser.found) == 3
    assert all(source.startswith("data:image/png;base64,") for source in parser.found)


def test_pictures_that_have_nothing_to_show_are_not_left_behind(copy: Path) -> None:
    grid = json.loads((copy / "grid.json").read_text())
    (copy / "results.jsonl").write_text("")
    assert [path.name for path in write_report(copy)] == ["report.md", "report.html", "report.csv"]
    assert not list((copy / "report").iterdir())
    assert f"0 done, 0 diverged, 0 failed, {len(grid['cells'])} missing" in (copy / "report.md").read_text()


@pytest.mark.usefixtures("words_alone")
def test_wnli_is_in_no_average(folder: Path, copy: Path) -> None:
    assert "WNLI says nothing" in (folder / "report.md").read_text()
    grid = json.loads((copy / "grid.json").read_text())
    grid["tasks"].remove("wnli")
    grid["cells"] = [cell for cell in grid["cells"] if cell["task"] != "wnli"]
    (copy / "grid.json").write_text(json.dumps(grid))
    kept = [json.dumps(result) for result in results_of(copy) if result["task"] != "wnli"]
    (copy / "results.jsonl").write_text("\n".join(kept))
    write_report(copy)
    assert findings(summarize(copy)) == findings(summarize(folder))
    assert row_of(copy, "full fine-tuning")[-1] == row_of(folder, "full fine-tuning")[-1]
    tests = [(place / "report.md").read_text().split("\n## ")[3] for place in (copy, folder)]
    assert tests[0] == tests[1]


def test_with_few_tasks_the_test_says_that_it_cannot_be_significant(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert "On 2 tasks its p is at least 0.5, and 1 after Holm for the first of them: it cannot, whatever" in text


def test_the_rate_is_chosen_on_held_out_rows_and_not_on_validation(tmp_path: Path) -> None:
    # The second rate is worse on validation by 3 points, and better on what was held out.
    change = {("mrpc", "full", 2e-3, seed): {"selection": {"best": 0.99, "last": 0.9}} for seed in range(3)}
    make_grid(tmp_path, {"full": 0.8}, tasks=("mrpc",), rates=(1e-3, 2e-3), rows=50, change=change)
    entry = summarize(tmp_path).entries["mrpc", "full"]
    assert (entry.rate, entry.rates, entry.rate_from) == (2e-3, (1e-3, 2e-3), "train part")


@pytest.mark.usefixtures("words_alone")
def test_rates_and_epochs_chosen_on_validation_are_named(tmp_path: Path) -> None:
    make_grid(tmp_path, {"full": 0.8, "bitfit": 0.7}, rates=(1e-3, 9e-3), held_out=False, rows=50, seeds=(0,))
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert (
        "Rates were chosen on the validation set, epochs on the validation set; what was chosen there scores" in text
    )
    assert lines_of(tmp_path)["mrpc", "full"]["rate_chosen_on"] == "validation"
    assert "no (one seed)" in text or "cannot tell (one seed)" in text


def test_claims_that_are_true_or_false_of_the_runs_are_found_so(tmp_path: Path) -> None:
    skill = SKILL | {"lora-I": 0.86, "random-cut": 0.90}
    make_grid(tmp_path, skill, tasks=("cola", "mrpc", "rte", "sst2", "mnli"), rows=4000, spread=0.001)
    found = findings(summarize(tmp_path))
    assert [verdict.split(",")[0] for *_, verdict in found] == [
        "holds", "holds", "cannot tell", "holds", "holds", "does not hold"
    ]  # fmt: skip
    assert "350,000 trained parameters, 59.32 % of 590,000" in found[1][1]


def test_claims_without_runs_are_not_run(tmp_path: Path) -> None:
    make_grid(tmp_path, {"full": 0.8, "lora-I": 0.8}, tasks=("rte",), rows=50)
    assert {verdict for *_, verdict in findings(summarize(tmp_path))} == {"not run"}


def test_other_rows_are_refused(copy: Path) -> None:
    path = copy / "cells" / "mrpc-full-main-0.001-1" / "rows.safetensors"
    rows = load_file(path)
    save_file({**rows, "labels": rows["labels"][::-1].copy()}, path)
    with pytest.raises(SpafitError, match=r"mrpc-full-main-0\.001-1 are not those of mrpc-full-main-0.001-0"):
        write_report(copy)


def test_rows_that_do_not_give_the_recorded_score_are_refused(copy: Path) -> None:
    path = copy / "cells" / "rte-full-main-0.001-1" / "rows.safetensors"
    rows = load_file(path)
    rows["best_predictions"][0] = 1 - rows["best_predictions"][0]
    save_file(rows, path)
    with pytest.raises(SpafitError, match=r"rte-full-main-0.001-1 has accuracy .* in its result and .* by its rows"):
        write_report(copy)


@pytest.mark.usefixtures("words_alone")
def test_rows_that_are_gone_leave_the_scores_and_no_interval(copy: Path) -> None:
    (copy / "cells" / "mrpc-full-main-0.001-1" / "rows.safetensors").unlink()
    write_report(copy)
    assert "Predictions, and so intervals, of full fine-tuning on MRPC" in (copy / "report.md").read_text()
    line = lines_of(copy)["mrpc", "bitfit"]
    assert (line["to_full"], line["mean"] != "missing") == ("missing", True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text + text.splitlines()[0], "2 times"),
        (lambda text: text[:-20], r"line 72 of results.jsonl is not JSON"),
        (lambda text: text.replace('"format": 1', '"format": 2', 1), "is not of format 1"),
        (
            lambda text: text.replace('"method"', '"m"', 1),
            "line 1 of results.jsonl is damaged: it has no method.",
        ),
    ],
)
def test_damaged_results_are_refused(copy: Path, damage: Any, message: str) -> None:
    path = copy / "results.jsonl"
    path.write_text(damage(path.read_text()))
    with pytest.raises(SpafitError, match=message):
        write_report(copy)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"cells"', b'"rows"', r"grid.json is damaged: it has no cells. Remove the file: spafit reproduce makes it"),
        (b'"stage"', b'"s"', r"cell 0 of .*grid.json is damaged: it has no stage. Remove the file"),
        (b'"cells"', b'"\xff"', r"grid.json is not JSON .*Remove the file"),
    ],
)
def test_a_damaged_grid_is_refused(old: bytes, new: bytes, message: str, copy: Path) -> None:
    path = copy / "grid.json"
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(SpafitError, match=message):
        write_report(copy)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpafitError, match=r"There is no grid.json in .* spafit reproduce --output wrote"):
        write_report(tmp_path)


@pytest.mark.usefixtures("words_alone")
def test_results_of_no_planned_run_are_counted_and_in_no_number(folder: Path, copy: Path) -> None:
    stranger = results_of(copy)[0] | {"key": "other", "best": {"epoch": 1, "score": 1.0, "figures": {}}}
    with (copy / "results.jsonl").open("a") as file:
        file.write(json.dumps(stranger))
    write_report(copy)
    assert "1 result of runs that the grid does not name" in (copy / "report.md").read_text()
    assert lines_of(copy) == lines_of(folder)


@pytest.mark.parametrize("name", ["grid", "large", "rates"])
def test_the_report_that_is_kept_is_that_of_its_results(name: str, tmp_path: Path) -> None:
    kept = Path(__file__).parents[1] / "docs" / "reproduce" / name
    shutil.copytree(kept, tmp_path / name)
    write_report(tmp_path / name)
    for file in ("report.md", "report.csv"):
        assert (tmp_path / name / file).read_bytes() == (kept / file).read_bytes()

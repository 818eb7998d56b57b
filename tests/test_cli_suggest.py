"""spafit suggest: a whole search on a tiny base and tiny rows, what it writes, and what it refuses."""

from __future__ import annotations

import json
import logging
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest

from spafit_hf.choose.candidates import CONTROL, REFERENCE, Candidate
from spafit_hf.choose.report import summary, write_outputs
from spafit_hf.choose.suggest import BEGUN_FILE
from spafit_hf.choose.verdict import decide
from spafit_hf.cli import main
from spafit_hf.names import embedded_base
from spafit_hf.pypi import EmbeddedError
from spafit_hf.strategy import Strategy

pytest.importorskip("optuna")


def flags(base: Path, glue: Path, output: Path, **more: object) -> list[str]:
    given = {
        "task": "cola",
        "data_dir": glue,
        "budget": "parameters=700,time=1h",
        "lora_r": 4,
        "num_train_epochs": 1,
        "score": "kappa",
        "max_length": 7,
        "output_dir": output,
        **more,
    }
    return ["suggest", str(base), *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def notices() -> list[str]:
    """What a search says of rows that are too long."""
    return []


@pytest.fixture(scope="module")
def searched(base_folder: Path, glue: Path, tmp_path_factory: pytest.TempPathFactory, notices: list[str]) -> Path:
    output = tmp_path_factory.mktemp("suggest") / "out"
    handler = logging.Handler()
    handler.emit = lambda record: notices.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("spafit_hf.data.tokens")
    logger.addHandler(handler)
    assert main(flags(base_folder, glue, output)) == 0
    logger.removeHandler(handler)
    return output


@pytest.fixture(scope="module")
def found(searched: Path) -> dict[str, Any]:
    return json.loads((searched / "suggest.json").read_text())  # type: ignore[no-any-return]


def test_everything_measured_is_kept(found: dict[str, Any]) -> None:
    assert len(found["probes"]["scores"]) == len(found["probes"]["errors"]) == 5  # the embeddings, four layers
    assert len(found["sensitivity"]["relative"]) == len(found["sensitivity"]["biases"]) == 4
    assert sum(found["kappa"]) == pytest.approx(1)
    by_name = {each["name"]: each for each in found["candidates"]}
    tried = {name: each for name, each in by_name.items() if each["tried"]}
    assert {REFERENCE, CONTROL} < set(tried)
    for name, each in tried.items():
        assert each["parameters"] <= 700 or name in (REFERENCE, CONTROL)
        runs = each["scores"]["rung 1"]
        assert len(runs) == 3
        assert all(run["loss"] > 0 and run["seconds"] > 0 and run["error"] == "" for run in runs)
    assert all(each["over"] for name, each in by_name.items() if name not in tried)
    assert by_name[REFERENCE]["over"].startswith(f"{by_name[REFERENCE]['parameters']:,} parameters train, and 700 may")
    assert found["pick"] == found["recommended"] not in (REFERENCE, CONTROL)
    assert len(by_name[REFERENCE]["scores"]["final"]) == 3
    assert found["comparison"]["low"] <= found["comparison"]["mean"] <= found["comparison"]["high"]
    assert found["rows"]["selection"] < found["rows"]["rungs"] < found["rows"]["train"]


def test_rows_that_are_too_long_are_named_once(searched: Path, notices: list[str]) -> None:
    (notice,) = notices
    assert notice.startswith("train: 98 of 98 rows are longer than 7 tokens")


def test_rungs_never_see_the_validation_set(searched: Path, found: dict[str, Any]) -> None:
    results = [json.loads(path.read_text()) for path in searched.glob("cells/*/result.json")]
    for result in results:
        wanted = "validation" if result["stage"] == "final" else "selection"
        assert result["validation_rows"] == found["rows"][wanted]
    assert found["rows"]["selection"] != found["rows"]["validation"]


def test_the_outputs_follow_from_the_results(searched: Path) -> None:
    names = ("strategy.yaml", "report.md", "suggest.png")
    before = {name: (searched / name).read_bytes() for name in names}
    for name in names:
        (searched / name).unlink()
    write_outputs(searched)
    assert {name: (searched / name).read_bytes() for name in names} == before
    report = before["report.md"].decode()
    for text in ("random-cut", "kappa, share", "that is a hypothesis", "spafit train --task cola", "## The final"):
        assert text in report
    assert not (searched / "states").exists()
    assert not (searched / "base").exists()


def test_a_search_that_is_done_is_not_done_again(
    searched: Path, base_folder: Path, glue: Path, found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(base_folder, glue, searched)) == 0
    shown = capsys.readouterr().out
    assert "seed" not in shown.partition("recommended")[0].replace("3 seeds", "")  # no training
    assert f"recommended: {found['recommended']}, " in shown
    again = json.loads((searched / "suggest.json").read_text())
    assert again == found


def test_the_strategy_trains(
    searched: Path,
    found: dict[str, Any],
    base_folder: Path,
    glue: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    strategy = Strategy.from_file(searched / "strategy.yaml")
    chosen = next(each for each in found["candidates"] if each["name"] == found["recommended"])
    assert strategy == Strategy.from_dict(chosen["strategy"])
    command = ["train", "--task", "cola", "--data_dir", glue, "--base", base_folder, "--strategy",
               searched / "strategy.yaml", "--num_train_epochs", 1, "--output_dir", tmp_path]  # fmt: skip
    assert main(list(map(str, command))) == 0
    assert json.loads((tmp_path / "results.json").read_text())["trained_parameters"] == chosen["parameters"]
    assert main(["evaluate", str(tmp_path), "--task", "cola", "--data_dir", str(glue)]) == 0
    assert "Casting the dataset" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"budget": "time=5"}, "--budget time is '5'"),
        ({"task": "mrcp"}, "'mrcp' is not a GLUE task"),
        ({"max_train_rows": 8}, "of 8 train rows of GLUE CoLA 0 can be held out, and"),
        ({"max_train_rows": 19}, "of 19 train rows of GLUE CoLA 1 can be held out, and"),
        ({"max_validation_rows": 1}, "and 1 are there to validate on; a search needs 2 of either"),
        ({"num_train_epochs": 0}, "--num_train_epochs is 0; it must be above 0"),
        ({"weight_decay": "nan"}, "--weight_decay is nan; it must be 0 or more, and below 4,294,967,296"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    more: dict[str, object], sentence: str, base_folder: Path, glue: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(flags(base_folder, glue, tmp_path / "out", **more)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.strip().splitlines()[-1].startswith("spafit: ")


def test_a_folder_in_use_is_left_alone(
    searched: Path, base_folder: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(flags(base_folder, glue, tmp_path)) == 2
    assert "is in use and holds no search" in capsys.readouterr().err
    before = (searched / BEGUN_FILE).read_bytes()
    assert main(flags(base_folder, glue, searched, lora_r=8)) == 2
    assert "holds a search with other options, lora_r 4 and not 8; take another" in capsys.readouterr().err
    assert main(flags(base_folder, glue, searched, budget="memory=1GB")) == 2
    different = "another budget, parameters 700 and not none and memory none and not 1000000000; take another"
    assert different in capsys.readouterr().err
    assert (searched / BEGUN_FILE).read_bytes() == before


def test_a_limit_that_no_cut_keeps_may_be_raised(
    searched: Path, base_folder: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = json.loads((searched / BEGUN_FILE).read_text())
    begun["asked"]["limits"] = {"parameters": 10, "memory": None}
    (tmp_path / BEGUN_FILE).write_text(json.dumps({**begun, "stages": []}))
    assert main(flags(base_folder, glue, tmp_path, budget="parameters=10")) == 2
    assert "parameters train, and 10 may; raise that limit" in capsys.readouterr().err
    assert main(flags(base_folder, glue, tmp_path, budget="parameters=700,time=1s")) == 2
    assert "--budget time leaves" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            b'"flops_per_second"',
            b'"flops"',
            "begun.json is damaged: it has no flops_per_second. Take another",
        ),
        (
            b'"tried"',
            b'"t"',
            "begun.json is damaged: it has no tried. Take another --output_dir: the search",
        ),
        (b'"asked"', b"'asked'", "begun.json is not JSON (Expecting property name enclosed in double quotes"),
        (b'"asked"', b'"\xff"', "begun.json is not JSON ("),
        (b'"why"', b'"reason"', "has the unknown field 'reason'"),
        (b'"epochs": 1', b'"epochs": "1"', "begun.json.epochs is '1'; expected is a int"),
    ],
)
def test_a_damaged_search_is_one_sentence(
    old: bytes, new: bytes, message: str, searched: Path, base_folder: Path, glue: Path, tmp_path: Path, capsys: Any
) -> None:
    content = (searched / BEGUN_FILE).read_bytes()
    assert old in content
    (tmp_path / BEGUN_FILE).write_bytes(content.replace(old, new, 1))
    assert main(flags(base_folder, glue, tmp_path)) == 2
    assert message in capsys.readouterr().err


def test_rows_of_a_training_that_are_damaged_are_named(
    searched: Path, base_folder: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(searched, tmp_path / "again"))
    for path in folder.glob("cells/*/rows.safetensors"):
        path.write_bytes(b"rows")
    assert main(flags(base_folder, glue, folder)) == 2
    assert "rows.safetensors is damaged (" in capsys.readouterr().err
    for path in folder.glob("cells/*/rows.safetensors"):
        path.unlink()
    assert main(flags(base_folder, glue, folder)) == 2
    assert "has no rows.safetensors. Remove the folder and run the same command again." in capsys.readouterr().err
    shutil.rmtree(folder / "cells")  # a search that has ended has no base for its rungs any more
    assert main(flags(base_folder, glue, folder)) == 2
    assert f"{folder / 'base'} is gone, which the rungs of a search train" in capsys.readouterr().err
    assert not list(folder.glob("cells/*"))


def test_a_time_that_is_too_short_may_be_raised(
    searched: Path, base_folder: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = json.loads((searched / BEGUN_FILE).read_text())
    (tmp_path / BEGUN_FILE).write_text(json.dumps({**begun, "stages": []}))
    assert main(flags(base_folder, glue, tmp_path, budget="parameters=700,time=1s")) == 2
    assert "raise it, or name a smaller base" in capsys.readouterr().err


def comparison(mean: float) -> dict[str, Any]:
    parts = {"mean": mean, "rows": 1e-4, "over_seeds": 0.0, "doubt": 0.0, "seeds": 3}
    return {**parts, "error": 0.01, "constant": False, "loss": 0.0, "loss_error": 0.01}


@pytest.mark.parametrize(
    ("mean", "parameters", "barred", "chosen", "words"),
    [
        (0.03, 90, False, "pick", "It is better"),
        (-0.005, 90, False, "pick", "No difference can be shown, so the one with fewer parameters"),
        (-0.005, 110, False, REFERENCE, "No difference can be shown, so the one with fewer parameters"),
        (-0.015, 90, False, REFERENCE, "behind by more than one standard error, so"),
        (-0.015, 90, True, "pick", "behind by more than one standard error, and spafit-4-9-II is over the budget"),
        (0.0, 110, True, "pick", "No difference can be shown, and spafit-4-9-II is over the budget"),
        (None, 100, False, REFERENCE, "No cut but"),
    ],
)
def test_the_verdict(mean: float | None, parameters: int, barred: bool, chosen: str, words: str) -> None:
    pick, reference = (Candidate(name, "", {}, count, 1, 0, 1, 1, 0) for name, count in
                       (("pick", parameters), (REFERENCE, 100)))  # fmt: skip
    name, reason = decide(pick, reference, None if mean is None else comparison(mean), barred)
    assert name == chosen
    assert words in reason


@pytest.mark.parametrize(("loss", "chosen"), [(0.005, "pick"), (-0.02, "pick"), (0.02, REFERENCE)])
def test_the_losses_decide_where_every_prediction_is_the_same(loss: float, chosen: str) -> None:
    pick, reference = (Candidate(name, "", {}, 100, 1, 0, 1, 1, 0) for name in ("pick", REFERENCE))
    name, reason = decide(pick, reference, {**comparison(0.0), "constant": True, "loss": loss}, False)
    assert name == chosen
    assert f"too few: every run of the final calls every row the same. pick loses {loss:+.4f} more" in reason


CHOOSING = Path(__file__).parents[1] / "docs" / "choosing"


def test_the_page_is_what_its_run_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(CHOOSING / "suggest.json", tmp_path)
    write_outputs(tmp_path)
    for name in ("report.md", "strategy.yaml"):
        assert (tmp_path / name).read_bytes() == (CHOOSING / name).read_bytes()
    page = CHOOSING.with_suffix(".md").read_text()
    kept = json.loads((tmp_path / "suggest.json").read_text())
    assert textwrap.indent(summary(kept), "    ") in page
    trained = json.loads((CHOOSING / "train.json").read_text())
    figures = ", ".join(f"{name} {value:.4f}" for name, value in trained["metrics"]["validation"].items())
    assert f"  validation: {figures}\n" in page
    assert f"trained {trained['trained_parameters']:,} of {trained['total_parameters']:,} parameters" in page
    try:
        embedded_base()
    except EmbeddedError as error:
        pytest.skip(str(error))
    command = re.search(r"    spafit (plan embedded .*)\n", page)[1]  # type: ignore[index]
    assert main(command.split()) == 0
    printed = capsys.readouterr().out.split("activations and step")[0]
    assert textwrap.indent(printed, "    ").rstrip() in page

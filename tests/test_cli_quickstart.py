"""spafit quickstart, on a tiny base and a few rows: what it prints is a page, and nothing else."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from reviews_run import write_base

import spafit_hf.run
from spafit_hf.cli import main, quickstart
from spafit_hf.cli.quickstart import METHODS, SENTENCES
from spafit_hf.data.reviews import cached_movie_reviews


@pytest.fixture(scope="module", autouse=True)
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> object:
    """In place of the embedded one, under its name."""
    if cached_movie_reviews() is None:
        pytest.skip("the movie reviews are not in the cache: python -m spafit_hf.embedded --fetch")
    folder = write_base(tmp_path_factory.mktemp("embedded"), max_position_embeddings=130)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spafit_hf.names.embedded_base", lambda: folder)
        yield


def test_it_reads_like_a_page(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder, tmp_path: Path
) -> None:
    assert main(["quickstart", "--max_train_rows", "8", "--epochs", "2", "--output_dir", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert [str(warning.message) for warning in recwarn] == []
    opening, results, table, predictions, folders, done, *rest = out.split("\n\n")[1:]
    assert re.search(r"^data      8 sentences to train on, 1,000 to measure on", opening, re.MULTILINE)
    assert opening.endswith("time      2 epochs each")
    lines = results.splitlines()
    assert len(lines) == len(METHODS)
    rows = table.splitlines()[1:]
    for method, line, row in zip(METHODS, lines, rows, strict=True):
        accuracy = re.fullmatch(rf"{method.strategy}: accuracy (0\.\d\d\d) in \d+ s", line)[1]
        assert re.fullmatch(rf"{method.strategy} +{accuracy} +[\d,]+ +[\d,]+ +\d+", row)
        assert (tmp_path / method.strategy / "results.json").exists()
    heading, *answers = predictions.splitlines()
    assert heading == "The SPAFIT adapter, opened by plain PEFT in a process without this package:"
    for answer, sentence in zip(answers, SENTENCES, strict=True):
        assert re.fullmatch(rf"  (positive|negative) [01]\.\d\d  {re.escape(sentence)}", answer)
    assert (folders, rest) == (f"The folders are in {tmp_path}.", [])
    assert re.fullmatch(r"Done in \d+ s\.\n", done)


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """To measure on, where the figures are not looked at; two of the methods, and no process at the end."""
    load = spafit_hf.run.load_data
    monkeypatch.setattr(spafit_hf.run, "load_data", lambda given: load(replace(given, max_validation_rows=64)))
    monkeypatch.setattr(quickstart, "METHODS", METHODS[:2])
    monkeypatch.setattr(quickstart, "_predict", lambda adapter: None)


@pytest.mark.usefixtures("few_rows")
def test_a_terminal_gets_a_bar_for_each_method(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    transformers.logging.set_verbosity_warning()  # Trainer shows no bars where another test has asked for errors alone
    assert main(["quickstart", "--max_train_rows", "8", "--epochs", "2"]) == 0
    bars = re.findall(r"\r([\w -]+): +\d+%", capsys.readouterr().err)
    assert set(bars) == {*(method.strategy for method in METHODS[:2]), "measuring", "Prefix cache"}


@pytest.mark.usefixtures("few_rows")
def test_verbose_shows_it_all(capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    assert main(["quickstart", "--max_train_rows", "8", "--epochs", "1", "--verbose"]) == 0
    out, err = capsys.readouterr()
    assert out.count("{'loss': ") == 2
    assert all(text in err for text in ("Loading weights", "Tokenizing train"))
    assert any("is_gradient_checkpointing" in str(warning.message) for warning in recwarn)

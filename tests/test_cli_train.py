"""spafit train: what it writes, what it prints, and how it says no."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import pytest
import yaml
from datasets import Dataset
from models import tiny
from programs import ranks
from reviews_run import BAD, GOOD, train_flags
from safetensors.torch import load_file
from transformers import HfArgumentParser

from spafit_hf import SpafitTrainer
from spafit_hf.cli import main
from spafit_hf.cli.train import _recipe, _recorded, command_line
from spafit_hf.run import BaseArguments, DataArguments, evaluate, load_data
from spafit_hf.trainer.arguments import SpafitTrainingArguments


def test_train_writes_an_adapter_with_its_results(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["strategy"] == "spafit-4-9-II"
    assert results["metrics"]["validation"]["accuracy"] > 0.8
    assert results["trained_parameters"] < results["total_parameters"]
    assert results["file_bytes"] == (trained / "adapter_model.safetensors").stat().st_size
    assert results["arguments"]["learning_rate"] == 0.02
    assert results["arguments"].keys().isdisjoint({"output_dir", "regression", "ddp_backend"})
    assert {"adapter_config.json", "spafit_config.json", "tokenizer.json"} <= {file.name for file in trained.iterdir()}
    assert {"README.md", "spafit_results.json"} <= {file.name for file in trained.iterdir()}
    assert json.loads((trained / "spafit_results.json").read_text())["data"]["max_length"] == 128
    card = (trained / "README.md").read_text()
    assert str(trained.parent) not in card
    assert re.search(r"spafit train \\\n  --base base\d+ \\\n  --train_file reviews.csv ", card)
    assert not list(trained.rglob("training_args.bin"))
    assert json.loads((trained / "spafit_config.json").read_text())["task"] == {"columns": ["review"]}


def test_an_adapter_and_a_whole_model_share_no_folder(
    trained: Path, base_folder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained / "adapter_config.json", tmp_path)
    assert main(train_flags(base_folder, reviews, tmp_path, strategy="full")) == 2
    assert "holds an adapter of another run (adapter_config.json), and this one writes a" in capsys.readouterr().err
    (tmp_path / "adapter_config.json").rename(tmp_path / "model-00001-of-00002.safetensors")
    assert main(train_flags(base_folder, reviews, tmp_path)) == 2
    assert "holds a whole model of another run (model-00001-of-00002.safetensors)" in capsys.readouterr().err


@pytest.mark.parametrize("keep_best", [True, False])
def test_no_evaluation_is_made_twice(keep_best: bool, base_folder: Path, reviews: Path, tmp_path: Path) -> None:
    more = {"max_train_rows": 16, "num_train_epochs": 3, "load_best_model_at_end": keep_best}
    assert main(train_flags(base_folder, reviews, tmp_path / "out", **more)) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    measured = [entry for entry in results["history"] if "eval_loss" in entry]
    assert [entry["epoch"] for entry in measured] == [1, 2, 3]
    best = max(measured, key=lambda entry: entry["eval_accuracy"]) if keep_best else measured[-1]
    assert results["metrics"]["validation"]["loss"] == best["eval_loss"]
    data = load_data(DataArguments(train_file=str(reviews), text_columns="review", label_column="verdict"))
    args = SpafitTrainingArguments(str(tmp_path / "again"), use_cpu=True, disable_tqdm=True, report_to="none")
    again = evaluate(data, None, str(tmp_path / "out"), args)
    assert again["validation"]["loss"] == pytest.approx(best["eval_loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "labels"),
    [
        ([], ("0", "1")),
        (["--labels", "bad, good"], ("bad", "good")),
        (["--regression", "true"], ()),
        (["--regression", "false"], ("0", "1")),
    ],
)
def test_labels_are_named_and_numbers_are_numbers_where_the_flags_say_so(
    flags: list[str], labels: tuple[str, ...], tmp_path: Path
) -> None:
    rows = "".join(f"text {number},{number % 2}.0\n" for number in range(20))
    (tmp_path / "a.csv").write_text(f"text,label\n{rows}")
    parser = HfArgumentParser(DataArguments)
    (arguments,) = parser.parse_args_into_dataclasses(["--train_file", str(tmp_path / "a.csv"), *flags])
    assert load_data(arguments).text.labels == labels
    if flags:
        (arguments,) = parser.parse_args_into_dataclasses(["--task", "rte", *flags])
        with pytest.raises(ValueError, match=r" is for labelled rows of .*, and not for --task rte; leave it out"):
            load_data(arguments)


@pytest.mark.parametrize(
    ("recipe", "chosen"),
    [
        ({}, ("accuracy", True)),
        ({"metric_for_best_model": "loss"}, ("loss", False)),
        ({"metric_for_best_model": "eval_f1_macro"}, ("eval_f1_macro", True)),
        ({"greater_is_better": False}, ("accuracy", False)),
        ({"regression": True}, ("pearson", True)),
        ({"regression": True, "metric_for_best_model": "mse"}, ("mse", False)),
        ({"regression": True, "metric_for_best_model": "mse", "greater_is_better": True}, ("mse", True)),
    ],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_a_checkpoint_is_chosen_by_what_was_named(
    as_file: bool, recipe: dict[str, Any], chosen: tuple[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"text {number},{number % 2}.0\n" for number in range(20))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    flags = [text for name, value in recipe.items() for text in (f"--{name}", str(value))]
    command = ["train", *([str(tmp_path / "recipe.yaml")] if as_file else flags)]
    train = Mock(side_effect=ValueError("far enough"))
    monkeypatch.setattr("spafit_hf.run.train", train)
    assert main([*command, "--train_file", str(tmp_path / "rows.csv"), "--output_dir", str(tmp_path / "out")]) == 2
    args = train.call_args.args[2]
    assert (args.metric_for_best_model, args.greater_is_better) == chosen


def test_what_is_pushed_at_the_end_has_its_scores(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"premise": f"a {word} film", "hypothesis": f"a {word} cast", "label": index % 3}
            for index, word in enumerate([*GOOD, *BAD] * 2)]  # fmt: skip
    splits = {
        "train": rows,
        "validation_matched": rows,
        "validation_mismatched": [{**row, "label": 2} for row in rows],
    }
    (tmp_path / "mnli").mkdir()
    for name, part in splits.items():
        Dataset.from_list(part).to_parquet(tmp_path / "mnli" / f"{name}.parquet")
    scores = []
    monkeypatch.setattr(
        SpafitTrainer, "save_model", lambda self, *args, **kwargs: scores.append(self.card_facts().scores)
    )
    flags = {"base": base_folder, "task": "mnli", "data_dir": tmp_path, "output_dir": tmp_path / "out", "max_steps": 2,
             "save_strategy": "no", "load_best_model_at_end": False, "disable_tqdm": True}  # fmt: skip
    assert main(["train", *(text for name, value in flags.items() for text in (f"--{name}", str(value)))]) == 0
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert {score.split: score.figures["accuracy"] for score in scores[-1]} == {
        split: figures["accuracy"] for split, figures in metrics.items()
    }
    assert len(metrics) == 2


def test_a_run_that_diverged(
    base_folder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = {
        "learning_rate": 1e30,
        "max_steps": 3,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
    }
    kept = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    wild |= kept | {"max_grad_norm": 0}
    assert main(train_flags(base_folder, reviews, tmp_path / "full", strategy="full", **wild)) == 0
    history = json.loads((tmp_path / "full" / "results.json").read_text())["history"]
    assert any(None in entry.values() for entry in history)  # JSON has no word for NaN
    assert main(train_flags(base_folder, reviews, tmp_path / "out", **wild)) == 2
    assert "nothing was written, since it could not be read back" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("adapter_*"))


def test_a_base_with_a_head_of_another_size(base_folder: Path, reviews: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder, base)
    tiny("bert", 3, pad_token_id=0).save_pretrained(base)
    assert main(train_flags(base, reviews, tmp_path / "out", max_train_rows=16, num_train_epochs=1)) == 0
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert stored["base_model.model.classifier.weight"].shape[0] == 2


def test_full_fine_tuning_runs_through_the_same_command(
    base_folder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = train_flags(
        base_folder, reviews, tmp_path / "full", strategy="full", max_train_rows=16, num_train_epochs=1
    )
    assert main(flags) == 0
    assert (tmp_path / "full" / "model.safetensors").exists()
    columns = ["--text_columns", "review", "--label_column", "verdict"]
    evaluate_it = ["evaluate", str(tmp_path / "full"), "--validation_file", str(reviews), *columns, "--json"]
    assert main(evaluate_it) == 0
    (tmp_path / "full" / "tokenizer.json").write_text('{"model": {"type": "Surprise"}}')
    assert main(evaluate_it) == 2
    assert "full cannot be loaded: it cannot read a few long texts: " in capsys.readouterr().err


def test_a_file_sets_flags_and_flags_override_it(base_folder: Path, reviews: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    flags = train_flags(base_folder, reviews, tmp_path / "out", max_train_rows=16, num_train_epochs=1)[1:]
    values = dict(zip((flag.removeprefix("--") for flag in flags[::2]), map(yaml.safe_load, flags[1::2]), strict=True))
    recipe.write_text(yaml.safe_dump(values))
    assert main(["train", str(recipe), "--strategy", "bitfit"]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["strategy"] == "bitfit"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--output_dir", "x"], "name one source of data: --task, --dataset, or --train_file; found none of them"),
        (["--task", "mrpc", "--dataset", "d"], "found --task and --dataset"),
        (["--task", "mprc"], "mrpc"),
        (["--task", "mrpc", "--data_dir", "nowhere"], "There is no folder 'nowhere/mrpc'"),
        (["--task", "mrpc", "--strategy", "spafit-9-4-II"], "N1"),
        (["--train_file", "nowhere.csv"], "nowhere.csv"),
        (["nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["--seed", "7", "nowhere.yaml", "--fool"], "nowhere.yaml --fool: no flag of train"),
        (
            ["--train_file", "x.csv", "--prefix_cache", "On"],
            "prefix_cache is 'On'; allowed are off, auto, or a folder",
        ),
        (
            ["--train_file", "x.csv", "--max_train_rows", "-4"],
            "--max_train_rows is -4; it must be 1 or more",
        ),
    ],
)
def test_train_says_what_is_wrong(
    flags: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *flags]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("source", "unread"),
    [
        ({"task": "mrpc"}, ("dataset_config", "text_columns", "label_column", "labels", "regression")),
        ({"dataset": "movie-reviews"}, ("data_dir", "dataset_config", "text_columns", "label_column", "labels")),
        ({"dataset": "."}, ("data_dir", "dataset_config", "max_target_length")),
        ({"dataset": "user/set"}, ("data_dir", "max_target_length")),
        ({"train_file": "x.csv"}, ("data_dir", "dataset_config", "max_target_length")),
        ({"validation_file": "x.csv"}, ("data_dir", "dataset_config", "max_target_length")),
        ({"task": "causal-lm", "train_file": "x.txt"}, ("dataset_config", "data_dir", "label_column", "both_orders")),
        ({"task": "summarization", "dataset": "user/set"}, ("data_dir", "labels", "regression", "both_orders")),
    ],
)
def test_what_data_do_not_read_is_refused(source: dict[str, str], unread: tuple[str, ...]) -> None:
    values = {"max_target_length": 9, "regression": False, "both_orders": True}
    *_, named = source
    for flag in unread:
        with pytest.raises(ValueError, match=rf"--{flag} is for .*, and not for .*--{named}.*; leave it out\."):
            load_data(DataArguments(**source, **{flag: values.get(flag, "x")}))  # type: ignore[arg-type]


@pytest.mark.parametrize("flags", [["--do_train", "false"], ["--do_eval=false"], ["--do_predict"]])
def test_what_the_command_does_in_any_case(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--train_file", "x.csv", "--output_dir", str(tmp_path / "out"), *flags]) == 2
    assert "train always trains and measures and predicts nothing" in capsys.readouterr().err


def test_a_revision_of_a_folder(
    base_folder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_flags(base_folder, reviews, tmp_path / "out", base_revision="v2")) == 2
    assert "--base_revision is for a base on the Hub, and " in capsys.readouterr().err


@pytest.mark.parametrize("figure", ["bogus", "eval_f1"])
def test_a_figure_that_is_not_measured_is_refused_before_the_base_is_loaded(
    figure: str, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = train_flags(tmp_path / "nowhere", reviews, tmp_path / "out", metric_for_best_model=figure)
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert f"--metric_for_best_model is '{figure}', which is not measured on" in error
    assert "allowed are accuracy, f1_macro, loss." in error


def test_pairs_in_both_orders(base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = tmp_path / "pairs.csv"
    rows = [
        (f"a {one}", f"a {other}", "same" if same else "other")
        for one, other, same in (
            *((one, other, True) for words in (GOOD, BAD) for one in words for other in words),
            *((one, other, False) for one in GOOD for other in BAD),
        )
    ]
    with pairs.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text1", "text2", "label"), *rows])
    flags = train_flags(base_folder, pairs, tmp_path / "out", num_train_epochs=1)
    for flag in ("--text_columns", "--label_column"):
        del flags[flags.index(flag) : flags.index(flag) + 2]
    assert main([*flags, "--both_orders"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["arguments"]["both_orders"] is True
    steps = max(entry["step"] for entry in results["history"])
    facts = json.loads((tmp_path / "out" / "spafit_results.json").read_text())["data"]
    assert facts["train_rows"] == results["train_rows"]
    # Of the held-out rows two are train rows the other way round.
    assert facts["turned_rows"] == results["train_rows"] - 2
    assert steps == -(-(facts["train_rows"] + facts["turned_rows"]) // 8)
    assert "--both_orders" in (tmp_path / "out" / "README.md").read_text()
    assert "which another split has the other way round, and which stay as they are: 2." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "columns", "sentence"),
    [
        ("sst2", ("sentence",), "a row of GLUE SST-2 is one text; leave it out"),
        ("rte", ("sentence1", "sentence2"), "GLUE RTE wrong labels.*It is for mrpc, stsb, qqp and for pairs"),
    ],
)
def test_one_order_only(task: str, columns: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    (tmp_path / task).mkdir()
    for split in ("train", "validation"):
        rows = {**{column: ["a", "b"] for column in columns}, "label": [0, 1]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / task / f"{split}.parquet")
    load_data(DataArguments(task=task, data_dir=str(tmp_path)))
    with pytest.raises(ValueError, match=sentence):
        load_data(DataArguments(task=task, data_dir=str(tmp_path), both_orders=True))


def test_a_base_that_is_not_there(reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train_flags(tmp_path / "nowhere", reviews, tmp_path / "out")) == 2
    assert "--base embedded" in capsys.readouterr().err


def test_a_file_with_an_unknown_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("lerning_rate: 1\n")
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 2
    assert "'lerning_rate', which is no flag" in capsys.readouterr().err
    for line, message in (
        ("seed:", "gives seed no value; give one, or leave the name out"),
        ("output_dir:", "gives output_dir no value; give one, or leave the name out"),
        ("learning_rate: [1e-3]", "sets learning_rate to ['1e-3']; it has one value"),
        ("labels: {0: bad}", "sets labels to {0: 'bad'}; it has one value"),
        ("init_adapter: [a]", "sets init_adapter to ['a']; it has one value"),
    ):
        (tmp_path / "recipe.yaml").write_text(line + "\n")
        assert main(["train", str(tmp_path / "recipe.yaml")]) == 2
        assert message in capsys.readouterr().err


def test_a_file_of_flags_in_another_encoding_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_bytes("run_name: é\n".encode("latin1"))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 2
    assert "recipe.yaml is not UTF-8 (byte 10); save it as UTF-8." in capsys.readouterr().err


def test_what_was_asked_for_is_recorded() -> None:
    args = SpafitTrainingArguments(output_dir="x", use_cpu=True)
    recorded = _recorded(DataArguments(regression=False, max_length=64), BaseArguments(base="b"), args)
    assert recorded == {"regression": False, "max_length": 64, "base": "b", "use_cpu": True}


def test_words_of_a_file_are_words(tmp_path: Path) -> None:
    text = (
        "save_strategy: no\nprefix_cache: off\nbf16: on\ndo_eval: true\nseed: 1.5\ntrain_file: 5\nlabels: [bad, 1]\n"
    )
    (tmp_path / "recipe.yaml").write_text(text + "strategy: {strata: []}\nrun_name: null\ntf32: true\n")
    defaults = {"save_strategy": "steps", "prefix_cache": "off", "bf16": False, "do_eval": False, "seed": 42}
    defaults |= {"train_file": "", "labels": "", "strategy": "bitfit", "run_name": None, "tf32": None}
    found = {"save_strategy": "no", "prefix_cache": "off", "bf16": True, "do_eval": True, "seed": "1.5"}
    found |= {"train_file": "5", "labels": "bad,1", "strategy": {"strata": []}, "run_name": None, "tf32": True}
    assert _recipe(str(tmp_path / "recipe.yaml"), defaults) == found


def test_the_command_of_a_card_names_no_folder_of_this_machine_and_no_secret() -> None:
    typed = ["recipe.yaml", "--data_dir", "/home/ann/glue", "--train_file", "../mine/rows.csv", "--hub-token=hf_abc"]
    typed += ["--hub_token", "hf_abc", "--hub_tok", "hf_abc", "--push_to_hub", "--output_dir", "runs/a"]
    typed += ["--learning_rate=1e-3", "--bf16", "--first_token_only", "on"]
    assert command_line(typed).replace(" \\\n ", "") == (
        "spafit train recipe.yaml --data_dir glue --train_file rows.csv --learning_rate 1e-3 --bf16 "
        "--first_token_only on"
    )


def test_what_it_prints(
    base_folder: Path,
    reviews: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    more = {"max_train_rows": 16, "num_train_epochs": 2, "disable_tqdm": False}
    flags = train_flags(base_folder, reviews, tmp_path / "out", **more)
    assert main(flags) == 0
    out, err = capsys.readouterr()
    opening, table, results, *rest = out.split("\n\n")
    assert opening.splitlines()[0].endswith(f"to measure on; base {base_folder}")
    assert table.startswith("spafit-4-9-II on BertForSequenceClassification (4 layers, 2 labels)\n")
    first, second, *summary = results.splitlines()
    figures = r"accuracy [\d.]+, f1_macro [\d.]+, loss [\d.]+, training loss [\d.]+"
    assert re.fullmatch(rf"epoch 1: {figures}", first)
    assert re.fullmatch(rf"epoch 2: {figures}", second)
    assert summary[-1] == f"  written to {tmp_path / 'out'}"
    assert rest == []
    assert set(re.findall(r"\r([\w -]+): +\d+%", err)) == {"spafit-4-9-II", "measuring"}
    assert [str(warning.message) for warning in recwarn] == []
    assert main([*flags, "--verbose"]) == 0
    out, err = capsys.readouterr()
    assert out.count("{'eval_loss': ") == 2
    assert "Loading weights" in err


@pytest.mark.slow
def test_two_processes_train_together_and_one_of_them_prints(base_folder: Path, reviews: Path, tmp_path: Path) -> None:
    flags = train_flags(base_folder, reviews, tmp_path / "out", max_train_rows=40, num_train_epochs=2, use_cpu=True)
    log = tmp_path / "log"
    both = ranks(2, ["-m", "spafit_hf.cli", *flags], tmp_path, os.environ, log)
    assert [program.wait() for program in both] == [0, 0], log.read_text()
    printed = log.read_text()
    for text in ("to measure on; base", "Label 'verdict'", "scaled from 24", "epoch 1: ", "epoch 2: ", "written to"):
        assert printed.count(text) == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["history"][-1]["step"] == 2 * -(-results["train_rows"] // (2 * 8))
    assert results["arguments"]["use_cpu"] is True

"""The nine tasks, their rows and their figures."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import evaluate
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from spafit_hf.data import DataError, glue_metric, hub_dataset, jsonable, tokenize
from spafit_hf.data.figures import compute
from spafit_hf.data.glue import PAPER_SCORES, TASKS, get_task
from spafit_hf.data.glue_metric import compute_metrics_for
from spafit_hf.data.glue_rows import load_task
from spafit_hf.names import embedded_base
from spafit_hf.pypi import EmbeddedError
from spafit_hf.reproduce.statistics import resampled

CLASSES = [name for name, task in TASKS.items() if not task.regression]


@pytest.fixture(scope="module")
def real(glue_dir: Path) -> Callable[[str], datasets.DatasetDict]:
    """The real rows of a task, read once."""
    return functools.cache(lambda name: load_task(name, glue_dir))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(embedded_base())
    except EmbeddedError as error:
        pytest.skip(str(error))


def folder_of(path: Path, task: str, rows: dict, *splits: str, **features: object) -> Path:
    """A data folder with these rows as each of the splits: as train and validation where none is named."""
    place = path / task
    place.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(rows)
    for column, feature in features.items():
        table = table.cast_column(column, feature)
    for split in splits or ("train", "validation"):
        table.to_parquet(place / f"{split}.parquet")
    return path


# Tasks


def test_the_nine_tasks_are_consistent() -> None:
    assert set(TASKS) == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}
    for name, task in TASKS.items():
        assert task.name == name
        assert task.splits == tuple(task.rows)
        assert len(task.columns) in (1, 2)
        assert task.num_labels == {"mnli": 3, "stsb": 1}.get(name, 2)
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert TASKS["rte"].labels == TASKS["wnli"].labels[::-1]  # the Hub's order differs between the two
    assert TASKS["stsb"].problem_type == "regression"
    assert {name for name, task in TASKS.items() if task.symmetric} == {"mrpc", "qqp", "stsb"}


def test_table_2_of_the_paper() -> None:
    assert set(PAPER_SCORES) == set(TASKS)
    methods = list(PAPER_SCORES["cola"])
    assert methods[0] == "full"
    assert len(methods) == 10
    assert all(list(scores) == methods for scores in PAPER_SCORES.values())
    assert set(PAPER_SCORES["wnli"].values()) == {0.56}
    spafit = {task: scores["spafit-4-9-II"] for task, scores in PAPER_SCORES.items()}
    assert spafit == {"cola": 0.64, "mnli": 0.87, "mrpc": 0.92, "qnli": 0.92, "qqp": 0.91, "rte": 0.76,
                      "sst2": 0.93, "stsb": 0.90, "wnli": 0.56}  # fmt: skip
    assert [task.main_metric for task in map(get_task, ("CoLA", "MRPC", "STS-B", "QQP"))] == [
        "matthews_correlation", "f1", "pearson", "accuracy",
    ]  # fmt: skip


def test_methods_of_the_paper_are_strategies() -> None:
    from spafit_hf.strategy import Strategy

    for method in PAPER_SCORES["cola"]:
        assert Strategy.from_name(method).name.lower() == method.lower()


@pytest.mark.parametrize(("given", "name"), [("SST-2", "sst2"), (" STS-B", "stsb"), ("CoLA", "cola"), ("rte", "rte")])
def test_names_are_forgiving(given: str, name: str) -> None:
    assert get_task(given) is TASKS[name]
    assert get_task(TASKS[name]) is TASKS[name]


def test_an_unknown_task_gets_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"'mprc' is not a GLUE task; did you mean 'mrpc'\? The tasks are cola, "):
        get_task("mprc")


def test_task_data_needs_neither_torch_nor_evaluate() -> None:
    code = "import sys, spafit_hf.data.glue_rows; sys.exit(bool({'torch', 'evaluate', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Rows


@pytest.mark.parametrize("name", TASKS)
def test_real_rows_load(real: Callable[[str], datasets.DatasetDict], name: str) -> None:
    task = TASKS[name]
    splits = real(name)
    assert list(splits) == ["train", task.validation[0]]
    for split in splits.values():
        labels = split["label"][:]
        assert set(split.column_names) == {*task.columns, "label", "idx"}
        if task.regression:
            assert split.features["label"] == datasets.Value("float32")
            assert 0 <= min(labels) <= max(labels) <= 5
        else:
            assert split.features["label"].names == list(task.labels)
            assert set(labels) == set(range(task.num_labels))
    if name != "qqp":  # carved from the official train split there
        assert splits[task.validation[0]].num_rows == task.rows[task.validation[0]]


def test_real_class_balance(real: Callable[[str], datasets.DatasetDict]) -> None:
    assert np.bincount(real("mnli")["validation_matched"]["label"][:]).tolist() == [3479, 3123, 3213]
    assert np.bincount(real("rte")["validation"]["label"][:]).tolist() == [146, 131]


def test_names_of_files_in_the_hub_repository(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=list(TASKS["sst2"].labels))
    for part in range(2):
        rows = {"sentence": [f"s{part}"], "label": [part], "idx": [part]}
        folder_of(tmp_path, "sst2", rows, f"train-0000{part}-of-00002", label=label)
    folder_of(tmp_path, "sst2", rows, "validation", label=label)
    assert load_task("sst2", tmp_path)["train"]["sentence"][:] == ["s0", "s1"]


def test_plain_ids_get_their_names(tmp_path: Path) -> None:
    folder_of(tmp_path, "cola", {"sentence": ["a", "b"], "label": [0, 1]})
    splits = load_task("cola", tmp_path)
    assert splits["train"].features["label"].names == ["unacceptable", "acceptable"]


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*rte'"):
        load_task("rte", tmp_path)
    folder_of(tmp_path, "cola", {"sentence": ["a"], "label": [0]}, "train")
    with pytest.raises(DataError, match=r"no '.*validation\.parquet'; the folder holds train\.parquet"):
        load_task("cola", tmp_path)


@pytest.mark.parametrize(
    ("task", "rows", "label", "said"),
    [
        (
            "cola",
            {"text": ["a"], "label": [0]},
            None,
            "train split of cola has no column 'sentence'; it has text, label",
        ),
        ("cola", {"sentence": ["a", None], "label": [0, 0]}, None, "1 rows without a value in 'sentence'"),
        ("cola", {"sentence": ["a"], "label": [2]}, None, "label ids 2; allowed are 0 to 1"),
        ("cola", {"sentence": ["a"], "label": [-1]}, None, "label ids -1"),
        ("cola", {"sentence": ["a"], "label": ["acceptable"]}, None, "must have class ids"),
        ("cola", {"sentence": ["a"], "label": [0]}, ["acceptable", "unacceptable"], "in id order; they must be"),
        ("stsb", {"sentence1": ["a"], "sentence2": ["b"], "label": [3]}, None, "must have scores"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, task: str, rows: dict, label: list, said: str) -> None:
    features = {"label": datasets.ClassLabel(names=label)} if label else {}
    with pytest.raises(DataError, match=said):
        load_task(task, folder_of(tmp_path, task, rows, **features))


def test_without_hub_and_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError, match=r"'nyu-mll/glue' .* HF_HUB_OFFLINE is set.*mrpc/train\.parquet"):
        load_task("mrpc")


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    label = datasets.ClassLabel(names=list(TASKS["sst2"].labels))
    split = datasets.Dataset.from_dict({"sentence": ["a"], "label": [1]}).cast_column("label", label)
    asked: list[object] = []

    def load_dataset(*names: object, **_: object) -> datasets.DatasetDict:
        asked.extend(names)
        return datasets.DatasetDict({"train": split, "validation": split, "test": split})

    monkeypatch.setattr(hub_dataset, "no_hub", lambda: "")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(load_task("sst2")) == ["train", "validation"]
    assert asked == ["nyu-mll/glue", "sst2"]


# Figures


@pytest.mark.parametrize("name", CLASSES)
def test_figures_of_classes_are_the_definitions(name: str) -> None:
    task = TASKS[name]
    generator = np.random.default_rng(0)
    labels = generator.integers(0, task.num_labels, 200)
    ids = np.where(generator.random(200) < 0.7, labels, generator.integers(0, task.num_labels, 200))
    figures = compute(task.metrics, ids, labels)
    expected = {
        "accuracy": float((ids == labels).mean()),
        "matthews_correlation": sklearn.metrics.matthews_corrcoef(labels, ids),
        "f1": sklearn.metrics.f1_score(labels, ids) if task.num_labels == 2 else None,
    }
    assert figures == {metric_name: expected[metric_name] for metric_name in task.metrics}
    assert all(type(value) is float for value in figures.values())


def test_figures_of_scores_are_the_definitions() -> None:
    generator = np.random.default_rng(0)
    labels = generator.random(200).astype(np.float32) * 5
    for spread in (1.0, 1e-6):  # of values that are nearly equal, as those of a model that has learned little
        scores = np.float32(2.5) + np.float32(spread) * (labels + generator.normal(size=200).astype(np.float32))
        figures = compute(TASKS["stsb"].metrics, scores, labels)
        assert figures["pearson"] == pytest.approx(np.corrcoef(scores.astype(float), labels)[0, 1], abs=1e-9)
        assert figures["pearson"] == pytest.approx(resampled("pearson", labels, scores, 0, draws=1)[0, 0], abs=1e-9)
        assert figures["spearmanr"] == float(scipy.stats.spearmanr(scores, labels)[0])


def figures_of(task: str, predictions: list[float], labels: list[float]) -> dict[str, float]:
    return compute_metrics_for(task)(EvalPrediction(np.array(predictions), np.array(labels)))


def test_by_hand() -> None:
    assert figures_of("mrpc", [1, 1, 0, 0], [1, 0, 1, 0]) == {"f1": 0.5, "accuracy": 0.5}
    assert figures_of("cola", [1, 0], [0, 1]) == {"matthews_correlation": -1.0}


@pytest.mark.filterwarnings("error")
def test_what_is_undefined_stays_undefined() -> None:
    assert figures_of("cola", [1, 1], [0, 1]) == {"matthews_correlation": 0.0}
    figures = figures_of("stsb", [2.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    assert all(map(math.isnan, figures.values()))
    assert json.loads(json.dumps(jsonable(figures), allow_nan=False)) == {"pearson": None, "spearmanr": None}


def test_compute_metrics_takes_what_trainer_gives() -> None:
    compute = compute_metrics_for("mnli")
    logits = np.eye(3, dtype=np.float32)
    assert compute(EvalPrediction(logits, np.array([0, 1, 0]))) == {"accuracy": 2 / 3}
    assert compute(EvalPrediction((logits, np.zeros(5)), np.array([0, 1, 2]))) == {"accuracy": 1.0}
    assert compute(EvalPrediction(np.array([0, 1, 2]), np.array([0, 1, 2]))) == {"accuracy": 1.0}
    scores = np.array([[0.5], [1.0], [4.0]], dtype=np.float32)
    figures = compute_metrics_for("stsb")(EvalPrediction(scores, np.array([0.0, 1.0, 7.0], dtype=np.float32)))
    assert figures["spearmanr"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="2 of 2 labels are negative"):
        compute(EvalPrediction(logits[:2], np.array([-1, -1])))
    with pytest.raises(ValueError, match="no rows"):
        compute(EvalPrediction(logits[:0], np.array([], dtype=np.int64)))


def test_offline_never_asks_the_network(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(evaluate, "load", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.setattr(hub_dataset, "_answers", lambda *_: pytest.fail("the network was asked"))
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        for other in hub_dataset.OFFLINE_VARIABLES:
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv(variable, "1")
        with caplog.at_level("INFO"):
            assert figures_of("rte", [1, 0], [1, 1]) == {"accuracy": 0.5}
        assert f"({variable} is set)" in caplog.text


def test_the_hubs_metric_where_it_answers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(glue_metric, "no_hub", lambda: "")
    theirs = SimpleNamespace(compute=lambda predictions, references: {"accuracy": np.float32(0.25)})
    monkeypatch.setattr(evaluate, "load", lambda *_, **__: theirs)
    assert figures_of("rte", [1, 0], [1, 1]) == {"accuracy": 0.25}

    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError("no script\nand more")

    monkeypatch.setattr(evaluate, "load", fail)
    with caplog.at_level("INFO"):
        assert figures_of("rte", [1, 0], [1, 1]) == {"accuracy": 0.5}
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().endswith("(evaluate's metric did not load: no script).")


# All of it together


@pytest.mark.parametrize("name", TASKS)
def test_real_rows_become_tokens(
    real: Callable[[str], datasets.DatasetDict], tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    task = TASKS[name]
    split = real(name)[task.validation[0]].select(range(64))
    tokens = tokenize(datasets.DatasetDict({"validation": split}), tokenizer, task.columns)["validation"]
    assert tokens["length"][:] == list(map(len, tokens["input_ids"]))
    assert len(set(tokens["length"])) > 1  # unpadded, although this tokenizer.json asks for padding
    assert max(tokens["length"]) <= 128
    assert tokens["label"][:] == split["label"][:]
    first = [tokenizer.decode(tokens[0]["input_ids"], skip_special_tokens=True), split[0][task.columns[0]]]
    squeezed = ["".join(text.lower().split()) for text in first]
    assert squeezed[0].startswith(squeezed[1][:10])
    assert (1 in tokens[0]["token_type_ids"]) == (len(task.columns) == 2)


@pytest.mark.parametrize("name", ["rte", "stsb"])
def test_trainer_takes_rows_and_metric(
    real: Callable[[str], datasets.DatasetDict], tokenizer: PreTrainedTokenizerBase, tmp_path: Path, name: str
) -> None:
    task = TASKS[name]
    small = datasets.DatasetDict({key: split.select(range(16)) for key, split in real(name).items()})
    tokens = tokenize(small, tokenizer, task.columns, max_length=32)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, num_labels=task.num_labels, problem_type=task.problem_type)  # fmt: skip
    trainer = Trainer(
        BertForSequenceClassification(config),
        TrainingArguments(
            str(tmp_path), max_steps=2, use_cpu=True, train_sampling_strategy="group_by_length", report_to="none",
            disable_tqdm=True, save_strategy="no",
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=tokens["train"],
        eval_dataset=tokens["validation"],
        compute_metrics=compute_metrics_for(task),
    )  # fmt: skip
    trainer.train()
    results = trainer.evaluate()
    assert {f"eval_{figure}" for figure in task.metrics} <= set(results)

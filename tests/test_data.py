"""Files, labels and splits: what is read is what is in the file, and what is inferred is said."""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from transformers import BertTokenizer, EvalPrediction

from spafit_hf.data import (
    DataError,
    carve_validation,
    compute_figures,
    default_figures,
    hub_dataset,
    jsonable,
    load_hub_dataset,
    load_text_data,
    no_hub,
    read_table,
    tokenize,
)
from spafit_hf.data.tokens import tokenize_texts

WORDS = ["the", "a", "film", "is", "good", "bad", "great", "dull", "plot", "and", "not", "very", "fun", "sad"]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def rows(count: int, labels: tuple[str, ...] = ("no", "yes")) -> list[dict[str, str]]:
    return [{"text": f"text number {i}", "label": labels[i % len(labels)]} for i in range(count)]


def write_jsonl(path: Path, items: list[dict]) -> Path:
    return write(path, "".join(json.dumps(item) + "\n" for item in items))


# Files


def test_csv_cells_stay_as_they_are(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", '\ufefftext,label\r\nNA,01\r\n"a ""b"", c\nd",null\r\n\r\n')
    table = read_table(file)
    assert table.column_names == ["text", "label"]
    assert table[:] == {"text": ["NA", 'a "b", c\nd'], "label": ["01", "null"]}


def test_tsv_with_stray_quotes_loses_no_line(tmp_path: Path) -> None:
    raw = 'a\tb\n"open\t1\nmiddle\t2\nclose"\t3\n'
    file = write(tmp_path / "raw.tsv", raw)
    assert read_table(file)["a"][:] == ['"open', "middle", 'close"']
    quoted = write(tmp_path / "quoted.tsv", 'a\tb\n"two\nlines"\t1\n"say ""x"""\t2\n')
    assert read_table(quoted)["a"][:] == ["two\nlines", 'say "x"']


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "text,label\nx,1,2\n", "Line 2 .* has 3 fields, its header has 2"),
        ("a.csv", "text,text\nx,1\n", "repeats a column"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.csv", "", "no rows"),
        ("a.csv", 'text,label\n"x,1\n', "near line 2"),
        ("a.json", "[1, 2]", "Row 1 .* is a int"),
        ("a.json", "[{]", "not valid JSON"),
        ("a.jsonl", '{"text": "a"}\n{"text"\n', "Line 2 .* not a JSON object"),
        ("a.jsonl", '{"text": "a"}\n{"text": 3}\n', "'text' .* mixes types"),
        ("a.jsonl", '{"text": "a", "label": 1, "label": 0}\n', "Line 1 .*the key 'label' stands twice"),
        (
            "a.json",
            '{"text": {"0": "a"}, "label": {"0": 1}}',
            "one object, of text, label, and no object for",
        ),
        ("a.json", '{"a": {}, "b": {}, "c": {}, "d": {}}', r"one object, of a, b, c, \.\.\., and no object"),
        ("a.json", '{"data": [{"text": "a"}]}', "one object, of data, and no object for each row"),
        ("a.json", f'[{{"n": {"1" * 5000}}}]', "not valid JSON.*4300 digits"),
        ("a.jsonl", f'{{"n": 1}}\n{{"n": {"1" * 5000}}}\n', "Line 2 .*4300 digits"),
        ("a.jsonl", f'{{"n": 1}}\n{{"n": {2**70}}}\n', "Column 'n' .* 64 bits"),
        ("a.json", f'[{{"n": {{}}}}, {{"n": {{"m": [{2**70}]}}}}]', "Column 'n' .* 64 bits"),
        ("a.jsonl", '{"t": "a"}\n{"t": "\\ud800"}\n', "Column 't' .* surrogate"),
        ("a.jsonl", '{"\\ud800": "a"}\n', r"Column '\\ud800' .* surrogate"),
        ("a.parquet", "nothing", "not a readable parquet"),
        ("a.doc", "x", r"\.csv, \.tsv"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_table(write(tmp_path / name, text))


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t")])
def test_a_field_may_be_long(tmp_path: Path, suffix: str, mark: str) -> None:
    limit = csv.field_size_limit()
    long = "word " * 40_000
    file = write(tmp_path / f"a{suffix}", f"text{mark}label\n{long}{mark}1\n")
    assert read_table(file)[:] == {"text": [long], "label": ["1"]}
    with pytest.raises(DataError, match="has 1 fields"):
        read_table(write(tmp_path / f"b{suffix}", f"text{mark}label\n{long}\n"))
    assert csv.field_size_limit() == limit  # the limit is the whole process's


def test_parquet_columns_of_unknown_types_are_refused(tmp_path: Path) -> None:
    pairs = pyarrow.array([[("k", "v")]] * 10, pyarrow.map_(pyarrow.string(), pyarrow.string()))
    table = pyarrow.table({"tags": pairs, "text": [f"t{i}" for i in range(10)]})
    unknown = {"huggingface": json.dumps({"info": {"features": {"text": {"_type": "Hologram"}}}})}
    for odd, kind in ((table, "map<"), (table.select(["text"]).replace_schema_metadata(unknown), "Hologram")):
        pyarrow.parquet.write_table(odd, tmp_path / "a.parquet")
        with pytest.raises(DataError, match=f"not a readable parquet file of plain columns .*{kind}"):
            read_table(tmp_path / "a.parquet")


def test_missing_file_and_other_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match="not UTF-8"):
        read_table(write(tmp_path / "latin.csv", "text,label\ncafé,1\n", "latin1"))


def test_json_keys_of_every_row_are_columns(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"a": "x"}, {"a": "y", "b": 1}])
    assert read_table(file)["b"][:] == [None, 1]
    assert read_table(write(tmp_path / "a.json", '[{"a": "x"}, {"a": "y"}]'))["a"][:] == ["x", "y"]


# TextData


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_data(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    items = rows(20)
    if suffix == ".parquet":
        datasets.Dataset.from_list(items).to_parquet(file)
    elif suffix in (".json", ".jsonl"):
        write_jsonl(file, items)
    else:
        mark = "," if suffix == ".csv" else "\t"
        write(file, f"text{mark}label\n" + "".join(f"{row['text']}{mark}{row['label']}\n" for row in items))
    data = load_text_data(file)
    assert data.labels == ("no", "yes")
    assert data.columns == ("text",)
    assert data.problem_type == "single_label_classification"
    assert data.evaluation_splits == ("validation",)
    assert data.splits["train"].num_rows == 18
    assert sorted(data.splits["validation"]["label"]) == [0, 1]
    assert any("held out" in note for note in data.notes)
    assert any("'no', 'yes'" in note for note in data.notes)


def test_pairs_and_label_are_inferred_and_said(tmp_path: Path) -> None:
    items = [{"id": i, "premise": f"p{i}", "hypothesis": f"h{i}", "target": i % 3} for i in range(30)]
    data = load_text_data(write_jsonl(tmp_path / "a.jsonl", items))
    assert data.columns == ("premise", "hypothesis")
    assert data.labels == ("0", "1", "2")
    assert data.splits["train"].column_names == ["premise", "hypothesis", "label"]
    assert data.notes[0] == "Label column: 'target' (inferred from its name)."
    assert data.notes[1] == "Text columns: premise, hypothesis (inferred from the names)."


def test_given_columns_win(tmp_path: Path) -> None:
    items = [{"text": "unused", "b": f"x{i}", "a": f"y{i}", "kind": "uv"[i % 2], "label": "?"} for i in range(10)]
    data = load_text_data(write_jsonl(tmp_path / "a.jsonl", items), text_columns="b,a", label_column="kind")
    assert data.columns == ("b", "a")
    assert data.labels == ("u", "v")


def test_training_pairs_in_both_orders(tmp_path: Path) -> None:
    items = [{"premise": f"p{i}", "hypothesis": f"h{i}", "target": "uvw"[i % 3]} for i in range(30)]
    data = load_text_data(write_jsonl(tmp_path / "a.jsonl", items))
    both = data.in_both_orders()
    once, twice = data.splits["train"], both.splits["train"]
    assert twice.features == once.features
    assert twice.num_rows == 2 * once.num_rows
    assert twice.select(range(once.num_rows)).to_list() == once.to_list()
    turned = [
        {"premise": row["hypothesis"], "hypothesis": row["premise"], "label": row["label"]} for row in once.to_list()
    ]
    assert twice.select(range(once.num_rows, twice.num_rows)).to_list() == turned
    assert both.splits["validation"] is data.splits["validation"]
    assert both.notes == data.notes
    single = load_text_data(write_jsonl(tmp_path / "b.jsonl", [{"text": f"t{i}", "label": i % 2} for i in range(30)]))
    with pytest.raises(DataError, match="only pairs have two orders"):
        single.in_both_orders()


def test_a_pair_that_is_measured_on_is_not_trained_on_the_other_way_round(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text1": f"a{i}", "text2": f"b{i}", "label": i % 2} for i in range(9)])
    rows = [{"text1": "B3!", "text2": "A3", "label": 1}, {"text1": "a4", "text2": "b4", "label": 0}]
    write_jsonl(tmp_path / "validation.jsonl", rows)
    both = load_text_data(tmp_path).in_both_orders()
    train = set(zip(both.splits["train"]["text1"][:], both.splits["train"]["text2"][:], strict=True))
    assert len(train) == both.splits["train"].num_rows == 17
    assert ("b3", "a3") not in train
    assert {("a3", "b3"), ("a4", "b4"), ("b4", "a4")} <= train
    assert both.notes[-1].endswith("has the other way round, and which stay as they are: 1.")


def test_texts_of_two_string_types(tmp_path: Path) -> None:
    texts = {"text1": "string_view", "text2": "large_string", "label": "int64"}
    rows = {"text1": ["a", "b"] * 20, "text2": [str(i) for i in range(40)], "label": [0, 1] * 20}
    features = datasets.Features({name: datasets.Value(kind) for name, kind in texts.items()})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    data = load_text_data(tmp_path / "a.parquet")
    both = data.in_both_orders().splits["train"]
    assert both.features == data.splits["train"].features
    assert both.num_rows == 2 * data.splits["train"].num_rows


def test_whole_numbers_are_classes_and_floats_are_regression(tmp_path: Path) -> None:
    stars = load_text_data(write(tmp_path / "s.csv", "text,stars\n" + "".join(f"t{i},{i % 11}\n" for i in range(60))))
    assert stars.labels == tuple(map(str, range(11)))  # in the order of numbers: 10 is last, not after 1
    score = load_text_data(
        write(tmp_path / "f.csv", "text,score\n" + "".join(f"t{i},{i % 8 / 2}\n" for i in range(60)))
    )
    assert score.regression
    assert score.num_labels == 1
    assert score.splits["train"].features["label"] == datasets.Value("float32")
    assert any("regression" in note for note in score.notes)
    whole = load_text_data(tmp_path / "s.csv", regression=True)
    assert whole.problem_type == "regression"
    assert load_text_data(tmp_path / "f.csv", regression=False).labels[:3] == ("0.0", "0.5", "1.0")


@pytest.mark.parametrize(("train", "validation"), [("0.0 1.0", ""), ("0 1", "0.0 1.0"), ("0.0 1.0", "0 1")])
def test_whole_numbers_written_as_floats_are_classes(train: str, validation: str, tmp_path: Path) -> None:
    """As pandas writes a column of ids in which one is missing."""
    files = {}
    for name, labels in (("train", train.split()), ("validation", validation.split())):
        rows = [f"{name} text {number},{labels[number % 2]}\n" for number in range(40)] if labels else []
        files[f"{name}_file"] = write(tmp_path / f"{name}.csv", "text,label\n" + "".join(rows)) if rows else None
    data = load_text_data(**files)
    assert data.labels == ("0", "1")
    assert any("for regression, say regression=True (--regression true)" in note for note in data.notes)
    assert load_text_data(**files, labels=["no", "yes"]).labels == ("no", "yes")
    assert load_text_data(**files, regression=True).regression
    rows = [{"text": f"text {number}", "label": float(number % 2)} for number in range(40)]
    file = write(tmp_path / "rows.json", json.dumps(rows))
    assert load_text_data(file).labels == ("0", "1")


@pytest.mark.parametrize("header", ["Text,Label", "text, label", "Review,Sentiment", "Unnamed: 0,Text,Label"])
def test_columns_are_known_whatever_their_case_and_blanks(header: str, tmp_path: Path) -> None:
    row = [*(["7"] if "Unnamed" in header else []), "text {0}", "{1}"]
    rows = [",".join(row).format(number, "ab"[number % 2]) for number in range(40)]
    data = load_text_data(write(tmp_path / "a.csv", "\n".join([header, *rows])))
    assert data.labels == ("a", "b")
    assert (data.columns[0],) == tuple(name for name in header.split(",") if name.lower() in ("text", "review"))


def test_other_ways_to_write_a_table_are_named(tmp_path: Path) -> None:
    text = "text,label\n" + "".join(f"text {number},{number % 2}\n" for number in range(9))
    for separator, suffix, words in (
        (";", "csv", r"semicolons\. Save it with commas"),
        ("\t", "csv", r"tabs\. Save it with commas"),
        ("|", "csv", r"vertical bars\. Save it with commas"),
        (",", "tsv", r"commas\. Save it with tabs"),
        (";", "tsv", r"semicolons\. Save it with tabs"),
    ):
        with pytest.raises(DataError, match=f"columns are separated by {words}"):
            load_text_data(write(tmp_path / f"a.{suffix}", text.replace(",", separator)))
    (tmp_path / "b.csv").write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match="iconv -f utf-16 -t utf-8"):
        load_text_data(tmp_path / "b.csv")


def test_regression_labels_must_be_numbers(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\nx,1.5\ny,few\n")
    with pytest.raises(DataError, match="finite"):
        load_text_data(file, regression=True)
    with pytest.raises(DataError, match="no label names"):
        load_text_data(file, regression=True, labels=["a"])


def write_scores(file: Path, scores: list[float]) -> Path:
    items = [{"text": f"t {i}", "score": score} for i, score in enumerate(scores)]
    if file.suffix == ".parquet":
        datasets.Dataset.from_list(items).to_parquet(file)
    elif file.suffix == ".jsonl":
        write_jsonl(file, items)
    else:
        write(file, "text,score\n" + "".join(f"{row['text']},{row['score']}\n" for row in items))
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_nan_is_an_empty_label(tmp_path: Path, suffix: str) -> None:
    file = write_scores(tmp_path / f"train{suffix}", [i % 5 / 2 if i else float("nan") for i in range(40)])
    for regression in (None, True):
        with pytest.raises(DataError, match=r"1 of the 40 rows .* row 1, column 'score'"):
            load_text_data(file, regression=regression)
    write_scores(file, [i % 5 / 2 for i in range(40)])
    write_scores(tmp_path / f"test{suffix}", [float("nan")] * 3)
    data = load_text_data(tmp_path)
    assert data.regression
    assert list(data.splits) == ["train", "validation"]
    assert "Split 'test' (3 rows) has no labels and is not used." in data.notes


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("odd", [float("-inf"), -1e39])
def test_numbers_beyond_fp32_are_refused(tmp_path: Path, suffix: str, odd: float) -> None:
    file = write_scores(tmp_path / f"a{suffix}", [odd, *[0.5, 1.0] * 20])
    refusal = re.escape(f"holds {odd:g}; labels are kept in fp32, which ends at 3.4e+38")
    for regression in (None, True):
        with pytest.raises(DataError, match=refusal):
            load_text_data(file, regression=regression)
    assert load_text_data(file, regression=False).labels == (str(odd), "0.5", "1.0")


def test_a_word_for_nan_is_no_number(tmp_path: Path) -> None:
    file = write_scores(tmp_path / "a.csv", [float("nan"), *[0.5, 1.0] * 20])
    with pytest.raises(DataError, match="holds nan; labels are kept in fp32"):
        load_text_data(file)


def test_nan_and_inf_among_words_are_words(tmp_path: Path) -> None:
    names = ("butter", "inf", "nan")
    assert load_text_data(write_jsonl(tmp_path / "a.jsonl", rows(30, names))).labels == names
    file = write_jsonl(tmp_path / "b.jsonl", rows(30, names[1:]))
    assert load_text_data(file, labels=names).labels == names


def test_names_of_a_class_label_survive(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "neutral", "pos"])}
    )
    table = datasets.Dataset.from_list([{"text": f"t{i}", "label": (i % 2) * 2} for i in range(10)], features=features)
    table.to_parquet(tmp_path / "train.parquet")
    data = load_text_data(tmp_path)
    assert data.labels == ("neg", "neutral", "pos")  # a class without rows stays
    assert set(data.splits["train"]["label"]) == {0, 2}
    other = load_text_data(tmp_path, labels=["pos", "neutral", "neg"])  # another order of ids, the same words
    first = data.splits["train"][0]
    again = other.splits["train"][0]
    assert first["text"] == again["text"]
    assert data.labels[first["label"]] == other.labels[again["label"]]


def test_words_for_integer_labels(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(10)))
    data = load_text_data(file, labels=["bad", "good"])
    assert data.labels == ("bad", "good")
    row = data.splits["train"][0]
    assert row["label"] == int(row["text"][1:]) % 2
    assert data.notes[1] == "Label 'label': ids in order, from 0 on, named 'bad', 'good' as given."
    with pytest.raises(DataError, match="labels '0', '1', not given"):
        load_text_data(file, labels=["bad"])


@pytest.mark.parametrize(
    ("first", "names"), [(0, ["1", "0"]), (1, ["2", "1"]), (1, ["2", "1", "0"]), (0, ["1.0", "0.0"])]
)
def test_names_made_of_digits_are_those_in_the_file(first: int, names: list[str], tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\n" + "".join(f"t{i},{i % 2 + first}\n" for i in range(40)))
    data = load_text_data(file, labels=names)
    for row in data.splits["train"]:
        assert float(data.labels[row["label"]]) == int(row["text"][1:]) % 2 + first


@pytest.mark.parametrize(("more", "names"), [([], ("0", "1")), ([0.5], ("0.0", "0.5", "1.0"))])
def test_zero_has_no_sign(more: list[float], names: tuple[str, ...], tmp_path: Path) -> None:
    file = write_scores(tmp_path / "a.csv", [-0.0, 0.0, 1.0, *more] * 10)
    assert load_text_data(file, regression=False).labels == names


def test_files_of_a_folder(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows(10))
    write_jsonl(tmp_path / "dev.jsonl", [*rows(2), {"text": "TEXT, number 3!", "label": "yes"}])
    write_jsonl(tmp_path / "test.jsonl", [{"text": "x", "label": -1}])
    data = load_text_data(tmp_path)
    assert list(data.splits) == ["train", "validation"]
    assert any("no labels" in note for note in data.notes)
    assert any("3 of the 3 validation rows have the text of a train row" in note for note in data.notes)
    (tmp_path / "valid.csv").write_text("text,label\nx,no\n")
    with pytest.raises(DataError, match="two files for its validation split"):
        load_text_data(tmp_path)


@pytest.mark.parametrize("given", [{}, {"text_columns": "text", "label_column": "label"}])
def test_a_test_split_without_a_label_column_is_left_out(tmp_path: Path, given: dict) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows(10))
    write(tmp_path / "test.csv", "id,text\n1,x\n2,y\n")
    data = load_text_data(tmp_path, **given)
    assert list(data.splits) == ["train", "validation"]
    assert "Split 'test' (2 rows) has no labels and is not used." in data.notes
    with pytest.raises(DataError, match=r"label"):
        load_text_data(test_file=tmp_path / "test.csv", need_train=False, **given)


def test_a_test_file_alone_for_evaluation(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "t.jsonl", rows(4))
    with pytest.raises(DataError, match="train rows alone, and no validation or test split to measure on"):
        load_text_data(file, need_train=False, labels=["no", "yes"])
    data = load_text_data(test_file=file, need_train=False, labels=["no", "yes"])
    assert data.evaluation_splits == ("test",)
    with pytest.raises(DataError, match="no train split"):
        load_text_data(test_file=file)


@pytest.mark.parametrize(
    ("train", "more", "said"),
    [
        ([{"text": "x", "label": "a"}, {"text": " ", "label": "b"}], {}, "1 of the 2 rows .* row 2, column 'text'"),
        ([{"text": "x", "label": "a"}, {"text": "y", "label": None}], {}, "row 2, column 'label'"),
        ([{"q": "x", "r": "a"}], {}, "has the columns q, r, and none is named like a label"),
        ([{"q": "x", "r": "y", "label": "a"}], {}, "Which column .* q, r, label"),
        (rows(4), {"text_columns": "txt"}, "no column 'txt'; it has text, label"),
        (rows(4), {"label_column": "lab"}, "no column 'lab'; it has text, label"),
        (rows(4), {"text_columns": ["text", "text"]}, "one, or two different"),
        ([{"text": 3, "label": "a"}], {"text_columns": "text"}, "not text"),
        ([{"text": "x", "label": ["a"]}], {}, "one class or one number"),
        (rows(4, ("only",)), {}, "two classes or more"),
        ([{"text": f"t{i}", "label": f"row{i}"} for i in range(30)], {}, "label of its own"),
        (rows(4), {"labels": ["no", "no"]}, "different words"),
    ],
)
def test_unusable_data_is_refused_in_a_sentence(tmp_path: Path, train: list, more: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_text_data(write_jsonl(tmp_path / "train.jsonl", train), **more)


def test_validation_must_fit_train(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", rows(4))
    other = write_jsonl(tmp_path / "b.jsonl", [{"text": "x", "label": "maybe"}])
    with pytest.raises(DataError, match=r"validation split .* label 'maybe', not in the train split"):
        load_text_data(train_file=train, validation_file=other)
    number = write_jsonl(tmp_path / "n.jsonl", [{"text": 5, "label": "no"}])
    for more in ({"validation_file": number}, {"validation_file": train, "test_file": number}):
        with pytest.raises(DataError, match=r"'text' of the (validation|test) split .* holds .*int64.*, not text"):
            load_text_data(train_file=train, **more)
    bare = write_jsonl(tmp_path / "c.jsonl", [{"text": "x"}])
    with pytest.raises(DataError, match=r"validation split .* no column 'label'; it has text"):
        load_text_data(train_file=train, validation_file=bare)


def test_either_a_source_or_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Give either"):
        load_text_data()
    with pytest.raises(DataError, match="Give either"):
        load_text_data("x", train_file="y.csv")
    with pytest.raises(DataError, match="no train, validation or test file"):
        load_text_data(tmp_path)


# The Hub


def test_without_the_hub_the_answer_is_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub_dataset, "_answers", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert no_hub() == "HF_HUB_OFFLINE is set"
    start = time.perf_counter()
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        load_text_data("some/dataset")
    assert time.perf_counter() - start < 5


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in hub_dataset.OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub_dataset, "_answers", lambda *_: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError, match=r"cannot be reached\. Give local files"):
        load_hub_dataset("some/dataset")


def test_nothing_answers_on_a_closed_port() -> None:
    start = time.perf_counter()
    assert not hub_dataset._answers("http://127.0.0.1:9", 2.0)
    assert time.perf_counter() - start < 4


def test_splits_of_a_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"train": rows(8), "dev": rows(4), "unsupervised": rows(2)}
    stored = datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in parts.items()})
    monkeypatch.setattr(hub_dataset, "no_hub", lambda: "")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stored)
    data = load_text_data("owner/name")
    assert list(data.splits) == ["train", "validation"]
    assert any("'unsupervised' (2 rows)" in note for note in data.notes)


def test_columns_are_chosen_from_the_train_split(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"test": [{"text": "x"}], "train": rows(8)}
    stored = datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in parts.items()})
    monkeypatch.setattr(hub_dataset, "no_hub", lambda: "")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stored)
    assert list(load_text_data("owner/name").splits) == ["train", "validation"]


def test_an_unknown_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("no")

    monkeypatch.setattr(hub_dataset, "no_hub", lambda: "")
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="no dataset 'owner/name' on the Hub"):
        load_text_data("owner/name")


# Holding out


def table(texts: list[str], labels: list[int], classes: int = 2) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(num_classes=classes)})
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)


def test_equal_texts_stay_on_one_side_and_classes_in_proportion() -> None:
    texts = [f"Text {i % 150}{'!' * (i // 150)}" for i in range(300)]  # each text twice, but for its punctuation
    data = table(texts, [int(i % 150 < 50) for i in range(300)])
    parts = carve_validation(data, ["text"], rows=30, seed=1)
    words = [{text.rstrip("!") for text in part["text"]} for part in parts.values()]
    assert not words[0] & words[1]
    assert parts["validation"].num_rows == 30
    assert sum(parts["validation"]["label"]) == 10
    assert parts["train"].num_rows + parts["validation"].num_rows == 300


def test_the_choice_hangs_on_seed_and_text_alone() -> None:
    data = table([f"text {i}" for i in range(100)], [i % 2 for i in range(100)])
    backwards = data.select(range(99, -1, -1))
    chosen = set(carve_validation(data, ["text"], seed=1)["validation"]["text"])
    assert len(chosen) == 10
    assert chosen == set(carve_validation(backwards, ["text"], seed=1)["validation"]["text"])
    assert chosen != set(carve_validation(data, ["text"], seed=2)["validation"]["text"])


def test_a_class_never_leaves_train() -> None:
    parts = carve_validation(table([f"t{i}" for i in range(20)], [0] * 19 + [1]), ["text"], rows=10)
    assert set(parts["train"]["label"]) == {0, 1}
    with pytest.raises(DataError, match="Cannot hold 5 of 5"):
        carve_validation(table(list("abcde"), [0, 1, 0, 1, 0]), ["text"], rows=5)
    with pytest.raises(DataError, match="too few different texts"):
        carve_validation(table(["a", "b"], [0, 1]), ["text"], rows=1)


# Tokens and figures


@pytest.fixture
def tokenizer() -> BertTokenizer:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={name: index for index, name in enumerate(names)})


def test_tokens_are_unpadded_and_counted(tokenizer: BertTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    data = datasets.DatasetDict({"train": table(["a film", "the plot is very very dull and sad"], [1, 0])})
    with caplog.at_level("WARNING"):
        tokens = tokenize(data, tokenizer, ["text"], max_length=6)["train"]
    assert set(tokens.column_names) == {"input_ids", "token_type_ids", "attention_mask", "label", "length"}
    assert tokens["length"][:] == [4, 6]
    assert list(map(len, tokens["input_ids"])) == [4, 6]
    assert (
        "train: 1 of 2 rows are longer than 6 tokens and lose their end; raise max_length to keep it." in caplog.text
    )
    assert tokens.features["label"] == data["train"].features["label"]


@pytest.mark.parametrize("max_length", [6, 100])
def test_more_than_the_base_reads_is_no_advice(
    max_length: int, tokenizer: BertTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer.model_max_length = 6
    data = datasets.DatasetDict({"train": table(["a film", "the plot is very very dull and sad"], [1, 0])})
    with caplog.at_level("WARNING"):
        tokenize(data, tokenizer, ["text"], max_length=max_length)
    assert "1 of 2 rows are longer than 6 tokens and lose their end; 6 is the most that the base reads." in caplog.text


def test_exactly_full_rows_lose_nothing(tokenizer: BertTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    data = datasets.DatasetDict({"train": table(["a film"], [1])})
    with caplog.at_level("WARNING"):
        assert tokenize(data, tokenizer, ["text"], max_length=4)["train"]["length"][:] == [4]
    assert not caplog.text


def test_a_limit_that_leaves_no_token_of_a_text_is_refused(tokenizer: BertTokenizer) -> None:
    data = datasets.DatasetDict({"train": table(["a film"], [1])})
    with pytest.raises(DataError, match=r"max_length is 2, .* rows need 3 tokens or more"):
        tokenize(data, tokenizer, ["text"], max_length=2)
    with pytest.raises(DataError, match=r"max_length is 0, .* rows need 2 tokens or more"):
        tokenize_texts(data, tokenizer, "text", max_length=0)


def test_pairs_are_told_apart(tokenizer: BertTokenizer) -> None:
    pair = datasets.Dataset.from_dict({"a": ["a film"], "b": ["is good"], "idx": [7]})
    tokens = tokenize(datasets.DatasetDict({"train": pair}), tokenizer, ["a", "b"])["train"]
    assert tokens["token_type_ids"][0] == [0, 0, 0, 0, 1, 1, 1]
    assert "idx" not in tokens.column_names
    with pytest.raises(DataError, match="no column 'c'; it has a, b, idx"):
        tokenize(datasets.DatasetDict({"train": pair}), tokenizer, ["c"])


def test_figures_of_a_prediction(caplog: pytest.LogCaptureFixture) -> None:
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]], dtype=np.float32)
    figures = compute_figures(default_figures(2))(EvalPrediction((logits, "hidden"), np.array([0, 1, 1])))
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["f1_macro"] == pytest.approx(2 / 3)
    values = compute_figures(default_figures(1))(EvalPrediction(np.array([[1.0], [3.0]]), np.array([1.0, 2.0])))
    assert values == {"pearson": pytest.approx(1.0), "spearmanr": pytest.approx(1.0), "mse": 0.5}
    one_row = compute_figures(default_figures(1))(EvalPrediction(np.array([[1.0]]), np.array([2.0])))
    assert jsonable(one_row) == {"pearson": None, "spearmanr": None, "mse": 1.0}
    with caplog.at_level("WARNING"):
        compute_figures(["accuracy"])(EvalPrediction(logits * np.nan, np.array([0, 1, 1])))
    assert "3 of 3 rows have predictions that are not finite" in caplog.text


@pytest.mark.parametrize("names", [[], ["accuracy", "pearson"], ["bleu"]])
def test_figures_that_do_not_go_together(names: list[str]) -> None:
    with pytest.raises(ValueError, match="Cannot compute"):
        compute_figures(names)


def test_json_has_no_nan() -> None:
    assert jsonable({"a": float("nan"), "b": 0.5, "c": float("inf")}) == {"a": None, "b": 0.5, "c": None}

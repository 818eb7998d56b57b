"""`spafit predict` as a user meets it: texts from everywhere, answers as text or JSON lines, errors as sentences."""

from __future__ import annotations

import io
import json
import os
import sys
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from models import FAMILIES, tiny
from programs import Program
from test_predictor import make_tokenizer, write_adapter

from spafit_hf.cli import main
from spafit_hf.cli import predict as command
from spafit_hf.predictor import SpafitPredictor

TEXT, PAIR = "a fine film", ("it rains", "a dull film")
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with its tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("predict") / "base"
    tiny("bert").base_model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(base: Path) -> dict[str, str]:
    """A task of single texts, one of pairs, and a regression that does not say what it was trained on."""
    facts: dict[str, tuple[str, int, dict[str, Any]]] = {
        "film": ("spafit-4-9-II", 2, {"name": "sst2"}),
        "same": ("spafit-8-16-II", 3, {"name": "mrpc"}),
        "score": ("bitfit", 1, {}),
    }
    for seed, (name, (strategy, outputs, task)) in enumerate(facts.items()):
        model = hf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=outputs)
        settings = {} if strategy == "bitfit" else {"r": 2 + seed}
        write_adapter(base.parent / name, strategy, settings, outputs, base=model, task=task, seed=seed)
    return {name: str(base.parent / name) for name in facts}


@pytest.fixture(scope="session")
def predictor(base: Path, adapters: dict[str, str]) -> SpafitPredictor:
    """What the command must say, said by the class."""
    made = SpafitPredictor(base, device="cpu")
    for name, folder in adapters.items():
        made.add(folder, name)
    return made


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def assert_says(row: dict[str, Any], predictor: SpafitPredictor) -> None:
    """A line holds the adapter's answer to its text."""
    text = row["text"] if isinstance(row["text"], str) else tuple(row["text"])
    answer = predictor.predict([text], row["adapter"])[0]
    assert (row["label"], row["truncated"]) == (answer.label, answer.truncated)
    assert row["value"] == (None if answer.value is None else pytest.approx(answer.value, abs=1e-5))
    assert row["scores"] == (None if answer.scores is None else pytest.approx(answer.scores, abs=1e-5))


# ---- texts in ----


def test_texts_on_the_command_line(adapters: dict[str, str], predictor: SpafitPredictor, capsys: Captured) -> None:
    assert main(["predict", adapters["film"], "--text", TEXT, "--text", "it rains"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, text in zip(lines, (TEXT, "it rains"), strict=True):
        answer = predictor.predict([text], "film")[0]
        assert line == f"{answer.label} {max((answer.scores or {}).values()):.3f}\t{text}"


def test_a_pair_goes_to_the_adapters_that_read_pairs(
    adapters: dict[str, str], predictor: SpafitPredictor, capsys: Captured
) -> None:
    assert main(["predict", *adapters.values(), "--text", PAIR[0], "--text_pair", PAIR[1]]) == 0
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines] == ["same", "score"]
    assert err.splitlines()[-1] == "Adapters that were not asked, since there are no single texts here: film."
    assert lines[1][1] == f"{predictor.predict([PAIR], 'score')[0].value:.3f}"
    assert lines[0][2] == "it rains | a dull film"


def test_an_adapter_for_pairs_that_gets_none_is_named(adapters: dict[str, str], capsys: Captured) -> None:
    assert main(["predict", *adapters.values(), "--text", TEXT]) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith("since there are no pairs here: same.")
    assert main(["predict", adapters["film"], adapters["score"], "--text", TEXT]) == 0
    assert "not asked" not in capsys.readouterr().err


def test_lines_of_stdin(
    adapters: dict[str, str], predictor: SpafitPredictor, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin(monkeypatch, f"{TEXT}\nit rains\n")
    assert main(["predict", adapters["film"], "--json"]) == 0
    rows = json_lines(capsys.readouterr().out)
    assert [row["text"] for row in rows] == [TEXT, "it rains"]
    for row in rows:
        assert_says(row, predictor)


@pytest.mark.parametrize("from_stdin", [True, False])
def test_json_lines_in_and_out(
    from_stdin: bool,
    adapters: dict[str, str],
    predictor: SpafitPredictor,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [{"text": TEXT, "adapter": "film", "id": 7}, {"text": PAIR, "adapter": "same"}, {"text": TEXT}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    stdin(monkeypatch, lines if from_stdin else "")
    monkeypatch.setattr(command, "ROWS_AT_A_TIME", 2)
    output = tmp_path / "answers.jsonl"
    source = "-" if from_stdin else str(tmp_path / "rows.jsonl")
    assert main(["predict", *adapters.values(), "--file", source, "--output", str(output)]) == 0
    assert capsys.readouterr().out == ""
    answers = json_lines(output.read_text(encoding="utf-8"))
    assert [answer["adapter"] for answer in answers] == ["film", "same", "film", "score"]
    assert answers[0]["id"] == 7
    for answer in answers:
        assert_says(answer, predictor)


def test_names_limits_and_another_place_of_the_base(adapters: dict[str, str], base: Path, capsys: Captured) -> None:
    flags = ["--base", str(base), "--text", TEXT, "--json", "--batch_size", "1", "--max_adapter_bytes", "30000"]
    assert main(["predict", f"one={adapters['film']}", f"two={adapters['film']}", *flags]) == 0
    one, two = json_lines(capsys.readouterr().out)
    assert (one.pop("adapter"), two.pop("adapter")) == ("one", "two")
    assert one == two


def test_what_was_cut_off_is_said(adapters: dict[str, str], capsys: Captured) -> None:
    texts = ["--text", f"{TEXT} it rains", "--text", "it rains"]
    assert main(["predict", adapters["film"], "--max_length", "5", *texts]) == 0
    captured = capsys.readouterr()
    assert [line.endswith("(its end was cut off)") for line in captured.out.splitlines()] == [True, False]
    assert "too long for the base and lost their end: 1 of 2." in captured.err


# ---- user errors ----


@pytest.mark.parametrize(
    ("flags", "given", "sentence"),
    [
        (["--text", " "], "", "text 0 is empty"),
        (["--text", "a", "--text_pair", "b", "--text_pair", "c"], "", "there are 1 --text and 2 --text_pair"),
        (["--text", "a", "--file", "rows.jsonl"], "", "--text and --file were both given"),
        (["--text", "it rains", "--text_pair", "a film"], "", "is a pair, and no adapter here was trained on such"),
        (["--file", "nowhere.jsonl"], "", "nowhere.jsonl"),
        ([], "", "there are no texts"),
        (["--text", "a", "--output", "nowhere/x"], "", "nowhere/x cannot be written: there is no folder nowhere"),
        ([], "a film\n\n", "line 2 of stdin is empty"),
        (["--file", "-"], "a film", "line 1 of stdin is not JSON"),
        (["--file", "-"], '{"text": "a film"}\n' + "[" * 200_000, "line 2 of stdin is nested too deeply"),
        (["--file", "-"], '{"text": "a", "id": ' + "1" * 5000 + "}", "line 1 of stdin is not JSON (Exceeds"),
        (["--max_length", "1", "--text", "a film"], "", "texts would be cut to 1 tokens"),
        (["--file", "-"], '{"text": "a", "id": 1e999}', "line 1 of stdin is not JSON (1e999 is no number of JSON)"),
        (["--file", "-"], '{"text": "a", "id": NaN}', "line 1 of stdin is not JSON (NaN is no number of JSON)"),
        (["--file", "-"], '{"sentence": "a"}', 'line 1 of stdin has no "text"'),
        (["--file", "-"], '{"text": ["a"]}', '"text" must be a string or a list of two strings'),
        (["--file", "-"], '{"text": ["a", ""]}', "line 1 of stdin has an empty text"),
        (["--file", "-"], '{"text": "a", "label": 1}', "has 'label', which the answer would overwrite"),
        (["--file", "-"], '{"text": "a", "adapter": 1}', '"adapter" must be the name'),
        (["--file", "-"], '{"text": "a", "adapter": "flim"}', "Did you mean 'film'?"),
        (["--file", "-"], '{"text": ["a", "b"], "adapter": "film"}', "'film' was trained on single texts"),
    ],
)
def test_user_errors(
    flags: list[str],
    given: str,
    sentence: str,
    adapters: dict[str, str],
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stdin(monkeypatch, given)
    assert main(["predict", adapters["film"], *flags]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert (captured.out, "Traceback" in captured.err) == ("", False)


def test_a_file_is_kept_until_there_is_an_answer(adapters: dict[str, str], tmp_path: Path, capsys: Captured) -> None:
    output = tmp_path / "answers.jsonl"
    output.write_text("precious")
    FAMILIES["gpt2"].classifier(FAMILIES["gpt2"].config()).save_pretrained(tmp_path / "other")
    assert main(["predict", adapters["film"], "--file", str(output), "--output", str(output)]) == 2
    assert "it is read by the same command; name another file" in capsys.readouterr().err
    asked = ["predict", adapters["film"], "--text", "a film", "--output", str(output)]
    assert main([*asked, "--base", str(tmp_path / "other")]) == 2
    assert output.read_text() == "precious"
    assert main(asked) == 0
    assert json_lines(output.read_text())[0]["text"] == "a film"


@pytest.mark.parametrize("flags", [["--file", "-"], ["--file", "rows.jsonl"], []])
def test_bytes_that_are_no_utf_8_are_named(
    flags: list[str], adapters: dict[str, str], tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b'{"text": "a film"}\n{"text": "caf\xe9"}\n'
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    assert main(["predict", adapters["film"], *flags]) == 2
    name = "rows.jsonl" if "rows.jsonl" in flags else "stdin"
    assert capsys.readouterr().err == f"spafit: line 2 of {name} is not UTF-8; save the text as UTF-8.\n"


@pytest.mark.parametrize("flags", [["--file", "-"], ["--file", "rows.jsonl"], []])
def test_a_mark_of_the_encoding_is_no_text(
    flags: list[str], adapters: dict[str, str], tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (json.dumps({"text": TEXT}) if flags else TEXT).encode("utf-8-sig") + b"\r\n"
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    assert main(["predict", adapters["film"], "--json", *flags]) == 0
    assert [row["text"] for row in json_lines(capsys.readouterr().out)] == [TEXT]


@pytest.mark.parametrize(("encoding", "accented"), [("utf-8", "é"), ("ascii", r"\u00e9")])
def test_half_a_character_is_passed_on_escaped(
    encoding: str, accented: str, adapters: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin(monkeypatch, r'{"text": "it rains", "id": "\ud83d", "of": "\u00e9"}')
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding, newline="\n"))
    output = tmp_path / "answers.jsonl"
    assert main(["predict", adapters["film"], "--file", "-", "--json", "--output", str(output)]) == 0
    printed = written.getvalue().decode(encoding)
    for line, letter in ((printed, accented), (output.read_text(encoding="utf-8"), "é")):
        assert rf'"id": "\ud83d", "of": "{letter}"' in line
        assert json.loads(line)["id"] == "\ud83d"
    assert main(["predict", adapters["film"], "--text", "it raîns"]) == 0
    assert ("it raîns" if encoding == "utf-8" else r"it ra\xeens") in written.getvalue().decode(encoding)


def test_what_a_shell_closed_is_not_read_or_written(
    adapters: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["predict", adapters["film"]]) == 2
    assert "there are no texts" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdout", None)
    assert main(["predict", adapters["film"], "--text", TEXT, "--output", str(tmp_path / "answers.jsonl")]) == 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1
    sys.stdin.close()
    sys.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 20_000])
def test_a_reader_that_has_enough_ends_it_quietly(adapters: dict[str, str], tmp_path: Path, count: int) -> None:
    (theirs, lines), (reader, answers) = Pipe(duplex=False), Pipe(duplex=False)
    log, argv = tmp_path / "errors", ["-m", "spafit_hf.cli", "predict", adapters["film"], "--json"]
    program = Program(argv, log=log, pipes={0: theirs, 1: answers})
    theirs.close()
    answers.close()
    reader.close()  # before the first answer, as `head` does after the first line
    with open(os.dup(lines.fileno()), "wb") as text:
        lines.close()
        text.write(b"it rains\n" * count)
    assert (program.wait(), log.read_text()) == (141, "")


def test_folders_that_cannot_be_served(adapters: dict[str, str], tmp_path: Path, capsys: Captured) -> None:
    assert main(["predict", adapters["film"], adapters["film"], "--text", TEXT]) == 2
    assert "two adapters would be called 'film'" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "nowhere"), "--text", TEXT]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_an_adapter_whose_base_is_not_here(base: Path, tmp_path: Path, capsys: Captured) -> None:
    gone = tmp_path / "gone"
    hf.AutoModelForSequenceClassification.from_pretrained(base).save_pretrained(gone)
    model = hf.AutoModelForSequenceClassification.from_pretrained(gone)
    folder = write_adapter(tmp_path / "adapter", "bitfit", {}, 2, base=model)
    gone.rename(tmp_path / "moved")
    assert main(["predict", str(folder), "--text", TEXT]) == 2
    assert "which is not here; give it: --base FOLDER" in capsys.readouterr().err
    assert main(["predict", str(folder), "--text", TEXT, "--base", str(base)]) == 0
    sidecar = folder / "spafit_config.json"
    sidecar.write_text(sidecar.read_text().replace(str(gone), "gone/"))  # as a push leaves of a path
    assert main(["predict", str(folder), "--text", TEXT]) == 2
    assert "was trained on the base in gone/, which is not here" in capsys.readouterr().err

"""The command as a user meets it: what it prints, what it writes, and how it says no."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from datasets import DatasetDict
from hostile import edit
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import pipeline

from spafit_hf.cli import ONEDNN_CACHES, ONEDNN_ENTRIES, main
from spafit_hf.data import TextData
from spafit_hf.run import RunData
from spafit_hf.run.classification import CLASSIFICATION


def test_evaluate_repeats_the_result(trained: Path, reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained), "--validation_file", str(reviews), "--text_columns", "review",
                 "--label_column", "verdict", "--json"]) == 0  # fmt: skip
    printed = capsys.readouterr()
    assert json.loads(printed.out)["validation"]["accuracy"] > 0.8
    assert "Tokenizing" not in printed.err


def test_evaluate_cuts_texts_as_the_training_did(
    trained: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "cut", ignore=shutil.ignore_patterns("checkpoint-*")))
    rows = ["--validation_file", str(reviews), "--text_columns", "review", "--label_column", "verdict"]

    def printed(*flags: str) -> list[str]:
        assert main(["evaluate", str(folder), *rows, *flags]) == 0
        return capsys.readouterr().out.splitlines()[-2:]

    whole, note = printed()
    assert note == "texts cut after 128 tokens (as in training)"
    edit(folder, "spafit_results.json", data={"max_length": 3})
    cut, note = printed()
    assert note == "texts cut after 3 tokens (as in training)"
    assert cut != whole
    assert printed("--max_length", "3")[0] == cut
    assert printed("--max_length", "128") == [whole, "texts cut after 128 tokens (as given)"]
    assert main(["evaluate", str(folder), *rows, "--json"]) == 0
    printed_json = capsys.readouterr()
    assert "accuracy" in json.loads(printed_json.out)["validation"]
    assert printed_json.err.endswith(f"{note}\n")
    (folder / "spafit_results.json").unlink()
    assert printed() == [whole, f"texts cut after 128 tokens (the default; {folder} names no other)"]
    (folder / "spafit_results.json").write_text("[]")
    assert main(["evaluate", str(folder), *rows]) == 2
    assert "how long texts were in training" in capsys.readouterr().err


def test_merge_writes_a_folder_for_pipeline(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(trained), str(tmp_path / "merged")]) == 0
    printed = capsys.readouterr()
    assert str(tmp_path / "merged") in printed.out
    assert "Writing" not in printed.err
    classify = pipeline("text-classification", str(tmp_path / "merged"))
    assert [found["label"] for found in classify(["a warm film", "a dull film"])] == ["good", "bad"]


def test_export_and_back_gives_the_same_tensors(trained: Path, tmp_path: Path) -> None:
    assert main(["export", str(trained), str(tmp_path / "native"), "--to", "native"]) == 0
    assert main(["export", str(tmp_path / "native"), str(tmp_path / "peft"), "--to", "peft"]) == 0
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (trained, tmp_path / "peft"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_evaluate_refuses_other_labels(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.csv").write_text("text,label\na warm film,yes\na dull film,no\n")
    assert main(["evaluate", str(trained), "--validation_file", str(tmp_path / "other.csv")]) == 2
    assert "the model's labels are ['bad', 'good']" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("text,label\na warm film,good\n")
    evaluate = ["evaluate", str(trained), "--validation_file", str(tmp_path / "other.csv")]
    assert main(evaluate) == 2
    assert "or name every class (--labels" in capsys.readouterr().err
    assert main([*evaluate, "--labels", "good,bad"]) == 2
    assert "name them as the model does: --labels bad,good." in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("text,label\na warm film,1\na dull film,0\n")
    assert main(evaluate) == 2
    assert "if these are the ids of the model's, name those: --labels bad,good." in capsys.readouterr().err
    assert main([*evaluate, "--labels", "bad,good"]) == 0
    (tmp_path / "other.csv").write_text("text,more,label\na warm film,a plot,good\na dull film,a plot,bad\n")
    assert main([*evaluate, "--text_columns", "text,more"]) == 2
    assert "is read: text, more; measure on single texts, as in --text_columns text." in capsys.readouterr().err


def test_whole_numbers_are_told_how_a_model_of_one_number_is_measured() -> None:
    model = SimpleNamespace(config=SimpleNamespace(id2label={0: "score"}))
    data = RunData(TextData(DatasetDict(), ("text",), "rows", labels=("1", "2")), "rows", ("accuracy",))
    with pytest.raises(ValueError, match="if these are numbers to predict, say so: --regression true"):
        CLASSIFICATION.check(model, data)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "name one source of data: --task, --dataset, or --validation_file; found none of them."),
        ("--task rte --validation_file a.csv", "--validation_file; found --task and --validation_file."),
        ("--task rte --batch_size 0", "--batch_size is 0; it must be at least 1."),
    ],
)
def test_evaluate_speaks_of_its_own_flags(
    flags: str, said: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained), *flags.split()]) == 2
    assert said in capsys.readouterr().err


def test_an_output_in_use_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(trained), str(trained)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "/run"])
@pytest.mark.parametrize(
    "command",
    [
        "train --train_file x.csv --output_dir",
        "suggest embedded --train_file x.csv --output_dir",
        "quickstart --output_dir",
        "reproduce --output",
    ],
)
def test_an_output_that_is_a_file_is_refused_at_once(
    command: str, below: str, reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), f"{reviews}{below}"]) == 2
    assert f"cannot be a folder, since {reviews} is a file; name another one" in capsys.readouterr().err


def test_a_whole_model_is_no_adapter(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(trained), str(tmp_path / "merged")]) == 0
    for command in (["predict", "--text", "a warm film"], ["merge", str(tmp_path / "again")]):
        assert main([command[0], str(tmp_path / "merged"), *command[1:]]) == 2
        assert "merged holds a whole model and no adapter: pipeline() loads it, and `spafit" in capsys.readouterr().err


def hurt(folder: Path, file: str, content: bytes | None = None) -> None:
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2] if content is None else content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights cut short": lambda folder: hurt(folder, "adapter_model.safetensors"),
    "no weights": lambda folder: hurt(folder, "adapter_model.safetensors", b""),
    "a task of 10 ** 400": lambda folder: edit(folder, "spafit_config.json", task={"name": 10**400}),
    "a task that is a list": lambda folder: edit(folder, "spafit_config.json", task=[[["mrpc"]]]),
    "a control character": lambda folder: edit(folder, "adapter_config.json", **{"\x1b[2J\n\x07": 1}),
    "four megabytes": lambda folder: edit(folder, "adapter_config.json", peft_type="x" * 4_000_000),
    "a pipe": lambda folder: ((folder / "spafit_config.json").unlink(), os.mkfifo(folder / "spafit_config.json")),
    "a tokenizer cut short": lambda folder: hurt(folder, "tokenizer.json"),
    "a tokenizer of lists": lambda folder: hurt(folder, "tokenizer_config.json", b"[" * 100_000),
    "a length of 10 ** 400": lambda folder: edit(folder, "tokenizer_config.json", model_max_length=10**400),
    "facts of 10 ** 400": lambda folder: edit(folder, "spafit_results.json", trained_parameters=10**400),
    "facts that are none": lambda folder: hurt(folder, "spafit_results.json", b"[]"),
}
#: Damages of files that a command does not read, or copies as they are.
UNREAD = {
    "card": ("weights", "tokenizer", "length", "control"),
    "export": ("facts", "a tokenizer", "a length"),
    "predict": ("facts",),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["evaluate", "export", "predict", "card"])
def test_a_damaged_folder_is_one_sentence(
    command: str, damage: str, trained: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "hurt", ignore=shutil.ignore_patterns("checkpoint-*")))
    DAMAGES[damage](folder)
    more = {
        "evaluate": ["--validation_file", str(reviews), "--text_columns", "review", "--label_column", "verdict"],
        "export": [str(tmp_path / "out"), "--to", "native"],
        "predict": ["--text", "a warm film"],
        "card": [],
    }
    status = main([command, str(folder), *more[command]])
    err = capsys.readouterr().err
    if status == 0:
        assert any(words in damage for words in UNREAD[command])
        return
    (sentence,) = [line for line in err.splitlines() if line.startswith("spafit: ")]
    assert status == 2
    assert len(sentence) < 1100
    assert sentence.isprintable()
    assert "not foreseen" not in sentence
    files = ("adapter_config.json", "spafit_config.json", "spafit_results.json", "adapter_model.safetensors")
    assert any(name in sentence for name in (str(folder), *files))


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError("deep"), RuntimeError("PytorchStreamReader failed")])
def test_what_was_not_foreseen_is_one_sentence_too(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("spafit_hf.planner.plan_what_fits", Mock(side_effect=error))
    assert main(["plan", "x"]) == 2
    assert capsys.readouterr().err.startswith(f"spafit: {type(error).__name__}: ")
    monkeypatch.setenv("SPAFIT_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(["plan", "x"])


def test_an_error_of_a_file_names_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("spafit_hf.planner.plan_what_fits", lambda *_: tmp_path.read_text())
    assert main(["plan", "x"]) == 2
    assert capsys.readouterr().err == f"spafit: {tmp_path}: Is a directory\n"


@pytest.mark.parametrize("command", [["merge"], ["export", "--to", "native"]])
def test_a_full_disk_is_one_sentence(
    command: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", Mock(side_effect=full))
    monkeypatch.setattr("spafit_hf.adapter.write.save_file", Mock(side_effect=full))
    assert main([*command, str(trained), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert f"spafit: {tmp_path / 'out'} cannot be written" in err
    assert "the disk is full. Free some space" in err


@pytest.mark.parametrize("error", [OSError(28, "No space"), RuntimeError("PytorchStreamWriter failed writing file")])
def test_a_disk_that_fills_in_training_names_the_folder(
    error: Exception, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("spafit_hf.run.train", Mock(side_effect=error))
    assert main(["train", "--train_file", str(reviews), "--text_columns", "review", "--label_column", "verdict",
                 "--output_dir", str(tmp_path / "run")]) == 2  # fmt: skip
    err = capsys.readouterr().err
    assert f"spafit: {tmp_path / 'run'} cannot be written (--resume_from_checkpoint True goes on" in err
    assert "the disk is full" in err


def test_unknown_words_on_the_command_line() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", "somewhere", "--nonsense"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("forgetting a --probe_file b --probe_file c", "--probe_file: given twice; keep one."),
        ("evaluate a --max_length 3 --max_length=4", "--max_length: given twice; keep one."),
        ("train --seed 1 --learning-rate 1 --se 1", "--seed: given twice; keep one."),
        ("train --bf16 --bf16 false", "--bf16: given twice; keep one."),
        ("suggest a --budget time=1s --output_dir b --budget memory=1GB", "--budget: given twice; keep one."),
        ("reproduce --tasks rte --tasks mrpc", "--tasks: given twice; name all after one, with blanks between."),
    ],
)
def test_a_flag_given_twice_is_an_error(command: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_wrong_value_is_not_lost_among_all_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--seed", "x"])
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_the_command_line_bounds_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = ONEDNN_CACHES
    monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(other, "500")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert (os.environ[one], os.environ[other]) == (ONEDNN_ENTRIES, "500")

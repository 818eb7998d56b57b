"""spafit forgetting, from its flags to the table, the file, the picture and the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forgetting_run import TEXTS, write_adapter, write_lm
from models import tiny

from spafit_hf.card.forgetting import FORGETTING_FILE, Forgetting, forgetting_page
from spafit_hf.cli import main
from spafit_hf.cli.forgetting import read_texts

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lm(tmp_path_factory.mktemp("base"), "masked")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(base, tmp_path_factory.mktemp("runs") / "strata", "spafit-12-18-II")


def test_a_table_a_file_a_picture_and_a_section_of_the_card(
    adapter: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\ufeff" + "\r\n\n".join(TEXTS), encoding="utf-8")
    picture, again = tmp_path / "drift.png", adapter / FORGETTING_FILE
    probe = ["--probe_file", str(reviews), "--text_columns", "review", "--label_column", "verdict"]
    flags = ["forgetting", f"A | B={adapter}", *probe, "--json", str(again), "--picture", str(picture)]
    assert main([*flags, "--text", str(texts), "--max_texts", "10", "--max_probe_rows", "40"]) == 0
    printed, err = capsys.readouterr()
    assert err == ""
    report = Forgetting.read(again)
    assert printed == forgetting_page(report) + "\n"
    assert (report.text, report.texts, report.rows[0].transfers[0].rows) == ("texts.txt", 10, 40)
    assert "| A \\| B, adapter on |" in printed
    off = report.rows[1]
    assert (off.transfers[0].change, off.transfers[0].error, off.likelihood.kl) == (0, 0, 0)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["card", str(adapter)]) == 0
    assert "## What was forgotten\n\nMeasured against " in (adapter / "README.md").read_text()
    capsys.readouterr()
    assert main([*flags[:-4], "--base", str(adapter.parent), "--max_texts", "10"]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_texts", "1"], "--max_texts must be 2 or more"),
        (["--text", "nowhere.txt"], "the file of texts nowhere.txt is not there"),
        (["--text", "one.txt"], "one.txt holds 1 texts; at least two"),
        (["--text", "odd.txt"], "odd.txt is not UTF-8 (byte 0"),
        (["--text", "two.txt", "--base", "bare"], "the base 'bare' cannot be loaded"),
        (["--json", "nowhere/x.json"], "nowhere/x.json cannot be written: there is no folder nowhere; make it"),
        (["--text", "two.txt", "--json", "./two.txt"], "two.txt cannot be written: it is read by the same command"),
        (["--probe_file", "few.csv", "--picture", "few.csv"], "few.csv cannot be written: it is read by the same"),
        (["--json", "new", "--picture", "new"], "--json and --picture are both new; name two files"),
        (["--picture", "bare"], "bare cannot be written: it is a folder; name a file in it"),
        (["--text", "two.txt", "--text_columns", "text"], "--text_columns is for --probe_file, which was not given"),
        (["--text", "two.txt", "--max_length", "0"], "texts would be cut to 0 tokens, and at least 5 are needed"),
        (["--text", "two.txt", "--probe_task", "causal-lm"], "'causal-lm' is not a GLUE task"),
        (["--text", "two.txt", "--data_dir", "x"], "--data_dir is for --probe_task, which was not given"),
        (["--text", "two.txt", "--probe_file", "few.csv"], "2 of the rarest kind; 5 of each are needed"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    Path("one.txt").write_text("a film\n\na film\n")
    Path("two.txt").write_text("a film\na plot\n")
    Path("odd.txt").write_bytes(b"\xff")
    Path("few.csv").write_text("text,label\n" + "a film,0\na plot,1\n" * 2)
    assert main(["forgetting", str(adapter), *flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_models_of_another_base_are_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a film\na plot\n")
    for name, model, message in (
        ("wide", tiny("bert", hidden_size=8), "is not of the base"),
        ("deep", tiny("bert", num_hidden_layers=5), "wide has 5 layers"),
        ("gpt", tiny("gpt2"), "is not of the base"),
        ("t5", tiny("t5"), "wide is an encoder-decoder and"),
    ):
        model.save_pretrained(tmp_path / name)
        flags = [f"wide={tmp_path / name}", "--base", str(base), "--text", str(texts)]
        assert main(["forgetting", *flags]) == 2
        assert message in capsys.readouterr().err
    assert main(["forgetting", str(tmp_path / "wide"), "--text", str(texts)]) == 2
    assert "does not name what it was tuned from; give it: --base FOLDER" in capsys.readouterr().err


def test_texts_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("a\x85b\r\n \n\u2028c\n".encode())  # signs at which str.splitlines() ends a line
    assert read_texts(path) == ["a\x85b", "c"]
    path.write_text("x" * (2**16 + 1))
    with pytest.raises(ValueError, match=r"a line of .* has 65,537 characters"):
        read_texts(path)
    monkeypatch.setattr("spafit_hf.cli.forgetting.MOST_BYTES", 10)
    with pytest.raises(ValueError, match="has 65,537 bytes; at most 10 are read"):
        read_texts(path)


def test_the_page_is_written_from_the_files_and_says_what_they_do() -> None:
    report = Forgetting.read(DOCS / "forgetting" / FORGETTING_FILE)
    trained = {"full": "full", "BitFit": "bitfit", "LoRA-II": "lora-II", "SPAFIT": "spafit-4-9-II"}
    results = {name: json.loads((DOCS / "forgetting" / f"{run}.json").read_text()) for name, run in trained.items()}
    scores = ", ".join(f"{name} {found['metrics']['validation']['accuracy']:.3f}" for name, found in results.items())
    page = (DOCS / "choosing.md").read_text()
    printed = page.partition("<!-- forgetting: begin -->\n")[2].partition("<!-- forgetting: end -->")[0]
    assert printed == f"Accuracy on SST-2: {scores}.\n\n{forgetting_page(report)}\n"
    full, bitfit, *adapters = report.rows
    assert [row.name for row in adapters] == ["LoRA-II", "LoRA-II", "SPAFIT", "SPAFIT"]
    assert [row.state for row in adapters] == ["on", "off", "on", "off"]
    assert all(row.distance > 0 and all(layer.equal == 0 for layer in row.layers) for row in (full, bitfit))
    assert full.equal_tensors == 0 < bitfit.equal_tensors < bitfit.tensors
    for row in adapters[1::2]:
        assert row.equal_tensors == row.tensors
        assert {(layer.cosine, layer.cka, layer.equal) for layer in row.layers} == {(1, 1, report.tokens)}
    spafit = adapters[2]
    assert spafit.frozen == 1
    assert [layer.equal == report.tokens for layer in spafit.layers] == [True] + [False] * 5

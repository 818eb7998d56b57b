"""`spafit plan`: tables and JSON on stdout, a sentence on stderr and status 2 for what a user got wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AlbertConfig, AutoConfig, BertConfig, FNetConfig, PretrainedConfig, ResNetConfig

from spafit_hf.cli import main
from spafit_hf.strategy import METHODS, Strategy, Stratum


def spafit(*arguments: object) -> int:
    return main(["plan", *map(str, arguments)])


@pytest.fixture(scope="module")
def bert_large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert-large-cased")
    config = BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=28996
    )
    config.architectures = ["BertForMaskedLM"]  # as on the Hub
    config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    sizes = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 64}
    BertConfig(vocab_size=50, **sizes).save_pretrained(folder)
    return folder


COUNTS = {
    "full": 333_582_339,
    "lora-I": 9_440_259,
    "lora-II": 12_585_987,
    "spafit-8-12-I": 4_441_091,
    "spafit-8-12-II": 5_882_883,
    "spafit-8-16-II": 3_806_211,
    "spafit-4-9-I": 5_650_435,
    "spafit-4-9-II": 7_485_443,
    "spafit-4-14-II": 4_889_603,
}


def test_the_papers_counts(bert_large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spafit(bert_large, "--num-labels", 3, "--json") == 0
    plans = json.loads(capsys.readouterr().out)
    assert [each["strategy"]["name"] for each in plans] == list(METHODS)
    counts = {each["strategy"]["name"]: each["trainable_parameters"] for each in plans}
    assert {name: counts[name] for name in COUNTS} == COUNTS
    assert spafit(bert_large / "config.json", "SPAFIT-4-9-II", "--num-labels", 3, "--json") == 0
    assert json.loads(capsys.readouterr().out)["trainable_parameters"] == 7_485_443


def test_without_a_strategy_all_methods_are_compared(bert_large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spafit(bert_large, "--num-labels", 3, "--seq", 64) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[3:14]] == list(METHODS)
    assert "spafit-4-9-II     7,485,443    2.24 %" in out
    assert "31.52 M" in out


STRATA = [name for name in METHODS if name.startswith("spafit-")]
#: Model -> reason -> the methods that it refuses for it.
REFUSALS: dict[str, tuple[PretrainedConfig, dict[str, list[str]]]] = {
    "albert": (
        AlbertConfig(num_hidden_layers=6, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=50),
        {"cuts 6 layers into strata, and model type 'albert' has no strata: it uses one set of weights": STRATA},
    ),
    "resnet": (
        ResNetConfig(hidden_sizes=[8, 8], depths=[1, 1]),
        {"model type 'resnet': LoRA and biases": [each for each in METHODS if each not in ("full", "linear-probe")]},
    ),
    "fnet": (
        FNetConfig(num_hidden_layers=6, hidden_size=32, intermediate_size=64, vocab_size=50),
        {
            "puts LoRA on query, key, value, and": [name for name in METHODS if name.endswith("-I")],
            "puts LoRA on query, key, value, attention_output, and": [
                name for name in METHODS if name.endswith("-II")
            ],
        },
    ),
}


@pytest.mark.parametrize("model", REFUSALS)
def test_what_a_model_refuses_is_said_once_for_each_reason(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, reasons = REFUSALS[model]
    config.save_pretrained(tmp_path)
    refused = [name for name in METHODS if any(name in names for names in reasons.values())]
    fit = [name for name in METHODS if name not in refused]
    assert spafit(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3 : 3 + len(fit)]] == fit
    whys = [line for line in lines if line.startswith("refused")]
    for (reason, names), line in zip(reasons.items(), whys, strict=True):
        assert line.startswith(f"refused: {', '.join(names)}: {reason}")
    assert spafit(tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["strategy"]["name"] for each in found] == [*fit, *refused]
    assert [each["strategy"]["name"] for each in found if "refused" in each] == refused
    assert spafit(tmp_path, refused[0]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert " ".join(found[len(fit)]["refused"].split()) in printed.err


def test_a_hub_id(monkeypatch: pytest.MonkeyPatch, bert_large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = AutoConfig.from_pretrained
    asked: list[str] = []

    def hub(name: str, **_: Any) -> Any:
        asked.append(name)
        return real(bert_large)

    monkeypatch.setattr(AutoConfig, "from_pretrained", hub)
    assert spafit("google-bert/bert-large-cased", "spafit-4-9-II", "--num-labels", 3) == 0
    assert asked == ["google-bert/bert-large-cased"]
    assert "7,485,443" in capsys.readouterr().out


def test_one_strategy(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spafit(small, "spafit-4-9-II", "--lora-r", 4, "--lora-alpha", 8, "--batch", 8, "--seq", 32, "--layers") == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "spafit-4-9-II on BertForSequenceClassification (6 layers, 2 labels)\nscaled from 24 -> 6 layers"
    )
    assert "LoRA q,k,v,o r=4 alpha=8" in out
    assert "for 8 x 32 tokens" in out
    assert "    5  L " in out


def test_bounds_of_ones_own(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spafit(small, "spafit-4-9-I", "--n1", 0, "--n2", 3, "--lora-r", 4, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert Strategy.from_dict(data["strategy"]) == Strategy.from_bounds(0, 3, "I", r=4)
    assert [group["layers"] for group in data["groups"]] == [[0], [1, 2, 3], [4, 5], []]
    assert spafit(small, "--n1", 0, "--n2", 3) == 0
    assert capsys.readouterr().out.startswith("spafit-0-3-II-absolute on")


def test_a_strategy_file(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strategy = Strategy((Stratum((0.5, 1.0), lora=("value",), r=2),), name="upper half")
    for file in (tmp_path / "mine.yaml", tmp_path / "mine.json"):
        strategy.to_file(file)
        assert spafit(small, file, "--json") == 0
        data = json.loads(capsys.readouterr().out)
        assert Strategy.from_dict(data["strategy"]) == strategy
        assert [group["layers"] for group in data["groups"]] == [[0, 1, 2], [3, 4, 5], []]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bitft",), "did you mean 'bitfit'"),
        (("spafit-9-4-II",), "N1 = 9 is beyond N2 = 4"),
        (("nowhere.yaml",), "the strategy cannot be read"),
        (("--n1", "1"), "--n1 and --n2 go together"),
        (("bitfit", "--n1", "1", "--n2", "2"), "has no such bounds"),
        (("--n1", "1", "--n2", "6"), "beyond the last layer: there are 6"),
        (("lora-I", "--lora-r", "0"), "rank of LoRA must be an integer of at least 1"),
        (("lora-I", "--num-labels", "0"), "num_labels is 0"),
        (("lora-I", "--seq", "0"), "seq is 0"),
        (("--batch", "-1"), "batch is -1"),
    ],
)
def test_what_a_user_gets_wrong(
    arguments: tuple[str, ...], message: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spafit(small, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("spafit: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert spafit(tmp_path / "nowhere") == 2
    assert "no such file or folder" in capsys.readouterr().err
    # The tests run offline, so this is what a user without a connection reads.
    assert spafit("google-bert/no-such-model-in-the-cache") == 2
    err = capsys.readouterr().err
    assert "could not be fetched from the Hub" in err
    assert "pass a folder with a config.json" in err


def test_where_an_error_comes_from(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPAFIT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="did you mean 'bitfit'"):
        spafit(small, "bitft")


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, argparse\n"
        "from spafit_hf.cli import plan\n"
        "parser = argparse.ArgumentParser()\n"
        "plan.add_parser(parser.add_subparsers())\n"
        "assert 'torch' not in sys.modules\n"
        "parser.parse_args(['plan', '--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "spafit plan google-bert/bert-large-cased" in done.stdout

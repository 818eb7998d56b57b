"""Folders that try to cost more than they should: refused or taken within bounds, and in one way."""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hostile
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from models import assert_equal, tensors, tiny
from safetensors.torch import load_file
from test_predictor import TEXTS, make_tokenizer

from spafit_hf import get_spafit_model, load_adapter, save_adapter
from spafit_hf.adapter import verify_adapter
from spafit_hf.card import CardFacts, render_card, write_card
from spafit_hf.hub import parcel
from spafit_hf.hub.files import sent
from spafit_hf.predictor import SpafitPredictor
from spafit_hf.words import SpafitError

FORK = multiprocessing.get_context("fork")  # a process whose memory is its own to measure, without importing anew
SECONDS, MEGABYTES = 2, 200


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "adapter"
    save_adapter(get_spafit_model(tiny("bert", 3), "spafit-4-9-II"), folder)
    write_card(folder)
    return folder


@pytest.fixture(scope="module")
def readers() -> dict[str, Callable[[Path], object]]:
    """Everything that reads a folder of a stranger."""
    base, served = tiny("bert", 3), SpafitPredictor(tiny("bert", 3), tokenizer=make_tokenizer())
    return {
        "verify": verify_adapter,
        "load": lambda folder: load_adapter(base, folder),
        "predict": lambda folder: served.add(folder, "a", own_tokenizer=False),
        "card": lambda folder: write_card(folder, force=True),
        "push": lambda folder: sent(parcel(folder)),
    }


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def answer(function: Callable[[], object]) -> str:
    """What a reader says against a folder; "" where it takes it. Anything but one bounded sentence fails."""
    try:
        function()
    except SpafitError as error:
        said = str(error)
    else:
        said = ""
    assert len(said) <= 1010
    assert said.isprintable()
    return said


def read(folder: Path, readers: dict[str, Callable[[Path], object]], answers: Connection) -> None:
    for name, reader in readers.items():
        begun, before, wrong = time.process_time(), resident(), ""
        try:
            answer(lambda reader=reader: reader(folder))
        except BaseException as error:  # noqa: BLE001  the test is told
            wrong = f"{type(error).__name__}: {error}"[:500]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answers.send((name, wrong, time.process_time() - begun, peak - before))


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_a_hostile_folder_costs_little_and_is_refused_in_one_way(
    kind: str, sound: Path, readers: dict[str, Callable[[Path], object]], tmp_path: Path
) -> None:
    folder = hostile.write(kind, sound, tmp_path / "adapter")
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=read, args=(folder, readers, theirs))
    process.start()
    theirs.close()
    for name in readers:
        reader, wrong, seconds, megabytes = ours.recv()
        assert (reader, wrong) == (name, "")
        assert seconds < SECONDS, reader
        assert megabytes < size + MEGABYTES, reader
    process.join()


def test_visitors_get_their_answers_while_hostile_adapters_come(sound: Path, tmp_path: Path) -> None:
    served = SpafitPredictor(tiny("bert", 3), tokenizer=make_tokenizer())
    served.add(sound, "sound")
    kinds = [
        "12,000 targets",
        "a header of 8 MB",
        "labels of a megabyte",
        "nested 900 deep",
        "a tokenizer of other parts",
    ]
    folders = [hostile.write(kind, sound, tmp_path / str(index)) for index, kind in enumerate(kinds)]
    texts = [" ".join(TEXTS[0] for _ in range(1 + index % 7)) for index in range(100)]
    alone = [served.predict_all(text) for text in texts]
    with ThreadPoolExecutor(20) as pool:
        refused = [pool.submit(answer, partial(served.add, folder, "b", own_tokenizer=True)) for folder in folders]
        together = list(pool.map(lambda text: served.predict_all(text, ["sound"]), texts))
    assert all(each.result() for each in refused)
    assert served.names == ("sound",)
    for one, other in zip(alone, together, strict=True):
        assert one["sound"].scores == pytest.approx(other["sound"].scores, abs=1e-6)


# ---- whatever stands in the files ----

#: The same examples in every run, within a few seconds.
FEW = settings(
    max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)
NUMBERS = st.one_of(st.integers(), st.sampled_from([10**400, -1, 2**31, 2**63]), st.floats())
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["query", "classifier", "(a+)+", "\x1b[2J", "\ud800", "bert.pooler.dense", ""]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=8,
)


def fuzzed(data: st.DataObject, value: dict[str, Any]) -> dict[str, Any]:
    """A copy with one to three of its parts replaced by anything, left out, or joined by something."""
    whole: dict[str, Any] = json.loads(json.dumps(value))
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = whole
        key: Any = None
        for _ in range(data.draw(st.integers(1, 4))):
            below = place if key is None else place[key]
            if not isinstance(below, (dict, list)) or not below:
                break
            place = below
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        change = data.draw(st.sampled_from(["replace", "replace", "leave out", "add"])) if key is not None else "add"
        if change == "replace":
            place[key] = data.draw(VALUES)
        elif change == "leave out":
            del place[key]
        elif isinstance(place, dict):
            place[data.draw(WORDS)] = data.draw(VALUES)
    return whole


@pytest.mark.parametrize("file", [hostile.CONFIG, hostile.SIDECAR])
def test_anything_in_a_configuration(file: str, sound: Path, tmp_path: Path) -> None:
    base = tiny("bert", 3)
    before = tensors(base)
    folder = hostile.copy(sound, tmp_path / "adapter")
    whole = json.loads((sound / file).read_text())

    @seed(0)
    @FEW
    @given(st.data())
    def check(data: st.DataObject) -> None:
        (folder / file).write_text(json.dumps(fuzzed(data, whole)))
        answer(lambda: load_adapter(base, folder).unload())
        assert_equal(tensors(base), before)

    check()


def test_anything_in_the_results(sound: Path) -> None:
    whole = {
        "format": 1, "method": "bitfit", "labels": ["a", "b"], "task_type": "SEQ_CLS", "command": "spafit train",
        "base": {"id": "ann/base", "revision": "a"}, "data": {"glue": "mrpc", "columns": ["a", "b"], "train_rows": 3},
        "layers": [{"name": "a", "stack": "b", "layers": [0, 1], "lora": ["query"], "r": 4, "lora_alpha": 8.0}],
        "scores": [{"split": "validation", "figures": {"f1": 0.5}, "rows": 4}], "main_figure": "f1", "best_step": 2,
        "steps": [{"step": 1, "train_loss": 0.5}, {"step": 2, "eval_loss": 0.5, "figures": {"f1": 0.5}}],
        "trained_parameters": 3, "total_parameters": 5, "file_bytes": 7, "full_file_bytes": 9,
        "examples": [["a", "b"]], "hyperparameters": {"seed": 1}, "versions": {"a": "1"},
        "cost": {"seconds": 1.0},
    }  # fmt: skip

    @seed(0)
    @FEW
    @given(st.data())
    def check(data: st.DataObject) -> None:
        text = json.dumps(fuzzed(data, whole))
        answer(lambda: render_card(CardFacts.from_json(text)))

    check()


def test_anything_in_the_header_of_the_weights(sound: Path, tmp_path: Path) -> None:
    base = tiny("bert", 3)
    before = tensors(base)
    folder = hostile.copy(sound, tmp_path / "adapter")
    content = (sound / hostile.WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header, numbers = json.loads(content[8:end]), content[end:]
    assert header.keys() - {"__metadata__"} == load_file(sound / hostile.WEIGHTS).keys()

    @seed(0)
    @FEW
    @given(st.data())
    def check(data: st.DataObject) -> None:
        hostile.write_header(folder, fuzzed(data, header), numbers)
        answer(lambda: load_adapter(base, folder).unload())
        assert_equal(tensors(base), before)

    check()

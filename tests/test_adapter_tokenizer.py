"""Tokenizers that come with adapters: the base's serves, a stranger's is not run, and one that is wanted is tried."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import tiny
from test_predictor import TEXTS, make_tokenizer, write_adapter
from tokenizers import Tokenizer

from spafit_hf.adapter import AdapterError
from spafit_hf.adapter import tokenizer as module
from spafit_hf.hub import Pulled
from spafit_hf.predictor import SpafitPredictor
from spafit_hf.predictor.text import encode

GROW = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaa"}
EXPRESSION = {"type": "Split", "pattern": {"Regex": "(a|a)*b"}, "behavior": "Isolated", "invert": False}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("tokenizers") / "adapter", "bitfit", {}, 2)


def with_rules(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """An adapter's folder with the base's tokenizer, changed."""
    make_tokenizer().save_pretrained(folder)
    rules = json.loads((folder / "tokenizer.json").read_text())
    change(rules)
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    return folder


CHANGES = {
    "a text that grows": lambda rules: rules.update(normalizer={"type": "Sequence", "normalizers": [GROW] * 3}),
    "an expression": lambda rules: rules.update(pre_tokenizer=EXPRESSION),
    "no object": lambda rules: rules.update(normalizer=[[]]),
    "no list": lambda rules: rules.update(normalizer={"type": "Sequence", "normalizers": 3}),
    "an unhashable type": lambda rules: rules.update(normalizer={"type": []}),
    "many parts": lambda rules: rules.update(
        normalizer={"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 99}
    ),
    "a text twice": lambda rules: rules["post_processor"]["single"].extend(rules["post_processor"]["single"]),
    "words without end": lambda rules: rules.update(
        model={"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "continuing_subword_prefix": "##"}
        | {"max_input_chars_per_word": 10**9}
    ),
    "pieces without end": lambda rules: rules.update(
        model={"type": "Unigram", "unk_id": 0, "vocab": [["a" * length, -1.0] for length in range(1, 300)]}
    ),
    "an unknown model": lambda rules: rules["model"].update(type="Surprise"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_strangers_program_is_not_run(
    change: Callable[..., Any], adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    folder = with_rules(shutil.copytree(adapter, tmp_path / "own"), change)
    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    monkeypatch.setattr(
        "spafit_hf.adapter.load.fetch_adapter", lambda repo, **_: Pulled(folder, repo, "main", "0" * 40, ())
    )
    served = SpafitPredictor(tiny("bert"), tokenizer=make_tokenizer())
    with pytest.raises(AdapterError, match=r"the tokenizer in .* cannot be (used|read)"):
        served.add(folder, "here")
    facts = served.add("user/own", "hub")
    assert served._entries["hub"].tokenizer is served._base.tokenizer
    assert facts.tokenizer.startswith(("it has another", "it cannot be read"))
    assert f"The tokenizer of user/own is not used, the base's is: {facts.tokenizer}" in caplog.text
    served._cache.drop(served._entries["hub"])
    assert served.predict(TEXTS, "hub")  # the folder is read again, and has not changed


def test_a_plain_one_of_a_folder_is_tried_and_used(adapter: Path, tmp_path: Path) -> None:
    folder = with_rules(
        shutil.copytree(adapter, tmp_path / "lower"), lambda rules: rules.update(normalizer={"type": "Lowercase"})
    )
    served = SpafitPredictor(tiny("bert"), tokenizer=make_tokenizer())
    assert served.add(folder, "not", own_tokenizer=False).tokenizer == "it has another normalizer"
    assert served.add(folder, "lower").tokenizer == ""
    served.add(adapter, "base's")
    loud = served.predict_all("A FINE FILM")
    assert loud["lower"].scores == served.predict_all("a fine film")["lower"].scores
    assert loud["base's"].scores != served.predict_all("a fine film")["base's"].scores
    assert loud["not"].scores == loud["base's"].scores
    served.add(folder, "again")
    assert served._entries["again"].tokenizer is served._entries["lower"].tokenizer


def test_an_expression_of_the_bases_own_is_trusted(adapter: Path, tmp_path: Path) -> None:
    expression = {**EXPRESSION, "pattern": {"Regex": " +"}}
    base = with_rules(tmp_path / "base", lambda rules: rules.update(pre_tokenizer=expression))
    folder = shutil.copytree(adapter, tmp_path / "own")
    with_rules(folder, lambda rules: rules.update(pre_tokenizer=expression, normalizer={"type": "Lowercase"}))
    known = module.AutoTokenizer.from_pretrained(base)
    tokenizer, difference = module.tokenizer_of(folder, [known], own=True)
    assert tokenizer is not known
    assert difference == ""


def test_a_text_length_of_its_own_is_a_copy_of_the_bases(adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "short")
    make_tokenizer(model_max_length=9).save_pretrained(folder)
    known = make_tokenizer()
    tokenizer, _ = module.tokenizer_of(folder, [known], own=False)
    assert tokenizer is not None
    assert (tokenizer.model_max_length, known.model_max_length) == (9, 32)
    assert module.tokenizer_of(folder, [known, tokenizer], own=False)[0] is tokenizer


def test_merges_are_compared_in_both_ways_of_writing(tmp_path: Path) -> None:
    old = {"model": {"type": "BPE", "merges": ["a b"], "dropout": None}, "version": "1.0"}
    new = {"model": {"type": "BPE", "merges": [["a", "b"]], "byte_fallback": False}, "truncation": None}
    assert module._rules(old) == module._rules(new)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda rules: rules.update(normalizer={"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 15}),
        lambda rules: rules["model"]["vocab"].update(far=2**31),  # which is counted up to
    ],
)
def test_one_that_takes_too_much_is_ended(adapter: Path, tmp_path: Path, change: Callable[..., None]) -> None:
    folder = with_rules(shutil.copytree(adapter, tmp_path / "own"), change)
    with pytest.raises(AdapterError, match=r"cannot be used: it (took more time or memory|cannot read)"):
        SpafitPredictor(tiny("bert")).add(folder, "own")


def test_more_tokens_than_were_to_come_are_an_error_of_the_text() -> None:
    twice = make_tokenizer()
    rules = json.loads(twice.backend_tokenizer.to_str())
    rules["post_processor"]["single"] *= 2
    twice._tokenizer = Tokenizer.from_str(json.dumps(rules))
    with pytest.raises(ValueError, match="gives 20 tokens for a text where it was to give 12"):
        encode(["a fine film " * 9], twice, 12)


def test_a_panic_is_an_error_of_the_text() -> None:
    class PanicException(BaseException):
        """As Rust's, which is no Exception and would end the thread."""

    def panics(*_: Any, **__: Any) -> Any:
        raise PanicException("regex")

    with pytest.raises(ValueError, match="cannot read this text"):
        encode(["a film"], panics, 8)  # type: ignore[arg-type]

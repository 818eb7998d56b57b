"""The tokenizer that texts for an adapter go through: the base's, or one that came with the adapter.

    same rules as the base's               -> the base's
    others, from the Hub                   -> the base's, and it is said where they differ
    others, of a folder here, or on a      -> plain parts alone?  tried in a process of its own, within limits?
      base without a tokenizer                  -> the adapter's

A tokenizer.json is a program: it rewrites texts by expressions and replacements of its own, which can take any time
and memory, and end a thread. So it is read as JSON, and run only after all this.
"""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spafit_hf.adapter.folder import AdapterError
from spafit_hf.files import Bounds, read_json, size_of
from spafit_hf.hub import hub_is_away
from spafit_hf.hub.files import PROCESSOR_FILES
from spafit_hf.words import first_line, listing

logger = logging.getLogger(__name__)

CONFIG, RULES = "tokenizer_config.json", "tokenizer.json"
BOUNDS = {
    CONFIG: Bounds(size=8_000_000, entries=2**17, text=2**20),
    RULES: Bounds(size=60_000_000, entries=2**22, text=2**22, marks=2**22),
}
"""The largest in use have 1.2 and 34 MB."""
MAX_WORD = 256
"""Characters of a word, or piece of one, that a model looks up: it takes their square, and BERT has 100."""
MAX_PARTS = 16
"""Of a tokenizer's normalizer, pre-tokenizer or post-processor."""
MAX_SECONDS = 120
"""For a tokenizer that is tried, by the clock; `trial.py` limits computing time and memory."""

#: What takes a time and a space in proportion to the text, whatever is set in it.
PLAIN = {
    "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Strip", "StripAccents",
    "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "UnicodeScripts",
    "Whitespace", "WhitespaceSplit",
    "BertProcessing", "RobertaProcessing",
    "BPE", "Unigram", "WordLevel", "WordPiece",
}  # fmt: skip


def base_tokenizer(name: str, **where: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a base, by folder or Hub id; None for one of weights alone. `where` is of `from_pretrained`."""
    where.setdefault("local_files_only", hub_is_away(name))
    try:
        return AutoTokenizer.from_pretrained(name, **where, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001  whatever transformers stumbles over; adapters may bring one
        logger.info("No tokenizer comes with the base %s: %s", name, first_line(error))
        return None


def tried_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a plain model's folder, with parts of any kind, once it has read long texts within the limits.

    Raises:
        ValueError: for one that takes more, or ends the process that tries it.
    """
    if (rules := Path(folder) / RULES).is_file():
        _try(rules)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def tokenizer_of(
    folder: Path, known: Sequence[PreTrainedTokenizerBase], *, own: bool
) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The tokenizer that texts for an adapter go through, and in what the folder's differs from it ("" in nothing).

    Args:
        folder: the adapter's.
        known: tokenizers in use, the base's first if it has one. One of them is returned where the folder's does the
            same, so that a text is tokenized once for all adapters.
        own: whether the folder's is wanted where it does something else; where none is known it is.

    Raises:
        AdapterError: for a tokenizer that is wanted and cannot be read or is not admitted.
    """
    if not (folder / CONFIG).is_file():
        return (known[0] if known else None), ""
    try:
        sizes = {name: size_of(folder / name, AdapterError) for name in (*PROCESSOR_FILES, "config.json")}
        config = _json(folder / CONFIG)
        length = config.get("model_max_length")
        if known and sizes[RULES] is None:  # in Python, which has no rules to compare
            same = config.get("tokenizer_class") == type(known[0]).__name__ and not known[0].is_fast
            return known[0], "" if same else f"it has no {RULES}"
        if known and not own and known[0].is_fast and (sizes[RULES] or 0) > _most(known[0]):
            return known[0], "it is far larger than the base's"
        rules = _rules(_json(folder / RULES))
    except (OSError, ValueError, RecursionError) as error:
        if known and not own:
            return known[0], f"it cannot be read ({first_line(error)})"
        raise AdapterError(f"the tokenizer in {folder} cannot be read: {first_line(error)}") from error
    try:
        alike = [each for each in known if each.is_fast and rules_of(each) == rules]
        if alike:
            return _of_length(alike, length), ""
        if known and not own:
            theirs = rules_of(known[0]) if known[0].is_fast else {}
            odd = [name.replace("_", " ") for name in {**theirs, **rules} if theirs.get(name) != rules.get(name)]
            return known[0], f"it has another {listing(odd)}"
        trusted = [part for each in known if each.is_fast for part in _parts(rules_of(each))]
        _check_plain(rules, trusted)
        _try(folder / RULES)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise AdapterError(f"the tokenizer in {folder} cannot be used: {error}") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        _check_plain(rules_of(tokenizer), trusted)  # its class may have made something else of the file
    except Exception as error:  # on a stranger's files transformers raises whatever it stumbles over
        raise AdapterError(f"the tokenizer in {folder} cannot be read: {first_line(error)}") from error
    return tokenizer, ""


def _of_length(alike: list[PreTrainedTokenizerBase], length: Any) -> PreTrainedTokenizerBase:
    """One of some tokenizers with equal rules that reads so many tokens; a copy where none does."""
    for each in alike:
        if length in (None, each.model_max_length):
            return each
    own = copy.deepcopy(alike[0])
    own.model_max_length = length
    return own


def rules_of(tokenizer: Any) -> dict[str, Any]:
    """What a fast tokenizer does, as JSON types."""
    return _rules(json.loads(tokenizer.backend_tokenizer.to_str()))


def _most(tokenizer: Any) -> int:
    """Bytes of a file that could still hold the same, with blanks between."""
    return 10 * len(tokenizer.backend_tokenizer.to_str()) + 2**20


def _json(file: Path) -> dict[str, Any]:
    data = read_json(file, BOUNDS[file.name], AdapterError)
    if not isinstance(data, dict):
        raise ValueError(f"{file.name} holds a {type(data).__name__}; it must hold an object")
    return data


def _rules(data: dict[str, Any]) -> dict[str, Any]:
    """Without what is set anew in each call, and in the words of today's format."""
    rules: dict[str, Any] = _without_defaults(
        {name: value for name, value in data.items() if name not in ("truncation", "padding", "version")}
    )
    model = rules.get("model")
    if isinstance(model, dict) and isinstance(model.get("merges"), list):
        merges = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
        rules["model"] = {**model, "merges": merges}
    return rules


def _without_defaults(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: _without_defaults(each) for name, each in value.items()}
        return {name: each for name, each in kept.items() if each not in (None, False, "", [])}
    return [_without_defaults(each) for each in value] if isinstance(value, list) else value


def _parts(rules: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of a tokenizer, those of sequences one by one."""
    for place in ("normalizer", "pre_tokenizer", "model", "post_processor"):
        waiting, count = [rules[place]] if place in rules else [], 0
        while waiting:
            part, count = waiting.pop(), count + 1
            if not isinstance(part, dict) or count > MAX_PARTS:
                raise ValueError(f"its {place} is no object, or has more than {MAX_PARTS} parts.")
            if part.get("type") == "Sequence":
                for name in ("normalizers", "pretokenizers", "processors"):
                    waiting += part.get(name, [])
            else:
                yield part


def _check_plain(rules: dict[str, Any], known: list[dict[str, Any]]) -> None:
    """Refuse parts that are neither plain nor the base's own."""
    for part in _parts(rules):
        kind = part.get("type", "BPE")  # old files name no type for it
        if part in known:
            continue
        if (longest := _longest_word(kind, part)) > MAX_WORD:
            raise ValueError(f"its {kind} looks words of {longest:,} characters up; at most {MAX_WORD} are admitted.")
        if kind not in PLAIN and not _is_short(kind, part):
            raise ValueError(
                f"its {kind!s:.40} may take any time and memory, and the base's tokenizer has no such part; give "
                "SpafitPredictor(base, tokenizer=...) the tokenizer."
            )


def _longest_word(kind: Any, part: dict[str, Any]) -> int:
    """Characters of the longest word, or piece, of which a model tries all parts."""
    if kind == "WordPiece":
        return int(part.get("max_input_chars_per_word", 0))
    return max((len(piece) for piece, *_ in part.get("vocab", [])), default=0) if kind == "Unigram" else 0


def _is_short(kind: Any, part: dict[str, Any]) -> bool:
    """Whether a part that may rewrite texts at will makes none longer by more than a few characters."""
    pattern = part.get("pattern", {}).get("String") if isinstance(part.get("pattern"), dict) else None
    if kind in ("Replace", "Split"):
        return isinstance(pattern, str) and len(pattern) > 0 and len(str(part.get("content", ""))) <= len(pattern)
    if kind == "Prepend":
        return len(str(part.get("prepend", ""))) <= MAX_PARTS
    if kind != "TemplateProcessing" or len(json.dumps(part)) > 4096:
        return False
    placed = [[each["Sequence"]["id"] for each in part[way] if "Sequence" in each] for way in ("single", "pair")]
    return all(len(set(ids)) == len(ids) for ids in placed)  # a text stands in it once


def _try(rules: Path) -> None:
    """Run a tokenizer on long texts in a process of its own, within the limits of `trial.py` and `MAX_SECONDS`."""
    command = [sys.executable, "-I", str(Path(__file__).with_name("trial.py")), str(rules)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=MAX_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"it had not read a few long texts after {MAX_SECONDS} s.") from error
    if done.returncode < 0:
        raise ValueError("it took more time or memory for a few long texts than it is given.")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it failed"]
        raise ValueError(f"it cannot read a few long texts: {lines[-1]:.200}")

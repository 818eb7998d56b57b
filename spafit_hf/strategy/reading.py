"""Reading what a user wrote: YAML and JSON in which nothing is lost in silence, and keys that must be known."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from spafit_hf.words import listed

SUFFIXES = (".yaml", ".yml", ".json")


def field_names(cls: type) -> tuple[str, ...]:
    """Names of the fields of a dataclass."""
    return tuple(field.name for field in dataclasses.fields(cls))


def closest(word: str, words: Iterable[str]) -> str:
    """How a sentence about an unknown word ends: with the closest known one, if one is close."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def refuse_unknown_keys(data: Mapping[str, Any], allowed: tuple[str, ...], who: str) -> None:
    """Raise a ValueError for what is no mapping, and for a key that is not allowed."""
    if not isinstance(data, Mapping):
        raise ValueError(f"a {who} is {data!r}; it must be a mapping with the keys {listed(allowed)}.")
    for key in data:
        if key not in allowed:
            raise ValueError(f"{who}: unknown key {key!r}; allowed are {listed(allowed)}{closest(str(key), allowed)}")


def no_duplicates(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping from its pairs. The parsers keep the last of two equal keys in silence; this does not."""
    data: dict[Any, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"the key {key!r} stands twice in one mapping; keep one.")
        data[key] = value
    return data


def parse_json(text: str, where: str) -> Any:
    """JSON text as Python values; a ValueError that begins with `where` if it is none."""
    try:
        return json.loads(text, object_pairs_hook=no_duplicates)
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error}).") from error


class _StrictLoader(yaml.SafeLoader):
    """yaml.SafeLoader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(self.construct_object(key, deep=True), None) for key, _ in node.value]
        no_duplicates([(key if isinstance(key, str) else repr(key), value) for key, value in keys])
        return super().construct_mapping(node, deep)


class _WordLoader(_StrictLoader):
    """The same with on, off, yes and no as words, as in YAML 1.2: some are the values of flags."""


_BOOL = "tag:yaml.org,2002:bool"
_WordLoader.yaml_implicit_resolvers = {
    letter: [known for known in resolvers if known[0] != _BOOL]
    for letter, resolvers in _StrictLoader.yaml_implicit_resolvers.items()
}
_WordLoader.add_implicit_resolver(_BOOL, re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def parse_yaml(text: str, where: str, *, words: bool = False) -> Any:
    """YAML text as Python values, plain types only; a ValueError that begins with `where` if it is none. With `words`
    on, off, yes and no are words."""
    try:
        return yaml.load(text, Loader=_WordLoader if words else _StrictLoader)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{where}: not valid YAML ({reason}).") from error


def read_file(path: str | os.PathLike[str], what: str) -> Any:
    """The values of a .yaml, .yml or .json file.

    Args:
        path: the file.
        what: what it holds, for messages: "strategy", "architecture".

    Raises:
        ValueError: when the file is missing, of another kind, or not to be parsed.
    """
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{file}: the {what} is read from a file that ends in .yaml, .yml or .json.")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"{file}: the {what} cannot be read ({reason}); check the path.") from error
    return parse_json(text, str(file)) if file.suffix.lower() == ".json" else parse_yaml(text, str(file))


def is_int(value: Any) -> bool:
    """Whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)

"""Flags by name from a file, as `spafit train` and `spafit reproduce` take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spafit_hf.strategy.reading import parse_yaml


def read_recipe(file: str) -> dict[str, Any]:
    """The flags in a YAML file, or a JSON one, which is YAML.

    Raises:
        ValueError: for a file that cannot be read, or that holds no mapping.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    values = parse_yaml(text, file, words=True)
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds a {type(values).__name__}; expected is a mapping of flags to values.")
    return values

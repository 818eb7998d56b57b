"""What the Space serves and allows: `config.yaml`, and the environment on top of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

SPACE = Path(__file__).resolve().parents[1]
CONFIG_FILE = SPACE / "config.yaml"


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says which key, and what is allowed."""


@dataclass(frozen=True)
class Source:
    """Something to serve: an adapter, or a fully fine-tuned model."""

    source: str
    """A folder, or a repository on the Hub."""
    revision: str | None = None
    task: str | None = None
    """The GLUE task, where the folder itself does not say."""


@dataclass(frozen=True)
class Config:
    """Every setting of the Space. A key of `config.yaml` has the name of its field."""

    base: str = "embedded"
    """Hub id or folder of the encoder; "embedded" is the one that comes with a PyPI package."""
    base_revision: str | None = None
    folder: Path | None = SPACE / "adapters"
    """Every adapter folder (and folder of a full model) in it is served, under the folder's name."""
    adapters: Mapping[str, Source] | None = None
    """Name -> adapter, beside those of `folder`."""
    models: Mapping[str, Source] | None = None
    """Name -> fully fine-tuned model to compare with; each takes as much memory as the base."""
    allow_adding: bool = False
    """Whether visitors may add adapters of the Hub. They are verified, and seen by every visitor."""
    max_added: int = 8
    """Adapters that visitors may have added at one time."""
    max_tries: int = 10
    """Adapters that one visitor may try to add in an hour."""
    max_adapter_megabytes: int = 512
    """Memory for all adapters together; beyond it the least used are read again from disk when asked for."""
    max_characters: int = 2000
    """Of one text."""
    concurrency: int = 2
    """Requests in the model at one time."""
    queue: int = 200
    """Requests that may wait; further ones are refused."""
    mcp: bool = True
    """Offer the API as tools over the Model Context Protocol."""


ENVIRONMENT = {
    "SPAFIT_SPACE_BASE": "base",
    "SPAFIT_SPACE_FOLDER": "folder",
    "SPAFIT_SPACE_ALLOW_ADDING": "allow_adding",
}
"""Variables that override a key. SPAFIT_SPACE_CONFIG names another file than config.yaml."""

_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def load_config(file: Path | None = None, environment: Mapping[str, str] | None = None) -> Config:
    """Read the configuration. Folders in a file are relative to that file.

    Args:
        file: by default the one that SPAFIT_SPACE_CONFIG names (relative to the working directory), else config.yaml.
        environment: by default the process's.

    Raises:
        ConfigError: for a file that is missing or no YAML, and for a key that is unknown or of the wrong kind.
    """
    environment = os.environ if environment is None else environment
    path = file or Path(environment.get("SPAFIT_SPACE_CONFIG") or CONFIG_FILE)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"the configuration {path} cannot be read: {reason}") from error
    config = _from_dict({} if data is None else data, path)
    given = {key: environment[name] for name, key in ENVIRONMENT.items() if name in environment}
    if "folder" in given:
        config = replace(config, folder=Path(given["folder"]).expanduser() if given["folder"] else None)
    if given.get("base"):
        # The file's revision is of the file's base.
        config = replace(config, base=given["base"], base_revision=None)
    if "allow_adding" in given:
        config = replace(config, allow_adding=_switch(given["allow_adding"]))
    return config


def _from_dict(data: Any, path: Path) -> Config:
    known = {field.name: field for field in fields(Config)}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}; it must hold keys, such as base: embedded.")
    for key in data:
        if key not in known:
            raise ConfigError(f"{path} has the unknown key {key!r}; allowed are {', '.join(known)}.")
    values = {key: _value(key, value, path) for key, value in data.items()}
    return Config(**values)


def _value(key: str, value: Any, path: Path) -> Any:
    default = Config.__dataclass_fields__[key].default
    if key == "folder":
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{path}: folder is {value!r}; it must be a path, or empty for none.")
        return None if not value else path.resolve().parent / Path(value).expanduser()
    if key in ("adapters", "models"):
        return _sources(key, value, path)
    if key == "base_revision":
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{path}: base_revision is {value!r}; it must be a branch, tag or commit, in quotes.")
        return value
    if type(value) is not type(default) or value == "":
        raise ConfigError(f"{path}: {key} is {value!r}; it must be like {default!r}.")
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise ConfigError(f"{path}: {key} is {value}; it must be at least 1.")
    return value


def _sources(key: str, value: Any, path: Path) -> dict[str, Source]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key} is a {type(value).__name__}; it must be a mapping of name to repository.")
    found = {}
    for name, entry in value.items():
        given = {"source": entry} if isinstance(entry, str) else entry
        allowed = {field.name for field in fields(Source)}
        if (
            not isinstance(name, str)
            or not isinstance(given, dict)
            or not set(given) <= allowed
            or not given.get("source")
            or not all(isinstance(part, str) for part in given.values())
        ):
            raise ConfigError(
                f"{path}: {key} has {name!r}: {entry!r}; it must be a repository or folder, or a mapping of "
                f"{', '.join(sorted(allowed))}."
            )
        folder = path.resolve().parent / given["source"]
        found[name] = Source(**{**given, "source": str(folder)}) if folder.is_dir() else Source(**given)
    return found


def _switch(text: str) -> bool:
    if text.strip().lower() in _YES:
        return True
    if text.strip().lower() in _NO:
        return False
    raise ConfigError(f"SPAFIT_SPACE_ALLOW_ADDING is {text!r}; it must be 1 or 0.")

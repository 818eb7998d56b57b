"""Architectures that were described by hand, by model type: wherever such a model is looked at, they are known.

file or mapping --register_architecture--> model type -> description --find_architecture(model)--> Architecture

# mine.yaml
model_type: mine               # config.model_type, or the name of the class where there is no config
layers: blocks                 # the list of layers; several as {encoder: enc.blocks, decoder: dec.blocks}
roles:                         # role -> name or names in a layer; what a layer lacks is left out
  query: mix.ask
  output: narrow
head: [decide]                 # and pooler, outer_norms: found as in any other model where they are left out
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

from spafit_hf.strategy.reading import read_file, refuse_unknown_keys

FIELDS = ("model_type", "layers", "roles", "head", "pooler", "outer_norms")

DescriptionLike: TypeAlias = "Mapping[str, Any] | str | os.PathLike[str]"
"""What describes an architecture: the mapping of the fields above, or the path of a YAML or JSON file with them."""

_DESCRIBED: dict[str, dict[str, Any]] = {}


def register_architecture(source: DescriptionLike) -> str:
    """Make an architecture known in this process: to plans, trainers, adapters and predictors of such a model.

    A second description of a model type takes the place of the first.

    Returns:
        The model type.

    Raises:
        ValueError: for a file that cannot be read, an unknown or missing key, or a value of another kind.
    """
    where = "the architecture" if isinstance(source, Mapping) else os.fspath(source)
    data = source if isinstance(source, Mapping) else read_file(source, "architecture")
    refuse_unknown_keys(data, FIELDS, f"architecture ({where})")
    missing = [key for key in ("model_type", "layers", "roles") if not data.get(key)]
    if missing:
        raise ValueError(f"{where} has no {missing[0]!r}; model_type, layers and roles are needed.")
    kinds: dict[str, tuple[type, ...]] = {"model_type": (str,), "layers": (str, Mapping), "roles": (Mapping,)}
    for key, allowed in kinds.items():
        if not isinstance(data[key], allowed):
            raise ValueError(f"{where}: {key} is {data[key]!r:.80}; docs/by_hand.md shows the form.")
    for key in ("head", "pooler", "outer_norms"):
        if data.get(key) is not None and not isinstance(data[key], (list, tuple)):
            raise ValueError(f"{where}: {key} is {data[key]!r:.80}; it must be a list of names, such as [classifier].")
    _DESCRIBED[data["model_type"]] = {key: value for key, value in data.items() if key != "model_type"}
    return str(data["model_type"])


def description_of(model_type: str) -> dict[str, Any] | None:
    """What was registered for a model type, as arguments of `describe_architecture`; None if nothing."""
    return _DESCRIBED.get(model_type)


def forget_architecture(model_type: str) -> None:
    """Inverse of `register_architecture`; nothing where none was registered."""
    _DESCRIBED.pop(model_type, None)

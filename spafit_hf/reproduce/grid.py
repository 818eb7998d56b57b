"""What is wanted: tasks, methods, rates, seeds and a recipe, from a preset, a YAML file and flags, in that order.

    Grid ---wanted()---> Cell(task, method, rate, seed, stage) ...   searches first, then seed by seed

A rate that is searched is tried on one seed and a share of the epochs or rows; the main cells take the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from spafit_hf.data.glue import get_task
from spafit_hf.names import DEFAULT_BASE
from spafit_hf.reproduce.presets import CONTROLS, MODERN_RATES, PAPER_METHODS, PAPER_TASKS, PRESETS, UNCACHED
from spafit_hf.strategy import Strategy
from spafit_hf.strategy.reading import closest
from spafit_hf.words import listed

OTHERS = "others"
"""Where values go by method or task: the name of all that have none of their own."""

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """One training run of a grid."""

    task: str
    method: str
    learning_rate: float | None
    """None where the search for it has not ended."""
    seed: int
    stage: str
    """main: of the table; search: of the search for a rate."""

    def __str__(self) -> str:
        rate = "" if self.learning_rate is None else f" {self.learning_rate:g}"
        return f"{self.task} {self.method}{rate} " + ("search" if self.stage == "search" else f"seed {self.seed}")


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True)
class Grid:
    """A grid; a field is a flag and a key of the YAML file. Values by method or task are mappings, and on the command
    line words: `1e-3 2e-3 full=5e-5,1e-4`. A name stands for all that begin with it: spafit, lora.

    Raises:
        ValueError: for what no grid can have, with what is allowed.
    """

    preset: str = field(default="modern", metadata=_help("Recipe to start from: modern, or paper (to the letter)."))
    base: str = field(
        default=DEFAULT_BASE,
        metadata=_help("Hub id or folder of the pretrained model; or embedded, an encoder from PyPI."),
    )
    tasks: tuple[str, ...] = field(default=PAPER_TASKS, metadata=_help("GLUE tasks."))
    methods: tuple[str, ...] = field(
        default=(*PAPER_METHODS, "linear-probe", *CONTROLS),
        metadata=_help(
            f"Strategies by name, and {' and '.join(CONTROLS)}; with {UNCACHED} behind one it has no prefix cache."
        ),
    )
    learning_rates: dict[str, tuple[float, ...]] = field(
        default_factory=dict, metadata=_help("Rates that run with every seed, for all or by method.")
    )
    search_rates: dict[str, tuple[float, ...]] = field(
        default_factory=lambda: dict(MODERN_RATES),
        metadata=_help("Rates that are tried first, on one seed; the other cells take the best."),
    )
    search_epochs: float = field(default=1.0, metadata=_help("Epochs of a cell of the search."))
    search_rows: int = field(default=0, metadata=_help("Train rows of a cell of the search. 0: all."))
    seeds: tuple[int, ...] = field(default=(0, 1, 2), metadata=_help("Seeds; the first is that of the search."))
    num_train_epochs: float = field(default=10.0, metadata=_help("Epochs."))
    per_device_train_batch_size: dict[str, int] = field(
        default_factory=lambda: {OTHERS: 16}, metadata=_help("Rows per step, for all or by task.")
    )
    max_train_rows: int = field(default=0, metadata=_help("Train on so many rows, chosen at random. 0: all."))
    max_validation_rows: int = field(default=0, metadata=_help("Measure on so many rows, chosen at random. 0: all."))
    selection_rows: int = field(
        default=1000,
        metadata=_help(
            "Hold so many train rows out, and at most a tenth, to choose rate and epoch on. 0: choose on validation."
        ),
    )
    max_length: int = field(default=128, metadata=_help("Tokens per text or pair."))
    weight_decay: float = field(default=0.01, metadata=_help("AdamW's."))
    warmup_steps: float = field(
        default=0.06, metadata=_help("Share of the steps (below 1), or steps, in which the rate rises.")
    )
    lora_r: int = field(default=64, metadata=_help("Rank of LoRA."))
    lora_alpha: float = field(default=128.0, metadata=_help("LoRA is scaled by lora_alpha / lora_r."))
    head_factor: float = field(
        default=0.0,
        metadata=_help(
            "The head's rate over the others'. 0: 1, and 10 behind a frozen pooler that was never trained."
        ),
    )
    train_sampling_strategy: str = field(
        default="group_by_length", metadata=_help("Trainer's: group_by_length, random.")
    )
    prefix_cache: bool = field(
        default=True, metadata=_help("Compute the frozen layers' states once, in FOLDER/states.")
    )
    first_token_only: str = field(
        default="auto", metadata=_help("The last layer for the first token alone: auto, on, off.")
    )
    bf16: bool = field(default=False, metadata=_help("Autocast to bfloat16."))

    def __post_init__(self) -> None:
        for name in ("tasks", "methods", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} is {list(values)}; give at least one, and each once.")
        object.__setattr__(self, "tasks", tuple(get_task(task).name for task in self.tasks))
        for method in self.methods:
            if method.removesuffix(UNCACHED) not in CONTROLS:
                Strategy.from_name(method.removesuffix(UNCACHED))
            self.rates_of(method)
        for task in self.tasks:
            if (_value_of(self.per_device_train_batch_size, task) or 0) < 1:
                raise ValueError(f"per_device_train_batch_size has no positive number for {task}; give one, as in 16.")
        for name in ("learning_rates", "search_rates"):
            known = (*self.methods, *MODERN_RATES)
            for key, rates in getattr(self, name).items():
                if not any(_is_of(key, method) for method in known):
                    raise ValueError(f"{name} names {key!r}, which is no method of this grid{closest(key, known)}")
                if not rates or not all(0 < rate < math.inf for rate in rates):
                    raise ValueError(f"{name} of {key!r} is {list(rates)}; give positive numbers, as in 1e-3.")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {listed(allowed)}.")
        if self.num_train_epochs <= 0 or self.search_epochs <= 0:
            raise ValueError("num_train_epochs and search_epochs must be above 0.")
        for name in ("max_train_rows", "max_validation_rows", "selection_rows", "search_rows", "head_factor"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")

    # ---- reading ----

    @classmethod
    def from_layers(cls, *layers: Mapping[str, Any]) -> Grid:
        """A grid of its preset and, over it, values by name: of a file, then of flags.

        Raises:
            ValueError: for an unknown name, with the nearest, and values that are none of their field.
        """
        kinds = {each.name: str(each.type) for each in fields(cls)}
        read: list[dict[str, Any]] = []
        for layer in layers:
            for name in layer:
                if name not in kinds:
                    raise ValueError(f"a grid has no {name!r}{closest(name, kinds)}")
            read.append({name: read_value(value, kinds[name], name) for name, value in layer.items()})
        preset = next((layer["preset"] for layer in reversed(read) if "preset" in layer), "modern")
        if preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}; allowed are {listed(PRESETS)}{closest(preset, PRESETS)}")
        values: dict[str, Any] = {}
        for layer in (PRESETS[preset], *read):
            if {"learning_rates", "search_rates"} & set(layer):  # rates replace those below, of either kind
                values |= {"learning_rates": {}, "search_rates": {}}
            values |= layer
        return cls(**values)

    # ---- what it says ----

    @property
    def settings(self) -> dict[str, Any]:
        """All but base, tasks, methods and seeds, in JSON types."""
        return {name: value for name, value in asdict(self).items() if name not in _APART}

    def rates_of(self, method: str) -> tuple[tuple[float, ...], bool]:
        """The rates of a method, and whether they are searched. A single one is not.

        Raises:
            ValueError: where it has none, or both kinds.
        """
        method = method.removesuffix(UNCACHED)
        for pick in (_own_value, _value_of):
            main, searched = pick(self.learning_rates, method), pick(self.search_rates, method)
            if main and searched:
                raise ValueError(f"{method} has learning_rates and search_rates; give it one of the two.")
            if main or searched:
                return (main, False) if main else (searched, len(searched) > 1)  # type: ignore[arg-type,return-value]
        raise ValueError(f"{method} has no rate; give some, as in --learning_rates 1e-3 or {method}=1e-3.")

    def batch_of(self, task: str) -> int:
        """Rows per step."""
        return _value_of(self.per_device_train_batch_size, task) or 0

    def wanted(self) -> list[Cell]:
        """The cells in the order in which they run: what is cut short is then as useful as it can be."""
        cells = [
            Cell(task, method, rate, self.seeds[0], "search")
            for task in self.tasks
            for method in self.methods
            for rates, searched in [self.rates_of(method)]
            for rate in (rates if searched else ())
        ]
        for seed in self.seeds:
            for task in self.tasks:
                for method in self.methods:
                    rates, searched = self.rates_of(method)
                    cells += [Cell(task, method, rate, seed, "main") for rate in ((None,) if searched else rates)]
        return cells


_CHOICES = {
    "train_sampling_strategy": ("group_by_length", "random", "sequential"),  # Trainer takes any word as random
    "first_token_only": ("auto", "on", "off"),
}
_APART = ("preset", "base", "tasks", "methods", "seeds")


def _is_of(key: str, name: str) -> bool:
    return name == key or name.startswith(f"{key}-")


def _own_value(values: Mapping[str, T], name: str) -> T | None:
    """The value of a name, or of the longest beginning of it."""
    keys = [key for key in values if _is_of(key, name)]
    return values[max(keys, key=len)] if keys else None


def _value_of(values: Mapping[str, T], name: str) -> T | None:
    own = _own_value(values, name)
    return values.get(OTHERS) if own is None else own


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)  # YAML reads 5e-5 as text


def _truth(value: Any) -> bool:
    word = str(value).lower()
    if word not in ("true", "false", "on", "off", "yes", "no"):
        raise ValueError
    return word in ("true", "on", "yes")


def _list(value: Any, one: Callable[[Any], T]) -> tuple[T, ...]:
    items: Iterable[Any] = value.split(",") if isinstance(value, str) else value if _is_list(value) else (value,)
    return tuple(one(item) for item in items)


def _by_name(value: Any, one: Callable[[Any], T]) -> dict[str, T]:
    """A mapping as it is; words of a command line; anything else for all."""
    if isinstance(value, Mapping):
        return {str(name): one(item) for name, item in value.items()}
    words = [str(word) for word in value] if _is_list(value) else [str(value)]
    rest = ",".join(word for word in words if "=" not in word)
    given = ({OTHERS: rest} if rest else {}) | dict(word.split("=", 1) for word in words if "=" in word)
    return {name: one(item) for name, item in given.items()}


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "str": (str, "a word"),
    "int": (_whole, "a whole number"),
    "float": (_number, "a number"),
    "bool": (_truth, "true or false"),
    "tuple[str, ...]": (lambda value: _list(value, str), "words"),
    "tuple[int, ...]": (lambda value: _list(value, _whole), "whole numbers"),
    "dict[str, int]": (lambda value: _by_name(value, _whole), "a whole number, or some by name: 16 mnli=8"),
    "dict[str, tuple[float, ...]]": (
        lambda value: _by_name(value, lambda rates: _list(rates, _number)),
        "numbers, or some by name: 1e-3 full=5e-5,1e-4",
    ),
}
"""Annotation of a field -> what reads it from YAML or from the words of a command line, and what it must be."""


def read_value(value: Any, kind: str, name: str) -> Any:
    read, expected = _READERS[kind]
    try:
        return read(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {value!r}; it must be {expected}.") from error

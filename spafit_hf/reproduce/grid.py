"""What is wanted: tasks, methods, rates, seeds and a recipe, from a preset, a YAML file and flags, in that order.

    Grid ---wanted()---> Cell(task, method, rate, seed, stage) ...   searches first, then seed by seed

A rate that is searched is tried on one seed and a share of the epochs or rows; the main cells take the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, TypeVar, get_type_hints

from spafit_hf.data.glue import TASKS, get_task
from spafit_hf.names import DEFAULT_BASE
from spafit_hf.reproduce.presets import CONTROLS, MODERN_RATES, PAPER_METHODS, PAPER_TASKS, PRESETS, UNCACHED
from spafit_hf.strategy import ADAPTER_METHODS, METHODS, Strategy
from spafit_hf.strategy.reading import closest
from spafit_hf.words import SpafitError, listed

OTHERS = "others"
"""In values by method or task the name of all that have none of their own."""

PROCESSES = 2
"""Workers of the backend processes where no number is given."""

T = TypeVar("T")
Words = tuple[str, ...]
Numbers = tuple[int, ...]
Counts = dict[str, int]
Rates = dict[str, tuple[float, ...]]


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


@dataclass(frozen=True)
class Grid:
    """A grid; each field is a flag and a key of the YAML file. Values by method or task are mappings, on the command
    line words: `1e-3 2e-3 full=5e-5,1e-4`. A name stands for all that begin with it: spafit, lora.

    Raises:
        ValueError: for what no grid can have, with what is allowed.
    """

    preset: Annotated[str, "Recipe to start from: modern, or paper (to the letter)."] = "modern"
    base: Annotated[str, "Hub id or folder of the pretrained model; or embedded, one from PyPI."] = DEFAULT_BASE
    tasks: Annotated[Words, "GLUE tasks."] = PAPER_TASKS
    methods: Annotated[
        Words,
        f"Strategies by name, and {' and '.join(CONTROLS)}; with {UNCACHED} behind one it has no prefix cache.",
    ] = (*PAPER_METHODS, "linear-probe", *CONTROLS)
    seeds: Annotated[Numbers, "Seeds; the first is that of the search."] = (0, 1, 2)
    learning_rates: Annotated[Rates, "Rates that run with every seed."] = field(default_factory=dict)
    search_rates: Annotated[Rates, "Rates that are tried first, on one seed; the other cells take the best."] = field(
        default_factory=lambda: dict(MODERN_RATES)
    )
    search_epochs: Annotated[float, "Epochs of a cell of the search."] = 1.0
    search_rows: Annotated[int, "Train rows of a cell of the search. 0: all."] = 0
    num_train_epochs: Annotated[float, "Epochs."] = 10.0
    per_device_train_batch_size: Annotated[Counts, "Rows per step."] = field(default_factory=lambda: {OTHERS: 16})
    max_train_rows: Annotated[int, "Train on so many rows, chosen at random. 0: all."] = 0
    max_validation_rows: Annotated[int, "Measure on so many rows, chosen at random. 0: all."] = 0
    selection_rows: Annotated[
        int, "Hold so many train rows out, at most a tenth, to choose rate and epoch on. 0: choose on validation."
    ] = 1000
    max_length: Annotated[int, "Tokens per text or pair."] = 128
    weight_decay: Annotated[float, "AdamW's."] = 0.01
    warmup_steps: Annotated[float, "Share of the steps (below 1), or steps, in which the rate rises."] = 0.06
    lora_r: Annotated[int, "Rank of LoRA."] = 64
    lora_alpha: Annotated[float, "LoRA is scaled by lora_alpha / lora_r."] = 128.0
    head_factor: Annotated[float, "Head's rate over the others'. 0: 1, or 10 where the trainer takes that."] = 0.0
    train_sampling_strategy: Annotated[str, "group_by_length, random or sequential."] = "group_by_length"
    prefix_cache: Annotated[bool, "Compute the frozen layers' states once, in FOLDER/states."] = True
    first_token_only: Annotated[str, "The last layer for the first token alone: auto, on, off."] = "auto"
    bf16: Annotated[bool, "Autocast to bfloat16."] = False
    # From here on: where, and not what.
    output: Annotated[str, "The grid's folder."] = ""
    data_dir: Annotated[str, "Folder with <task>/train.parquet; without it the Hub's rows are taken."] = ""
    backend: Annotated[str, "Where cells run: local (this process), processes (several), ray (a cluster)."] = "local"
    workers: Annotated[int, "Cells at a time. 0: two processes, and on Ray what there is room for."] = 0
    worker_cpus: Annotated[float, "Ray: CPUs of a cell."] = 1.0
    worker_gpus: Annotated[float, "Ray: GPUs of a cell; a fraction lets several share one."] = 0.0
    dry_run: Annotated[bool, "Print cells, parameters, hours and bytes, and stop."] = False
    report: Annotated[bool, "Write the report of what is there, and stop."] = False

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed are {listed(allowed)}{closest(value, allowed)}")
        for name in ("tasks", "methods", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} is {list(values)}; give at least one, and each once.")
        object.__setattr__(self, "tasks", tuple(get_task(task).name for task in self.tasks))
        for name, value in vars(self).items():
            lowest = 1e-9 if name in ("num_train_epochs", "search_epochs", "lora_r", "lora_alpha", "max_length") else 0
            if isinstance(value, (int, float)) and not lowest <= value < math.inf:
                raise ValueError(
                    f"{name} is {value:g}; it must be {'above 0' if lowest else '0 or more'}, and finite."
                )
        for name, readers in _BACKENDS.items():
            if getattr(self, name) != getattr(Grid, name) and self.backend not in readers:
                raise ValueError(
                    f"{name} is {getattr(self, name):g}, which backend {self.backend} does not read; leave it out, or "
                    f"name one that does: {listed(readers)}."
                )
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise ValueError(f"seeds are {list(self.seeds)}; each must be 0 or more, and below 2^32.")
        for key in self.per_device_train_batch_size:
            if key != OTHERS and not any(_is_of(key, task) for task in TASKS):
                raise ValueError(f"per_device_train_batch_size has {key!r}, which is no task{closest(key, TASKS)}")
        for task in self.tasks:
            if self.batch_of(task) < 1:
                raise ValueError(f"per_device_train_batch_size has no positive number for {task}; give one, as in 16.")
        known = (*self.methods, *METHODS, *ADAPTER_METHODS, *CONTROLS, OTHERS)
        for key, rates in (*self.learning_rates.items(), *self.search_rates.items()):
            if not any(_is_of(key, method) for method in known):
                raise ValueError(f"rates are given for {key!r}, which is no method{closest(key, known)}")
            if not rates or not all(0 < rate < math.inf for rate in rates):
                raise ValueError(f"the rates of {key!r} are {list(rates)}; give positive numbers, as in 1e-3.")
            if len(set(rates)) != len(rates):
                raise ValueError(f"the rates of {key!r} are {list(rates)}; give each once.")
        for method in self.methods:
            if method.removesuffix(UNCACHED) not in CONTROLS:
                Strategy.from_name(method.removesuffix(UNCACHED))
            self.rates_of(method)

    @classmethod
    def from_layers(cls, *layers: Mapping[str, Any]) -> Grid:
        """A grid of its preset and, over it, values by name: of a file, then of flags.

        Raises:
            ValueError: for an unknown name, with the nearest, and values that are none of their field.
        """
        for name in (name for layer in layers for name in layer):
            if name not in FLAGS:
                raise ValueError(f"a grid has no {name!r}{closest(str(name), FLAGS)}")
        read = [{name: _read(name, value) for name, value in layer.items()} for layer in layers]
        preset = next((layer["preset"] for layer in reversed(read) if "preset" in layer), "modern")
        values: dict[str, Any] = {}
        for layer in (PRESETS.get(preset, {}), *read):
            if {"learning_rates", "search_rates"} & set(layer):  # rates replace those below, of either kind
                values |= {"learning_rates": {}, "search_rates": {}}
            values |= layer
        return cls(**values)

    @property
    def settings(self) -> dict[str, Any]:
        """What sets results beside base, tasks, methods and seeds, in JSON types."""
        return {name: value for name, value in asdict(self).items() if name not in _NO_SETTINGS}

    def rates_of(self, method: str) -> tuple[tuple[float, ...], bool]:
        """The rates of a method, and whether they are searched. A single one is not.

        Raises:
            ValueError: where it has none, or both kinds.
        """
        method = method.removesuffix(UNCACHED)
        for others in (False, True):
            main, searched = (_pick(rates, method, others) for rates in (self.learning_rates, self.search_rates))
            if main and searched:
                raise ValueError(f"{method} has learning_rates and search_rates; give it one of the two.")
            if found := main or searched:
                return found, bool(searched) and len(found) > 1
        raise ValueError(f"{method} has no rate; give some, as in --learning_rates 1e-3 or {method}=1e-3.")

    def batch_of(self, task: str) -> int:
        """Rows per step."""
        return _pick(self.per_device_train_batch_size, task, others=True) or 0

    def wanted(self) -> list[Cell]:
        """The cells in the order in which they run: what is cut short is then as useful as it can be."""
        rates = {method: self.rates_of(method) for method in self.methods}
        pairs = [(task, method) for task in self.tasks for method in self.methods]
        searched = [(*pair, rate) for pair in pairs if rates[pair[1]][1] for rate in rates[pair[1]][0]]
        main = [(*pair, rate) for pair in pairs for rate in ((None,) if rates[pair[1]][1] else rates[pair[1]][0])]
        return [Cell(*each, self.seeds[0], "search") for each in searched] + [
            Cell(*each, seed, "main") for seed in self.seeds for each in main
        ]


_CHOICES = {
    "preset": tuple(PRESETS),
    "train_sampling_strategy": ("group_by_length", "random", "sequential"),  # Trainer takes any word as random
    "first_token_only": ("auto", "on", "off"),
    "backend": ("local", "processes", "ray"),
}
_BACKENDS = {"workers": ("processes", "ray"), "worker_cpus": ("ray",), "worker_gpus": ("ray",)}
"""Flag -> the backends that read it."""
_NO_SETTINGS = ("preset", "base", "tasks", "methods", "seeds", "output", "data_dir", "backend", "workers",
                "worker_cpus", "worker_gpus", "dry_run", "report")  # fmt: skip


def _is_of(key: str, name: str) -> bool:
    return name == key or name.startswith(f"{key}-")


def _pick(values: Mapping[str, T], name: str, others: bool) -> T | None:
    """The value of a name, or of the longest beginning of it; of the others where that is wanted."""
    keys = [key for key in values if _is_of(key, name)]
    return values[max(keys, key=len)] if keys else values.get(OTHERS) if others else None


# ---- values as YAML or the words of a command line have them --------------------------------------------------------


def _word(value: Any) -> str:
    if not isinstance(value, (str, int, float)):  # None of a key without a value, or a list
        raise ValueError
    return str(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)  # YAML reads 5e-5 as text


def _whole(value: Any) -> int:
    if not _number(value).is_integer():
        raise ValueError
    return int(float(value))


def _truth(value: Any) -> bool:
    return {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}[str(value).lower()]


def _list(value: Any, one: Callable[[Any], T]) -> tuple[T, ...]:
    many: Iterable[Any] = value.split(",") if isinstance(value, str) else value
    return tuple(map(one, many if isinstance(many, (list, tuple)) else (many,)))


def _by_name(value: Any, one: Callable[[Any], T]) -> dict[str, T]:
    if isinstance(value, Mapping):
        return {str(name): one(item) for name, item in value.items()}
    words = _list(value, str)
    rest = ",".join(word for word in words if "=" not in word)
    given = ([[OTHERS, rest]] if rest else []) + [word.split("=", 1) for word in words if "=" in word]
    names = [name for name, _ in given]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise SpafitError(f"{' '.join(words)} names {twice} twice; keep one, with commas between values.")
    return {name: one(item) for name, item in given}


_READERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    str: (_word, "a word"),
    int: (_whole, "a whole number"),
    float: (_number, "a number"),
    bool: (_truth, "true or false"),
    Words: (lambda value: _list(value, _word), "words"),
    Numbers: (lambda value: _list(value, _whole), "whole numbers"),
    Counts: (lambda value: _by_name(value, _whole), "a whole number, or some by name: 16 mnli=8"),
    Rates: (lambda value: _by_name(value, lambda rates: _list(rates, _number)), "numbers, or some by name: full=5e-5"),
}

_HINTS = get_type_hints(Grid, include_extras=True)
FLAGS = {name: (hint.__origin__, hint.__metadata__[0]) for name, hint in _HINTS.items()}
"""Name of a field -> its type and what it is for."""


def _read(name: str, value: Any) -> Any:
    read, expected = _READERS[FLAGS[name][0]]
    try:
        return read(value)
    except SpafitError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{name} is {value!r}; it must be {expected}.") from error

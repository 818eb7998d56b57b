"""What trains where, as plain data: a model is cut by depth into strata, and each stratum says how its layers are tuned.

    spafit-4-9-II on 24 layers (arXiv:2405.00201, section 3)

    layers  0  1  2  3  4 | 5  6  7  8  9 | 10 11 12 13 14 15 16 17 18 19 20 21 22 23 | head
            group 1       | group 2       | group 3                                   |
            frozen        | every bias    | LoRA on attention, feed-forward biases    | trains

A `Stratum` is a range of layers with what trains in it, a `Strategy` is some strata with a name. Layers in no stratum are
frozen. This module needs no torch: a strategy knows nothing about models until `Strategy.resolve(num_layers)` puts it on a depth.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import yaml

ROLES = (
    "query",
    "key",
    "value",
    "attention_output",
    "attention_norm",
    "intermediate",
    "output",
    "output_norm",
)
"""The paper's sub-layers of a transformer layer, in reading order. In BERT: attention.self.query, .key, .value,
attention.output.dense, attention.output.LayerNorm, intermediate.dense, output.dense, output.LayerNorm."""

NORM_ROLES = ("attention_norm", "output_norm")
LORA_ROLES = tuple(role for role in ROLES if role not in NORM_ROLES)

PAPER_DEPTH = 24
"""Number of layers that N1 and N2 in the paper's names refer to (BERT-large)."""

METHODS = (
    "full",
    "bitfit",
    "lora-I",
    "lora-II",
    "spafit-8-12-I",
    "spafit-8-12-II",
    "spafit-8-16-II",
    "spafit-4-9-I",
    "spafit-4-9-II",
    "spafit-4-14-II",
    "linear-probe",
)
"""The methods of the paper's Table 1 in its order, and linear probing (only the head trains)."""

# FT-I and FT-II (paper, section 3): which attention matrices get LoRA.
ATTENTION_LORA = {"I": ("query", "key", "value"), "II": ("query", "key", "value", "attention_output")}
# Biases that train beside LoRA in group 3; those inside the attention stay frozen there.
FEED_FORWARD_BIASES = ("intermediate", "output", "output_norm")

_SPAFIT_NAME = re.compile(r"spafit-(-?\d+)-(-?\d+)-(i{1,2})(-absolute)?")
_ALIASES = {
    "fine-tuning": "full",
    "full-fine-tuning": "full",
    "full-finetuning": "full",
    "full-ft": "full",
    "full-bitfit": "bitfit",
    "full-lora-i": "lora-I",
    "full-lora-ii": "lora-II",
    "linear-probing": "linear-probe",
    "head": "linear-probe",
}
_SUFFIXES = (".yaml", ".yml", ".json")

StrategyLike: TypeAlias = "Strategy | Mapping[str, Any] | str | os.PathLike[str]"
"""What every public function takes as its `strategy`: see `Strategy.coerce`."""


@dataclass(frozen=True)
class Stratum:
    """A range of layers and what trains in each of them.

    Raises:
        ValueError: for a range that is empty or mixed up, an unknown role, LoRA on a norm, or LoRA settings PEFT cannot use.
    """

    layers: tuple[int, int] | tuple[float, float]
    """Two integers: first and last layer, inclusive, from zero, -1 as last meaning the last layer of the model.
    Two numbers of which one is a float: shares of the depth from 0 to 1, the second exclusive, so (0.0, 0.5) is the lower half."""
    lora: tuple[str, ...] = ()
    """Roles whose weight matrix gets LoRA; any of `ROLES` but the norms."""
    biases: tuple[str, ...] = ()
    """Roles whose bias gets a trained delta; any of `ROLES`."""
    r: int = 64
    """Rank of the LoRA matrices (paper: 64). Used only where `lora` is not empty; so are the four below."""
    lora_alpha: float = 128
    """LoRA is scaled by lora_alpha / r (paper: 128)."""
    lora_dropout: float = 0.0
    """Dropout on the input of LoRA, a probability in [0, 1)."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead (rsLoRA)."""
    use_dora: bool = False
    """Train magnitude and direction apart (DoRA)."""
    name: str = ""
    """What tables call it; "" is replaced by its position."""

    def __post_init__(self) -> None:
        who = f"stratum {self.name!r}" if self.name else "stratum"
        # A frozen dataclass sets its own fields this way; lists (from YAML) become tuples and roles get one order,
        # so that strata that mean the same compare equal.
        object.__setattr__(self, "layers", _checked_layers(self.layers, who))
        object.__setattr__(self, "lora", _checked_roles(self.lora, LORA_ROLES, f"{who}: lora"))
        object.__setattr__(self, "biases", _checked_roles(self.biases, ROLES, f"{who}: biases"))
        if not isinstance(self.name, str):
            raise ValueError(f"{who}: name is {self.name!r}; it must be a string.")
        if not _is_int(self.r) or self.r < 1:
            raise ValueError(f"{who}: r is {self.r!r}; the rank of LoRA must be an integer of at least 1, as in r=64.")
        if not _is_number(self.lora_alpha) or not 0 < self.lora_alpha < float("inf"):
            raise ValueError(
                f"{who}: lora_alpha is {self.lora_alpha!r}; it must be a positive number, as in lora_alpha=128."
            )
        if not _is_number(self.lora_dropout) or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"{who}: lora_dropout is {self.lora_dropout!r}; it must be a probability from 0 to below 1, as in lora_dropout=0.1."
            )
        for field in ("use_rslora", "use_dora"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{who}: {field} is {getattr(self, field)!r}; it must be true or false.")

    @property
    def is_share(self) -> bool:
        """Whether `layers` are shares of the depth (True) or layer numbers (False)."""
        return isinstance(self.layers[0], float)

    @property
    def trains(self) -> bool:
        """Whether anything trains in these layers."""
        return bool(self.lora or self.biases)

    def what(self) -> str:
        """What trains in it, in a few words: "frozen", "every bias", "LoRA q,k,v r=64 + biases intermediate,output,output_norm"."""
        parts = []
        if self.lora:
            roles = ",".join(_SHORT[role] for role in self.lora)
            extras = "".join(f" {word}" for word, on in (("rsLoRA", self.use_rslora), ("DoRA", self.use_dora)) if on)
            dropout = f" dropout={self.lora_dropout:g}" if self.lora_dropout else ""
            parts.append(f"LoRA {roles} r={self.r} alpha={self.lora_alpha:g}{dropout}{extras}")
        if self.biases == ROLES:
            parts.append("every bias")
        elif self.biases:
            parts.append("biases " + ",".join(_SHORT[role] for role in self.biases))
        return " + ".join(parts) or "frozen"

    def to_dict(self) -> dict[str, Any]:
        """As a dict of JSON types; `from_dict` gives an equal stratum back."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Stratum:
        """Inverse of `to_dict`. Only `layers` is required.

        Raises:
            ValueError: for a missing `layers` or a key that is not a field.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"a stratum is {data!r}; it must be a mapping with the keys {_listed(_fields(cls))}.")
        _refuse_unknown_keys(data, _fields(cls), "stratum")
        if "layers" not in data:
            raise ValueError(
                f"stratum {dict(data)!r} has no 'layers'; add for example layers: [0, 4] or layers: [0.0, 0.5]."
            )
        return cls(**data)


@dataclass(frozen=True)
class Strategy:
    """Some strata with a name: everything that decides which parameters of a model train.

    Example: `Strategy.from_name("spafit-4-9-II")`, or by hand

        Strategy(
            strata=(
                Stratum(layers=(0.25, 0.5), biases=ROLES),
                Stratum(layers=(0.5, 1.0), lora=("query", "value"), r=8, lora_alpha=16),
            ),
            name="mine",
        )

    Raises:
        ValueError: when strata overlap, do not fit the depth, or contradict `full`, or when nothing at all would train.
    """

    strata: tuple[Stratum, ...] = ()
    """The strata; layers in none of them are frozen."""
    name: str = "custom"
    """What tables, cards and logs call it."""
    depth: int | None = None
    """Number of layers that integer `layers` refer to (24 for the paper's names): they scale to the model's depth.
    None: they are layers of the model itself, whatever its depth."""
    outer_biases: bool = False
    """Also train a delta on each bias outside the layers: embeddings norm, final norm, pooler (BitFit)."""
    head: bool = True
    """Train the task head, where the model has one."""
    full: bool = False
    """Full fine-tuning: every weight trains and there are no strata."""

    def __post_init__(self) -> None:
        if isinstance(self.strata, Stratum):
            raise ValueError("strata is one Stratum; it must be a tuple of them: strata=(stratum,).")
        object.__setattr__(self, "strata", tuple(self.strata))
        for stratum in self.strata:
            if not isinstance(stratum, Stratum):
                raise ValueError(f"strata holds {stratum!r}; each must be a Stratum (for dicts: Strategy.from_dict).")
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name is {self.name!r}; it must be a string that is not empty, as in name='mine'.")
        for field in ("outer_biases", "head", "full"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(
                    f"strategy {self.name!r}: {field} is {getattr(self, field)!r}; it must be true or false."
                )
        if self.depth is not None and (not _is_int(self.depth) or self.depth < 1):
            raise ValueError(
                f"strategy {self.name!r}: depth is {self.depth!r}; it must be None (the model's own) or a positive integer."
            )
        if self.full and (self.strata or self.outer_biases or not self.head):
            raise ValueError(
                f"strategy {self.name!r}: full=True trains every weight, so strata must be empty, outer_biases False and "
                "head True; drop full=True or the others."
            )
        if not (self.full or self.strata or self.outer_biases or self.head):
            raise ValueError(
                f"strategy {self.name!r} trains nothing: it has no strata, no outer_biases and head=False; set one of them."
            )
        self._check_ranges()

    def _check_ranges(self) -> None:
        """Refuse what can be seen to be wrong before a model is known; the rest is seen in `resolve`."""
        if self.depth is not None:
            for index, stratum in enumerate(self.strata):
                _absolute_range(stratum, self.depth, self._label(index))
        # Comparable on their own: shares with shares, layers with layers; both when the depth is known.
        spans: list[tuple[bool, Fraction, Fraction, str]] = []
        for index, stratum in enumerate(self.strata):
            start, stop = _span(stratum, self.depth)
            spans.append((stratum.is_share or self.depth is not None, start, stop, self._label(index)))
        spans.sort(key=lambda span: span[:3])
        for (unit, _, stop, label), (next_unit, next_start, _, next_label) in itertools.pairwise(spans):
            if unit == next_unit and next_start < stop:
                raise ValueError(
                    f"strategy {self.name!r}: {label} and {next_label} overlap; a layer belongs to one stratum at most, so "
                    f"end the first before the second begins, or merge the two."
                )

    def _label(self, index: int) -> str:
        stratum = self.strata[index]
        return f"{stratum.name or f'stratum {index + 1}'} (layers {_range_text(stratum)})"

    # -- making one ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_name(
        cls,
        name: str,
        r: int = 64,
        lora_alpha: float = 128,
        lora_dropout: float = 0.0,
        use_rslora: bool = False,
        use_dora: bool = False,
    ) -> Strategy:
        """A method of the paper's Table 1 (see `METHODS`), or any other `spafit-N1-N2-I` or `spafit-N1-N2-II`.

        Case and spaces do not matter, and "Full BitFit" or "full-lora-i" work too. N1 and N2 end groups 1 and 2, counted
        from zero, inclusive, on 24 layers; on another depth they scale by share (`resolve`). The suffix `-absolute`
        (spafit-1-2-II-absolute) makes them layers of the model itself, as `from_bounds` does.

        Args:
            name: the method.
            r, lora_alpha, lora_dropout, use_rslora, use_dora: LoRA settings for the strata that have LoRA.

        Raises:
            ValueError: for an unknown name (with the closest one), N1 > N2, or N2 beyond the last of the 24 layers.
        """
        if not isinstance(name, str):
            raise ValueError(f"the name of a strategy is {name!r}; it must be a string such as 'spafit-4-9-II'.")
        key = re.sub(r"[\s_]+", "-", name.strip().lower())
        key = _ALIASES.get(key, key)
        lora: dict[str, Any] = {
            "r": r,
            "lora_alpha": lora_alpha,
            "lora_dropout": lora_dropout,
            "use_rslora": use_rslora,
            "use_dora": use_dora,
        }
        match = _SPAFIT_NAME.fullmatch(key)
        if match:
            n1, n2, kind, absolute = int(match[1]), int(match[2]), match[3].upper(), match[4]
            if not absolute and n1 < 0:
                raise ValueError(f"{name!r}: N1 is {n1}; it counts layers from zero, as in spafit-4-9-II.")
            return cls.from_bounds(n1, n2, kind, depth=None if absolute else PAPER_DEPTH, **lora)
        whole = (0, PAPER_DEPTH - 1)
        method = {method.lower(): method for method in METHODS}.get(key.lower())
        if method == "full":
            return cls(name=method, full=True)
        if method == "linear-probe":
            return cls(name=method)
        if method == "bitfit":
            every_bias = Stratum(whole, biases=ROLES, name="all layers")
            return cls((every_bias,), name=method, depth=PAPER_DEPTH, outer_biases=True)
        if method in ("lora-I", "lora-II"):
            roles = ATTENTION_LORA[method.removeprefix("lora-")]
            return cls((Stratum(whole, lora=roles, name="all layers", **lora),), name=method, depth=PAPER_DEPTH)
        raise ValueError(_unknown_name(name, key))

    @classmethod
    def from_bounds(
        cls,
        n1: int,
        n2: int,
        kind: str = "II",
        r: int = 64,
        lora_alpha: float = 128,
        lora_dropout: float = 0.0,
        use_rslora: bool = False,
        use_dora: bool = False,
        *,
        depth: int | None = None,
    ) -> Strategy:
        """SPAFIT with group 1 = layers 0..n1, group 2 = n1+1..n2, group 3 = the rest, of the model's own depth.

        Args:
            n1: last layer of group 1, from zero; -1 for no group 1.
            n2: last layer of group 2; equal to n1 for no group 2, the last layer for no group 3.
            kind: "I" (LoRA on query, key, value) or "II" (and on the attention's output).
            r, lora_alpha, lora_dropout, use_rslora, use_dora: LoRA settings of group 3.
            depth: number of layers n1 and n2 refer to, when they are to scale by share; None for the model's own.

        Raises:
            ValueError: for n1 > n2, n2 >= depth or a kind that is neither. Without `depth`, n2 >= the number of layers of the
                model is found by `resolve`.
        """
        if not _is_int(n1) or not _is_int(n2):
            raise ValueError(f"N1 and N2 are {n1!r} and {n2!r}; both must be integers, as in n1=4, n2=9.")
        if n1 < -1 or n2 < -1:
            raise ValueError(f"N1 = {n1}, N2 = {n2}: layers count from zero; use -1 only for 'no such group'.")
        if n1 > n2:
            raise ValueError(
                f"N1 = {n1} is beyond N2 = {n2}; group 1 ends at N1 and group 2 at N2, so N1 <= N2 must hold: "
                f"did you mean N1 = {n2}, N2 = {n1}?"
            )
        if depth is not None and n2 >= depth:
            raise ValueError(
                f"N2 = {n2} is beyond the last layer: N1 and N2 refer to {depth} layers counted from zero, so N2 may be at "
                f"most {depth - 1}."
            )
        kind_key = str(kind).upper()
        if kind_key not in ATTENTION_LORA:
            raise ValueError(f"the kind of fine-tuning in group 3 is {kind!r}; it must be 'I' or 'II'.")
        strata = []
        if n1 >= 0:
            strata.append(Stratum((0, n1), name="group 1"))
        if n2 > n1:
            strata.append(Stratum((n1 + 1, n2), biases=ROLES, name="group 2"))
        if depth is None or n2 < depth - 1:
            strata.append(
                Stratum(
                    (n2 + 1, -1 if depth is None else depth - 1),
                    lora=ATTENTION_LORA[kind_key],
                    biases=FEED_FORWARD_BIASES,
                    r=r,
                    lora_alpha=lora_alpha,
                    lora_dropout=lora_dropout,
                    use_rslora=use_rslora,
                    use_dora=use_dora,
                    name="group 3",
                )
            )
        absolute = "-absolute" if depth is None else ""
        return cls(tuple(strata), name=f"spafit-{n1}-{n2}-{kind_key}{absolute}", depth=depth)

    @classmethod
    def coerce(cls, value: StrategyLike) -> Strategy:
        """A strategy from what a user may have: a `Strategy`, a name, a dict, a path of a YAML or JSON file, or JSON text.

        Raises:
            ValueError: for anything else, and whatever `from_name`, `from_dict` and `from_file` refuse.
        """
        if isinstance(value, Strategy):
            return value
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        if isinstance(value, str):
            text = value.strip()
            if text.startswith("{"):
                return cls.from_dict(_parse_json(text, "the strategy given as JSON text"))
            return cls.from_file(text) if text.lower().endswith(_SUFFIXES) else cls.from_name(text)
        if isinstance(value, os.PathLike):
            return cls.from_file(value)
        raise ValueError(
            f"a strategy is {value!r}; it must be a name such as 'spafit-4-9-II', a Strategy, a dict, or the path of a YAML or JSON file."
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Strategy:
        """Inverse of `to_dict`. `strata` is a list of dicts; {"name": ...} alone means the method of that name.

        Raises:
            ValueError: for a key that is not a field, a missing `strata`, and whatever the fields refuse.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"a strategy is {data!r}; it must be a mapping with the keys {_listed(_fields(cls))}.")
        _refuse_unknown_keys(data, _fields(cls), "strategy")
        if set(data) == {"name"}:
            return cls.from_name(data["name"])
        fields = dict(data)
        strata = fields.pop("strata", None)
        if strata is None and not fields.get("full"):
            # Without this, a forgotten list of strata would quietly be linear probing.
            raise ValueError(
                "a strategy has no 'strata'; list them (strata: [] trains the head alone), or give 'name' alone."
            )
        if isinstance(strata, (str, Mapping)) or not isinstance(strata or (), Iterable):
            raise ValueError(f"strata is {strata!r}; it must be a list of mappings, each with 'layers'.")
        return cls(strata=tuple(Stratum.from_dict(stratum) for stratum in strata or ()), **fields)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Strategy:
        """Read a strategy from a .yaml, .yml or .json file in the form of `to_dict`.

        Raises:
            ValueError: when the file is missing, of another kind, not to be parsed, or holds a wrong strategy.
        """
        file = Path(path)
        if file.suffix.lower() not in _SUFFIXES:
            raise ValueError(f"{file}: a strategy is read from a file that ends in .yaml, .yml or .json.")
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ValueError(f"{file}: the strategy cannot be read ({reason}); check the path.") from error
        data = _parse_json(text, str(file)) if file.suffix.lower() == ".json" else _parse_yaml(text, str(file))
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def with_lora(self, **settings: Any) -> Strategy:
        """The same strategy with LoRA settings (r, lora_alpha, lora_dropout, use_rslora, use_dora) replaced in every stratum that has LoRA.

        Raises:
            ValueError: for a setting that is none of these five, or a value `Stratum` refuses.
        """
        _refuse_unknown_keys(settings, ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"), "with_lora")
        strata = tuple(
            dataclasses.replace(stratum, **settings) if stratum.lora else stratum for stratum in self.strata
        )
        return dataclasses.replace(self, strata=strata)

    # -- writing it ---------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """As a dict of JSON types; `from_dict` gives an equal strategy back."""
        return {
            "name": self.name,
            "depth": self.depth,
            "outer_biases": self.outer_biases,
            "head": self.head,
            "full": self.full,
            "strata": [stratum.to_dict() for stratum in self.strata],
        }

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Write the strategy as YAML (.yaml, .yml) or JSON (.json); `from_file` gives an equal one back.

        Raises:
            ValueError: for a file name with another ending.
        """
        file = Path(path)
        if file.suffix.lower() not in _SUFFIXES:
            raise ValueError(f"{file}: a strategy is written to a file that ends in .yaml, .yml or .json.")
        if file.suffix.lower() == ".json":
            text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        else:
            text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=119)
        file.write_text(text, encoding="utf-8")

    def __str__(self) -> str:
        """One line: the name, and what trains in which layers."""
        if self.full:
            return f"{self.name}: every weight"
        parts = [f"{_range_text(stratum)} {stratum.what()}" for stratum in self.strata]
        parts += ["biases outside the layers"] * self.outer_biases + ["head"] * self.head
        depth = f" of {self.depth} layers" if self.depth is not None else ""
        return f"{self.name}{depth}: {' | '.join(parts)}"

    # -- putting it on a depth ----------------------------------------------------------------------------------------

    def resolve(self, num_layers: int) -> tuple[tuple[Stratum, tuple[int, ...]], ...]:
        """The layers each stratum has on a model (or a stack) of `num_layers` layers, in the order of `strata`.

        A boundary at layer b of `depth` moves to round(b * num_layers / depth), halves up; a share s to
        round(s * num_layers). A stratum may become empty on a shallow model. For full fine-tuning there is nothing to resolve: ().

        Raises:
            ValueError: when absolute layers lie beyond the model, or strata meet in one layer.
        """
        if not _is_int(num_layers) or num_layers < 1:
            raise ValueError(f"num_layers is {num_layers!r}; it must be a positive integer.")
        resolved: list[tuple[Stratum, tuple[int, ...]]] = []
        owner: dict[int, str] = {}
        for index, stratum in enumerate(self.strata):
            label = self._label(index)
            if stratum.is_share or self.depth is not None:
                start, stop = (_round_half_up(edge * num_layers) for edge in _span(stratum, self.depth))
            else:
                start, stop = _absolute_range(stratum, num_layers, label)
            layers = tuple(range(start, stop))
            for layer in layers:
                if layer in owner:
                    raise ValueError(
                        f"strategy {self.name!r}: {owner[layer]} and {label} both take layer {layer} of {num_layers}; "
                        "a layer belongs to one stratum at most, so move one of the two."
                    )
                owner[layer] = label
            resolved.append((stratum, layers))
        return tuple(resolved)

    def prefix_length(self, num_layers: int) -> int:
        """How many leading layers of `num_layers` stay as they are with everything below them (the embeddings) frozen too.

        0 for full fine-tuning and where biases outside the layers train; num_layers where only the head trains.
        """
        resolved = self.resolve(num_layers)
        if self.full or self.outer_biases:
            return 0
        return min((layer for stratum, layers in resolved if stratum.trains for layer in layers), default=num_layers)

    def scaling(self, num_layers: int) -> str:
        """What integer layers became on another depth, as one line for tables and logs; "" where nothing scaled.

        Example: "24 -> 12 layers: group 1 0-4 -> 0-2, group 2 5-9 -> 3-4, group 3 10-23 -> 5-11 (N1 = 4 -> 2, N2 = 9 -> 4)".
        """
        moved = [
            (index, stratum, layers)
            for index, (stratum, layers) in enumerate(self.resolve(num_layers))
            if not stratum.is_share and self.depth not in (None, num_layers)
        ]
        if not moved:
            return ""
        changes = ", ".join(
            f"{stratum.name or f'stratum {index + 1}'} {_range_text(stratum)} -> {layers_text(layers)}"
            for index, stratum, layers in moved
        )
        bounds = ""
        match = _SPAFIT_NAME.fullmatch(self.name.lower())
        if match:
            n1, n2 = (
                _round_half_up(Fraction((int(n) + 1) * num_layers, self.depth or 1)) - 1 for n in match.group(1, 2)
            )
            bounds = f" (N1 = {match[1]} -> {_bound_text(n1)}, N2 = {match[2]} -> {_bound_text(n2)})"
        return f"{self.depth} -> {num_layers} layers: {changes}{bounds}"


def layers_text(layers: tuple[int, ...]) -> str:
    """Layer numbers in short: (3, 4, 5) is "3-5", (3,) is "3", (0, 1, 5) is "0-1,5", () is "none"."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs) or "none"


# -- helpers ----------------------------------------------------------------------------------------------------------

_SHORT = {role: role for role in ROLES} | {"query": "q", "key": "k", "value": "v", "attention_output": "o"}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fields(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


def _closest(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def _refuse_unknown_keys(data: Mapping[str, Any], allowed: tuple[str, ...], who: str) -> None:
    for key in data:
        if key not in allowed:
            raise ValueError(
                f"{who}: unknown key {key!r}; allowed are {_listed(allowed)}{_closest(str(key), allowed)}"
            )


def _unknown_name(name: str, key: str) -> str:
    allowed = f"allowed are {_listed(METHODS)}, and any other spafit-N1-N2-I or spafit-N1-N2-II with N1 <= N2 <= {PAPER_DEPTH - 1}"
    close = difflib.get_close_matches(key, [method.lower() for method in METHODS], n=1, cutoff=0.5)
    original = {method.lower(): method for method in METHODS}
    hint = f"; did you mean {original[close[0]]!r}?" if close else "."
    return f"unknown strategy {name!r}; {allowed}, or the path of a .yaml or .json file{hint}"


def _checked_roles(roles: Any, allowed: tuple[str, ...], where: str) -> tuple[str, ...]:
    if isinstance(roles, str) or not isinstance(roles, Iterable):
        raise ValueError(f"{where} is {roles!r}; it must be a list of roles, such as ['query', 'value'].")
    given = tuple(roles)
    for role in given:
        if role in NORM_ROLES and role not in allowed:
            raise ValueError(
                f"{where}: {role!r} is a norm and has no matrix for LoRA; allowed are {_listed(allowed)}."
            )
        if role not in allowed:
            raise ValueError(
                f"{where}: unknown role {role!r}; allowed are {_listed(allowed)}{_closest(str(role), allowed)}"
            )
    if len(set(given)) != len(given):
        raise ValueError(f"{where}: {list(given)!r} names a role twice; name each once.")
    return tuple(role for role in allowed if role in given)


def _checked_layers(layers: Any, who: str) -> tuple[int, int] | tuple[float, float]:
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise ValueError(f"{who}: layers is {layers!r}; it must be two numbers, such as [0, 4] or [0.0, 0.5].")
    pair = tuple(layers)
    if len(pair) != 2 or not all(_is_number(edge) for edge in pair):
        raise ValueError(f"{who}: layers is {list(pair)!r}; it must be two numbers, such as [0, 4] or [0.0, 0.5].")
    first, last = pair
    if _is_int(first) and _is_int(last):
        if first < 0 or last < -1:
            raise ValueError(
                f"{who}: layers is {list(pair)!r}; layers count from zero, and only the last may be -1 (the model's last)."
            )
        if first > last != -1:
            raise ValueError(f"{who}: layers is {list(pair)!r}; the first layer must not be beyond the last.")
        return first, last
    if not 0 <= first < last <= 1:
        raise ValueError(
            f"{who}: layers is {list(pair)!r}; with a float they are shares of the depth, 0 <= first < last <= 1, such as [0.25, 0.5]; "
            "layer numbers are integers."
        )
    return float(first), float(last)


def _absolute_range(stratum: Stratum, num_layers: int, label: str) -> tuple[int, int]:
    """Start and stop of integer layers on exactly `num_layers` layers; shares pass through unchecked."""
    if stratum.is_share:
        return 0, 0
    first, last = int(stratum.layers[0]), int(stratum.layers[1])
    stop = num_layers if last == -1 else last + 1
    # first == num_layers with an open end is a stratum that has become empty: group 3 where N2 is the last layer.
    if stop > num_layers or first > num_layers:
        raise ValueError(
            f"{label} reaches beyond the last layer: there are {num_layers}, counted from zero, so the last is {num_layers - 1}; "
            "lower it, or set depth to the number of layers the ranges were written for so that they scale."
        )
    return first, stop


def _span(stratum: Stratum, depth: int | None) -> tuple[Fraction, Fraction]:
    """Start and end of a stratum, the end exclusive: in shares where they are known, else in layers."""
    first, last = stratum.layers
    if stratum.is_share:
        # 1/6 is not exact as a float; the nearest simple fraction is what was meant, so that halves round up reliably.
        return Fraction(first).limit_denominator(100_000), Fraction(last).limit_denominator(100_000)
    if depth is None:
        return Fraction(first), Fraction(10**9) if last == -1 else Fraction(last) + 1
    return Fraction(int(first), depth), Fraction(1) if last == -1 else Fraction(int(last) + 1, depth)


def _round_half_up(value: Fraction) -> int:
    return int((2 * value + 1) // 2)


def _range_text(stratum: Stratum) -> str:
    first, last = stratum.layers
    if stratum.is_share:
        return f"{100 * first:g}%-{100 * last:g}%"
    if first == last:
        return str(first)
    return f"{first}-{'end' if last == -1 else last}"


def _bound_text(bound: int) -> str:
    return str(bound) if bound >= 0 else "none"


def _no_duplicates(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping from pairs as read from a file; the parsers keep the last of two equal keys in silence, this one does not."""
    data: dict[Any, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"the key {key!r} stands twice in one mapping; keep one.")
        data[key] = value
    return data


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error}).") from error


class _StrictLoader(yaml.SafeLoader):
    """yaml.SafeLoader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(self.construct_object(key, deep=True), None) for key, _ in node.value]
        _no_duplicates([(key if isinstance(key, str) else repr(key), value) for key, value in keys])
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{where}: not valid YAML ({reason}).") from error

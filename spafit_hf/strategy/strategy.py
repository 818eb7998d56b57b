"""A strategy: some strata with a name."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from spafit_hf.strategy.methods import SPAFIT_NAME, bounds_fields, method_fields
from spafit_hf.strategy.reading import SUFFIXES, field_names, is_int, parse_json, read_file, refuse_unknown_keys
from spafit_hf.strategy.stratum import LORA_SETTINGS, LoraSettings, Stratum, absolute_range, range_text, span
from spafit_hf.words import layers_text

MAX_STRATA = 1000

StrategyLike: TypeAlias = "Strategy | Mapping[str, Any] | str | os.PathLike[str]"
"""What every public function takes as its `strategy`: see `Strategy.coerce`."""


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
        ValueError: when strata overlap, do not fit the depth or contradict `full`, or when nothing would train.
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
        if self.depth is not None and (not is_int(self.depth) or self.depth < 1):
            raise ValueError(
                f"strategy {self.name!r}: depth is {self.depth!r}; it must be None (the model's own) or at least 1."
            )
        if self.full and (self.strata or self.outer_biases or not self.head):
            raise ValueError(
                f"strategy {self.name!r}: full=True trains every weight, so strata must be empty, outer_biases False "
                "and head True; drop full=True or the others."
            )
        if not (self.full or self.strata or self.outer_biases or self.head):
            raise ValueError(
                f"strategy {self.name!r} trains nothing: it has no strata, no outer_biases and head=False; set one."
            )
        self._check_ranges()

    def _check_ranges(self) -> None:
        """Refuse what can be seen to be wrong before a model is known; the rest is seen in `resolve`."""
        if self.depth is not None:
            for index, stratum in enumerate(self.strata):
                if not stratum.is_share:
                    absolute_range(stratum, self.depth, self._label(index))
        for stack in {stratum.stack for stratum in self.strata}:
            self._check_overlaps(stack)

    def _check_overlaps(self, stack: str) -> None:
        # Comparable on their own: shares with shares, layers with layers; both when the depth is known.
        spans = [
            (stratum.is_share or self.depth is not None, *span(stratum, self.depth), self._label(index))
            for index, stratum in enumerate(self.strata)
            if stratum.stack in ("", stack)
        ]
        spans.sort(key=lambda span: span[:3])
        for (unit, _, stop, label), (next_unit, next_start, _, next_label) in itertools.pairwise(spans):
            if unit == next_unit and next_start < stop:
                raise ValueError(
                    f"strategy {self.name!r}: {label} and {next_label} overlap; a layer belongs to one stratum at "
                    "most, so end the first before the second begins, or merge the two."
                )

    def _label(self, index: int) -> str:
        stratum = self.strata[index]
        where = f" of the {stratum.stack}" if stratum.stack else ""
        return f"{stratum.name or f'stratum {index + 1}'} (layers {range_text(stratum)}{where})"

    # -- making one ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_name(cls, name: str, **lora: Any) -> Strategy:
        """A method of the paper's Table 1 (see `METHODS`), or any other `spafit-N1-N2-I` or `spafit-N1-N2-II`.

        `series-adapter` and `parallel-adapter` put bottleneck adapters into all layers (see `ADAPTER_METHODS`).
        Case and spaces do not matter, and "Full BitFit" or "full-lora-i" work too. N1 and N2 end groups 1 and 2,
        counted from zero, inclusive, on 24 layers; on another depth they scale by share (`resolve`). The suffix
        `-absolute` (spafit-1-2-II-absolute) makes them layers of the model itself, as `from_bounds` does.

        In layers that mix tokens without attention (Mamba), every bias is that of the mixer's projections too, and
        LoRA is on `mixer_in` in -I and lora-I, on `mixer_in` and `mixer_out` in -II and lora-II: see `Stratum`.

        Args:
            name: the method.
            **lora: settings for the strata that have LoRA, any of the fields of `LoraSettings`: r=8, lora_alpha=16.

        Raises:
            ValueError: for an unknown name (with the closest one), N1 > N2, or N2 beyond the last of the 24 layers.
        """
        return cls(**method_fields(name, LoraSettings(**lora)))

    @classmethod
    def from_bounds(cls, n1: int, n2: int, kind: str = "II", *, depth: int | None = None, **lora: Any) -> Strategy:
        """SPAFIT with group 1 = layers 0..n1, group 2 = n1+1..n2, group 3 = the rest, of the model's own depth.

        Args:
            n1: last layer of group 1, from zero; -1 for no group 1.
            n2: last layer of group 2; equal to n1 for no group 2, the last layer for no group 3.
            kind: "I" (LoRA on query, key, value) or "II" (and on the attention's output).
            depth: number of layers n1 and n2 refer to, when they are to scale by share; None for the model's own.
            **lora: settings of LoRA in group 3, any of the fields of `LoraSettings`.

        Raises:
            ValueError: for n1 > n2, n2 >= depth or a kind that is neither. Without `depth`, an n2 beyond the model's
                last layer is found by `resolve`.
        """
        return cls(**bounds_fields(n1, n2, kind, LoraSettings(**lora), depth))

    @classmethod
    def coerce(cls, value: StrategyLike, **lora: Any) -> Strategy:
        """A strategy from what a user may have: a `Strategy`, a name, a dict, the path of a file, or JSON text.

        LoRA settings given beside it are a name's, and those that the strata of a dict or file leave open.

        Raises:
            ValueError: for anything else, and whatever `from_name`, `from_dict` and `from_file` refuse.
        """
        if isinstance(value, Strategy):
            return value
        if isinstance(value, Mapping):
            return cls.from_dict(value, **lora)
        if isinstance(value, str):
            text = value.strip()
            if text.startswith("{"):
                return cls.from_dict(parse_json(text, "the strategy given as JSON text"), **lora)
            return cls.from_file(text, **lora) if text.lower().endswith(SUFFIXES) else cls.from_name(text, **lora)
        if isinstance(value, os.PathLike):
            return cls.from_file(value, **lora)
        raise ValueError(
            f"a strategy is {value!r}; it must be a name such as 'spafit-4-9-II', a Strategy, a dict, or the path of "
            "a YAML or JSON file."
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **lora: Any) -> Strategy:
        """Inverse of `to_dict`. `strata` is a list of dicts; {"name": ...} alone means the method of that name.

        Raises:
            ValueError: for a key that is not a field, a missing `strata`, and whatever the fields refuse.
        """
        refuse_unknown_keys(data, field_names(cls), "strategy")
        if set(data) == {"name"}:
            return cls.from_name(data["name"], **lora)
        fields = dict(data)
        strata = fields.pop("strata", None)
        if strata is None and not fields.get("full"):
            # Without this, a forgotten list of strata would quietly be linear probing.
            raise ValueError(
                "a strategy has no 'strata'; list them (strata: [] trains the head alone), or give 'name' alone."
            )
        if isinstance(strata, (str, Mapping)) or not isinstance(strata or (), Iterable):
            raise ValueError(f"strata is {strata!r}; it must be a list of mappings, each with 'layers'.")
        strata = tuple(itertools.islice(strata or (), MAX_STRATA + 1))
        if len(strata) > MAX_STRATA:
            raise ValueError(f"strata has more than {MAX_STRATA:,} entries, and no model has so many layers.")
        stated = [{**lora, **each} if isinstance(each, Mapping) and each.get("lora") else each for each in strata]
        return cls(strata=tuple(map(Stratum.from_dict, stated)), **fields)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **lora: Any) -> Strategy:
        """Read a strategy from a .yaml, .yml or .json file in the form of `to_dict`.

        Raises:
            ValueError: when the file is missing, of another kind, not to be parsed, or holds a wrong strategy.
        """
        data = read_file(path, "strategy")
        try:
            return cls.from_dict(data, **lora)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    def with_lora(self, **settings: Any) -> Strategy:
        """The same strategy with some fields of `LoraSettings` replaced in every stratum that has LoRA.

        Raises:
            ValueError: for a setting that is none of these, or a value `Stratum` refuses.
        """
        refuse_unknown_keys(settings, LORA_SETTINGS, "with_lora")
        strata = tuple(
            dataclasses.replace(stratum, **settings) if stratum.lora else stratum for stratum in self.strata
        )
        return dataclasses.replace(self, strata=strata)

    def with_bounds(self, n1: int, n2: int) -> Strategy:
        """The same kind of SPAFIT with other bounds, as layers of the model (`from_bounds`); LoRA settings stay.

        Raises:
            ValueError: when this is not a SPAFIT-N1-N2-I or -II strategy, and what `from_bounds` refuses.
        """
        match = SPAFIT_NAME.fullmatch(self.name.lower())
        if not match:
            raise ValueError(
                f"N1 and N2 were given for the strategy {self.name!r}, which has no such bounds; leave them out, or "
                "take a strategy named spafit-N1-N2-I or spafit-N1-N2-II."
            )
        bounded = Strategy.from_bounds(n1, n2, match[3])
        lora = next((stratum for stratum in self.strata if stratum.lora), None)
        return bounded if lora is None else bounded.with_lora(**dataclasses.asdict(lora.lora_settings))

    # -- writing it ---------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """As a dict of JSON types; `from_dict` gives an equal strategy back."""
        fields = {name: getattr(self, name) for name in ("name", "depth", "outer_biases", "head", "full")}
        return {**fields, "strata": [stratum.to_dict() for stratum in self.strata]}

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Write the strategy as YAML (.yaml, .yml) or JSON (.json); `from_file` gives an equal one back.

        Raises:
            ValueError: for a file name with another ending.
        """
        file = Path(path)
        if file.suffix.lower() not in SUFFIXES:
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
        parts = [f"{each.stack}{' ' * bool(each.stack)}{range_text(each)} {each.what()}" for each in self.strata]
        parts += ["biases outside the layers"] * self.outer_biases + ["head"] * self.head
        depth = f" of {self.depth} layers" if self.depth is not None else ""
        return f"{self.name}{depth}: {' | '.join(parts)}"

    def of_stack(self, stack: str) -> Strategy:
        """The strategy as it is for one stack of a model: without the strata of others."""
        if all(stratum.stack in ("", stack) for stratum in self.strata):
            return self
        own = copy.copy(self)  # unchecked: what trains nothing in one stack trains in another
        object.__setattr__(own, "strata", tuple(each for each in self.strata if each.stack in ("", stack)))
        return own

    # -- putting it on a depth ----------------------------------------------------------------------------------------

    def resolve(self, num_layers: int) -> tuple[tuple[Stratum, tuple[int, ...]], ...]:
        """The layers each stratum has on a model (or a stack) of `num_layers` layers, in the order of `strata`.

        A boundary at layer b of `depth` moves to round(b * num_layers / depth), halves up; a share s to
        round(s * num_layers). A stratum may become empty on a shallow model. Full fine-tuning has no strata: ().

        Raises:
            ValueError: when absolute layers lie beyond the model, or strata meet in one layer.
        """
        if not is_int(num_layers) or num_layers < 1:
            raise ValueError(f"num_layers is {num_layers!r}; it must be a positive integer.")
        resolved: list[tuple[Stratum, tuple[int, ...]]] = []
        owner: dict[int, str] = {}
        for index, stratum in enumerate(self.strata):
            label = self._label(index)
            if stratum.is_share or self.depth is not None:
                start, stop = (_round_half_up(edge * num_layers) for edge in span(stratum, self.depth))
            else:
                start, stop = absolute_range(stratum, num_layers, label)
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
        """How many leading layers of `num_layers` are frozen together with all that feeds them (the embeddings).

        0 for full fine-tuning and where biases outside the layers train; num_layers where only the head trains.
        """
        resolved = self.resolve(num_layers)
        if self.full or self.outer_biases:
            return 0
        return min((layer for stratum, layers in resolved if stratum.trains for layer in layers), default=num_layers)

    def scaling(self, num_layers: int) -> str:
        """What integer layers became on another depth, as one line for tables and logs; "" where nothing scaled.

        Example: "24 -> 12 layers: group 1 0-4 -> 0-2, group 2 5-9 -> 3-4, group 3 10-23 -> 5-11 (N1 = 4 -> 2,
        N2 = 9 -> 4)".
        """
        moved = [
            (index, stratum, layers)
            for index, (stratum, layers) in enumerate(self.resolve(num_layers))
            if not stratum.is_share and self.depth not in (None, num_layers)
        ]
        if not moved:
            return ""
        changes = ", ".join(
            f"{stratum.name or f'stratum {index + 1}'} {range_text(stratum)} -> {layers_text(layers)}"
            for index, stratum, layers in moved
        )
        bounds = ""
        match = SPAFIT_NAME.fullmatch(self.name.lower())
        if match:
            stops = [_round_half_up(Fraction((int(n) + 1) * num_layers, self.depth or 1)) for n in match.group(1, 2)]
            n1, n2 = (stop - 1 if stop else "none" for stop in stops)
            bounds = f" (N1 = {match[1]} -> {n1}, N2 = {match[2]} -> {n2})"
        return f"{self.depth} -> {num_layers} layers: {changes}{bounds}"


def _round_half_up(value: Fraction) -> int:
    return int((2 * value + 1) // 2)

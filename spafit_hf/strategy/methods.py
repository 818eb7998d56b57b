"""The methods of the paper by their names, and those it reviews: which strata each is made of."""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict
from typing import Any

from spafit_hf.strategy.bottleneck import PARALLEL, SERIES
from spafit_hf.strategy.reading import is_int
from spafit_hf.strategy.stratum import ROLES, LoraSettings, Stratum
from spafit_hf.words import listed

PAPER_DEPTH = 24
"""Number of layers that N1 and N2 in the paper's names refer to (BERT-large)."""

METHODS = (
    "full", "bitfit", "lora-I", "lora-II", "spafit-8-12-I", "spafit-8-12-II", "spafit-8-16-II", "spafit-4-9-I",
    "spafit-4-9-II", "spafit-4-14-II", "linear-probe",
)  # fmt: skip
"""The methods of the paper's Table 1 in its order, and linear probing (only the head trains)."""

ADAPTER_METHODS = ("series-adapter", "parallel-adapter")
"""Bottleneck adapters in all layers, which the paper's section 2 reviews and its tables leave out."""

# FT-I and FT-II (paper, section 3): which attention matrices get LoRA.
ATTENTION_LORA = {"I": ("query", "key", "value"), "II": ("query", "key", "value", "attention_output")}
# Biases that train beside LoRA in group 3; those inside the attention stay frozen there.
FEED_FORWARD_BIASES = ("intermediate", "output", "output_norm")

SPAFIT_NAME = re.compile(r"spafit-(-?\d+)-(-?\d+)-(i{1,2})(-absolute)?")
_ALIASES = {
    **dict.fromkeys(("fine-tuning", "full-fine-tuning", "full-finetuning", "full-ft"), "full"),
    **{f"full-{name}": name for name in ("bitfit", "lora-i", "lora-ii")},
    **dict.fromkeys(("linear-probing", "head"), "linear-probe"),
}


def method_fields(name: str, lora: LoraSettings) -> dict[str, Any]:
    """The fields of the `Strategy` of a name; see `Strategy.from_name`."""
    if not isinstance(name, str):
        raise ValueError(f"the name of a strategy is {name!r}; it must be a string such as 'spafit-4-9-II'.")
    key = re.sub(r"[\s_]+", "-", name.strip().lower())
    key = _ALIASES.get(key, key)
    match = SPAFIT_NAME.fullmatch(key)
    if match:
        n1, n2, kind, absolute = int(match[1]), int(match[2]), match[3], match[4]
        if not absolute and n1 < 0:
            raise ValueError(f"{name!r}: N1 is {n1}; it counts layers from zero, as in spafit-4-9-II.")
        return bounds_fields(n1, n2, kind, lora, None if absolute else PAPER_DEPTH)
    if key == "full":
        return {"name": key, "full": True}
    if key == "linear-probe":
        return {"name": key}
    everywhere: dict[str, Any] = {"layers": (0, PAPER_DEPTH - 1), "name": "all layers"}
    if key == "bitfit":
        strata = (Stratum(biases=ROLES, **everywhere),)
        return {"name": key, "strata": strata, "depth": PAPER_DEPTH, "outer_biases": True}
    if key in ADAPTER_METHODS:
        bottleneck = SERIES if key == "series-adapter" else PARALLEL
        return {"name": key, "strata": (Stratum(bottleneck=bottleneck, **everywhere),), "depth": PAPER_DEPTH}
    if key in ("lora-i", "lora-ii"):
        kind = key.removeprefix("lora-").upper()
        stratum = Stratum(lora=ATTENTION_LORA[kind], **everywhere, **asdict(lora))
        return {"name": f"lora-{kind}", "strata": (stratum,), "depth": PAPER_DEPTH}
    raise ValueError(_unknown_name(name, key))


def bounds_fields(n1: int, n2: int, kind: str, lora: LoraSettings, depth: int | None) -> dict[str, Any]:
    """The fields of the `Strategy` of two bounds; see `Strategy.from_bounds`."""
    if not is_int(n1) or not is_int(n2):
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
            f"N2 = {n2} is beyond the last layer: N1 and N2 refer to {depth} layers counted from zero, "
            f"so N2 may be at most {depth - 1}."
        )
    kind_key = str(kind).upper()
    if kind_key not in ATTENTION_LORA:
        raise ValueError(f"the kind of fine-tuning in group 3 is {kind!r}; it must be 'I' or 'II'.")
    last = -1 if depth is None else depth - 1
    strata = []
    if n1 >= 0:
        strata.append(Stratum((0, n1), name="group 1"))
    if n2 > n1:
        strata.append(Stratum((n1 + 1, n2), biases=ROLES, name="group 2"))
    if depth is None or n2 < last:
        parts: dict[str, Any] = {"lora": ATTENTION_LORA[kind_key], "biases": FEED_FORWARD_BIASES}
        strata.append(Stratum((n2 + 1, last), **parts, **asdict(lora), name="group 3"))
    absolute = "-absolute" if depth is None else ""
    return {"strata": tuple(strata), "name": f"spafit-{n1}-{n2}-{kind_key}{absolute}", "depth": depth}


def _unknown_name(name: str, key: str) -> str:
    known = (*METHODS, *ADAPTER_METHODS)
    allowed = f"allowed are {listed(known)}, any other spafit-N1-N2-I or spafit-N1-N2-II with N1 <= N2 < {PAPER_DEPTH}"
    original = {method.lower(): method for method in known}
    close = difflib.get_close_matches(key, original, n=1, cutoff=0.5)
    hint = f"; did you mean {original[close[0]]!r}?" if close else "."
    return f"unknown strategy {name!r}; {allowed}, or the path of a .yaml or .json file{hint}"

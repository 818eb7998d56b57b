"""A stratum: a range of layers and what trains in each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from spafit_hf.strategy.bottleneck import BottleneckSettings
from spafit_hf.strategy.reading import closest, field_names, is_int, is_number, refuse_unknown_keys
from spafit_hf.words import listed

ROLES = (
    "query", "key", "value", "attention_output", "attention_norm",
    "intermediate", "output", "output_norm",
)  # fmt: skip
"""The paper's sub-layers of a transformer layer, in reading order. In BERT: attention.self.query, .key, .value,
attention.output.dense, attention.output.LayerNorm, intermediate.dense, output.dense, output.LayerNorm."""

INIT_LORA_WEIGHTS = ("default", "gaussian", "orthogonal")
"""How LoRA may start: with the base's outputs. PEFT's others rewrite the base's weights, or need data first."""

MIXER_ROLES = ("mixer_in", "mixer_out")
"""The projections into and out of what mixes tokens where a layer has no attention: Mamba's in_proj and out_proj."""

CROSS_ROLES = tuple(f"cross_{role}" for role in ROLES[:5])
"""The sub-layers of a decoder's attention to its encoder, where a layer has both attentions."""

EXPERT_ROLES = ("experts",)
"""Experts that are one tensor for all, which only a stratum that names them trains: no method, and LoRA alone."""

EVERY_ROLE = (*ROLES[:5], *CROSS_ROLES, *ROLES[5:], *MIXER_ROLES)
NORM_ROLES = ("attention_norm", "cross_attention_norm", "output_norm")
LORA_ROLES = tuple(role for role in EVERY_ROLE if role not in NORM_ROLES)

_SHORT = {role: role for role in (*EVERY_ROLE, *EXPERT_ROLES)}
_SHORT |= {"query": "q", "key": "k", "value": "v", "attention_output": "o"}
_ACROSS = dict(zip(ROLES[:5], CROSS_ROLES, strict=True))

# What a role of a mixer stands in the place of.
_STANDS_FOR = {"mixer_in": ROLES[:3], "mixer_out": ROLES[:4]}


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """LoRA of one module, in PEFT's words. A new setting is a field here (and one in the training arguments)."""

    r: int = 64
    """Rank of the LoRA matrices (paper: 64)."""
    lora_alpha: float = 128
    """LoRA is scaled by lora_alpha / r (paper: 128)."""
    lora_dropout: float = 0.0
    """Dropout on the input of LoRA, a probability in [0, 1)."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead (rsLoRA)."""
    use_dora: bool = False
    """Train magnitude and direction apart (DoRA)."""

    @property
    def scaling(self) -> float:
        """Factor on B A x: lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


LORA_SETTINGS = field_names(LoraSettings)
"""Names of the settings, wherever they are listed: strata, configurations, arguments."""


@dataclass(frozen=True)
class Stratum(LoraSettings):
    """A range of layers and what trains in each of them.

    The settings of LoRA are keywords, used only where `lora` is not empty.

    What speaks of the whole attention speaks of what stands in its place, too, in layers that have a mixer: LoRA on
    query, key and value is on `mixer_in`, with attention_output on `mixer_out` as well, and all of `ROLES` in `biases`
    are every bias. So the named methods mean in a Mamba layer what they mean in BERT's; other strata name the mixers.
    And roles of the attention are those of both attentions where a layer has two, unless the stratum names one of
    `CROSS_ROLES`: then self and cross attention each have what is named.

    Raises:
        ValueError: for a range that is empty or mixed up, an unknown role, LoRA on a norm, or LoRA settings that PEFT
            cannot use.
    """

    layers: tuple[int, int] | tuple[float, float]
    """Two integers: first and last layer, inclusive, from zero, -1 as last meaning the last layer of the model.
    Two numbers of which one is a float: shares of the depth from 0 to 1, the second exclusive: (0.0, 0.5) is the lower
    half."""
    lora: tuple[str, ...] = ()
    """Roles whose weight matrix gets LoRA; any of `EVERY_ROLE` but the norms, and "experts"."""
    biases: tuple[str, ...] = ()
    """Roles whose bias gets a trained delta; any of `EVERY_ROLE`."""
    name: str = ""
    """What tables call it; "" is replaced by its position."""
    stack: str = ""
    """The stack of layers that it is in, as the plan calls it ("encoder", "decoder"); "": each stack of the model."""
    bottleneck: BottleneckSettings | None = None
    """Bottleneck adapters in each of its layers; a mapping with their `kind` ("series", "parallel") does as well."""
    init_lora_weights: str = ""
    """How its LoRA starts, one of `INIT_LORA_WEIGHTS`; "": as the rest of the run, Kaiming uniform by default."""

    def __post_init__(self) -> None:
        who = f"stratum {self.name!r}" if self.name else "stratum"
        # A frozen dataclass sets its own fields this way; lists (from YAML) become tuples and roles get one order,
        # so that strata that mean the same compare equal.
        object.__setattr__(self, "layers", _checked_layers(self.layers, who))
        object.__setattr__(self, "lora", _checked_roles(self.lora, (*LORA_ROLES, *EXPERT_ROLES), f"{who}: lora"))
        biases = _checked_roles(self.biases, EVERY_ROLE, f"{who}: biases")
        object.__setattr__(self, "biases", ROLES if set(ROLES) <= set(biases) else biases)
        if self.bottleneck is not None and not isinstance(self.bottleneck, BottleneckSettings):
            object.__setattr__(self, "bottleneck", BottleneckSettings.from_dict(self.bottleneck))
        for field in ("name", "stack"):
            if not isinstance(getattr(self, field), str):
                raise ValueError(f"{who}: {field} is {getattr(self, field)!r}; it must be a string.")
        if not is_int(self.r) or self.r < 1:
            raise ValueError(f"{who}: r is {self.r!r}; the rank of LoRA must be an integer of at least 1, as in r=64.")
        if not is_number(self.lora_alpha) or not 0 < self.lora_alpha < float("inf"):
            raise ValueError(
                f"{who}: lora_alpha is {self.lora_alpha!r}; it must be a positive number, as in lora_alpha=128."
            )
        if not is_number(self.lora_dropout) or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"{who}: lora_dropout is {self.lora_dropout!r}; it must be a probability from 0 to below 1, "
                "as in lora_dropout=0.1."
            )
        if self.init_lora_weights not in ("", *INIT_LORA_WEIGHTS):
            raise ValueError(
                f"{who}: init_lora_weights is {self.init_lora_weights!r}; allowed are {listed(INIT_LORA_WEIGHTS)} "
                "(PEFT's others rewrite the base or need data first: train those with PEFT's LoraConfig)."
            )
        if self.init_lora_weights == "orthogonal" and self.r % 2:
            raise ValueError(f"{who}: r is {self.r}; an orthogonal start needs an even rank, as in r=8.")
        for field in ("use_rslora", "use_dora"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{who}: {field} is {getattr(self, field)!r}; it must be true or false.")

        if self.trains_experts and (self.lora_dropout or self.use_dora or self.init_lora_weights == "orthogonal"):
            raise ValueError(
                f"{who}: LoRA on experts has no dropout, no DoRA and no orthogonal start, since PEFT adds it to their "
                "tensor and not to their output; take these out, or take experts out of lora."
            )

    @property
    def lora_settings(self) -> LoraSettings:
        """The settings of its LoRA alone."""
        return LoraSettings(**{name: getattr(self, name) for name in LORA_SETTINGS})

    @property
    def is_share(self) -> bool:
        """Whether `layers` are shares of the depth (True) or layer numbers (False)."""
        return isinstance(self.layers[0], float)

    @property
    def trains(self) -> bool:
        """Whether anything trains in these layers."""
        return bool(self.lora or self.biases or self.bottleneck)

    @property
    def trains_experts(self) -> bool:
        """Whether the experts in its layers have LoRA."""
        return not set(EXPERT_ROLES).isdisjoint(self.lora)

    @property
    def lora_roles(self) -> tuple[str, ...]:
        """Roles of modules with LoRA, those of a mixer that the attention's stand for among them."""
        whole = [role for role, stands in _STANDS_FOR.items() if set(stands) <= set(self.lora)]
        return _in_both((*self.lora, *whole))

    @property
    def bias_roles(self) -> tuple[str, ...]:
        """Roles with a delta: each of `EVERY_ROLE` for every bias."""
        return EVERY_ROLE if self.biases == ROLES else _in_both(self.biases)

    def what(self) -> str:
        """What trains in it, in a few words: "frozen", "every bias", "LoRA q,k,v r=64 alpha=128 + biases output"."""
        parts = []
        if self.lora:
            roles = ",".join(_SHORT[role] for role in self.lora)
            extras = "".join(f" {word}" for word, on in (("rsLoRA", self.use_rslora), ("DoRA", self.use_dora)) if on)
            dropout = f" dropout={self.lora_dropout:g}" if self.lora_dropout else ""
            start = f" init={self.init_lora_weights}" if self.init_lora_weights else ""
            parts.append(f"LoRA {roles} r={self.r} alpha={self.lora_alpha:g}{dropout}{extras}{start}")
        if self.biases == ROLES:
            parts.append("every bias")
        elif self.biases:
            parts.append("biases " + ",".join(_SHORT[role] for role in self.biases))
        if self.bottleneck:
            parts.append(self.bottleneck.what())
        return " + ".join(parts) or "frozen"

    def to_dict(self) -> dict[str, Any]:
        """As a dict of JSON types; `from_dict` gives an equal stratum back."""
        fields = {name: getattr(self, name) for name in _KEYS}
        data = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
        # Files of strata without these are as they were before there were any.
        data |= {key: getattr(self, key) for key in ("init_lora_weights", "stack") if getattr(self, key)}
        return data | ({"bottleneck": self.bottleneck.to_dict()} if self.bottleneck else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Stratum:
        """Inverse of `to_dict`. Only `layers` is required.

        Raises:
            ValueError: for a missing `layers` or a key that is not a field.
        """
        refuse_unknown_keys(data, (*_KEYS, "init_lora_weights", "stack", "bottleneck"), "stratum")
        if "layers" not in data:
            raise ValueError(
                f"stratum {dict(data)!r} has no 'layers'; add for example layers: [0, 4] or layers: [0.0, 0.5]."
            )
        return cls(**data)


def _in_both(roles: tuple[str, ...]) -> tuple[str, ...]:
    """Roles in reading order; those of an attention in both, unless the other is named apart."""
    across = () if set(roles) & set(CROSS_ROLES) else [_ACROSS[role] for role in roles if role in _ACROSS]
    return tuple(role for role in EVERY_ROLE if role in roles or role in across)


_KEYS = ("layers", "lora", "biases", *LORA_SETTINGS, "name")
"""The fields in the order in which files hold them."""


def range_text(stratum: Stratum) -> str:
    """The layers of a stratum as they were written: "5-9", "10-end", "25%-50%"."""
    first, last = stratum.layers
    if stratum.is_share:
        return f"{100 * first:g}%-{100 * last:g}%"
    if first == last:
        return str(first)
    return f"{first}-{'end' if last == -1 else last}"


def absolute_range(stratum: Stratum, num_layers: int, label: str) -> tuple[int, int]:
    """Start and stop of integer layers on exactly `num_layers` layers."""
    first, last = int(stratum.layers[0]), int(stratum.layers[1])
    stop = num_layers if last == -1 else last + 1
    # first == num_layers with an open end is a stratum that has become empty: group 3 where N2 is the last layer.
    if stop > num_layers or first > num_layers:
        raise ValueError(
            f"{label} reaches beyond the last layer: there are {num_layers}, counted from zero, so the last is "
            f"{num_layers - 1}; lower it, or set depth to the number of layers it was written for so that it scales."
        )
    return first, stop


def span(stratum: Stratum, depth: int | None) -> tuple[Fraction, Fraction]:
    """Start and end of a stratum, the end exclusive: in shares where they are known, else in layers."""
    first, last = stratum.layers
    if stratum.is_share:
        # 1/6 is not exact as a float; the nearest simple fraction is what was meant, so that halves round up reliably.
        return Fraction(first).limit_denominator(100_000), Fraction(last).limit_denominator(100_000)
    if depth is None:
        return Fraction(first), Fraction(10**9) if last == -1 else Fraction(last) + 1
    return Fraction(int(first), depth), Fraction(1) if last == -1 else Fraction(int(last) + 1, depth)


def _checked_roles(roles: Any, allowed: tuple[str, ...], where: str) -> tuple[str, ...]:
    if isinstance(roles, str) or not isinstance(roles, Iterable):
        raise ValueError(f"{where} is {roles!r}; it must be a list of roles, such as ['query', 'value'].")
    given = tuple(roles)
    for role in given:
        if role in NORM_ROLES and role not in allowed:
            raise ValueError(f"{where}: {role!r} is a norm and has no matrix for LoRA; allowed are {listed(allowed)}.")
        if role not in allowed:
            raise ValueError(
                f"{where}: unknown role {role!r}; allowed are {listed(allowed)}{closest(str(role), allowed)}"
            )
    if len(set(given)) != len(given):
        raise ValueError(f"{where}: {list(given)!r} names a role twice; name each once.")
    return tuple(role for role in allowed if role in given)


def _checked_layers(layers: Any, who: str) -> tuple[int, int] | tuple[float, float]:
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise ValueError(f"{who}: layers is {layers!r}; it must be two numbers, such as [0, 4] or [0.0, 0.5].")
    pair = tuple(layers)
    if len(pair) != 2 or not all(is_number(edge) for edge in pair):
        raise ValueError(f"{who}: layers is {list(pair)!r}; it must be two numbers, such as [0, 4] or [0.0, 0.5].")
    first, last = pair
    if is_int(first) and is_int(last):
        if first < 0 or last < -1:
            raise ValueError(
                f"{who}: layers is {list(pair)!r}; layers count from zero, and only the second may be -1 (the last)."
            )
        if first > last != -1:
            raise ValueError(f"{who}: layers is {list(pair)!r}; the first layer must not be beyond the last.")
        return first, last
    if not 0 <= first < last <= 1:
        raise ValueError(
            f"{who}: layers is {list(pair)!r}; with a float they are shares of the depth, 0 <= first < last <= 1, "
            "such as [0.25, 0.5]; layer numbers are integers."
        )
    return float(first), float(last)

"""Stacks by structure, and by the names that matrices go by.

a list of blocks, each with attention and feed-forward                       a Stack
├── a name with attention in it (self_attn.q_proj, attention.output.dense)   query, key, value, attention_output
├── any other matrix, by its name, else by its shape                         intermediate, output
└── a norm, by the matrices beside it, else by its name, else by its place   attention_norm, output_norm
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from spafit_hf.architecture.kinds import in_out, is_linear, is_norm
from spafit_hf.architecture.known import ENCODERS
from spafit_hf.architecture.parts import Stack
from spafit_hf.architecture.stacks import Roles, by_hand, make_stack
from spafit_hf.strategy import NORM_ROLES, ROLES

_ATTENTION = re.compile(r"att(n|ention)s?|(?<![a-z])att(?![a-z])", re.IGNORECASE)
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|(?<![a-z])ff(?![a-z])", re.IGNORECASE)
_PROJECTIONS = ("query", "key", "value")
_WORDS: dict[str, tuple[str, ...]] = {  # a word of the last part of a name -> the roles it speaks of
    **{word: ("query",) for word in ("q", "query", "wq")},
    **{word: ("key",) for word in ("k", "key", "wk")},
    **{word: ("value",) for word in ("v", "value", "wv")},
    "kv": ("key", "value"),
    **{word: _PROJECTIONS for word in ("qkv", "wqkv")},
}
_INTO = {  # last parts of names, lower case
    *("fc1", "lin1", "linear1", "c_fc", "fc_in", "dense_h_to_4h", "intermediate_dense"),
    *("wi", "wi_0", "wi_1", "w1", "w3", "gate_proj", "up_proj", "gate_up_proj"),
}
_OUT_OF = {*("fc2", "lin2", "linear2", "c_proj", "fc_out", "dense_4h_to_h", "output_dense", "wo", "w2", "down_proj")}
_FUSED = {"c_attn", "in_proj", "w_pack", "query_key_value"}
_POSITIONS = {"pos_proj", "linear_pos"}  # what a key is for relative positions
_ATTENTION_OUTPUT = re.compile(
    r"(attn_|linear_|to_)?(o|out|output|dense|proj|projection|wo)(_(proj|lin|linear|layer))?|c_proj"
)
_INTERMEDIATE = re.compile(r"(^|[._])inter(mediate)?(_[a-z]+)?\.dense$")
_OUTPUT = re.compile(r"(^|[._])output(_[a-z]+)?\.dense$")
_ROUTER = re.compile(r"router|indexer|(^|\.)gate\.")  # networks that choose a token's experts, or what it attends to
# Norms of single heads, or of what a query or key is compressed to: they play no role.
_HEAD_NORM = re.compile(r"(q|k|kv|query|key)(_a)?_?(layer_?)?norm")


def stacks_by_structure(model: nn.Module, model_type: str) -> tuple[Stack, ...]:
    """The outermost lists of blocks with attention and feed-forward, told by the names of their linear layers.

    Raises:
        ValueError: when there is none, or the config has more layers, which then share their weights.
    """
    lists = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    ]
    outer = [(name, blocks) for name, blocks in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    # A stage of several layers (Swin) is no layer: its parts would all be taken for one.
    found = [
        (path, [_roles_of(block) for block in blocks])
        for path, blocks in outer
        if all(_is_layer(block) and not _is_stage(block) for block in blocks)
    ]
    if not found:
        path, blocks = max(outer, key=lambda item: len(item[1]), default=("", [model]))
        longest = f"the longest list of modules is {path!r} with {len(blocks)} of {type(blocks[0]).__name__}. "
        raise ValueError(
            f"model type {model_type!r}: no list of layers with attention and feed-forward was found; "
            f"{longest if path else ''}{by_hand(blocks[0])}"
        )
    unnamed = "encoder" if model_type in ENCODERS else "layers"
    names = [next((word for word in ("encoder", "decoder") if word in path.split(".")), unnamed) for path, _ in found]
    if len(found) > 1 and (len(set(names)) < len(names) or "layers" in names):
        names = [path for path, _ in found]
    stacks = tuple(
        make_stack(model, name, path, roles, model_type) for name, (path, roles) in zip(names, found, strict=True)
    )
    groups = getattr(getattr(model, "config", None), "num_hidden_groups", None)  # as ALBERT's, in a class of one's own
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", 0)
    if groups == len(stacks[0].layers) < depth:
        raise ValueError(
            f"model type {model_type!r}: {stacks[0].path!r} holds {groups} layers, the config has {depth}; layers "
            f"that share weights have no strata. {by_hand(model.get_submodule(stacks[0].layers[0].path))}"
        )
    return stacks


def _is_layer(block: nn.Module) -> bool:
    roles = _roles_of(block)
    return all(roles[role] for role in ROLES if role not in NORM_ROLES)


def _is_stage(block: nn.Module) -> bool:
    return any(isinstance(inner, nn.ModuleList) and any(map(_is_layer, inner)) for inner in block.modules())


def _roles_of(block: nn.Module) -> Roles:
    """The roles of the matrices and norms of one block; names relative to it."""
    linear = {name: module for name, module in block.named_modules() if is_linear(module)}
    roles: dict[str, list[str]] = {role: [] for role in ROLES}
    for name in linear:
        for role in _role_by_name(name):
            roles[role].append(name)
    # What comes out of an attention stands with its projections: MobileBERT's bottleneck.attention.dense does not.
    attentions = tuple(f"{_attention_of(name)}." for role in _PROJECTIONS for name in roles[role])
    roles["attention_output"] = [name for name in roles["attention_output"] if name.startswith(attentions)]
    if roles["attention_output"] and not (roles["intermediate"] and roles["output"]):
        width = in_out(linear[roles["attention_output"][0]])[1]
        free = {name: in_out(module) for name, module in linear.items() if not _in_attention(name)}
        roles["intermediate"], roles["output"] = _feed_forward_by_shape(free, width)
    return {role: tuple(names) for role, names in (roles | _norm_roles(block, roles)).items()}


def _role_by_name(name: str) -> tuple[str, ...]:
    if _ROUTER.search(name):
        return ()
    last, attention = name.rpartition(".")[2].lower(), _in_attention(name)
    if attention and last in _FUSED:
        # GPT-2's cross attention has a matrix for the query alone (q_attn) beside one for key and value.
        return ("key", "value") if name.endswith("crossattention.c_attn") else _PROJECTIONS
    if attention and last in _POSITIONS:
        return ("key",)
    played = tuple(dict.fromkeys(role for word in last.split("_") for role in _WORDS.get(word, ())))
    if played:
        return played
    if attention:
        return ("attention_output",) if _ATTENTION_OUTPUT.fullmatch(last) else ()
    if last in _INTO or _INTERMEDIATE.search(name):
        return ("intermediate",)
    if last in _OUT_OF or _OUTPUT.search(name):
        return ("output",)
    return ()


def _in_attention(name: str) -> bool:
    """Whether the innermost part of a name that speaks of attention or feed-forward speaks of attention."""
    ends = [max((match.end() for match in kind.finditer(name)), default=0) for kind in (_ATTENTION, _FEED_FORWARD)]
    return ends[0] > ends[1]


def _attention_of(name: str) -> str:
    """The module that is the attention of one of its projections: "attention" of "attention.self.query"."""
    parts = name.split(".")
    first = next((index for index, part in enumerate(parts[:-1]) if _ATTENTION.search(part)), len(parts) - 2)
    return ".".join(parts[: first + 1])


def _feed_forward_by_shape(free: Mapping[str, tuple[int, int]], width: int) -> tuple[list[str], list[str]]:
    """Intermediate and output by their shapes: from the layer's width to another, or to twice that one, and back."""
    inner = {inputs for inputs, outputs in free.values() if outputs == width != inputs}
    out_of = [name for name, (inputs, outputs) in free.items() if outputs == width and inputs in inner]
    into = [name for name, (inputs, outputs) in free.items() if inputs == width and {outputs, outputs // 2} & inner]
    return into, out_of


def _norm_roles(block: nn.Module, roles: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The norms of the attention and of the feed-forward. Those beside a matrix without a role have none either."""
    norms = [name for name, module in block.named_modules() if is_norm(module)]
    attention = {name for role in (*_PROJECTIONS, "attention_output") for name in roles[role]}
    feed_forward = {*roles["intermediate"], *roles["output"]}
    found: dict[str, str] = {}
    loose = []
    for name in norms:
        if _HEAD_NORM.fullmatch(name.rpartition(".")[2].lower()):
            continue
        home = name.rpartition(".")[0]
        if not home:
            loose.append(name)
        elif any(each.startswith(f"{home}.") for each in feed_forward):
            found[name] = "output_norm"
        elif any(each.startswith(f"{home}.") for each in attention):
            found[name] = "attention_norm"
    late = [name for name in loose if _FEED_FORWARD.search(name) or re.search("^(final|out)|out$", name)]
    early = [name for name in loose if name not in late and _ATTENTION.search(name) and not name.startswith("post")]
    early += [name for name in loose if "temporal" in name]
    rest = [name for name in loose if name not in (*late, *early)]
    if not late:
        # In reading order the later half belongs to the feed-forward: one of two, two of four, one of three (with
        # cross attention); one alone is shared by both (Phi), unless the attention has another.
        known = bool(early) or "attention_norm" in found.values()
        late = rest[len(rest) - (len(rest) + known) // 2 :]
    found |= {name: "output_norm" if name in late else "attention_norm" for name in loose}
    return {role: [name for name in norms if found.get(name) == role] for role in NORM_ROLES}

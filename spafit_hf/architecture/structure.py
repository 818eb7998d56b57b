"""Stacks by structure, and by the names that matrices go by.

a list of blocks that mix tokens and feed them forward                       a Stack
├── a name with attention in it (self_attn.q_proj, attention.output.dense)   query, key, value, attention_output
├── that of a second attention (encoder_attn.q_proj, crossattention.self.key)  cross_query, cross_key, ...
├── matrices beside a convolution or bare weights, and no query among them   mixer_in, mixer_out
├── any other matrix, by its name, else by its shape                         intermediate, output
└── a norm, by the matrices beside it, else by its name, else by its place   attention_norm, output_norm

a list of stages, each with a list of blocks (Swin)                          one Stack of all their blocks
lists side by side (XLM's attentions, ffns, layer_norm1)                     one Stack: layer i is block i of each
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from spafit_hf.architecture.experts import holds_experts
from spafit_hf.architecture.kinds import has_weight, in_out, is_linear, is_norm
from spafit_hf.architecture.known import ENCODERS, READ_PAST
from spafit_hf.architecture.parts import Stack
from spafit_hf.architecture.stacks import Roles, by_hand, join, make_layer, no_layer_twice
from spafit_hf.strategy import CROSS_ROLES, MIXER_ROLES, NORM_ROLES, ROLES
from spafit_hf.words import listed

_ATTENTION = re.compile(r"att(n|ention)s?|(?<![a-z])att(?![a-z])", re.IGNORECASE)
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|(?<![a-z])ff(?![a-z])", re.IGNORECASE)
_PROJECTIONS = ("query", "key", "value")
_WORDS: dict[str, tuple[str, ...]] = {  # a word of the last part of a name -> the roles it speaks of
    **{word: ("query",) for word in ("q", "query", "queries", "wq")},
    **{word: ("key",) for word in ("k", "key", "keys", "wk")},
    **{word: ("value",) for word in ("v", "value", "values", "wv")},
    "kv": ("key", "value"),
    **{word: _PROJECTIONS for word in ("qkv", "wqkv")},
}
_INTO = {  # last parts of names, lower case
    *("fc1", "lin1", "linear1", "c_fc", "fc_in", "dense_h_to_4h", "intermediate_dense"),
    *("wi", "wi_0", "wi_1", "w1", "w3", "gate_proj", "up_proj", "gate_up_proj"),
}
_OUT_OF = {*("fc2", "lin2", "linear2", "c_proj", "fc_out", "dense_4h_to_h", "output_dense", "wo", "w2", "down_proj")}
_FUSED = {"c_attn", "att_proj", "in_proj", "w_pack", "query_key_value"}
_POSITIONS = {"pos_proj", "linear_pos"}  # what a key is for relative positions
_ATTENTION_OUTPUT = re.compile(
    r"(attn_|attention_|linear_|to_)?(o|out|output|dense|proj|projection|wo)(_(b_)?(proj|lin|linear|layer))?|c_proj"
    r"|post_proj"
)
_CROSS = re.compile(r"cross|enc(oder)?_?(dec(oder)?_?)?att", re.IGNORECASE)
_INTERMEDIATE = re.compile(r"(^|[._])inter(mediate)?(_[a-z]+)?\.dense$")
_OUTPUT = re.compile(r"(^|[._])output(_[a-z]+)?\.dense$")
# Networks that choose a token's experts, or what it attends to; and Mamba's dt_proj, whose tensors are read past it.
_APART = re.compile(r"router|indexer|(^|\.)gate\.|(^|\.)dt_proj$")
_MIXED = re.compile(r"(^|_)out(put)?(_|$)")  # what comes out of a mixer
# Norms of single heads, or of what a query or key is compressed to: they play no role.
_HEAD_NORM = re.compile(r"(q|k|kv|query|key)(_a)?_?(layer_?)?norm")


@dataclass(frozen=True)
class _Block:
    """What may be a layer."""

    parts: Mapping[str, str]
    """Beginning of its modules' names -> that of their full names: "" -> its path, or that of each list it is from."""
    module: nn.Module
    roles: Roles
    """Names relative to it."""

    @property
    def mixes(self) -> bool:
        return any(self.roles[role] for role in (*_PROJECTIONS, *MIXER_ROLES))

    @property
    def feeds_forward(self) -> bool:
        return bool(self.roles["intermediate"] and self.roles["output"]) or has_experts(self.module)

    @property
    def is_whole(self) -> bool:
        return self.feeds_forward and (all(map(self.roles.get, _ATTENTION_ROLES)) or bool(self.roles["mixer_in"]))


_ATTENTION_ROLES = (*_PROJECTIONS, "attention_output")
_per_name = functools.lru_cache(maxsize=1 << 14)  # layers repeat the names of their modules
_LISTS = (nn.ModuleList, nn.Sequential)  # of a stage's layers: CvT's are a Sequential
_Run = tuple[str, list[_Block]]  # path of a list, and its blocks


def stacks_by_structure(model: nn.Module, model_type: str) -> tuple[Stack, ...]:
    """The outermost lists of blocks that are layers, told by the names of their matrices.

    Where no list holds whole layers, lists that stand side by side may; else the largest of which every matrix is
    known: its layers lack attention, or feed-forward.

    Raises:
        ValueError: when there is none.
    """
    modules = dict(model.named_modules())
    types = {str(getattr(vars(module).get("config"), "model_type", "")) for module in modules.values()}
    fused = not types.isdisjoint(READ_PAST)
    outer, found = _outermost(modules, nn.ModuleList), list[_Run]()
    for lists in (outer, _outermost(modules, nn.Sequential)):  # timm's layers are a Sequential
        runs = [_run(path, blocks, fused) for path, blocks in lists.items()]
        found = [run for run in runs if _is_stack(run)] or _side_by_side(lists, fused)
        if not found:
            known = [run for run in runs if _is_known(run)]
            found = sorted(known, key=lambda run: sum(_size(block.module) for block in run[1]))[-1:]
        if found:
            break
    else:
        raise ValueError(f"model type {model_type!r}: {_why_none(model, model_type, outer)}")
    unnamed = "encoder" if model_type in ENCODERS else "layers"
    names = [next((word for word in ("encoder", "decoder") if word in path.split(".")), unnamed) for path, _ in found]
    if len(found) > 1 and (len(set(names)) < len(names) or "layers" in names):
        names = [path for path, _ in found]
    return tuple(_stack(model, name, run, model_type) for name, run in zip(names, found, strict=True))


def _outermost(modules: Mapping[str, nn.Module], kind: type[nn.Module]) -> dict[str, Any]:
    """The lists of a kind that stand in none of its others, by name; Informer has one of nothing."""
    lists = {name: each for name, each in modules.items() if isinstance(each, kind) and any(each.children())}
    within = tuple(f"{name}." for name in lists)
    return {name: each for name, each in lists.items() if not name.startswith(within)}


def _why_none(model: nn.Module, model_type: str, lists: Mapping[str, nn.ModuleList]) -> str:
    """Why no list of blocks is a stack, and what to do."""
    path, blocks = max(lists.items(), key=lambda item: _size(item[1]), default=("", nn.ModuleList([model])))
    where = f"the largest list of modules is {path!r} with {len(blocks)} of {type(blocks[0]).__name__}"
    if path and not any(is_linear(module) for each in lists.values() for module in each.modules()):
        kinds = {type(module).__name__ for each in lists.values() for module in each.modules() if has_weight(module)}
        return (
            "LoRA and biases train on nn.Linear and on norms over the last dimension, and its layers have "
            f"{listed(sorted(kinds))} in their place ({where}); take linear-probe or full."
        )
    how = by_hand(model_type, path, blocks[0], _block({}, blocks[0], False).roles)
    return (
        f"no list of layers with attention or feed-forward was found; {where + '. ' if path else ''}"
        f"{how} Or take linear-probe or full, for which layers need not be known."
    )


def _stack(model: nn.Module, name: str, run: _Run, model_type: str) -> Stack:
    path, blocks = run
    no_layer_twice(model, path, model_type)
    config = getattr(model, "config", None)
    groups, depth = (getattr(config, each, None) for each in ("num_hidden_groups", "num_hidden_layers"))
    # ALBERT's groups, which run again and again until the depth is reached; also in a class of one's own.
    shared = bool(groups) and groups == len(model.get_submodule(path)._modules) < (depth or 0)
    layers = tuple(make_layer(block.parts, block.module, block.roles) for block in blocks)
    return Stack(name, path, layers, depth if shared else None)


def _run(path: str, blocks: nn.Module, fused: bool) -> _Run:
    """The blocks of a list; of a list of stages those of all its stages."""
    paths = {f"{path}.{key}": block for key, block in blocks.named_children()}
    inner = next((name for block in paths.values() if (name := _stages(block, fused)) is not None), None)
    if inner is not None:
        below = [(join(each, inner), dict(block.named_modules()).get(inner)) for each, block in paths.items()]
        lists = [(each, items) for each, items in below if isinstance(items, _LISTS)]
        paths = {f"{each}.{key}": block for each, items in lists for key, block in items.named_children()}
    return path, [_block({"": each}, block, fused) for each, block in paths.items()]


def _stages(block: nn.Module, fused: bool) -> str | None:
    """Name, within a block, of a list of layers, which make it a stage; None where it is no stage.

    A list of all that a block has is one of layers where it repeats itself; T5's blocks list their different parts.
    """
    matrices = sum(map(is_linear, block.modules()))
    for name, items in block.named_modules():
        if isinstance(items, _LISTS) and len(items):
            each = [_block({}, item, fused) for item in items]
            plays = any(item.mixes or item.feeds_forward for item in each)
            repeats = len(set(map(type, items))) < len(items)
            everything = matrices == sum(map(is_linear, items.modules()))
            if any(item.is_whole for item in each) or (plays and repeats and everything):
                return name
    return None


def _side_by_side(lists: Mapping[str, nn.ModuleList], fused: bool) -> list[_Run]:
    """Lists of one length in one place of which only all together hold whole layers."""
    places: dict[tuple[str, int], list[str]] = {}
    for name, items in lists.items():
        places.setdefault((name.rpartition(".")[0], len(items)), []).append(name)
    runs: list[_Run] = []
    for (place, length), names in places.items():
        blocks: list[_Block] = []
        for index in range(length if len(names) > 1 else 0):
            parts = {name.rpartition(".")[2]: f"{name}.{index}" for name in names}
            together = nn.ModuleDict({name.rpartition(".")[2]: lists[name][index] for name in names})
            blocks.append(_block(parts, together, fused))
        if blocks and all(block.is_whole for block in blocks):
            runs.append((place, blocks))
    return runs


def _is_stack(run: _Run) -> bool:
    blocks = run[1]
    if not all(block.mixes or block.feeds_forward for block in blocks):
        return False
    mixers = any(block.roles["mixer_in"] for block in blocks)
    return any(block.mixes for block in blocks) and (mixers or any(block.feeds_forward for block in blocks))


def _is_known(run: _Run) -> bool:
    """Whether every matrix plays a role, but for those of an attention of its own kind."""
    left = [
        name
        for block in run[1]
        for name, module in block.module.named_modules()
        if is_linear(module) and not (_in_attention(name) or any(name in names for names in block.roles.values()))
    ]
    return not left and any(block.mixes or block.feeds_forward for block in run[1])


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _block(parts: Mapping[str, str], module: nn.Module, fused: bool) -> _Block:
    return _Block(parts, module, _roles_of(module, fused))


def has_experts(block: nn.Module) -> bool:
    """Whether a block holds experts that are no matrices of their own: one tensor for all of them."""
    return any(holds_experts(name, module) for name, module in block.named_modules())


def stays_frozen(name: str) -> bool:
    """Whether a matrix without a role is one that never trains, its bias neither: that of a router."""
    return _APART.search(name) is not None


def _roles_of(block: nn.Module, fused: bool) -> Roles:
    """The roles of the matrices and norms of one block; names relative to it."""
    linear = {name: module for name, module in block.named_modules() if is_linear(module)}
    roles: dict[str, list[str]] = {role: [] for role in (*ROLES, *MIXER_ROLES)}
    for name in linear:
        for role in _role_by_name(name):
            roles[role].append(name)
    mixers = _mixer_roles(block, linear, roles["query"])
    taken = {name for names in mixers.values() for name in names}
    roles = {role: [name for name in names if name not in taken] for role, names in roles.items()} | mixers
    # What comes out of an attention stands with its projections: MobileBERT's bottleneck.attention.dense does not.
    projections = [name for role in _PROJECTIONS for name in roles[role]]
    attentions = {_attention_of(name) for name in projections}
    free = [name for name in linear if not _in_attention(name) and not any(name in each for each in roles.values())]
    out = [name for name in roles["attention_output"] if _attention_of(name) in attentions]
    attentions.difference_update(map(_attention_of, out))
    out += [name for name in free if _attention_of(name) in attentions and _ATTENTION_OUTPUT.fullmatch(_last(name))]
    roles["attention_output"] = out
    if not (roles["intermediate"] and roles["output"]):
        used = (*projections, *out, *(f"{_attention_of(name)}." for name in taken))
        free = [name for name in linear if not (_in_attention(name) or name.startswith(used) or _APART.search(name))]
        sizes = {name: in_out(linear[name]) for name in free}
        # The width of the states is what comes out of the attention or mixer, else what the first matrix takes.
        ends = [*out, *roles["mixer_out"]]
        width = in_out(linear[ends[0]])[1] if ends else next((inputs for inputs, _ in sizes.values()), 0)
        roles["intermediate"], roles["output"] = _feed_forward_by_shape(sizes, width)
    if fused:
        roles["mixer_out"] = []
    return _attentions_apart(
        block, {role: tuple(names) for role, names in (roles | _norm_roles(block, roles)).items()}
    )


def _attentions_apart(block: nn.Module, roles: Roles) -> Roles:
    """The roles with those of a cross attention apart, where a block attends to itself too."""
    projections = [name for role in _PROJECTIONS for name in roles[role]]
    homes = {_attention_of(name) for name in projections}
    # LXMERT's visual_attention says by its class alone what it is.
    crossing = {home for home in homes if _CROSS.search(type(block.get_submodule(home)).__name__)}

    def crosses(name: str) -> bool:
        return _CROSS.search(name) is not None or _attention_of(name) in crossing

    across = [name for name in projections if crosses(name)]
    itself = [name for name in projections if not crosses(name)]
    if not across or not itself:
        return roles

    def is_across(name: str) -> bool:
        home = f"{name.rpartition('.')[0]}."
        beside = home != "." and any(each.startswith(home) for each in across)
        return crosses(name) or (beside and not any(each.startswith(home) for each in itself))

    apart = dict(roles)
    for role, cross in zip(ROLES[:5], CROSS_ROLES, strict=True):
        apart[role] = tuple(name for name in roles[role] if not is_across(name))
        apart[cross] = tuple(name for name in roles[role] if is_across(name))
    norms = apart["attention_norm"]
    if not apart["cross_attention_norm"]:  # Moonshine's are named for places in the layer: the later half is its
        half = len(norms) - len(norms) // 2
        apart["attention_norm"], apart["cross_attention_norm"] = norms[:half], norms[half:]
    return apart


def _mixer_roles(block: nn.Module, linear: Mapping[str, nn.Module], queries: list[str]) -> dict[str, list[str]]:
    """Projections into and out of what mixes tokens without a query: a convolution, a state, weights of its own."""
    homes: dict[str, list[str]] = {}
    for name in linear:
        if (home := _attention_of(name)) and not _in_feed_forward(name) and not _APART.search(name):
            homes.setdefault(home, []).append(name)
    roles: dict[str, list[str]] = {role: [] for role in MIXER_ROLES}
    for home, names in homes.items():
        module = block.get_submodule(home)
        own = any(each is not None for each in module._parameters.values())
        mixes = own or any(isinstance(each, _ConvNd) for each in module.modules())
        out = [name for name in names if _MIXED.search(_last(name))]
        if not mixes or not out or any(name.startswith(f"{home}.") for name in queries):
            continue
        width = in_out(linear[out[0]])[1]
        into = [name for name in names if name not in out and in_out(linear[name])[0] == width]
        named = [name for name in into if "in" in _last(name).split("_")]  # Mamba's x_proj may be as wide
        roles["mixer_in"] += named or into
        roles["mixer_out"] += out if into else []
    return roles


def _last(name: str) -> str:
    """The last part of a name that says something: q_proj of "self_attn.q_proj.linear"."""
    return name.removesuffix(".linear").rpartition(".")[2].lower()


@_per_name
def _role_by_name(name: str) -> tuple[str, ...]:
    if _APART.search(name):
        return ()
    last, attention = _last(name), _in_attention(name)
    if attention and last in _FUSED:
        # GPT-2's cross attention has a matrix for the query alone (q_attn) beside one for key and value.
        return ("key", "value") if name.endswith("crossattention.c_attn") else _PROJECTIONS
    if attention and last in _POSITIONS:
        return ("key",)
    played = tuple(dict.fromkeys(role for word in last.split("_") for role in _WORDS.get(word, ())))
    if played and not _in_feed_forward(name):
        return played
    if attention:
        return ("attention_output",) if _ATTENTION_OUTPUT.fullmatch(last) else ()
    if last in _INTO or _INTERMEDIATE.search(name):
        return ("intermediate",)
    if last in _OUT_OF or _OUTPUT.search(name):
        return ("output",)
    return ()


@_per_name
def _ends(name: str) -> tuple[int, int]:
    """Where the last words of a name end that speak of attention, and of feed-forward."""
    attention, feed_forward = (
        max((match.end() for match in kind.finditer(name)), default=0) for kind in (_ATTENTION, _FEED_FORWARD)
    )
    return attention, feed_forward


def _in_attention(name: str) -> bool:
    """Whether the innermost part of a name that speaks of attention or feed-forward speaks of attention."""
    attention, feed_forward = _ends(name)
    return attention > feed_forward


def _in_feed_forward(name: str) -> bool:
    attention, feed_forward = _ends(name)
    return feed_forward > attention


@_per_name
def _attention_of(name: str) -> str:
    """The module that is the attention of one of its projections: "attention" of "attention.self.query"."""
    parts = name.removesuffix(".linear").split(".")
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
    attention = {name for role in (*_ATTENTION_ROLES, *MIXER_ROLES) for name in roles[role]}
    feed_forward = {*roles["intermediate"], *roles["output"]}
    found: dict[str, str] = {}
    loose = []
    for name in norms:
        if _HEAD_NORM.fullmatch(name.rpartition(".")[2].lower()):
            continue
        home = name.rpartition(".")[0]
        feeds, mixes = (any(each.startswith(f"{home}.") for each in names) for names in (feed_forward, attention))
        if not home or (feeds and mixes):  # Zamba's layers hold a whole one
            loose.append(name)
        elif feeds or mixes:
            found[name] = "output_norm" if feeds else "attention_norm"
        elif _in_attention(home) and not (
            home.startswith("post") or any(map(is_linear, block.get_submodule(home).modules()))
        ):
            found[name] = "attention_norm"  # the attention is made of bare weights
    if feed_forward and not attention and "attention_norm" not in found.values():
        return {"attention_norm": [], "output_norm": [name for name in norms if name in loose or name in found]}
    if not feed_forward and not has_experts(block):
        return {"attention_norm": [name for name in norms if name in loose or name in found], "output_norm": []}
    sides: dict[str, list[str]] = {}  # how the names of norms begin that stand side by side -> how they end
    for name in loose:
        own = name.rpartition(".")[2]
        side = name.removesuffix(own)
        word, more, _ = own.partition("_")
        if more and any(each.startswith(f"{side}{word}_") for each in attention):
            found[name] = "attention_norm"  # X-CLIP's message_ln, of its message_attn
        else:
            sides.setdefault(side, []).append(own)
    known = [name for name, role in found.items() if role == "attention_norm"]
    for side, own_names in sides.items():
        late = _of_feed_forward(own_names, any(name.startswith(side) for name in known))
        found |= {side + own: "output_norm" if own in late else "attention_norm" for own in own_names}
    return {role: [name for name in norms if found.get(name) == role] for role in NORM_ROLES}


def _of_feed_forward(norms: list[str], known: bool) -> list[str]:
    """Those of norms side by side that are the feed-forward's; `known` says whether the attention has others."""
    late = [name for name in norms if _FEED_FORWARD.search(name) or re.search("^(final|out)|out$", name)]
    early = [name for name in norms if name not in late and _ATTENTION.search(name) and not name.startswith("post")]
    early += [name for name in norms if "temporal" in name]
    rest = [name for name in norms if name not in (*late, *early)]
    # In reading order the later half belongs to the feed-forward: one of two, two of four, one of three (with cross
    # attention); one alone is shared by both (Phi), unless the attention has another.
    return late or rest[len(rest) - (len(rest) + (bool(early) or known)) // 2 :]

"""Stacks of model types that the table does not know, by structure and by the names that linear layers go by."""

from __future__ import annotations

import re

from torch import nn
from transformers import PreTrainedModel

from spafit_hf.architecture.kinds import is_linear, is_norm
from spafit_hf.architecture.layouts import Roles
from spafit_hf.architecture.parts import Stack
from spafit_hf.architecture.stacks import by_hand, make_stack
from spafit_hf.strategy import NORM_ROLES, ROLES

_ATTENTION = re.compile(r"att(entio)?n", re.IGNORECASE)
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward", re.IGNORECASE)
_LAST_NAME = {  # role -> last parts of names, lower case
    "query": {"q", "query", "q_proj", "q_lin", "query_proj", "pos_query_proj", "to_q", "wq", "q_attn", "linear_q"},
    "key": {"k", "key", "k_proj", "k_lin", "key_proj", "pos_key_proj", "to_k", "wk", "linear_k"},
    "value": {"v", "value", "v_proj", "v_lin", "value_proj", "to_v", "wv", "linear_v"},
    "fused": {"qkv", "qkv_proj", "query_key_value", "c_attn", "wqkv", "in_proj", "w_pack", "qkv_linear"},
    "attention_output": {
        "o",
        "o_proj",
        "out_proj",
        "out_lin",
        "dense",
        "c_proj",
        "wo",
        "proj",
        "to_out",
        "linear_out",
    },
    "intermediate": {
        *("fc1", "lin1", "linear1", "c_fc", "fc_in", "dense_h_to_4h", "intermediate_dense"),
        *("wi", "wi_0", "wi_1", "w1", "w3", "gate_proj", "up_proj", "gate_up_proj"),
    },
    "output": {
        *("fc2", "lin2", "linear2", "c_proj", "fc_out", "dense_4h_to_h", "output_dense", "wo", "w2", "down_proj"),
    },
}


def stacks_by_structure(model: nn.Module, model_type: str) -> tuple[Stack, ...]:
    """The outermost lists of blocks with attention and feed-forward, told by the names of their linear layers.

    Raises:
        ValueError: when there is none, or it holds fewer layers than the config speaks of.
    """
    lists = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    ]
    outer = [(name, blocks) for name, blocks in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    found = []
    for path, blocks in outer:
        # A stage of several layers (Swin) is no layer: its parts would all be taken for one.
        if all(_is_layer(block) and not _is_stage(block) for block in blocks):
            found.append((path, [_roles_by_name(block) for block in blocks]))
    if not found:
        longest = max(outer, key=lambda item: len(item[1]), default=None)
        seen = (
            f"the longest list of modules is {longest[0]!r} with {len(longest[1])} of {type(longest[1][0]).__name__}. "
            if longest
            else ""
        )
        raise ValueError(
            f"model type {model_type!r}: no list of layers with attention and feed-forward was found; {seen}"
            f"{by_hand(longest[1][0] if longest else model)}"
        )
    words = [[word for word in ("encoder", "decoder") if word in path.split(".")] for path, _ in found]
    names = [word[0] if word else "layers" for word in words]
    if len(set(names)) < len(names):
        names = [path for path, _ in found]
    stacks = tuple(
        make_stack(model, name, path, roles, model_type) for name, (path, roles) in zip(names, found, strict=True)
    )
    depth = model.config.num_hidden_layers if isinstance(model, PreTrainedModel) and _has_depth(model) else None
    # A lone decoder (BartForCausalLM) has a depth of its own, beside that of the encoder which the config gives.
    if depth is not None and len(stacks) == 1 and stacks[0].name != "decoder" and len(stacks[0].layers) < depth:
        raise ValueError(
            f"model type {model_type!r}: {stacks[0].path!r} holds {len(stacks[0].layers)} layers, the config has "
            f"{depth}; layers that share weights have no strata. "
            f"{by_hand(model.get_submodule(stacks[0].layers[0].path))}"
        )
    return stacks


def _is_layer(block: nn.Module) -> bool:
    roles = _roles_by_name(block)
    return all(roles[role] for role in ROLES if role not in NORM_ROLES)


def _is_stage(block: nn.Module) -> bool:
    return any(isinstance(inner, nn.ModuleList) and any(map(_is_layer, inner)) for inner in block.modules())


def _has_depth(model: PreTrainedModel) -> bool:
    return "num_hidden_layers" in model.config.to_dict() or "num_hidden_layers" in type(model.config).attribute_map


def _roles_by_name(block: nn.Module) -> Roles:
    roles: dict[str, list[str]] = {role: [] for role in ROLES}
    norms: list[str] = []
    for name, module in block.named_modules():
        last = name.rpartition(".")[2].lower()
        attention = bool(_ATTENTION.search(name))
        if is_norm(module):
            # A norm inside the attention beside the projections normalizes single heads, unless it follows the output.
            if not re.fullmatch(r"(q|k|query|key)_?(layer_?)?norm", last):
                norms.append(name)
        elif is_linear(module):
            for role in _role_of(name, last, attention):
                roles[role].append(name)
    feed_forward = [name for name in norms if _FEED_FORWARD.search(name)]
    if not feed_forward:
        # In reading order the later half belongs to the feed-forward: one of two, two of four, one of three (with
        # cross attention).
        feed_forward = norms[len(norms) - len(norms) // 2 :]
    return {role: tuple(names) for role, names in roles.items()} | {
        "attention_norm": tuple(name for name in norms if name not in feed_forward),
        "output_norm": tuple(feed_forward),
    }


def _role_of(name: str, last: str, attention: bool) -> tuple[str, ...]:
    if last in _LAST_NAME["fused"]:
        return ("query", "key", "value")
    for role in ("query", "key", "value"):
        if last in _LAST_NAME[role]:
            return (role,)
    if attention:
        return ("attention_output",) if last in _LAST_NAME["attention_output"] else ()
    if last in _LAST_NAME["intermediate"] or name.endswith("intermediate.dense"):
        return ("intermediate",)
    if last in _LAST_NAME["output"] or name.endswith("output.dense"):
        return ("output",)
    return ()

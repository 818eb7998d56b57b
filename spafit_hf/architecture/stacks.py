"""A stack from its path in the model and the names in its layers."""

from __future__ import annotations

from collections.abc import Mapping

import yaml
from torch import nn

from spafit_hf.architecture.experts import expert_matrices, holds_experts
from spafit_hf.architecture.kinds import has_weight, is_linear, is_norm
from spafit_hf.architecture.parts import Layer, Stack
from spafit_hf.strategy import EVERY_ROLE, EXPERT_ROLES, ROLES

Roles = dict[str, tuple[str, ...]]


def make_layer(parts: Mapping[str, str], block: nn.Module, roles: Roles) -> Layer:
    """A layer from the modules it is made of, by the beginnings of their names in `block`, and its table of roles."""

    def full(name: str) -> str:
        first, _, rest = name.partition(".")
        return join(parts[first], rest) if first in parts else join(parts[""], name)

    inside = dict(block.named_modules())
    modules = {
        role: tuple(full(name) for name in names if name in inside and has_weight(inside[name]))
        for role, names in roles.items()
        if role not in EXPERT_ROLES and (names or role in ROLES)
    }
    taken = {module for names in modules.values() for module in names}
    others = tuple(
        full(name)
        for name, module in inside.items()
        if (is_linear(module) or is_norm(module)) and full(name) not in taken
    )
    matrices = {f"{name}.{key}": name for name, module in inside.items() for key in expert_matrices(module)}
    named = roles.get("experts") or [key for key, name in matrices.items() if holds_experts(name, inside[name])]
    path, *more = parts.values()
    return Layer(path, modules, others, tuple(more), tuple(full(name) for name in named if name in matrices))


def make_stack(model: nn.Module, name: str, path: str, roles: Roles, model_type: str) -> Stack:
    """The stack at `path`, with one table of roles for all of its layers."""
    no_layer_twice(model, path, model_type)
    layers, every = [], (*EVERY_ROLE, *EXPERT_ROLES)
    for key, block in model.get_submodule(path).named_children():
        layer = make_layer({"": f"{path}.{key}"}, block, {role: roles.get(role, ()) for role in every})
        layers.append(layer)
    for role, looked_for in roles.items():
        if not any(layer.experts if role in EXPERT_ROLES else layer.names((role,)) for layer in layers):
            raise ValueError(
                f"model type {model_type!r}: no layer in {path} has a module for the role {role!r} "
                f"(looked for {', '.join(looked_for) or 'nothing'}). {by_hand(model_type, path, block, roles)}"
            )
    return Stack(name, path, tuple(layers))


def no_layer_twice(model: nn.Module, path: str, model_type: str) -> None:
    """Refuse a list without layers, and one that holds a layer twice."""
    blocks = list(model.get_submodule(path).children())
    if not blocks:
        raise ValueError(f"model type {model_type!r}: {path!r} holds no layers.")
    if len({id(block) for block in blocks}) < len(model.get_submodule(path)._modules):
        raise ValueError(
            f"model type {model_type!r} has no strata: {path!r} uses the same layer more than once; give each layer "
            "weights of its own (copy.deepcopy), or take linear-probe or full."
        )


def by_hand(model_type: str, path: str, block: nn.Module, roles: Roles) -> str:
    """How to describe a model: the start of a file, with what was found in one of its layers."""
    names = {name for name, _ in block.named_modules()}
    found = {role: [name for name in roles.get(role, ()) if name in names] for role in ROLES}
    start = {
        "model_type": model_type,
        "layers": path or "name.of.the.list",
        "roles": {role: each[0] if len(each) == 1 else each or "?" for role, each in found.items()},
        "head": ["classifier"],
    }
    linear = [name for name, module in block.named_modules() if is_linear(module) or is_norm(module)]
    inside = f"a layer holds {', '.join(linear[:16])}; " if linear else ""
    return (
        "Describe the model by hand: in a YAML file that starts as "
        f"{yaml.safe_dump(start, default_flow_style=True, sort_keys=False, width=10_000).strip()} "
        f"({inside}roles that it lacks are left out), and give it: --architecture FILE, or architecture=FILE."
    )


def join(*parts: str) -> str:
    return ".".join(part for part in parts if part)

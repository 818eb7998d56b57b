"""A stack from its path in the model and the names in its layers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from spafit_hf.architecture.kinds import has_weight, is_linear, is_norm
from spafit_hf.architecture.parts import Layer, Stack
from spafit_hf.strategy import EVERY_ROLE, LORA_ROLES, ROLES

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
        if names or role in ROLES
    }
    taken = {module for names in modules.values() for module in names}
    others = tuple(
        full(name)
        for name, module in inside.items()
        if (is_linear(module) or is_norm(module)) and full(name) not in taken
    )
    path, *more = parts.values()
    return Layer(path, modules, others, tuple(more))


def make_stack(model: nn.Module, name: str, path: str, roles: Roles, model_type: str) -> Stack:
    """The stack at `path`, with one table of roles for all of its layers."""
    no_layer_twice(model, path, model_type)
    layers = []
    for key, block in model.get_submodule(path).named_children():
        layer = make_layer({"": f"{path}.{key}"}, block, {role: roles.get(role, ()) for role in EVERY_ROLE})
        for role in LORA_ROLES:
            if not layer.modules.get(role) and (role in ROLES or role in roles):
                raise ValueError(
                    f"model type {model_type!r}: {layer.path} has no module for the role {role!r} "
                    f"(looked for {', '.join(roles.get(role, ())) or 'nothing'}). {by_hand(block)}"
                )
        layers.append(layer)
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


def by_hand(block: nn.Module) -> str:
    linear = [name for name, module in block.named_modules() if is_linear(module) or is_norm(module)]
    inside = f" (a layer holds {', '.join(linear[:16])})" if linear else ""
    return (
        "Describe the model by hand: architecture = "
        "spafit_hf.architecture.describe_architecture(model, layers='name.of.the.list', "
        f"roles={{'query': 'name.in.a.layer', ...}}, head=['classifier']), with a name for each of {', '.join(ROLES)}"
        f"{inside}, and pass it on: plan(model, strategy, architecture=architecture)."
    )


def join(*parts: str) -> str:
    return ".".join(part for part in parts if part)

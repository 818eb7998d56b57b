"""A stack from its path in the model and the names in its layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from spafit_hf.architecture.kinds import has_weight, is_linear, is_norm
from spafit_hf.architecture.parts import Layer, Stack
from spafit_hf.strategy import NORM_ROLES, ROLES

Roles = dict[str, tuple[str, ...]]


def make_stack(model: nn.Module, name: str, path: str, roles: Roles | Sequence[Roles], model_type: str) -> Stack:
    """The stack at `path`, with one table of roles for all of its layers or one for each."""
    blocks = list(model.get_submodule(path).children())
    if not blocks:
        raise ValueError(f"model type {model_type!r}: {path!r} holds no layers.")
    if len({id(block) for block in blocks}) < len(model.get_submodule(path)._modules):
        raise ValueError(f"model type {model_type!r} has no strata: {path!r} uses the same layer more than once.")
    layers = []
    tables = [roles] * len(blocks) if isinstance(roles, dict) else roles
    for index, (block, table) in enumerate(zip(blocks, tables, strict=True)):
        layer_path = f"{path}.{index}"
        inside = dict(block.named_modules())
        modules: dict[str, tuple[str, ...]] = {}
        for role in ROLES:
            present = [sub for sub in table.get(role, ()) if sub in inside and has_weight(inside[sub])]
            if not present and role not in NORM_ROLES:
                raise ValueError(
                    f"model type {model_type!r}: {layer_path} has no module for the role {role!r} "
                    f"(looked for {', '.join(table.get(role, ())) or 'nothing'}). {by_hand(block)}"
                )
            modules[role] = tuple(join(layer_path, sub) for sub in present)
        taken = {module for names in modules.values() for module in names}
        others = tuple(
            join(layer_path, sub)
            for sub, module in inside.items()
            if (is_linear(module) or is_norm(module)) and join(layer_path, sub) not in taken
        )
        layers.append(Layer(layer_path, modules, others))
    return Stack(name, path, tuple(layers))


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

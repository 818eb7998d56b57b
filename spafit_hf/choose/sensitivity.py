"""How the loss depends on each layer at the start: N2, and which biases pay.

head trained, all else frozen --batches of some hundred rows-->  gradient of a zero delta on every bias
                                                                 gradient of every matrix over its weights

Behind a head that was never trained a gradient says where noise comes in, so the head is trained first (linear
probing, `HEAD_EPOCHS` on the same rows). Of a layer counts the relative gradient, |gradient| / |weight| over its
matrices (Auto-RGN of Lee et al. 2022, arXiv:2210.11466), of a bias the squared gradient of its delta. Both are means
over batches, without dropout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import find_kappa_target_modules
from torch import nn

from spafit_hf.architecture import Layer, takes_delta
from spafit_hf.architecture.kinds import in_out, is_linear
from spafit_hf.shortcuts.probe import evaluating
from spafit_hf.strategy import EVERY_ROLE, LORA_ROLES
from spafit_hf.words import SpafitError

HEAD_EPOCHS = 5
HEAVY = 0.5
"""Share of the layers' score beyond N1 that group 3 holds at least."""
PAYING = 0.9
"""Share of the biases' squared gradient beyond N1 that the roles hold which pay."""


@dataclass(frozen=True)
class Sensitivity:
    """A number per layer, from zero, and one per layer and role."""

    relative: tuple[float, ...]
    """Gradient over weight of a layer's matrices, both as norms."""
    biases: tuple[dict[str, float], ...]
    """Squared gradient of the deltas, by role; roles that have none are left out."""


def shares(values: Sequence[float]) -> tuple[float, ...]:
    """Values over their sum; equal ones where all are zero."""
    total = sum(values)
    return tuple(value / total if total else 1 / len(values) for value in values)


def measure(model: nn.Module, layers: Sequence[Layer], batches: Iterable[Mapping[str, torch.Tensor]]) -> Sensitivity:
    """Run batches forward and backward with a zero delta on every bias; the model is as before afterwards.

    Args:
        model: a transformers model with a trained head, on its device.
        layers: of its stack.
        batches: inputs with labels.
    """
    modules = dict(model.named_modules())
    matrices = [[modules[name].weight for name in layer.names(LORA_ROLES)] for layer in layers]
    deltas: dict[str, torch.Tensor] = {}
    hooks = []
    for name in (name for layer in layers for name in layer.names(EVERY_ROLE) if takes_delta(modules[name])):
        module = modules[name]
        size = in_out(module)[1] if is_linear(module) else module.bias.numel()
        deltas[name] = delta = torch.zeros(size, device=module.weight.device, requires_grad=True)
        hooks.append(module.register_forward_hook(lambda _module, _args, output, delta=delta: output + delta))
    weights = [weight for layer in matrices for weight in layer]
    trained = [weight.requires_grad for weight in weights]
    squared = torch.zeros(len(deltas) + len(weights), dtype=torch.float64)
    count = 0
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            for batch in batches:
                loss = model(**batch).loss
                gradients = torch.autograd.grad(loss, [*deltas.values(), *weights], allow_unused=True)
                squared += torch.tensor([0.0 if each is None else float(each.square().sum()) for each in gradients])
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
        for weight, before in zip(weights, trained, strict=True):
            weight.requires_grad_(before)
    means = iter((squared / count).tolist())
    by_name = {name: next(means) for name in deltas}
    biases = tuple(
        {
            role: sum(by_name[name] for name in layer.names((role,)) if name in by_name)
            for role in EVERY_ROLE
            if any(name in by_name for name in layer.names((role,)))
        }
        for layer in layers
    )
    relative = []
    for layer in matrices:
        norm = sum(float(weight.detach().square().sum()) for weight in layer)
        relative.append((sum(next(means) for _ in layer) / norm) ** 0.5)
    return Sensitivity(tuple(relative), biases)


def kappa_shares(model: nn.Module, layers: Sequence[Layer]) -> tuple[float, ...]:
    """How many of the better conditioned half of the matrices each layer has, as shares: PEFT's data-free ranking.

    Raises:
        SpafitError: where PEFT ranks none of the model's matrices.
    """
    ranking: Any = find_kappa_target_modules(model, top_p=1.0, show_progress=False)["target_modules"]
    ours = {name for layer in layers for name in layer.names(LORA_ROLES)}
    ranked = [name for name in ranking if name in ours]
    if not ranked:
        raise SpafitError("--score kappa reads nn.Linear alone, and this base has none in its layers; use gradient.")
    better = set(ranked[: (len(ranked) + 1) // 2])
    return shares([len(better & set(layer.names(LORA_ROLES))) for layer in layers])


def choose_n2(scores: Sequence[float], n1: int) -> int:
    """The last layer below the fewest last layers that hold `HEAVY` of the score beyond N1."""
    beyond = sum(scores[n1 + 1 :])
    first, held = len(scores), 0.0
    while first > n1 + 1 and (first == len(scores) or held < HEAVY * beyond):
        first -= 1
        held += scores[first]
    return first - 1


def paying_roles(biases: Sequence[Mapping[str, float]], n1: int) -> tuple[str, ...]:
    """The fewest roles that hold `PAYING` of the squared gradient beyond N1, in reading order."""
    totals = {role: sum(layer.get(role, 0.0) for layer in biases[n1 + 1 :]) for role in EVERY_ROLE}
    chosen: set[str] = set()
    for role in sorted(totals, key=lambda role: -totals[role]):
        if sum(totals[each] for each in chosen) < PAYING * sum(totals.values()):
            chosen.add(role)
    return tuple(role for role in EVERY_ROLE if role in chosen)

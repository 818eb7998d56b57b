"""Experts that are one tensor for all of them, and the names by which PEFT knows their LoRA.

    MixtralExperts                    LoRA, as PEFT nests it          in an adapter file
    ├── gate_up_proj  (8, 2 i, h)     inner wrapper                   mlp.experts.base_layer.lora_A.weight
    └── down_proj     (8, h, i)       outer wrapper                   mlp.experts.lora_A.weight

Each expert has factors of its own; those of all stand in one matrix: A is (experts * r, inputs), B is
(outputs, experts * r).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import nn

BIAS_ENDING = "_bias"
"""Of the name of a parameter that holds the biases of experts, behind the name of their matrices."""


class ExpertMatrix(NamedTuple):
    """The matrices of one parameter."""

    experts: int
    inputs: int
    outputs: int

    def lora_shapes(self, r: int) -> dict[str, tuple[int, int]]:
        """Part of an adapter -> its shape at a rank."""
        return {"lora_A.weight": (r * self.experts, self.inputs), "lora_B.weight": (self.outputs, r * self.experts)}


def holds_experts(name: str, module: nn.Module) -> bool:
    """Whether a module is one of experts, by its name or that of its class."""
    return "expert" in f"{name}.{type(module).__name__}".lower() and bool(expert_matrices(module))


def expert_matrices(module: nn.Module) -> dict[str, ExpertMatrix]:
    """The parameters of a module that hold several matrices, in order: those of experts, if it is one of experts."""
    shapes = {key: each.shape for key, each in module._parameters.items() if each is not None and each.dim() == 3}
    # As PEFT reads them: (experts, outputs, inputs), unless transformers has marked them.
    turned = getattr(module, "is_transposed", False)
    return {
        key: ExpertMatrix(count, *((first, second) if turned else (second, first)))
        for key, (count, first, second) in shapes.items()
        if count > 1
    }


def expert_biases(module: nn.Module) -> dict[str, nn.Parameter]:
    """The biases of experts, (experts, outputs) each, in order: `gate_up_proj_bias` of gpt-oss, say."""
    own = module._parameters or vars(module).get("_former_parameters", {})  # as DataParallel's replicas have them
    return {
        key: each
        for key, each in own.items()
        if each is not None
        and key.endswith(BIAS_ENDING)
        and (matrix := own.get(key.removesuffix(BIAS_ENDING))) is not None
        and (matrix.dim(), each.dim(), len(matrix)) == (3, 2, len(each))
    }


def expert_delta_shape(biases: Mapping[str, nn.Parameter]) -> tuple[int, int]:
    """Of the one delta for `expert_biases`: experts, and the outputs of all their biases."""
    return len(next(iter(biases.values()))), sum(bias.shape[-1] for bias in biases.values())


def by_module(parameters: Iterable[str]) -> dict[str, list[str]]:
    """The full names of parameters by that of the module that holds them."""
    owners: dict[str, list[str]] = {}
    for name in parameters:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    return owners


def wrappers(owner: str, count: int) -> Iterator[str]:
    """What PEFT calls the wrappers around a module of which `count` parameters have LoRA, the first one's first."""
    return (owner + ".base_layer" * depth for depth in reversed(range(count)))


def expert_wrappers(parameters: Iterable[str]) -> set[str]:
    """The names of all wrappers where these parameters have LoRA."""
    return {wrapper for owner, names in by_module(parameters).items() for wrapper in wrappers(owner, len(names))}


def lora_places(parameters: Iterable[str], modules: Mapping[str, nn.Module]) -> dict[str, tuple[str, ExpertMatrix]]:
    """Parameters with LoRA -> the wrapper's name and the matrices, in the order in which PEFT wraps them.

    Raises:
        LookupError: for one that holds no experts of these modules.
    """
    places: dict[str, tuple[str, ExpertMatrix]] = {}
    for owner, wanted in by_module(parameters).items():
        found = {f"{owner}.{key}": each for key, each in expert_matrices(modules[owner]).items()}
        if odd := set(wanted) - set(found):
            raise LookupError(odd.pop())
        ordered = [name for name in found if name in wanted]
        places |= {
            name: (wrapper, found[name]) for name, wrapper in zip(ordered, wrappers(owner, len(ordered)), strict=True)
        }
    return places

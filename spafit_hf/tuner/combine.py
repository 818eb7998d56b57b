"""Weighted combinations of adapters: their deltas, where PEFT combines LoRA alone.

Deltas are vectors, so `linear`, `cat` and `svd` all mean their exact weighted sum; the sparsifying types (`ties`,
`dare_*`, `magnitude_prune`) apply to them as they do to LoRA.
"""

from __future__ import annotations

import torch
from peft.utils.merge_utils import dare_linear, dare_ties, magnitude_prune, task_arithmetic, ties

from spafit_hf.tuner.layer import DeltaLayer


def combine_deltas(
    layer: DeltaLayer,
    weighted: list[tuple[str, float]],
    adapter_name: str,
    combination_type: str,
    density: float | None,
    method: str,
) -> None:
    """Give a layer the weighted combination of some of its deltas, as PEFT combines LoRA.

    Args:
        layer: the layer; every adapter of `weighted` has a delta there.
        weighted: adapters with their weights.
        adapter_name: the adapter that is made of them.
        combination_type, density, method: as in `peft.LoraModel.add_weighted_adapter`.
    """
    if adapter_name not in layer.lora_delta:
        layer.add_delta(adapter_name, zero=True, inference_mode=True)
    deltas = [layer.lora_delta[name].data for name, _ in weighted]
    weights = torch.tensor([weight for _, weight in weighted], device=deltas[0].device)
    layer.lora_delta[adapter_name].data = _combined(deltas, weights, combination_type, density, method)


def _combined(
    deltas: list[torch.Tensor], weights: torch.Tensor, combination_type: str, density: float | None, method: str
) -> torch.Tensor:
    kind = combination_type.removesuffix("_svd")
    if kind == "ties":
        return ties(deltas, weights, density, method)
    if kind == "dare_linear":
        return dare_linear(deltas, weights, density)
    if kind == "dare_ties":
        return dare_ties(deltas, weights, density, method)
    if kind == "magnitude_prune":
        return magnitude_prune(deltas, weights, density)
    return task_arithmetic(deltas, weights)

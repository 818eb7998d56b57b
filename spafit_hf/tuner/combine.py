"""Weighted combinations of adapters: their deltas, where PEFT combines LoRA alone.

Deltas are vectors, so `linear`, `cat` and `svd` all mean their exact weighted sum; the sparsifying types (`ties`,
`dare_*`, `magnitude_prune`) apply to them as they do to LoRA.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft.utils.merge_utils import dare_linear, dare_ties, magnitude_prune, task_arithmetic, ties

from spafit_hf.tuner.layer import DeltaLayer

# Combination type -> PEFT's function, and how many of density and method it takes.
_SPARSE: dict[str, tuple[Callable[..., torch.Tensor], int]] = {
    "ties": (ties, 2),
    "dare_ties": (dare_ties, 2),
    "dare_linear": (dare_linear, 1),
    "magnitude_prune": (magnitude_prune, 1),
}


def combine_deltas(
    layer: DeltaLayer,
    weighted: list[tuple[str, float]],
    adapter_name: str,
    combination_type: str,
    density: float | None,
    method: str,
) -> None:
    """Give `adapter_name` the combination of adapters with weights, each of which has a delta in this layer.

    The other arguments are those of `peft.LoraModel.add_weighted_adapter`.
    """
    if adapter_name not in layer.lora_delta:
        layer.add_delta(adapter_name, zero=True, inference_mode=True)
    deltas = [layer.lora_delta[name].data for name, _ in weighted]
    weights = torch.tensor([weight for _, weight in weighted], device=deltas[0].device)
    combine, options = _SPARSE.get(combination_type.removesuffix("_svd"), (task_arithmetic, 0))
    layer.lora_delta[adapter_name].data = combine(deltas, weights, *(density, method)[:options])

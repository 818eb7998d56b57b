"""One batch both ways, before the cache is believed.

    live      the batch as it is, padded        -> outputs
    cached    each row by itself, unpadded      -> states -> joined -> outputs

A model shows here that its states depend on the padding around a row (GPT-2 padded on the left, ConvBERT), that it
reads states of an early layer later on, or that its early layers do more than hand on states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spafit_hf.shortcuts.border import NotCacheable
from spafit_hf.shortcuts.entry import Entry
from spafit_hf.shortcuts.probe import difference, evaluating, tolerance
from spafit_hf.shortcuts.rows import Rows, join, without_padding


@dataclass(frozen=True)
class ProbeResult:
    """How far the two ways lie apart: largest difference of an output over its largest value."""

    exact: float
    """With the states as the model computes them."""
    stored: float
    """With the states in the dtype they are stored in."""


def probe(entry: Entry, inputs: dict[str, Any], rows: Rows, dtype: torch.dtype) -> ProbeResult:
    """Run a batch both ways and compare.

    Args:
        entry: attached to the model.
        inputs: a batch of a few rows of different lengths, on the model's device.
        rows: the same, as rows.
        dtype: the dtype that states are stored in.

    Raises:
        NotCacheable: when the outputs differ by more than rounding, or the states do not fit the dtype.
    """
    base, border = entry.base, entry.border
    forward = base.forward
    with evaluating(base), torch.no_grad():
        single = []
        for row in range(rows.count):
            states = entry.compute(forward, without_padding(inputs, rows, row))[0]
            if rows.width and states.shape[0] != rows.spans[row].stop - rows.spans[row].start:
                raise NotCacheable("the model has another number of states than a row has tokens.")
            single.append(states)
        stored = [state.to(dtype) for state in single]
        if not all(torch.isfinite(state).all() for state in stored):
            largest = max(float(state.abs().max()) for state in single)
            raise NotCacheable(
                f"states as large as {largest:.3g} do not fit into {str(dtype).removeprefix('torch.')}; "
                "set prefix_cache_dtype to bfloat16 or float32."
            )
        live = _outputs(entry, inputs, rows, None)
        device = next(iter(live.values())).device
        exact = _outputs(entry, inputs, rows, join(single, rows, border.dtype, device))
        rounded = _outputs(entry, inputs, rows, join(stored, rows, border.dtype, device))
    result = ProbeResult(difference(live, exact).relative, difference(live, rounded).relative)
    limit = tolerance(border.dtype, device)
    if result.exact > limit:
        raise NotCacheable(
            f"the model's outputs for one batch differ by {result.exact:.2g} (relative) between frozen layers run on "
            f"the padded batch and on each row alone; allowed is {limit:.0e}. Its states depend on padding, or early "
            "layers do more than hand on states; with padding on the left, try padding_side='right'."
        )
    return result


def _outputs(entry: Entry, inputs: dict[str, Any], rows: Rows, states: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """What the model says, and what the last layer of the stack hands on, with states or without."""
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = entry.base.get_submodule(entry.border.last_layer).register_forward_hook(keep)
    forward = entry.base.forward
    try:
        output = forward(**inputs) if states is None else entry.run(forward, inputs, states)
    finally:
        handle.remove()
    found = {"last layer": kept[-1]}
    if isinstance(output, Mapping):
        found |= {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}
    elif isinstance(output, torch.Tensor):
        found["output"] = output
    return {name: _real(value, rows) for name, value in found.items()}


def _real(value: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The values of real tokens: what stands at padding says nothing."""
    if not rows.width or value.dim() < 2 or value.shape[:2] != (rows.count, rows.width):
        return value
    return torch.cat([value[row, span] for row, span in enumerate(rows.spans)])

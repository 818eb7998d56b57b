"""How states get into a model: its frozen layers are passed through, and the last of them returns the states.

    embeddings -> [layer 0] -> ... -> [layer N1] -> layer N1+1 -> ...
                   passes what         returns
                   it was given        the states

The embeddings run, since models take shapes and masks from what they return, but they look up one row alone: the
table, 120 MB of BERT-large, need not be in memory.

One batch goes both ways before this is believed:

    live      the batch as it is, padded        -> outputs
    cached    each row by itself, unpadded      -> states -> joined -> outputs

A model shows here that its states depend on the padding around a row (GPT-2 padded on the left, ConvBERT), that it
reads states of an early layer later on, or that its early layers do more than hand on states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spafit_hf.architecture.find import model_type_of
from spafit_hf.shortcuts.border import SHARED_POSITION_BIAS, Border, NotCacheable
from spafit_hf.shortcuts.hooks import hooked
from spafit_hf.shortcuts.probe import difference, evaluating, tensors_of, tolerance
from spafit_hf.shortcuts.rows import Rows, join, without_padding
from spafit_hf.shortcuts.stand_in import standing_in


class _Reached(Exception):
    """The border was reached; what lies behind it is not needed."""


class Entry:
    """The way into one model (without PEFT's wrapper) at its border."""

    def __init__(self, base: nn.Module, border: Border) -> None:
        self.base = base
        self.border = border
        self._layers = [base.get_submodule(name) for name in border.layers]
        self._before = [base.get_submodule(name) for name in border.before]
        self._frozen = [*self._before, *(module for layer in self._layers for module in layer.modules())]
        # What ends after the border, and is given what states come from: the encoder around the layers.
        inside = tuple(f"{name}." for name in (*border.before, *border.layers))
        self._around = [base.get_submodule(name) for name in border.started if not f"{name}.".startswith(inside)]
        self._tables = [module for module in self._before if isinstance(module, nn.Embedding)]
        self._states: torch.Tensor | None = None
        self._entered = False
        self._position_bias: Any = None
        if model_type_of(base) in SHARED_POSITION_BIAS:
            self._position_bias = self._layers[0].get_submodule("layer.0.SelfAttention").compute_bias

    @property
    def watched(self) -> str:
        """The kind of a module with a hook of a script's own on what happens before the border; "" where none has."""
        return hooked(self._frozen) or hooked(self._around, going_in=True)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within it pass-throughs stand in for the frozen layers. Without states they run the layers."""
        with standing_in(self._layers, self._layer), standing_in(self._tables, self._first_row):
            yield

    def no_dropout(self) -> None:
        """Put what lies before the border in eval mode."""
        for part in (*self._before, *self._layers):
            part.eval()

    def run(self, forward: Callable[..., Any], inputs: dict[str, Any], states: torch.Tensor) -> Any:
        """The model's own forward pass, started at the border with states of shape (rows, tokens, width).

        Raises:
            RuntimeError: when the model did not ask for the states.
        """
        self._states, self._entered = states, False
        try:
            output = forward(**inputs)
        finally:
            self._states = None
        if not self._entered:
            raise RuntimeError(f"{self.border.layers[-1]} did not run, so the cached states were not used.")
        return output

    def compute(self, forward: Callable[..., Any], inputs: dict[str, Any]) -> torch.Tensor:
        """The states at the border, (rows, tokens, width), without dropout and gradients. Nothing runs after it."""
        reached: list[torch.Tensor] = []

        def stop(_module: nn.Module, _args: Any, output: Any) -> None:
            reached.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        hook = self._layers[-1].register_forward_hook(stop)
        with hook, evaluating(self.base), torch.no_grad(), suppress(_Reached):
            forward(**inputs)
        if not reached:
            raise RuntimeError(f"{self.border.layers[-1]} did not run, so there are no states to keep.")
        return reached[0]

    def _first_row(self, _index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._states is not None and args:
            args = (torch.zeros_like(args[0]), *args[1:])
        return forward(*args, **kwargs)

    def _layer(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._states is None:
            return forward(*args, **kwargs)
        given = args[0] if args else kwargs["hidden_states"]
        last = index == len(self._layers) - 1
        self._entered |= last
        states = self._states if last else given
        if not self.border.returns:
            return states
        extras: list[Any] = [None] * (self.border.returns - 1)
        if self._position_bias is not None:
            length = given.shape[1]
            before = args[2] if len(args) > 2 else kwargs.get("position_bias")
            extras[0] = self._position_bias(length, length, device=given.device) if before is None else before
        return (states, *extras)


@dataclass(frozen=True)
class ProbeResult:
    """How far the two ways lie apart: largest difference of an output over its largest value."""

    exact: float
    """With the states as the model computes them."""
    stored: float
    """With the states in the dtype they are stored in."""


def probe(entry: Entry, inputs: dict[str, Any], rows: Rows, dtype: torch.dtype) -> ProbeResult:
    """Run a batch of a few rows both ways and compare; `dtype` is what states are stored in.

    Raises:
        NotCacheable: when the outputs differ by more than rounding, or the states do not fit the dtype.
    """
    base, border = entry.base, entry.border
    with evaluating(base), torch.no_grad():
        single = [entry.compute(base.forward, without_padding(inputs, rows, row))[0] for row in range(rows.count)]
        lengths = [span.stop - span.start for span in rows.spans if rows.width]
        if lengths and lengths != [len(states) for states in single]:
            raise NotCacheable("the model has another number of states than a row has tokens.")
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
    worst = difference(live, exact)
    result = ProbeResult(worst.relative, difference(live, rounded).relative)
    limit = tolerance(border.dtype, device)
    if result.exact > limit:
        raise NotCacheable(
            f"the model's outputs for one batch ({worst.name}) differ by {result.exact:.2g} (relative) between frozen "
            f"layers run on the padded batch and on each row alone; allowed is {limit:.0e}. Its states or its loss "
            "depend on padding, or early layers do more than hand on states; with padding on the left, try "
            "padding_side='right'."
        )
    return result


def _outputs(entry: Entry, inputs: dict[str, Any], rows: Rows, states: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """What the model says, and what the last layer of the stack hands on, with states or without."""
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    forward = entry.base.forward
    with entry.base.get_submodule(entry.border.last_layer).register_forward_hook(keep):
        output = forward(**inputs) if states is None else entry.run(forward, inputs, states)
    return {name: _real(value, rows) for name, value in {"last layer": kept[-1], **tensors_of(output)}.items()}


def _real(value: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The values of real tokens: what stands at padding says nothing."""
    if value.shape[:2] != (rows.count, rows.width):
        return value
    return torch.cat([value[row, span] for row, span in enumerate(rows.spans)])

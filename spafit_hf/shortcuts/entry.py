"""How states get into a model: its frozen layers are passed through, and the last of them returns the states.

    embeddings -> [layer 0] -> ... -> [layer N1] -> layer N1+1 -> ...
                   passes what         returns
                   it was given        the states

The embeddings run, since models take shapes and masks from what they return, but they look up one row alone: the
table, 120 MB of BERT-large, need not be in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from spafit_hf.shortcuts.border import SHARED_POSITION_BIAS, Border, model_type_of
from spafit_hf.shortcuts.probe import evaluating
from spafit_hf.shortcuts.stand_in import standing_in


class _Reached(Exception):
    """The border was reached; what lies behind it is not needed."""


class Entry:
    """The way into one model at its border.

    Args:
        base: the transformers model, inside PEFT's wrapper if it has one.
        border: its border.
    """

    def __init__(self, base: nn.Module, border: Border) -> None:
        self.base = base
        self.border = border
        self._layers = [base.get_submodule(name) for name in border.layers]
        self._before = [base.get_submodule(name) for name in border.before]
        self._tables = [module for module in self._before if isinstance(module, nn.Embedding)]
        self._states: torch.Tensor | None = None
        self._entered = False
        self._position_bias: Any = None
        if model_type_of(base) in SHARED_POSITION_BIAS:
            self._position_bias = self._layers[0].get_submodule("layer.0.SelfAttention").compute_bias

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within it pass-throughs stand in for the frozen layers. Without states they run the layers."""
        with standing_in(self._layers, self._layer), standing_in(self._tables, self._first_row):
            yield

    def no_dropout(self) -> None:
        """Put what lies before the border in eval mode."""
        for part in (*self._before, *self._layers):
            for module in part.modules():
                module.training = False

    def run(self, forward: Callable[..., Any], inputs: dict[str, Any], states: torch.Tensor) -> Any:
        """A forward pass that starts at the border.

        Args:
            forward: the model's own.
            inputs: its keyword arguments.
            states: shape (rows, tokens, width), in the dtype and on the device of the model.

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

        handle = self._layers[-1].register_forward_hook(stop)
        try:
            with evaluating(self.base), torch.no_grad():
                forward(**inputs)
        except _Reached:
            pass
        finally:
            handle.remove()
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

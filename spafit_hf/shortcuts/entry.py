"""How states get into a model: its frozen layers are passed through, and the last of them returns the states.

    embeddings -> [layer 0] -> ... -> [layer N1] -> layer N1+1 -> ...
                   passes what         returns
                   it was given        the states

Only the `forward` of these modules is put aside, on the instance, and put back afterwards. Names, weights and hooks
stay. The embeddings run, since models take shapes and masks from what they return, but they look up one row alone: the
table, 120 MB of BERT-large, need not be in memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn

from spafit_hf.shortcuts.border import SHARED_POSITION_BIAS, Border, model_type_of


class _Reached(Exception):
    """The border was reached; what lies behind it is not needed."""


class StandIn:
    """Stands in the place of a module's forward, as a method of the module, until `detach`.

    Being a method, it comes with another `self` in a copy of the module (for an average of weights, say), and is
    pickled by its name. A copy runs what stood there, on itself.

    Args:
        module: the module whose forward to replace.
        call: what runs instead. It is given the replaced forward, and what that would be.
    """

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        self.module: nn.Module | None = module
        self.call = call
        self.own = vars(module).get("forward")
        self.live = module.forward
        self.function = getattr(self.live, "__func__", None)
        """What is replaced, for any `self`; None where that is no method."""
        self.__name__ = "forward"
        # generate() and Trainer look at the signature for what a model takes.
        self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        signature = inspect.signature(self.live)
        self.__signature__ = signature.replace(parameters=[self_parameter, *signature.parameters.values()])
        module.forward = MethodType(self, module)  # type: ignore[method-assign]

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The module's forward."""
        if module is self.module:
            return self.call(self.live, *args, **kwargs)
        return self.live(*args, **kwargs) if self.function is None else self.function(module, *args, **kwargs)

    def detach(self) -> None:
        """Give the module its forward back. Where another wraps this one by now, that stays and this does nothing."""
        module, self.module = self.module, None
        if module is not None and getattr(vars(module).get("forward"), "__func__", None) is self:
            if self.own is None:
                del module.forward
            else:
                module.forward = self.own


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
        self._stand_ins: list[StandIn] = []
        self._states: torch.Tensor | None = None
        self._entered = False
        self._position_bias: Any = None
        if model_type_of(base) in SHARED_POSITION_BIAS:
            self._position_bias = self._layers[0].get_submodule("layer.0.SelfAttention").compute_bias

    def attach(self) -> None:
        """Put pass-throughs in the place of the frozen layers' forward. Without states they run the layers."""
        self._stand_ins = [
            *(StandIn(layer, partial(self._layer, index)) for index, layer in enumerate(self._layers)),
            *(StandIn(table, self._first_row) for table in self._tables),
        ]

    def detach(self) -> None:
        """Give the layers their own forward back."""
        for stand_in in reversed(self._stand_ins):
            stand_in.detach()
        self._stand_ins = []

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

        was = [(module, module.training) for module in self.base.modules()]
        handle = self._layers[-1].register_forward_hook(stop)
        try:
            self.base.eval()
            with torch.no_grad():
                forward(**inputs)
        except _Reached:
            pass
        finally:
            handle.remove()
            for module, training in was:
                module.training = training
        if not reached:
            raise RuntimeError(f"{self.border.layers[-1]} did not run, so there are no states to keep.")
        return reached[0]

    def _first_row(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
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

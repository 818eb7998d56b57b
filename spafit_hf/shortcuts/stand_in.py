"""A module that answers for another: only its `forward` is put aside, on the instance, and put back afterwards.

Names, weights and hooks stay.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from types import MethodType
from typing import Any

from torch import nn


class StandIn:
    """Stands in the place of a module's forward, as a method of the module, until `detach`.

    Being a method, it comes with another `self` in a copy of the module (for an average of weights, say), and is
    pickled by its name. A copy runs what stood there, on itself. What runs instead, `call`, is given the replaced
    forward, and what that would be.
    """

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        self.module: nn.Module | None = module
        self.call = call
        self.own = vars(module).get("forward")
        self.live = module.forward
        self.function = getattr(self.live, "__func__", None)
        """What is replaced, for any `self`; None where that is no method."""
        self.__name__ = "forward"
        module.forward = MethodType(self, module)  # type: ignore[method-assign]

    @cached_property
    def __signature__(self) -> inspect.Signature:
        # generate() and Trainer look at the signature for what a model takes.
        self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        signature = inspect.signature(self.live)
        return signature.replace(parameters=[self_parameter, *signature.parameters.values()])

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


@contextmanager
def standing_in(modules: Sequence[nn.Module], call: Callable[..., Any]) -> Iterator[None]:
    """Within it each module runs `call(its place among them, its forward, ...)`; afterwards its own again."""
    with ExitStack() as stack:
        for index, module in enumerate(modules):
            stack.callback(StandIn(module, partial(call, index)).detach)
        yield

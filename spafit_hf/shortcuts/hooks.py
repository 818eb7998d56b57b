"""Hooks of a script's own, which see or change what a short cut would leave out: where they are, it stands aside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn


def hooked(modules: Iterable[nn.Module], *, going_in: bool = False) -> str:
    """The kind of the first module with a hook of a script's own; "" where there is none. Asked in every pass.

    Args:
        modules: where to look.
        going_in: for hooks on what goes into a module alone.
    """
    for each in modules:
        before = each._forward_pre_hooks
        every = (before, each._forward_hooks, each._backward_hooks, each._backward_pre_hooks)
        for hooks in (before,) if going_in else every:
            if hooks and any(map(_is_foreign, hooks.values())):
                return type(each).__name__
    return ""


def _is_foreign(hook: Callable[..., Any]) -> bool:
    """Whether a hook is a script's own: those of this package know of the short cuts, those that transformers leaves
    on a model collect states only where a pass asks for them, and torch's make weights of weights (weight_norm)."""
    function = hook.func if isinstance(hook, partial) else hook
    return not str(function.__module__).startswith(("spafit_hf.", "transformers.", "torch."))

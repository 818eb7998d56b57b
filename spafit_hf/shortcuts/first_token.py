"""How the last layer is narrowed to the first token: hooks on its parts, each put back where it was.

    query             given the first token; its answer stands for every token, so that attention keeps its shapes
    key, value        as they are
    all that follows  given the first token: attention output, feed-forward, norms

Every token then asks what the first one asks. Attention itself is computed as often as before, which is little: the
matrices around it are what a layer costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spafit_hf.architecture import find_architecture
from spafit_hf.strategy import ROLES
from spafit_hf.tuner.plain import plain_view


class NotFirstToken(ValueError):
    """The last layer of this model cannot be computed for the first token alone. The message says why."""


class FirstToken:
    """The last layer of one model, narrowed while `attached`.

    Example:
        first = probe(model, batch)      # or NotFirstToken
        with first.attached():
            model(**batch)               # the backward pass of a checkpointed layer has to be in here as well

    Args:
        base: the transformers model, inside PEFT's wrapper if it has one.

    Raises:
        NotFirstToken: when the model has no such layer.
    """

    def __init__(self, base: nn.Module) -> None:
        if not isinstance(base, PreTrainedModel) or base.base_model is base:
            raise NotFirstToken("the model has no head of its own, and returns the states of all tokens.")
        try:
            stacks = find_architecture(plain_view(base)).stacks
        except ValueError as error:
            raise NotFirstToken(str(error)) from error
        if len(stacks) > 1:
            raise NotFirstToken("the model has an encoder and a decoder.")
        last = stacks[0].layers[-1]
        shared = last.names(("key", "value"))
        self.base = base
        self.layer = last.path
        """Name of the last layer."""
        # A fused projection asks and answers at once: then it stays as it is, and narrowing begins after it.
        self.queries = tuple(name for name in last.names(("query",)) if name not in shared)
        self.candidates = tuple(name for name in last.names(ROLES) if name not in (*self.queries, *shared))
        self.following: tuple[str, ...] = ()
        """Parts that run after attention; `follow` finds out which do."""
        self.passes = 0
        """How often the last layer was narrowed."""
        self._after_attention = last.names(("attention_output",))
        self._active = False
        self._in_training = True
        self._tokens = 0

    def follow(self, calls: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Learn from a pass which parts run after attention.

        Args:
            calls: name and shape of the input of each part's call, in their order.

        Raises:
            NotFirstToken: when a part does not run once, or on something else than rows of tokens.
        """
        names = [name for name, _ in calls]
        parts = (*self.queries, *self.candidates)
        odd = sorted(name for name in parts if names.count(name) != 1)
        if odd:
            raise NotFirstToken(f"{odd[0]} runs {names.count(odd[0])} times in a pass.")
        start = min(names.index(name) for name in self._after_attention)
        self.following = tuple(name for name in names[start:] if name in self.candidates)
        shapes = {shape[:2] for name, shape in calls if name in (*self.queries, *self.following)}
        if len(shapes) != 1 or any(len(shape) != 3 for _, shape in calls):
            raise NotFirstToken(f"the parts of {self.layer} do not see states of shape (rows, tokens, width).")

    @contextmanager
    def attached(self, *, training: bool = True) -> Iterator[None]:
        """Within it the last layer is narrowed in every pass that asks for neither hidden states nor attentions.

        Args:
            training: in training mode as well, not only in eval mode.
        """
        self._in_training = training
        with ExitStack() as stack:

            def hook(name: str, pre: Any = None, post: Any = None) -> None:
                module = self.base.get_submodule(name)
                if pre is not None:
                    stack.callback(module.register_forward_pre_hook(pre).remove)
                if post is not None:
                    stack.callback(module.register_forward_hook(post).remove)

            body = self.base.base_model
            stack.callback(body.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            for name in self.queries:
                hook(name, self._ask_once, self._for_every_token)
            for name in self.following:
                hook(name, self._first)
            yield

    def _begin(self, _body: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        # Stays as it is until the next pass: checkpointed layers run again in the backward pass.
        config = self.base.config
        default = {"output_hidden_states": config.output_hidden_states, "output_attentions": config.output_attentions}
        given = {name: kwargs[name] for name in default if kwargs.get(name) is not None}
        self._active = not any((default | given).values()) and (self._in_training or not self.base.training)
        self.passes += self._active

    def _ask_once(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if not self._active:
            return None
        self._tokens = args[0].shape[1]
        return (args[0][:, :1], *args[1:])

    def _for_every_token(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor | None:
        # A copy and not a view: attention kernels are slow on rows that are the same memory.
        return output.repeat(1, self._tokens, 1) if self._active else None

    def _first(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        return (args[0][:, :1], *args[1:]) if self._active else None

"""How the last layer is narrowed to the first token: hooks on its parts, each put back where it was.

    query             given the first token; its answer stands for every token, so that attention keeps its shapes
    key, value        as they are
    all that follows  given the first token: attention output, feed-forward, norms

Every token then asks what the first one asks. Attention itself is computed as often as before, which is little: the
matrices around it are what a layer costs.

One batch goes both ways before this is believed:

    live       the last layer whole     -> outputs, gradients of what trains and of the states that enter the layer
    narrowed   for the first token      -> the same?

A head that reads other tokens (a mean, the last token, one label per token) shows here. The pass is cut where states
enter the last layer: equal gradients there mean equal gradients of all that lies below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spafit_hf.architecture import find_architecture
from spafit_hf.shortcuts.hooks import hooked
from spafit_hf.shortcuts.probe import ROWS, both_ways, difference, evaluating, tensors_of, tolerance
from spafit_hf.shortcuts.rows import select
from spafit_hf.shortcuts.stand_in import standing_in
from spafit_hf.strategy import EVERY_ROLE, ROLES
from spafit_hf.tuner.plain import plain_view


class NotFirstToken(ValueError):
    """The last layer of this model cannot be computed for the first token alone. The message says why."""


class FirstToken:
    """The last layer of one model (without PEFT's wrapper), narrowed while `attached`.

    Example:
        first = probe(model, batch)      # or NotFirstToken
        with first.attached():
            model(**batch)               # the backward pass of a checkpointed layer has to be in here as well

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
        if last.more or not all(last.modules[role] for role in ROLES[:4]):
            raise NotFirstToken(f"{last.path} is no module of its own, or has no attention of matrices.")
        shared = last.names(("key", "value"))
        self.base = base
        self.layer = last.path
        """Name of the last layer."""
        # A fused projection asks and answers at once: then it stays as it is, and narrowing begins after it.
        self.queries = tuple(name for name in last.names(("query",)) if name not in shared)
        self.candidates = tuple(name for name in last.names(EVERY_ROLE) if name not in (*self.queries, *shared))
        self.following: tuple[str, ...] = ()
        """Parts that run after attention; `follow` finds out which do."""
        self.passes = 0
        """How often the last layer was narrowed."""
        self._after_attention = last.names(("attention_output",))
        named = list(base.named_modules())
        start = [name for name, _ in named].index(last.path)
        # The layer, what stands around it and after it. The model itself returns what it always does.
        self._sees = [each for at, (name, each) in enumerate(named) if at >= start or _around(name, last.path)]
        self._whole_runs = False
        self._active = False
        self._in_training = True
        self._tokens = 0

    def follow(self, calls: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Learn which parts run after attention, from the names and input shapes of a pass's calls in their order.

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

    @property
    def watched(self) -> str:
        """The kind of a module in which a hook of a script's own sees states of the last layer; "" where none does."""
        return hooked(self._sees)

    @contextmanager
    def attached(self, *, training: bool = True) -> Iterator[None]:
        """Within it the last layer is narrowed where a pass asks for no more; `training`: in training mode as well."""
        self._in_training = training
        with ExitStack() as hooks:
            body = self.base.base_model
            hooks.enter_context(standing_in([self.base], self._whole))
            hooks.enter_context(body.register_forward_pre_hook(self._begin, with_kwargs=True))
            for name in (*self.queries, *self.following):
                hooks.enter_context(self.base.get_submodule(name).register_forward_pre_hook(self._first))
            for name in self.queries:
                hooks.enter_context(self.base.get_submodule(name).register_forward_hook(self._for_every_token))
            yield

    def _whole(self, _index: int, forward: Any, *args: Any, **kwargs: Any) -> Any:
        self._whole_runs = True
        try:
            return forward(*args, **kwargs)
        finally:
            self._whole_runs = False

    def _begin(self, _body: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        # Stays as it is until the next pass: checkpointed layers run again in the backward pass.
        config = self.base.config
        names = ("output_hidden_states", "output_attentions")
        asks = any(getattr(config, name) if kwargs.get(name) is None else kwargs[name] for name in names)
        # The head was seen to read the first token alone; who calls the body without it may read any.
        self._active = self._whole_runs and not asks and (self._in_training or not self.base.training)
        self._active = self._active and not self.watched
        self.passes += self._active

    def _first(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        self._tokens = args[0].shape[1]
        return (args[0][:, :1], *args[1:]) if self._active else None

    def _for_every_token(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor | None:
        # A copy and not a view: attention kernels are slow on rows that are the same memory.
        return output.repeat(1, self._tokens, 1) if self._active else None


def _around(name: str, path: str) -> bool:
    return bool(name) and path.startswith(f"{name}.")


def tokens_of(inputs: Mapping[str, Any]) -> list[int]:
    """Tokens of each row, padding left out where a mask shows it; none for inputs that are no rows of tokens."""
    value, mask = inputs.get("input_ids", inputs.get("inputs_embeds")), inputs.get("attention_mask")
    if not isinstance(value, torch.Tensor) or value.dim() < 2:
        return []
    if isinstance(mask, torch.Tensor) and mask.shape == value.shape[:2]:
        return mask.ne(0).sum(1).tolist()
    return [value.shape[1]] * value.shape[0]


def probe(base: nn.Module, inputs: Mapping[str, Any], *, gradients: bool = True) -> FirstToken:
    """The narrowed last layer, not attached, where a few rows run both ways give the same outputs (and `gradients`).

    Args:
        base: the transformers model, inside PEFT's wrapper if it has one, on its device.
        inputs: a batch as keyword arguments of its forward, with a row of two tokens or more.
        gradients: compare them too; not needed for evaluation.

    Raises:
        NotFirstToken: when outputs or gradients differ by more than rounding, the model does not run that way, or a
            hook of a script's own looks on.
    """
    first = FirstToken(base)
    if first.watched:
        raise NotFirstToken(f"a hook on {first.watched} sees the states of all tokens.")
    count = max(
        (value.shape[0] for value in inputs.values() if isinstance(value, torch.Tensor) and value.dim()), default=0
    )
    # One token alone says nothing about the others, so the longest row is among them.
    lengths = tokens_of(inputs) or [0]
    places = dict.fromkeys((lengths.index(max(lengths)), *range(count)))
    rows = select(inputs, sorted([*places][:ROWS]), count)
    calls: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        calls.append((name, tuple(args[0].shape)))

    with both_ways(NotFirstToken), evaluating(base):
        with ExitStack() as hooks:
            for name in (*first.queries, *first.candidates):
                hooks.enter_context(base.get_submodule(name).register_forward_pre_hook(partial(note, name)))
            live = _run(first, rows, gradients)
        first.follow(calls)
        with first.attached():
            narrowed = _run(first, rows, gradients)
    if not first.passes:
        raise NotFirstToken("the batch asks for hidden states or attentions.")
    # Under autocast the outputs, at least one of them, are of its type.
    narrowest = min(live["outputs"].values(), key=lambda value: torch.finfo(value.dtype).bits)
    limit = tolerance(narrowest.dtype, narrowest.device)
    for kind, values in live.items():
        shapes = [{name: value.shape for name, value in way[kind].items()} for way in (live, narrowed)]
        if shapes[0] != shapes[1]:
            raise NotFirstToken(f"{kind} of other shapes; the head reads more than the first token.")
        # Over the largest of all: small gradients, such as those of a query whose softmax is saturated, are what the
        # rounding of large ones leaves.
        largest = max((float(value.abs().max()) for value in values.values()), default=0.0)
        worst = difference(values, narrowed[kind], largest)
        if worst.relative > limit:
            raise NotFirstToken(
                f"{kind} differ ({worst.name} by {worst.by:.2g}, of values up to {largest:.2g}); the head reads more "
                "than the first token."
            )
    return first


def _run(first: FirstToken, inputs: dict[str, Any], gradients: bool) -> dict[str, dict[str, torch.Tensor]]:
    """Outputs and gradients of a pass, by name."""
    entering: list[torch.Tensor] = []

    def cut(
        _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = args[0] if args else kwargs["hidden_states"]
        entering.append(states.detach().requires_grad_(gradients))
        return ((entering[-1], *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": entering[-1]})

    hook = first.base.get_submodule(first.layer).register_forward_pre_hook(cut, with_kwargs=True)
    with hook, torch.set_grad_enabled(gradients):
        outputs = tensors_of(first.base.forward(**inputs))
    if len(entering) != 1:
        raise NotFirstToken(f"{first.layer} runs {len(entering)} times in a pass.")
    if not outputs:
        raise NotFirstToken("the model returns no tensors.")
    found = {"outputs": {name: value.detach() for name, value in outputs.items()}}
    if gradients:
        generator = torch.Generator().manual_seed(0)
        # Not the loss: it may be flat where the outputs are not, and there may be no labels.
        weighted = (
            (value.float() * torch.randn(value.shape, generator=generator).to(value.device)).sum()
            for value in outputs.values()
        )
        total = torch.stack([*weighted]).sum()
        trained = {name: parameter for name, parameter in first.base.named_parameters() if parameter.requires_grad}
        values = torch.autograd.grad(total, [entering[0], *trained.values()], allow_unused=True)
        named = zip(["the states that enter the last layer", *trained], values, strict=True)
        found["gradients"] = {name: value for name, value in named if value is not None}
    return found

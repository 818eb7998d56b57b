"""One batch both ways, before the narrowed last layer is believed.

    live       the last layer whole     -> outputs, gradients of what trains and of the states that enter the layer
    narrowed   for the first token      -> the same?

A head that reads other tokens (a mean, the last token, one label per token) shows here. The pass is cut where states
enter the last layer: equal gradients there mean equal gradients of all that lies below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from spafit_hf.shortcuts.first_token import FirstToken, NotFirstToken
from spafit_hf.shortcuts.probe import ROWS, both_ways, difference, evaluating, tolerance
from spafit_hf.shortcuts.rows import select


def tokens_of(inputs: Mapping[str, Any]) -> int:
    """Tokens per row, padding included; 0 for inputs that are no rows of tokens."""
    value = inputs.get("input_ids", inputs.get("inputs_embeds"))
    return value.shape[1] if isinstance(value, torch.Tensor) and value.dim() >= 2 else 0


def probe(base: nn.Module, inputs: Mapping[str, Any], *, gradients: bool = True) -> FirstToken:
    """Run a few rows both ways and compare.

    Args:
        base: the transformers model, inside PEFT's wrapper if it has one, on its device.
        inputs: a batch as keyword arguments of its forward, of two tokens per row or more.
        gradients: compare them too; not needed for evaluation.

    Returns:
        The narrowed last layer, not attached.

    Raises:
        NotFirstToken: when outputs or gradients differ by more than rounding, or the model does not run that way.
    """
    first = FirstToken(base)
    rows = _some_rows(inputs)
    with both_ways(NotFirstToken), evaluating(base):
        calls: list[tuple[str, tuple[int, ...]]] = []
        with _recorded(first, calls):
            live = _run(first, rows, gradients)
        first.follow(calls)
        passes = first.passes
        with first.attached():
            narrowed = _run(first, rows, gradients)
    if first.passes == passes:
        raise NotFirstToken("the batch asks for hidden states or attentions.")
    # Under autocast the outputs, at least one of them, are of its type.
    narrowest = min(live["outputs"].values(), key=lambda value: torch.finfo(value.dtype).bits)
    _compare(live, narrowed, tolerance(narrowest.dtype, narrowest.device))
    return first


def _some_rows(inputs: Mapping[str, Any]) -> dict[str, Any]:
    count = max(
        (value.shape[0] for value in inputs.values() if isinstance(value, torch.Tensor) and value.dim()), default=0
    )
    return select(inputs, range(min(ROWS, count)), count)


@contextmanager
def _recorded(first: FirstToken, calls: list[tuple[str, tuple[int, ...]]]) -> Iterator[None]:
    handles = []
    for name in (*first.queries, *first.candidates):

        def note(_module: nn.Module, args: tuple[torch.Tensor, ...], name: str = name) -> None:
            calls.append((name, tuple(args[0].shape)))

        handles.append(first.base.get_submodule(name).register_forward_pre_hook(note))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(first: FirstToken, inputs: dict[str, Any], gradients: bool) -> dict[str, dict[str, torch.Tensor]]:
    """Outputs and gradients of a pass, by name."""
    entering: list[torch.Tensor] = []

    def cut(
        _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = args[0] if args else kwargs["hidden_states"]
        entering.append(states.detach().requires_grad_(gradients))
        return ((entering[-1], *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": entering[-1]})

    handle = first.base.get_submodule(first.layer).register_forward_pre_hook(cut, with_kwargs=True)
    try:
        with torch.set_grad_enabled(gradients):
            output = first.base.forward(**inputs)
    finally:
        handle.remove()
    if len(entering) != 1:
        raise NotFirstToken(f"{first.layer} runs {len(entering)} times in a pass.")
    outputs = _tensors(output)
    if not outputs:
        raise NotFirstToken("the model returns no tensors.")
    found = {"outputs": {name: value.detach() for name, value in outputs.items()}}
    if gradients:
        generator = torch.Generator().manual_seed(0)
        # Not the loss: it may be flat where the outputs are not, and there may be no labels.
        total = torch.stack(
            [
                (value.float() * torch.randn(value.shape, generator=generator).to(value.device)).sum()
                for value in outputs.values()
            ]
        ).sum()
        trained = {name: parameter for name, parameter in first.base.named_parameters() if parameter.requires_grad}
        values = torch.autograd.grad(total, [entering[0], *trained.values()], allow_unused=True)
        named = zip(["the states that enter the last layer", *trained], values, strict=True)
        found["gradients"] = {name: value for name, value in named if value is not None}
    return found


def _tensors(output: Any) -> dict[str, torch.Tensor]:
    if isinstance(output, torch.Tensor):
        output = {"output": output}
    elif isinstance(output, tuple):
        output = {f"output {index}": value for index, value in enumerate(output)}
    return {
        name: value
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel()
    }


def _compare(
    live: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]], limit: float
) -> None:
    for kind, values in live.items():
        if {name: value.shape for name, value in values.items()} != {
            name: value.shape for name, value in other[kind].items()
        }:
            raise NotFirstToken(f"{kind} of other shapes; the head reads more than the first token.")
        # Over the largest of all: small gradients, such as those of a query whose softmax is saturated, are what the
        # rounding of large ones leaves.
        largest = max((float(value.abs().max()) for value in values.values()), default=0.0)
        worst = difference(values, other[kind], largest)
        if worst.relative > limit:
            raise NotFirstToken(
                f"{kind} differ ({worst.name} by {worst.by:.2g}, of values up to {largest:.2g}); the head reads more "
                "than the first token."
            )

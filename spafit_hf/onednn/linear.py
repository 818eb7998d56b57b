"""The product of frozen weights, and modules that are computed by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

ROWS = 64
"""Products of a multiple of so many rows are oneDNN's. It prepares itself for each number of rows apart, and keeps
what it prepared: 2 MB at width 384 and 6 MB at width 1024."""

SMALLEST = 2**17
"""Numbers in a weight from which it pays: 384 x 384 has more. With fewer, Python takes longer than what is won."""


class NotOneDnn(ValueError):
    """oneDNN's products would change nothing; the message says why."""


def padding(batch: int) -> int:
    """Tokens to whose multiples to pad (`pad_to_multiple_of`), so that batches of `batch` examples are oneDNN's."""
    return ROWS // math.gcd(ROWS, batch)


def is_available() -> bool:
    """Whether this PyTorch has the product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear` by oneDNN, with gradients for `x` and `bias`.

    Args:
        x: (..., in) fp32 on the CPU.
        weight: (out, in), the same; it gets no gradient.
        bias: (out,) or None.

    Returns:
        (..., out).
    """
    if x.requires_grad or (bias is not None and bias.requires_grad):
        return _FrozenProduct.apply(x, weight, bias)
    return _product(x, weight, bias)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # What torch.compile puts into a graph for a CPU. It has no other name outside of one.
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        (weight,) = ctx.saved_tensors
        of_x = _product(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None
        of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return of_x, None, of_bias


class FrozenForward:
    """Stands in the place of the forward of an `nn.Linear`."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """The module's forward."""
        return self.linear(input, self.module.weight, self.module.bias)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`F.linear`, by oneDNN where it pays and can be.

        A model may be moved, cast or unfrozen while this is attached. What needs no gradient (an evaluation, the
        states of a cache) stays PyTorch's own, bit for bit.
        """
        fits = is_dense(x, weight) and x.dim() > 1 and x.numel() > 0
        if (
            not fits
            or not torch.is_grad_enabled()
            or weight.requires_grad
            or torch.is_autocast_enabled("cpu")
            or x.shape[:-1].numel() % ROWS
        ):
            return F.linear(x, weight, bias)
        return onednn_linear(x, weight, bias)


def is_dense(*tensors: torch.Tensor) -> bool:
    """Whether all of them are plain, in fp32 and on the CPU."""
    return all(
        type(tensor) in (torch.Tensor, nn.Parameter)  # not a sharded or a quantized one
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        for tensor in tensors
    )


def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a model whose weights do not train, whatever else of them does."""
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and not weight.requires_grad:
            yield module


def replaceable(modules: Iterable[nn.Module]) -> list[nn.Linear]:
    """Those whose forward `attached` may replace: dense, large enough, fp32, on the CPU, not replaced by another."""
    if not is_available():
        return []
    return [
        module
        for module in modules
        if type(module) is nn.Linear
        and "forward" not in vars(module)  # where accelerate brings the weights in and out
        and is_dense(*module.parameters())
        and module.weight.numel() >= SMALLEST
    ]


def replaceable_of(model: nn.Module) -> list[nn.Linear]:
    """The frozen modules of a model that are `replaceable`.

    Raises:
        NotOneDnn: if there is none.
    """
    found = replaceable(frozen(model))
    if not found:
        raise NotOneDnn(f"no dense module of {SMALLEST:,} numbers or more is frozen and in fp32.")
    return found


@contextmanager
def attached(
    modules: Sequence[nn.Linear], forward: Callable[[nn.Linear], FrozenForward] = FrozenForward
) -> Iterator[None]:
    """Within it products of the modules, which are `replaceable`, are oneDNN's while their weights are frozen."""
    for module in modules:
        module.forward = forward(module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in modules:
            if isinstance(vars(module).get("forward"), FrozenForward):
                del module.forward

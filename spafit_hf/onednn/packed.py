"""Weights packed for oneDNN: copies in the order in which the processor reads them, for products without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from spafit_hf.onednn.linear import FrozenForward, attached, is_dense, replaceable

STEP, STEP_OF_MANY = 16, 64
"""To whose multiples rows are filled up: for each number of rows and each shape of a weight oneDNN writes a program of
half a megabyte, and keeps it."""
MANY, MOST = 1024, 4096
"""Rows from which the larger step is taken, and beyond which a product is left to PyTorch."""


def filled(rows: int) -> int:
    """Rows of the product in which so many are computed; 0 where it is left to PyTorch."""
    if rows > MOST:
        return 0
    step = STEP if rows <= MANY else STEP_OF_MANY
    return -(-rows // step) * step


class PackedWeights:
    """Packed copies of a model's dense fp32 weights, as much memory again as those take.

    Args:
        model: nothing of it is changed but within `attached`. Small weights, and modules that have a forward of their
            own, as accelerate gives them, keep PyTorch's products.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [module for module in replaceable(model.modules()) if not module.weight.is_inference()]
        self._forwards = {module: PackedForward(module) for module in modules}

    def __len__(self) -> int:
        return len(self._forwards)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within it products of the modules are those of their packed weights, where nothing asks for gradients."""
        free = [module for module in self._forwards if "forward" not in vars(module)]  # nobody has come since
        with attached(free, self._forwards.__getitem__):
            yield


class PackedForward(FrozenForward):
    """Stands in the place of the forward of an `nn.Linear` and has its weight packed."""

    def __init__(self, module: nn.Linear) -> None:
        super().__init__(module)
        self._pack(module.weight)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`F.linear`, from the packed weight where that can be.

        A weight that was replaced, moved or written to since is packed anew; what is written to it through `.data`
        leaves no trace and is not seen.
        """
        rows = x.shape[:-1].numel()
        size = filled(rows)
        fits = size and is_dense(x, weight) and not weight.is_inference()
        if not fits or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return F.linear(x, weight, bias)
        if weight is not self._weight or _state(weight) != self._packed_at:
            self._pack(weight)
        flat = x.reshape(rows, -1)
        if size > rows:
            flat = F.pad(flat, (0, 0, 0, size - rows))
        y = _packed_product(flat, self._packed, bias)
        return y[:rows].view(*x.shape[:-1], -1)

    def _pack(self, weight: torch.Tensor) -> None:
        self._weight, self._packed_at = weight, _state(weight)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), MANY)


def _state(weight: torch.Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight._version


def _packed_product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # What torch.compile makes of a module whose weights it may freeze. Neither has another name outside of it.
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

"""The input of a feed-forward on its way past it, to the module at its end that a parallel bottleneck is added to.

first module  --put(x)-->  Handed  --take()-->  last module
"""

from __future__ import annotations

from typing import Any

import torch


class Handed:
    """What one module leaves for another of the same pass, which takes it away: no activation outlives its pass."""

    def __init__(self) -> None:
        self._inputs: dict[torch.device, torch.Tensor] = {}  # by device: DataParallel's replicas share this object

    def put(self, x: torch.Tensor) -> None:
        """Leave the input of the pass on its device."""
        self._inputs[x.device] = x

    def take(self, device: torch.device) -> torch.Tensor:
        """What was put last on a device.

        Raises:
            RuntimeError: when nothing was: the modules do not run one after the other.
        """
        if device not in self._inputs:
            raise RuntimeError("a parallel bottleneck ran before the module whose input it reads.")
        return self._inputs.pop(device)

    def __reduce__(self) -> Any:
        # Copied and pickled without what is in it: a checkpointed layer that runs again may stop before it is taken.
        return Handed, ()

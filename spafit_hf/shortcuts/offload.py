"""Weights of the frozen layers out of memory, and back.

    parameter.data  ->  <fingerprint>/prefix.weights, mapped  ->  parameter.data as it was

On the CPU the parameters then live in mapped memory: pages that are not read take none, and a row that is not in the
cache can still be computed. On a GPU the weights leave it, and come back for good with the first row that has to be.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch
from torch import nn

from spafit_hf.shortcuts.border import Border

ALIGNMENT = 64


class Offload:
    """The weights of a model's frozen prefix in a file of `folder`. `restore` is the inverse of making one.

    Raises:
        OSError: when the file cannot be written. Then the model is as it was.
    """

    def __init__(self, base: nn.Module, border: Border, folder: Path) -> None:
        self._parameters = movable(base, border)
        self._devices = [parameter.device for parameter in self._parameters]
        self.bytes = sum(parameter.numel() * parameter.element_size() for parameter in self._parameters)
        if not self._parameters:
            return
        path = folder / f"prefix.{os.getpid()}.weights"
        offsets = []
        try:
            with open(path, "wb") as file:
                for parameter in self._parameters:
                    file.write(b"\0" * (-file.tell() % ALIGNMENT))
                    offsets.append(file.tell())
                    file.write(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            flat = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        finally:
            path.unlink(missing_ok=True)  # the mapping keeps it, and a killed process leaves nothing behind
        for parameter, offset in zip(self._parameters, offsets, strict=True):
            part = flat[offset : offset + parameter.numel() * parameter.element_size()]
            parameter.data = part.view(parameter.dtype).view(parameter.shape)
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)  # hands freed memory back to the system, which glibc puts off

    @property
    def blocks_compute(self) -> bool:
        """Whether the weights must come back before the frozen layers can run."""
        return any(device.type != "cpu" for device in self._devices)

    def restore(self) -> None:
        """Bring the weights back to where they were."""
        for parameter, device in zip(self._parameters, self._devices, strict=True):
            parameter.data = parameter.data.to(device) if device.type != "cpu" else parameter.data.clone()
        self._parameters, self._devices, self.bytes = [], [], 0


def movable(base: nn.Module, border: Border) -> list[nn.Parameter]:
    """Parameters that only the frozen prefix reads: of its layers and, on the CPU, of the embeddings before them."""
    layers, before = (tuple(f"{name}." for name in names) for names in (border.layers, border.before))
    shared: set[int] = set()
    chosen: dict[int, nn.Parameter] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        # Embeddings still run in each pass, for what they return is not used: on a GPU they stay where they are.
        if not name.startswith(layers + before) or parameter.requires_grad or "relative_attention_bias" in name:
            shared.add(parameter.data_ptr())
        elif name.startswith(layers) or parameter.device.type == "cpu":
            chosen[parameter.data_ptr()] = parameter
    return [parameter for pointer, parameter in chosen.items() if pointer not in shared]

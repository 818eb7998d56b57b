"""An adapter folder that passed all checks: what it holds, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spafit_hf.adapter.folder import AdapterError, BaseFacts, TensorName
from spafit_hf.adapter.untrusted import open_weights
from spafit_hf.names import WEIGHTS_FILE
from spafit_hf.planner import LoraSettings
from spafit_hf.strategy import Bottleneck


@dataclass(frozen=True)
class VerifiedAdapter:
    """What a folder holds, and where its tensors lie."""

    folder: Path
    form: str
    base: BaseFacts
    task_type: str | None
    lora: dict[str, LoraSettings]
    bias_modules: tuple[str, ...]
    head: tuple[str, ...]
    labels: dict[str, Any] | None
    strategy: dict[str, Any] | None
    task: dict[str, Any]
    #: tensor name -> (module, part); parts of heads have the module "" and their whole path as part
    tensors: dict[str, TensorName] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: lora-bias and mixed form: module -> the factor that plain PEFT applies to the bias of LoRA B
    bias_scaling: dict[str, float] = field(default_factory=dict)
    #: names or name endings of modules, all of which must have LoRA; empty where other facts say which
    targets: frozenset[str] = frozenset()
    #: module -> the bottleneck adapter on it
    bottlenecks: dict[str, Bottleneck] = field(default_factory=dict)
    #: parameter that holds the matrices of experts -> its LoRA
    experts: dict[str, LoraSettings] = field(default_factory=dict)

    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the head's tensors, by their names in the model."""
        return {name.part: self.shapes[key] for key, name in self.tensors.items() if not name.module}

    def read_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors, on the CPU, by name; an AdapterError if one is not finite, or the file was changed."""
        with open_weights(self.folder / WEIGHTS_FILE) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != self.shapes:
            raise AdapterError(f"{WEIGHTS_FILE} changed while it was being read; try again.")
        if odd := next((key for key, tensor in tensors.items() if not is_finite(tensor)), ""):
            raise AdapterError(f"{odd} holds NaN or infinity; the adapter is broken and cannot be used.")
        return tensors


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is NaN or infinite, in one pass and without a copy: either shows in the extremes."""
    return tensor.numel() == 0 or all(math.isfinite(extreme) for extreme in tensor.aminmax())

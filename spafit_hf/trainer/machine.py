"""The machine and the versions that figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """The hardware that figures were measured on."""
    cuda = torch.cuda.is_available()
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "devices": torch.cuda.device_count() if cuda else 0,
    }


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("spafit-hf", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}

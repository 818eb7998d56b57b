"""Start an adapter where another one ended: what it trained in the layers, on a task with more rows, and a new head.

    adapter of MNLI --LoRA, deltas--> adapter of RTE, whose head starts anew

Training on a large task before a small one that is like it: STILTs (arXiv:1811.01088).
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from spafit_hf.adapter.folder import BOTTLENECK_PARTS, KEY_PREFIX, AdapterError, TensorName
from spafit_hf.adapter.load import local_folder, native_tensors, parameter_places
from spafit_hf.adapter.verified import VerifiedAdapter
from spafit_hf.adapter.verify import verify_and_read
from spafit_hf.architecture.experts import lora_places
from spafit_hf.planner import LoraSettings
from spafit_hf.tuner.plain import plain_view


def start_from(model: PeftModel, folder_or_repo: str | os.PathLike[str], *, token: str | bool | None = None) -> None:
    """Give a model's adapter the LoRA and the deltas of an adapter folder; its head stays.

    Before the first step the encoder computes what the folder's adapter computes. Modules that this adapter trains and
    the folder's does not start as they were.

    Args:
        model: what `get_spafit_model` returned, for the same base.
        folder_or_repo, token: as in `load_adapter`.

    Raises:
        AdapterError: as there, for a folder that changes a module which the model's adapter does not train in that
            way, and for LoRA of another rank or scaling; the model is as before.
    """
    folder = local_folder(folder_or_repo, token=token)
    plain = model.get_base_model()
    view = plain_view(plain)
    source, stored = verify_and_read(folder, view)
    heads = tuple(f"{KEY_PREFIX}{head}." for head in source.head)
    tensors = {
        key: tensor for key, tensor in native_tensors(source, view, stored).items() if not key.startswith(heads)
    }
    places = {key: parameter for key, (_, parameter) in parameter_places(plain, "default").items()}
    for key in tensors:
        if key not in places:
            name = TensorName.parse(key)
            own = (source.strategy or {}).get("name")
            what = "the bias" if key.endswith("lora_delta") else "LoRA"
            what = "the bottleneck" if name and name.part in BOTTLENECK_PARTS else what
            raise AdapterError(
                f"{folder_or_repo} changes {what} of {name.module if name else key}, which this adapter does not "
                f"train; start from it with its own strategy{f', {own}' if own else ''}."
            )
    wrapped = lora_places(source.experts, dict(view.named_modules()))
    _check_lora(source, source.lora | {wrapper: source.experts[name] for name, (wrapper, _) in wrapped.items()}, plain)
    for module, settings in source.bottlenecks.items():
        config: Any = model.peft_config["default"]
        there = config.bottlenecks[module]
        if settings.to_dict() != there:
            raise AdapterError(
                f"the bottleneck of {module} is {settings.to_dict()} in {source.folder} and {there} here; train with "
                "the strategy of that folder."
            )
    with torch.no_grad():
        for key, tensor in tensors.items():
            places[key].copy_(tensor)


def _check_lora(source: VerifiedAdapter, settings: dict[str, LoraSettings], plain: nn.Module) -> None:
    """The same factors mean the same only with the same rank and scaling."""
    for module, lora in settings.items():
        layer: Any = plain.get_submodule(module)
        own = (layer.r["default"], layer.scaling["default"], bool(layer.use_dora.get("default")))
        same_scaling = math.isclose(own[1], lora.scaling)  # a folder may hold the alpha that gives it, rounded
        if not same_scaling or (own[0], own[2]) != (lora.r, lora.use_dora):
            dora = ("without", "with")
            raise AdapterError(
                f"LoRA of {module} has rank {lora.r}, scaling {lora.scaling:g}, {dora[lora.use_dora]} DoRA in "
                f"{source.folder}, and rank {own[0]}, scaling {own[1]:g}, {dora[own[2]]} DoRA here; train with lora_r="
                f"{lora.r} and lora_alpha={lora.lora_alpha:g}."
            )

"""Batches whose rows have different adapters: each module learns which row has which, for one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.model import _adapter_names_pre_forward_hook, _get_encoder
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

BASE = "__base__"  # PEFT's name for "no adapter" in a mixed batch

# Model types that lay the rows of a batch end to end for some of their modules: (rows, length, width) becomes
# (rows * length, width). Only for these is it certain that each row's piece is contiguous there.
FLATTENING = ("opt",)


@contextmanager
def mixed_batch(model: nn.Module, names: list[str], beams: int) -> Iterator[None]:
    """While open, a forward pass of the model gives each row the adapter of its name, `BASE` for none.

    `beams` is `num_beams` of generate(), which repeats the inputs once per beam, except in the encoder of an
    encoder-decoder model.
    """
    if beams > 1 and not isinstance(names, (list, tuple)):
        raise TypeError(f"Got adapter names of type {type(names)}, expected a list of str.")
    repeated = [name for name in names for _ in range(beams)]
    encoder = _get_encoder(model) if beams > 1 else None
    in_encoder = set(encoder.modules()) if encoder is not None else set()
    flattens = getattr(getattr(model, "config", None), "model_type", None) in FLATTENING
    hook = _flat_names_hook if flattens else _adapter_names_pre_forward_hook
    # PEFT mixes heads only where they are a single Linear, and only if the active adapter has one.
    heads = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    handles = [
        module.register_forward_pre_hook(
            partial(hook, adapter_names=names if module in in_encoder else repeated), with_kwargs=True
        )
        for module in model.modules()
        if isinstance(module, (LoraLayer, AuxiliaryTrainingWrapper)) and not isinstance(module, ModulesToSaveWrapper)
    ]
    for head in heads:
        head.forward = partial(_mixed_head_forward, head, names if head in in_encoder else repeated)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for head in heads:
            del head.forward


def _mixed_head_forward(head: ModulesToSaveWrapper, names: list[str], x: torch.Tensor, *args: Any) -> torch.Tensor:
    """Each row through its own adapter's head, or the base's where the adapter has none.

    Whose row is whose in a second tensor, taken or given, is not known here: PEFT's own method refuses such heads.
    """
    refuse = partial(ModulesToSaveWrapper._mixed_batch_forward, head, x, *args, adapter_names=names)
    if any(isinstance(each, torch.Tensor) for each in args):
        return refuse()
    rows: list[int] = []
    results = []
    for name in dict.fromkeys(names):
        own = [row for row, owner in enumerate(names) if owner == name]
        has_head = name in head.modules_to_save
        module = head.modules_to_save[name] if has_head else head.original_module
        results.append(module(x[own], *args))
        rows += own
    if not all(isinstance(each, torch.Tensor) for each in results):
        return refuse()
    return torch.cat(results)[torch.tensor(rows, device=x.device).argsort()]


def _flat_names_hook(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], adapter_names: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """PEFT's hook that tells a module each row's adapter, for models in `FLATTENING`."""
    length = args[0].shape[0] // len(adapter_names) if args[0].dim() == 2 else 1
    return args, {**kwargs, "adapter_names": [name for name in adapter_names for _ in range(length)]}

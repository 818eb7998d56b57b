"""Parameters by kind, so that LoRA, bias deltas and the head can each have a learning rate.

optimizer of Trainer       decay        no decay
split by kind              lora  head   bias  head     (in full fine-tuning: base  head   base  head)

Bottleneck adapters are a kind too, of which the biases do not decay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from spafit_hf.architecture import Architecture

KINDS = ("lora", "bottleneck", "base", "bias", "head")
"""In the order of the parameter groups; the first one present is what Trainer logs as `learning_rate`."""


def parameter_kind(name: str, head: Iterable[str] = ()) -> str:
    """The kind of a trained parameter, one of `KINDS`, from its name in `model.named_parameters()`.

    `head` names the head's modules in a model without adapter; in a PEFT model the head is found by itself.
    """
    parts = name.split(".")
    if "modules_to_save" in parts or any(name.startswith(f"{module}.") for module in head):
        return "head"
    if "lora_down" in parts or "lora_up" in parts:
        return "bottleneck"
    # A stock LoRA adapter with bias="all" trains the base's own biases; they are the biases of that adapter.
    if "lora_delta" in parts or ("base_model" in parts and parts[-1] == "bias"):
        return "bias"
    return "lora" if any(part.startswith("lora_") for part in parts) else "base"


def split_groups(
    optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float], head: Iterable[str] = ()
) -> frozenset[str]:
    """Split the parameter groups of a fresh optimizer by kind, in place, and return the kinds present.

    Each group gets a key "kind" and, where `rates` has its kind, a learning rate of its own; all else is kept. For
    `head` see `parameter_kind`.
    """
    kinds = {id(parameter): parameter_kind(name, head) for name, parameter in model.named_parameters()}
    groups: list[dict[str, Any]] = []
    for kind in KINDS:
        for group in optimizer.param_groups:
            parameters = [parameter for parameter in group["params"] if kinds.get(id(parameter), "base") == kind]
            if parameters:
                rate = {"lr": rates[kind]} if kind in rates else {}
                groups.append({**group, **rate, "params": parameters, "kind": kind})
    optimizer.param_groups[:] = groups
    return frozenset(group["kind"] for group in groups)


UNTRAINED_POOLER_FACTOR = 10
"""The head's learning rate over the others' behind a pooler that was never trained; see docs/glue.md."""


def has_untrained_pooler(model: nn.Module, architecture: Architecture) -> bool:
    """Whether the head reads a pooler that pretraining never touched.

    Sentence encoders and masked language models carry such a pooler: random weights of a small scale and a bias of
    zeros, while the layers below have biases that are not. Its output is an order of magnitude smaller than that of a
    trained one, and the head has to grow as much larger before it says anything. Full fine-tuning trains the pooler
    and does not notice. The model is not wrapped yet.
    """
    layers = architecture.stacks[-1].layers if architecture.stacks else ()
    below = [model.get_submodule(name) for name in layers[-1].modules["output"]] if layers else []
    poolers = [model.get_submodule(name) for name in architecture.pooler if architecture.head]
    return bool(poolers) and all(map(_has_zero_bias, poolers)) and not all(map(_has_zero_bias, below))


def _has_zero_bias(linear: Any) -> bool:
    return linear.bias is not None and linear.bias.numel() > 0 and not linear.bias.any()

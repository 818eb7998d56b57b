"""An adapter as plain tensors: for each module it changes, one patch.

    x ---> module of the base ---> y ---> z = gain * y + B A x + shift ---> z + up f(down h)

    A, B     LoRA, the scaling (and DoRA's gain) multiplied into B
    shift    the bias delta
    gain     DoRA only: magnitude / |W + B A| per output, which is fixed once training is over
    down, up a bottleneck adapter, its scaling multiplied into up; h is z, or the input of another module

DoRA replaces W x + b by gain * (W + B A) x + b. With y = W x + b this is gain * y + gain * B A x + (1 - gain) * b, so
a patch needs nothing of the base but its output.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from spafit_hf.adapter import AdapterError
from spafit_hf.adapter.folder import KEY_PREFIX, TensorName
from spafit_hf.adapter.load import native_tensors
from spafit_hf.adapter.verify import verify_and_read
from spafit_hf.architecture import Architecture
from spafit_hf.data.glue import texts_of
from spafit_hf.names import WEIGHTS_FILE
from spafit_hf.planner import LoraSettings
from spafit_hf.predictor.facts import AdapterFacts, labels_of
from spafit_hf.strategy import Bottleneck
from spafit_hf.tuner.layer import ACTIVATIONS


@dataclass(frozen=True, eq=False)
class Patch:
    """What an adapter changes in one module. Tensors are fp32 and lie where the module's weight does."""

    a: torch.Tensor | None = None
    """LoRA A, (r, inputs)."""
    b: torch.Tensor | None = None
    """LoRA B with all factors, (outputs, r)."""
    shift: torch.Tensor | None = None
    """(outputs,); of experts (experts, outputs of their biases)"""
    gain: torch.Tensor | None = None
    """(outputs,)"""
    down: torch.Tensor | None = None
    """(narrow, inputs)"""
    down_bias: torch.Tensor | None = None
    """(narrow,)"""
    up: torch.Tensor | None = None
    """(outputs, narrow)"""
    up_bias: torch.Tensor | None = None
    """(outputs,)"""
    bottleneck: Bottleneck | None = None

    @property
    def _parts(self) -> tuple[torch.Tensor | None, ...]:
        return tuple(getattr(self, name) for name in TENSORS)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Those that there are."""
        return tuple(tensor for tensor in self._parts if tensor is not None)

    @property
    def reads(self) -> str:
        """Name of the module whose input a parallel bottleneck reads; "" for any other patch."""
        return self.bottleneck.reads if self.bottleneck is not None else ""

    @property
    def shape(self) -> tuple[Any, ...]:
        """Of each of its tensors, and what is done with them; patches of the same one can be stacked."""
        kind = "" if self.bottleneck is None else self.bottleneck.activation
        return (kind, self.reads, *(None if part is None else part.shape for part in self._parts))


TENSORS = ("a", "b", "shift", "gain", "down", "down_bias", "up", "up_bias")


class PatchStack(Patch):
    """Patches of one module and of one shape, each for as many rows: one product where each had its own.

    Its tensors have the patches as their first dimension.
    """

    @classmethod
    def of(cls, patches: Sequence[Patch]) -> PatchStack:
        """The patches, which are of one `shape`, in this order. Several are copied, one is not."""
        every = {name: [getattr(patch, name) for patch in patches] for name in TENSORS}
        stacked = {name: None if parts[0] is None else _stacked(parts) for name, parts in every.items()}
        return cls(**stacked, bottleneck=patches[0].bottleneck)

    def apply(self, x: torch.Tensor, y: torch.Tensor, read: torch.Tensor | None = None) -> None:
        """Turn the module's output into the adapters', in place.

        Args:
            x: the module's input, (patches * rows, ..., inputs), the first patch's rows first.
            y: what the base's module made of it, (patches * rows, ..., outputs).
            read: what a parallel bottleneck reads, (patches * rows, ..., its inputs).
        """
        count = len(self.tensors[0])
        own = y.reshape(count, -1, y.shape[-1])
        if self.gain is not None:
            own.mul_(self.gain[:, None])
        if self.a is not None and self.b is not None:
            _add_product(own, torch.bmm(x.reshape(count, -1, x.shape[-1]).to(self.a.dtype), self.a.mT), self.b)
        if self.shift is not None:
            own.add_(self.shift[:, None])
        if self.bottleneck is not None and self.down is not None and self.up is not None:
            inputs = own if read is None or not self.reads else read.reshape(count, -1, read.shape[-1])
            low = torch.bmm(inputs.to(self.down.dtype), self.down.mT)
            if self.down_bias is not None and self.up_bias is not None:
                low.add_(self.down_bias[:, None])
                own.add_(self.up_bias[:, None])
            _add_product(own, ACTIVATIONS[self.bottleneck.activation](low), self.up)
        if own.data_ptr() != y.data_ptr():  # strides that no view can have
            y.copy_(own.view_as(y))


def _add_product(own: torch.Tensor, low: torch.Tensor, matrices: torch.Tensor) -> None:
    if own.dtype == low.dtype == matrices.dtype:
        own.baddbmm_(low, matrices.mT)  # without a tensor in between, of the output's size
    else:
        own.add_(torch.bmm(low, matrices.mT))


def _stacked(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(parts) if len(parts) > 1 else parts[0][None]


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter's tensors, ready to serve."""

    patches: dict[str, Patch]
    """Module name -> patch."""
    head: dict[str, nn.Module]
    """Name of a module of the head -> the adapter's own; {} where it has the base's."""
    outputs: int
    """Of the head."""
    border: int
    """Leading layers of the base's first stack that it leaves as they are."""


def read_adapter(
    name: str,
    source: str,
    folder: Path,
    base: nn.Module,
    architecture: Architecture,
    heads: Mapping[str, nn.Module],
    untrained: Collection[str] = (),
) -> tuple[AdapterFacts, LoadedAdapter]:
    """Verify an adapter folder and read it. The base is only looked at.

    Args:
        name, source, folder: what it is called, and where it was added from and lies.
        base: the plain model, as a `plain_view`, of this `architecture`.
        heads: name -> module of the base's head, as they are to be copied.
        untrained: parameters of the base that no checkpoint gave values to, so that the adapter must bring them.
    """
    verified, stored = verify_and_read(folder, base)
    if verified.task_type not in (None, "SEQ_CLS"):
        raise AdapterError(f"the adapter's task is {verified.task_type}; a predictor serves text classification.")
    if verified.experts:
        raise AdapterError(
            f"{source} has LoRA on experts, which see tokens and no rows, so it cannot share a batch with others. "
            "Merge it into its base (spafit merge), or serve what load_adapter returns."
        )
    missing = sorted(key for key in untrained if not key.startswith(tuple(f"{head}." for head in verified.head)))
    if missing:
        raise AdapterError(
            f"{source} brings no {missing[0]}, and neither does the base. Give SpafitPredictor the model with the "
            "head that the adapter was trained under."
        )
    parts, head = _parts(native_tensors(verified, base, stored), verified.head)
    patches = {
        module: _patch(base.get_submodule(module), part, verified.lora.get(module), verified.bottlenecks.get(module))
        for module, part in parts.items()
    }
    modules = {name: _own_head(heads[name], own) for name, own in head.items()}
    outputs = outputs_of(modules or heads)
    labels, problem = labels_of(verified, outputs)
    changed = tuple(
        index
        for index, layer in enumerate(architecture.stacks[0].layers)
        if any(name.startswith(layer.prefixes) for name in patches)
    )
    strategy = (verified.strategy or {}).get("name")
    own = [tensor for patch in patches.values() for tensor in patch.tensors]
    own += [parameter for module in modules.values() for parameter in module.parameters()]
    facts = AdapterFacts(
        name=name,
        source=source,
        labels=labels,
        problem_type=problem,
        texts=texts_of(verified.task),
        task=verified.task,
        strategy=strategy if isinstance(strategy, str) else None,
        layers=changed,
        depth=architecture.num_layers,
        memory_bytes=sum(tensor.numel() * tensor.element_size() for tensor in own),
        file_bytes=(folder / WEIGHTS_FILE).stat().st_size,
    )
    return facts, LoadedAdapter(patches, modules, outputs, _border(patches, changed, architecture))


Parts = dict[str, dict[str, torch.Tensor]]


def _parts(tensors: Mapping[str, torch.Tensor], heads: Collection[str]) -> tuple[Parts, Parts]:
    """The tensors by module, with their names inside it: those of the layers, and those of the head."""
    parts: Parts = {}
    head: Parts = {name: {} for name in heads}
    for key, tensor in tensors.items():
        path = key.removeprefix(KEY_PREFIX)
        owner = next((name for name in head if path.startswith(f"{name}.")), None)
        if owner is not None:
            head[owner][path.removeprefix(f"{owner}.")] = tensor
        elif (parsed := TensorName.parse(key)) is not None:
            parts.setdefault(parsed.module, {})[parsed.part] = tensor
    return parts, head


def _patch(
    module: nn.Module,
    part: Mapping[str, torch.Tensor],
    settings: LoraSettings | None,
    bottleneck: Bottleneck | None,
) -> Patch:
    device = next(module.parameters()).device
    own = {name: tensor.to(device=device, dtype=torch.float32) for name, tensor in part.items()}
    added: dict[str, Any] = {"shift": own.get("lora_delta")}
    if bottleneck is not None:
        down, up = ((own[f"lora_{name}.weight"], own[f"lora_{name}.bias"]) for name in ("down", "up"))
        added |= {"down": down[0], "down_bias": down[1], "bottleneck": bottleneck}
        added |= {"up": up[0] * bottleneck.scaling, "up_bias": up[1] * bottleneck.scaling}
    if settings is None:
        return Patch(**added)
    a, b = own["lora_A.weight"], own["lora_B.weight"] * settings.scaling
    if not settings.use_dora:
        return Patch(a=a, b=b, **added)
    weight = dequantize_module_weight(module).to(device=device, dtype=torch.float32)
    if not isinstance(module, nn.Linear):
        weight = weight.T  # Conv1D stores (in, out)
    gain = own["lora_magnitude_vector"] / torch.linalg.norm(weight + b @ a, dim=1)
    bias = module._parameters.get("bias")
    if bias is not None:
        kept = (1 - gain) * bias.detach().float()
        added["shift"] = kept if added["shift"] is None else added["shift"] + kept
    return Patch(a=a, b=gain[:, None] * b, gain=gain, **added)


def _own_head(blueprint: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of a module of the head with the adapter's weights, whatever its number of outputs."""
    module = copy.deepcopy(blueprint).eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        parameter.data = tensors[name].to(parameter)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.out_features = len(part.weight)
    return module


def outputs_of(head: Mapping[str, nn.Module]) -> int:
    """Outputs of a head: the rows of its last matrix."""
    return [each.shape[0] for module in head.values() for each in module.parameters() if each.dim() == 2][-1]


def _border(patches: Mapping[str, Patch], changed: tuple[int, ...], architecture: Architecture) -> int:
    # What lies outside the layers may stand before them (the norm of the embeddings) or after (the pooler). Only of
    # the pooler and later stacks it is known here that they come after.
    first, *stacks = architecture.stacks
    if any(layer.more for layer in first.layers):
        return 0  # no module is a layer, to enter at
    later = (*(f"{name}." for name in architecture.pooler), *(prefix for stack in stacks for prefix in stack.prefixes))
    for name in patches:
        if not f"{name}.".startswith((*first.prefixes, *later)):
            return 0
    return changed[0] if changed else architecture.num_layers

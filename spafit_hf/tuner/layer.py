"""One wrapped module, many adapters: each with LoRA, a bias delta, a bottleneck adapter, or none of them.

               x ----------------------------+
               |                             |
      base module (frozen)               LoRA A, LoRA B     PEFT's, per adapter
        weight, bias + delta                 |
               |                             |
               +------------- + -------------+              delta: one vector per adapter

A bottleneck adapter is added to what comes out of this (`spafit_hf.strategy.bottleneck` draws both kinds).

There is one such layer per module and never one inside another: adapter A may want a delta where adapter B wants
LoRA, and with nesting the names in a checkpoint would depend on which was loaded first.

A delta is added to the bias before the matmul, not to its result: this is bit for bit what a model computes whose
bias was trained in place, and what the merged model computes. Where the base's tensors cannot be read outside its own
forward (quantized, sharded by ZeRO-3, or under an accelerate hook), the delta is added to the result instead; so it is
in half precision where the base has no bias, as plain PEFT does, which reads such a delta as a bias of LoRA B.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from peft.tuners.lora.layer import VARIANT_KWARG_KEYS, LoraLayer
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from spafit_hf.architecture import biases_of, biases_with, is_linear, takes_delta
from spafit_hf.architecture.experts import expert_biases, expert_delta_shape
from spafit_hf.strategy import Bottleneck
from spafit_hf.tuner.handed import Handed
from spafit_hf.tuner.masters import HALF

OWN_PARTS = ("lora_delta", "lora_down", "lora_up")  # what an adapter may have beside PEFT's LoRA

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "swish": F.silu, "tanh": torch.tanh
}  # fmt: skip

DELTA_INIT_STD = 0.02  # for init_lora_weights=False only, where an adapter must not start as the identity


class DeltaLayer(LoraLayer):
    """A LoRA layer of PEFT that also holds bias deltas and bottlenecks. Mixed in before one of PEFT's layer classes.

    Attributes:
        lora_delta: adapter name -> delta, fp32, as wide as the module's output (of experts: `split_delta`).
        lora_down, lora_up: adapter name -> the matrices of its bottleneck, fp32, each with a bias.
        bottlenecks: adapter name -> the bottleneck's settings.
        input_to: where this module leaves its input for one with a parallel bottleneck.
        input_from: where a module with a parallel bottleneck finds that.
    """

    adapter_layer_names = (*LoraLayer.adapter_layer_names, *OWN_PARTS)
    other_param_names = (*LoraLayer.other_param_names, "bottlenecks")
    lora_delta: nn.ParameterDict
    lora_down: nn.ModuleDict
    lora_up: nn.ModuleDict
    bottlenecks: dict[str, Bottleneck]
    input_to: Handed | None
    input_from: Handed | None

    def _hold_nothing(self) -> None:
        self.lora_delta, self.lora_down, self.lora_up = nn.ParameterDict(), nn.ModuleDict(), nn.ModuleDict()
        self.bottlenecks, self.input_to, self.input_from = {}, None, None

    # ---- an adapter's part in this module, and its removal (`delete_adapter`, inherited) ----

    def add_delta(self, adapter_name: str, *, zero: bool, inference_mode: bool = False) -> None:
        """Give an adapter a bias delta on this module: zero, so that the model computes what its base does, or not."""
        device = next(self.get_base_layer().parameters()).device
        delta = torch.zeros(self.delta_shape, dtype=torch.float32, device=device)
        if not zero:
            delta.normal_(std=DELTA_INIT_STD)
        trains = adapter_name in self.active_adapters and not inference_mode
        self.lora_delta[adapter_name] = nn.Parameter(delta, requires_grad=trains)

    def add_bottleneck(
        self,
        adapter_name: str,
        settings: Bottleneck,
        source: DeltaLayer | None,
        *,
        zero: bool,
        inference_mode: bool = False,
    ) -> None:
        """Give an adapter a bottleneck on this module; a parallel one reads what the module `source` is given.

        Down starts as LoRA A does, up with zeros, as ParBn's in the library adapters; `zero` is that of `add_delta`.
        """
        if source is not None:
            source.input_to = self.input_from = source.input_to or Handed()
        inputs = self.out_features if source is None else source.in_features
        device = next(self.get_base_layer().parameters()).device
        shapes = settings.shapes(inputs, self.out_features)
        trains = adapter_name in self.active_adapters and not inference_mode
        for part, matrices in (("lora_down", self.lora_down), ("lora_up", self.lora_up)):
            rows, columns = shapes[f"{part}.weight"]
            matrix = nn.Linear(columns, rows, dtype=torch.float32)
            nn.init.zeros_(matrix.bias)
            if not matrix.weight.is_meta:  # as it is under PEFT's low_cpu_mem_usage
                matrix.to(device)
            matrices[adapter_name] = matrix.requires_grad_(trains)
        if zero:
            nn.init.zeros_(self.lora_up[adapter_name].weight)
        self.bottlenecks[adapter_name] = settings

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        delta = self.lora_delta.get(adapter_name)
        super()._move_adapter_to_device_of_base_layer(adapter_name, device)
        if delta is not None and not delta.is_meta:
            # PEFT also casts to the base's dtype, and back to fp32 later: too late for what a delta has lost by then.
            delta.data = delta.data.to(self.lora_delta[adapter_name].device)
            self.lora_delta[adapter_name] = delta

    @property
    def delta_shape(self) -> tuple[int, ...]:
        """Of a delta on this module."""
        return (self.out_features,)

    @property
    def lacks_bias(self) -> bool:
        """Whether the module has no bias, so that a delta is added as one."""
        return not biases_of(self.get_base_layer())

    def has_lora(self, adapter_name: str) -> bool:
        """Whether the adapter has LoRA factors on this module."""
        return adapter_name in self.scaling

    # ---- forward ----

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base module with what the active adapters have on it; `adapter_names` gives each row its own."""
        self._check_forward_args(x, *args, **kwargs)
        if self.input_to is not None:
            self.input_to.put(x)
        if kwargs.get("adapter_names") is not None:
            return self._mixed_batch_forward(x, *args, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        plain = self.disable_adapters or self.merged
        own = result = self._without_bottlenecks(plain, x, *args, **kwargs)
        if self.input_from is None and not self.bottlenecks:
            return result
        read = own if self.input_from is None else self.input_from.take(own.device)
        for name in () if plain else self.active_adapters:
            if name in self.bottlenecks:
                result = result + self._bottleneck(name, own, read)
        return result.to(own.dtype)

    def _bottleneck(self, name: str, own: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """What an adapter's bottleneck adds, from the module's output and what was handed to it."""
        down, up, settings = self.lora_down[name], self.lora_up[name], self.bottlenecks[name]
        x = (read if settings.reads else own).to(down.weight.dtype)
        return up(ACTIVATIONS[settings.activation](down(x))) * settings.scaling

    def _without_bottlenecks(self, plain: bool, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not plain and any(self.has_lora(name) for name in self.active_adapters):
            result = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            delta = self._active_delta()
            return result if delta is None else (result + delta).to(result.dtype)

        kwargs.pop("adapter_names", None)
        for key in VARIANT_KWARG_KEYS:
            kwargs.pop(key, None)
        delta = None if plain else self._active_delta()
        if delta is None:
            return self.base_layer(x, *args, **kwargs)
        result = None if args or kwargs else _forward_with_delta(self.base_layer, x, delta)
        if result is None:
            result = self.base_layer(x, *args, **kwargs)
            return (result + delta).to(result.dtype)
        return result

    def _active_delta(self) -> torch.Tensor | None:
        deltas = [self.lora_delta[name] for name in self.active_adapters if name in self.lora_delta]
        return sum(deltas[1:], start=deltas[0]) if deltas else None

    def _mixed_batch_forward(
        self, x: torch.Tensor, *args: Any, adapter_names: list[str], **kwargs: Any
    ) -> torch.Tensor:
        result = super()._mixed_batch_forward(x, *args, adapter_names=adapter_names, **kwargs)
        for name in dict.fromkeys(adapter_names):
            if name in self.lora_delta:
                rows = [row for row, owner in enumerate(adapter_names) if owner == name]
                result[rows] += self.lora_delta[name].to(result.dtype)
        read = result if self.input_from is None else self.input_from.take(result.device)
        for name in dict.fromkeys(adapter_names):
            if name in self.bottlenecks:
                rows = [row for row, owner in enumerate(adapter_names) if owner == name]
                result[rows] += self._bottleneck(name, result[rows], read[rows]).to(result.dtype)
        return result

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether LoRA alone can stand for the adapter on this module: not for a delta or a bottleneck."""
        own = adapter_name in self.lora_delta or adapter_name in self.bottlenecks
        return not own and super().supports_lora_conversion(adapter_name)

    # ---- merge, and its inverse ----

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write adapters into the base module. The tensors they replace are kept for `unmerge`.

        Raises:
            ValueError: for a bottleneck, if a delta meets a module without a bias, or (safe_merge) the result is not
                finite.
        """
        names = check_adapters_to_merge(self, adapter_names)
        if bottlenecks := [name for name in names if name in self.bottlenecks]:
            raise ValueError(not_linear_message(bottlenecks))
        with_lora = [name for name in names if self.has_lora(name)]
        with_delta = [name for name in names if name in self.lora_delta]
        if not with_lora and not with_delta:
            return
        base = self.get_base_layer()
        if with_delta and self.lacks_bias:
            raise ValueError(missing_bias_message(type(base).__name__, with_delta))
        if not self.merged:
            self._keep_originals()
        if with_lora:
            super().merge(safe_merge=safe_merge, adapter_names=with_lora)
        for name in with_delta:
            for key, bias in biases_with(base, self.lora_delta[name]).items():
                if safe_merge and not torch.isfinite(bias).all():
                    raise ValueError(f"NaNs detected in the merged bias. The adapter {name} seems to be broken")
                base.get_parameter(key).data = bias.detach()
            if name not in self.merged_adapters:
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put back the tensors that `merge` replaced: the very same ones, so bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)  # PEFT's words; norms have none of its own
            return
        if any(self.has_lora(name) for name in self.merged_adapters):
            super().unmerge()  # also drops what PEFT's variants remember
        self.merged_adapters.clear()
        for name, tensor in self._originals.items():
            self.get_base_layer().get_parameter(name).data = tensor
        self._originals.clear()

    @property
    def _originals(self) -> dict[str, torch.Tensor]:
        return self._caches.setdefault("originals", {})

    def _keep_originals(self) -> None:
        base = self.get_base_layer()
        if isinstance(base, nn.MultiheadAttention):
            return  # PEFT replaces its parameters on merging and builds new ones on unmerging
        # So it does with quantized weights, which are subclasses of Parameter.
        for name, parameter in base.named_parameters():
            if type(parameter) is nn.Parameter:
                self._originals[name] = parameter.data
                parameter.data = parameter.data.clone()  # PEFT merges in place: into the copy


def missing_bias_message(module: str, adapters: list[str]) -> str:
    """Why a delta cannot be merged into a module without a bias, and what to do instead."""
    return (
        f"{module} has no bias, so the bias delta of {adapters} cannot be merged into it: a bias that the model's "
        "configuration does not know would be lost when the merged model is saved. Nothing was merged. Serve the "
        "model with the adapter unmerged, or write it with save_adapter(model, folder) and load that."
    )


def not_linear_message(adapters: list[str]) -> str:
    """Why an adapter with bottlenecks cannot be merged, and what to do instead."""
    return (
        f"{adapters} has bottleneck adapters, which are not linear and cannot be merged into a matrix. Nothing was "
        "merged. Serve the model with the adapter unmerged."
    )


class Linear(DeltaLayer, lora.Linear):
    """A dense module (`nn.Linear` or transformers' `Conv1D`) with LoRA, deltas or both."""

    def __init__(self, base_layer: nn.Module) -> None:
        # Not lora.Linear's own: that one creates LoRA factors at once, and this module may only need a delta.
        nn.Module.__init__(self)
        LoraLayer.__init__(self, base_layer)
        self._hold_nothing()
        self.fan_in_fan_out = isinstance(base_layer, Conv1D)
        self.is_target_conv_1d_layer = self.fan_in_fan_out


class Norm(nn.Module, DeltaLayer):
    """A normalization with a bias. It has no matrix, so it can only have deltas."""

    # nn.Module stands first for the same reason as in PEFT's layers: its __init__ must not reach LoraLayer's.
    forward = DeltaLayer.forward

    def __init__(self, base_layer: nn.Module) -> None:
        nn.Module.__init__(self)
        LoraLayer.__init__(self, base_layer)
        self._hold_nothing()

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        width = module.get_parameter("bias").numel()
        return width, width

    def __repr__(self) -> str:
        return "spafit." + nn.Module.__repr__(self)


class Experts(nn.Module, DeltaLayer):
    """Experts that are one module, with biases: each with deltas of its own, in one tensor for all of them."""

    def __init__(self, base_layer: nn.Module) -> None:
        nn.Module.__init__(self)
        LoraLayer.__init__(self, base_layer)
        self._hold_nothing()

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        width = expert_delta_shape(expert_biases(module))[1]
        return width, width

    @property
    def delta_shape(self) -> tuple[int, ...]:
        """(experts, outputs of all their biases)"""
        return expert_delta_shape(expert_biases(self.get_base_layer()))

    def forward(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Any:
        """The experts with the deltas of the active adapters added to their biases; `adapter_names` says whose the
        tokens are, row by row."""
        for key in VARIANT_KWARG_KEYS:
            kwargs.pop(key, None)
        if adapter_names is not None:
            return self._mixed_batch_forward(*args, adapter_names=adapter_names, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        return self._moved_by(None if self.disable_adapters or self.merged else self._active_delta(), args, kwargs)

    def _moved_by(self, delta: torch.Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if delta is None:
            return self.base_layer(*args, **kwargs)
        return functional_call(self.base_layer, biases_with(self.base_layer, delta), args, kwargs)

    def _mixed_batch_forward(self, *args: Any, adapter_names: list[str], **kwargs: Any) -> torch.Tensor:
        # They see the tokens of all rows in a row, and treat each for itself: those of an adapter can go alone.
        tokens = len(next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)))
        each, rest = divmod(tokens, len(adapter_names))
        if rest:
            raise ValueError(
                f"experts see {tokens} tokens of {len(adapter_names)} rows: no batch can mix adapters here."
            )
        owners = [name for name in adapter_names for _ in range(each)]
        order: list[int] = []
        results = []
        for name in dict.fromkeys(owners):
            own = [token for token, owner in enumerate(owners) if owner == name]
            mine = tuple(value[own] if isinstance(value, torch.Tensor) else value for value in args)
            named = {key: value[own] if isinstance(value, torch.Tensor) else value for key, value in kwargs.items()}
            results.append(self._moved_by(self.lora_delta.get(name, None), mine, named))
            order += own
        result = torch.cat(results)
        return result[torch.tensor(order, device=result.device).argsort()]


def wrap(module: nn.Module) -> Linear | Norm | Experts:
    """A delta layer around a plain module, for an adapter that wants no LoRA there.

    Raises:
        ValueError: if the module is of a kind whose bias cannot have a delta.
    """
    if is_linear(module):
        return Linear(module)
    if expert_biases(module):
        return Experts(module)
    if takes_delta(module):
        return Norm(module)
    raise ValueError(
        f"a bias delta was asked for {type(module).__name__}; allowed are Linear, Conv1D, and norms with a bias "
        "over their last dimension, such as LayerNorm. Take the module out of bias_modules."
    )


_ADOPTED: dict[type[LoraLayer], type[DeltaLayer]] = {lora.Linear: Linear}


def adopt(layer: LoraLayer) -> DeltaLayer:
    """Make a layer that PEFT built (dense, quantized, embedding, convolution) one that can hold the others as well.

    PEFT chooses the class after the kind of the base module; its methods and its name stay, ours come before them.
    """
    cls = type(layer)
    if cls not in _ADOPTED:
        _ADOPTED[cls] = type(cls.__name__, (DeltaLayer, cls), {"__doc__": cls.__doc__})
    # A module's whole state is its __dict__; `__class__` itself cannot be assigned between these bases.
    adopted = _ADOPTED[cls].__new__(_ADOPTED[cls])
    adopted.__dict__.update(layer.__dict__)
    adopted._hold_nothing()
    # PEFT's DoRA gives an instance a list of its own, which does not know of deltas.
    adopted.adapter_layer_names = tuple(dict.fromkeys((*layer.adapter_layer_names, *OWN_PARTS)))
    return adopted


def _forward_with_delta(base: nn.Module, x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor | None:
    """What a module computes with `delta` (fp32) added to its bias; None if its tensors cannot be read out here."""
    kind = type(base)
    weight = base._parameters.get("weight")
    if (
        kind not in (nn.Linear, nn.LayerNorm, Conv1D)
        or weight is None
        or "_hf_hook" in base.__dict__  # accelerate moves the weights in this hook
        or hasattr(weight, "ds_id")  # ZeRO-3 gathers them in one of its own
        or base._forward_hooks
        or base._forward_pre_hooks
        or base._backward_hooks
    ):
        return None
    bias = base._parameters["bias"]
    if bias is None and weight.dtype in HALF:
        return None
    bias = delta if bias is None else bias + delta
    if bias.dtype is not weight.dtype:
        bias = bias.to(weight.dtype)
    if kind is nn.Linear:
        return F.linear(x, weight, bias)
    if kind is nn.LayerNorm:
        return F.layer_norm(x, base.normalized_shape, weight, bias, base.eps)
    flat = torch.addmm(bias, x.view(-1, x.size(-1)), weight)
    return flat.view(*x.size()[:-1], bias.numel())

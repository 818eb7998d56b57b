"""Models whose parameters are spread over several processes: by FSDP version 2 or DeepSpeed's ZeRO-3.

process 0: half of W, half of b      whole_parameters      process 0: half of W, b whole  -> adapter folder
process 1: half of W, half of b      ---------------->     process 1: half of W, half of b
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from spafit_hf.architecture import biases_of
from spafit_hf.tuner.layer import DeltaLayer


@contextmanager
def whole_parameters(model: nn.Module, keep: bool) -> Iterator[None]:
    """Within it, what an adapter folder is made of is whole on this process, where FSDP or ZeRO-3 shard the model.

    The trained parameters, what a delta is added to, and the base's vectors (norm weights, biases) and embeddings are
    whole tensors (on the CPU, where this process needs to `keep` them); the large frozen matrices stay as they are.
    Modules have their own classes, not those that FSDP gave them. Every process has to enter, and nothing may be
    computed or changed within.
    """
    with ExitStack() as stack:
        gathered = []
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # an evaluation leaves some units whole, and state_dict() would split them again
                sharded = type(module)
                module.__class__ = sharded.__mro__[sharded._orig_cls_mro_index]  # type: ignore[assignment]
                stack.callback(setattr, module, "__class__", sharded)
        changed = {id(bias) for layer in _delta_layers(model) for bias in biases_of(layer.get_base_layer()).values()}
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is None or not (
                    parameter.requires_grad
                    or parameter.dim() <= 1
                    or id(parameter) in changed
                    or isinstance(module, nn.Embedding)
                ):
                    continue
                if isinstance(parameter, DTensor):
                    whole = parameter.full_tensor().detach().cpu()
                    if keep:
                        # By the dictionary: assigning an attribute would make FSDP take it for a parameter of its own.
                        module._parameters[name] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
                        stack.callback(module._parameters.__setitem__, name, parameter)
                else:
                    gathered.append(parameter)
        stack.enter_context(whole_again(gathered))
        yield


def whole_again(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """Within it, those parameters that ZeRO-3 has partitioned are whole on every process; others always are."""
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned)


def gather_deltas(model: nn.Module) -> None:
    """Have DeepSpeed's ZeRO-3 gather each bias delta for the passes of its layer.

    It gathers what a module holds itself, and a delta is in a `ParameterDict`, whose forward is never called.
    """
    import deepspeed

    for layer in _delta_layers(model):
        for delta in layer.lora_delta.values():
            deepspeed.zero.register_external_parameter(layer, delta)


def _delta_layers(model: nn.Module) -> list[DeltaLayer]:
    return [module for module in model.modules() if isinstance(module, DeltaLayer)]


def shard_by_layer(model: nn.Module, plugin: FullyShardedDataParallelPlugin) -> None:
    """Make FSDP treat each transformer layer as a unit, where the user has named no units.

    accelerate 1.15 would take the model's `_no_split_modules`. BERT's list its embeddings, whose word embeddings it
    then shards a second time, and fails.
    """
    if plugin.transformer_cls_names_to_wrap is None:
        layers = {
            type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
        }
        plugin.transformer_cls_names_to_wrap = sorted(layers) or None

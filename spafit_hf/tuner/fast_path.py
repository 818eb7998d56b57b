"""Torch's fast path through its own nn.TransformerEncoder, off where a layer holds adapters.

In eval mode and without gradients such a layer hands the weights of all its modules to one function and calls none of
them: LoRA and deltas would be passed over without a word. Its ordinary path computes the same, but for rounding.
"""

from __future__ import annotations

from peft.tuners.lora.layer import LoraLayer
from torch import nn

# Kind of module -> its own attribute, of public name, without which it takes the ordinary path.
_SWITCHES = ((nn.TransformerEncoderLayer, "activation_relu_or_gelu"), (nn.TransformerEncoder, "use_nested_tensor"))
_KEPT = "_spafit_switch"


def leave_fast_path(model: nn.Module) -> None:
    """Have torch's layers that hold adapters call their modules."""
    for module in model.modules():
        for kind, switch in _SWITCHES:
            if isinstance(module, kind) and any(isinstance(each, LoraLayer) for each in module.modules()):
                vars(module).setdefault(_KEPT, vars(module).get(switch, False))
                setattr(module, switch, False)


def restore_fast_path(model: nn.Module) -> None:
    """Inverse of `leave_fast_path`."""
    for module in model.modules():
        for kind, switch in _SWITCHES:
            if isinstance(module, kind) and _KEPT in vars(module):
                setattr(module, switch, vars(module).pop(_KEPT))

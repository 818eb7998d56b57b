"""The plain model inside a wrapped one, to look at: same tensors, names without PEFT's wrappers in them.

BertModel                                  BertModel (view)
└── encoder.layer.3...query  Linear        └── encoder.layer.3...query  nn.Linear    the very same module
    └── base_layer           nn.Linear
"""

from __future__ import annotations

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn


def base_of(model: nn.Module) -> nn.Module:
    """The transformers model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def plain_view(model: nn.Module) -> nn.Module:
    """A view of a model, wrapped by PEFT (`get_base_model()`) or not, without adapters; it shares the tensors.

    What reads a model's structure (a plan, an architecture) needs it where other adapters are on the model already.
    """
    return _view(model, {})


def _view(module: nn.Module, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    if isinstance(module, BaseTunerLayer):
        return _view(module.get_base_layer(), seen)
    if isinstance(module, AuxiliaryTrainingWrapper):
        return _view(module.original_module, seen)
    if module not in seen:  # a module that stands in two places stays one
        # A module's whole state is its __dict__. The copy is shallow, but for the children, which are views as well.
        view = type(module).__new__(type(module))
        view.__dict__.update(module.__dict__)
        seen[module] = view
        children = {name: None if child is None else _view(child, seen) for name, child in module._modules.items()}
        view.__dict__["_modules"] = children
    return seen[module]

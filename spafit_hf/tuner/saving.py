"""How a wrapped model saves itself, so that what is written opens again, whichever of its two names a script uses.

`PeftModel.save_pretrained` writes what plain PEFT reads. The transformers model inside would write the names of
wrapped layers, which `from_pretrained` takes for missing ones: it refuses until it is unloaded.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any

from peft import PeftModel
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PreTrainedModel

save_pretrained: Callable[..., None] | None = None
"""What a wrapped model saves itself with instead of PEFT's own; `spafit_hf.adapter`, which knows how, puts it here."""


def save_as_adapter(tuner: nn.Module) -> None:
    """Have the `PeftModel` that a tuner is being made for save with `save_pretrained`, whoever makes it.

    PEFT hands a tuner its model and no `PeftModel`; of that the moment tells in which it takes the tuner in.
    """
    made = weakref.ref(tuner)

    def meet(owner: nn.Module, _name: str, module: nn.Module | None) -> None:
        if module is None or module is not made():
            return
        hook.remove()
        if isinstance(owner, PeftModel) and save_pretrained is not None:
            owner.save_pretrained = types.MethodType(save_pretrained, owner)
            if isinstance(module.model, PreTrainedModel):
                module.model.save_pretrained = _refuse_to_save

    hook = register_module_module_registration_hook(meet)
    weakref.finalize(tuner, hook.remove)  # transformers' own `add_adapter` makes a tuner alone


def _refuse_to_save(*_: Any, **__: Any) -> None:
    raise ValueError(
        "this model holds an adapter in its layers, and what it would write could not be loaded again. Save the "
        "adapter with trainer.save_model(folder) or the PeftModel's save_pretrained(folder), or merge it first "
        "(model = trainer.model.merge_and_unload())."
    )

"""The PEFT method: `SpafitConfig` describes an adapter, `SpafitModel` puts it into a model.

Importing this package makes the method known to PEFT, so that `get_peft_model`, `PeftModel.from_pretrained` and
transformers' `load_adapter` take it like any of their own.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

from accelerate.utils import extract_model_from_parallel
from peft import PeftModel, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from spafit_hf.architecture import Architecture, DescriptionLike
from spafit_hf.names import task_of_class
from spafit_hf.planner import plan
from spafit_hf.strategy import Strategy
from spafit_hf.tuner.config import LORA_DEFAULTS, SpafitConfig, SpafitPeftType
from spafit_hf.tuner.entrance import check_entrance, check_model, name_obstacle
from spafit_hf.tuner.labels import apply_labels
from spafit_hf.tuner.layer import DeltaLayer
from spafit_hf.tuner.model import SpafitModel

__all__ = [
    "DeltaLayer", "SpafitConfig", "SpafitModel", "SpafitPeftType",
    "apply_labels", "get_spafit_model", "task_type_of",
]  # fmt: skip

# `peft.utils.register_peft_method` takes only members of its own closed enum, hence the three mappings.
PEFT_TYPE_TO_CONFIG_MAPPING[SpafitPeftType.SPAFIT] = SpafitConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[SpafitPeftType.SPAFIT] = SpafitModel  # type: ignore[index]
# LoRA's prefix: the loaders of PEFT and transformers find adapter tensors by it, and ours are all named lora_*.
PEFT_TYPE_TO_PREFIX_MAPPING[SpafitPeftType.SPAFIT] = "lora_"  # type: ignore[index]

#: Tasks whose heads PEFT trains and saves by itself. A strategy that leaves the head alone names no task.
HEAD_TASKS = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS, TaskType.QUESTION_ANS)


def task_type_of(model: nn.Module) -> TaskType | None:
    """PEFT's task type of a model, from the name of its class; None for classes that PEFT wraps plainly.

    PEFT's classes for text that is generated pass `input_ids` and `inputs_embeds` on. A model that takes something
    else (the features of speech), or generates nothing (a robot's actions), has to be wrapped plainly.
    """
    task = task_of_class(type(model).__name__)
    if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and not (
        hasattr(model, "prepare_inputs_for_generation")
        and {"input_ids", "inputs_embeds"} <= inspect.signature(model.forward).parameters.keys()
    ):
        return None
    return None if task is None else TaskType(task)


def _adds_within(model: nn.Module, head: tuple[str, ...]) -> bool:
    """Whether PEFT would save a part of a head a second time: it adds modules of these names by itself."""
    inner = [name for name, _ in model.named_modules() if name.endswith((".classifier", ".score", ".qa_outputs"))]
    return any(name.startswith(f"{module}.") for name in inner for module in head)


def get_spafit_model(
    model: nn.Module,
    strategy: str | dict[str, Any] | Strategy,
    adapter_name: str = "default",
    *,
    architecture: Architecture | DescriptionLike | None = None,
    **lora_kwargs: Any,
) -> PeftModel:
    """Wrap a transformers model for training in strata.

    Before the first step the wrapped model computes exactly what `model` does (LoRA B and deltas are zero), and
    the base's tensors are never written to. What trains is fp32, also on a base in half precision.

    Args:
        model: a plain transformers model of any task. It is modified in place, as by `peft.get_peft_model`.
        strategy: a method's name ("spafit-4-9-II", "bitfit", ...), a dict, a YAML or JSON file, or a `Strategy`.
        adapter_name: the adapter's name on this base.
        architecture: where the parts of a model are that cannot be found, as in `plan`.
        **lora_kwargs: further fields of `peft.LoraConfig`, such as `init_lora_weights` or `task_type`. LoRA settings
            (`r`, `lora_alpha`, `lora_dropout`, `use_rslora`, `use_dora`) replace those of the strategy's strata.

    Returns:
        A `PeftModel` of the model's task, with the adapter and the head trainable. Its
        `print_trainable_parameters` adds the table of strata to PEFT's line.

    Raises:
        ValueError: for what is no model, a name that no adapter can have, a strategy that does not fit the model, for
            "full", which has no adapter, and for a model of which no adapter could be read back (`check_entrance`).
    """
    check_model(model)
    # Within torch.compile or DataParallel, names would begin with _orig_mod or module.
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    settings = {name: lora_kwargs.pop(name) for name in LORA_DEFAULTS if name in lora_kwargs}
    chosen = Strategy.coerce(strategy).with_lora(**settings)
    the_plan = plan(model, chosen, architecture=architecture)
    check_entrance(model, the_plan)
    if obstacle := name_obstacle(model, adapter_name):
        raise ValueError(obstacle)
    task_type = task_type_of(model)
    if task_type in HEAD_TASKS and (not chosen.head or _adds_within(model, the_plan.head)):
        task_type = None
    lora_kwargs.setdefault("task_type", task_type)
    wrapped = get_peft_model(model, SpafitConfig.from_plan(the_plan, **lora_kwargs), adapter_name=adapter_name)

    def print_trainable_parameters(self: PeftModel) -> None:
        """PEFT's line, and the table of strata."""
        type(self).print_trainable_parameters(self)
        print(the_plan)

    wrapped.print_trainable_parameters = types.MethodType(print_trainable_parameters, wrapped)
    return wrapped

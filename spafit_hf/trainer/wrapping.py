"""What a trainer makes of the model it is given.

plain                              a PeftModel by the strategy; "full" leaves it plain
with an adapter of any kind        taken as it is
with that of a trainer before it   gone on with: a cell of a notebook run twice
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, TrainingArguments, set_seed

from spafit_hf.adapter import AdapterError, save_adapter
from spafit_hf.planner import Plan, plan
from spafit_hf.strategy import Strategy
from spafit_hf.trainer.arguments import StrataArguments
from spafit_hf.trainer.optimizer import has_untrained_pooler
from spafit_hf.trainer.sharding import whole_again
from spafit_hf.tuner import SpafitConfig, get_spafit_model
from spafit_hf.tuner.plain import base_of, plain_view

logger = logging.getLogger(__name__)

WRAPPED = "_spafit_wrapped"
"""Where a plain model notes what a trainer has made of it."""


@dataclass(frozen=True)
class Wrapped:
    """A plain model wrapped by a trainer."""

    model: PeftModel
    plan: Plan
    untrained_pooler: bool
    """Whether the head reads a pooler that pretraining never touched."""
    trained: tuple[nn.Parameter, ...]
    """What of the plain model trained before."""

    def undo(self) -> None:
        """Take the adapter out again, and let train what did before."""
        vars(self.model.unload()).pop(WRAPPED, None)
        for parameter in self.trained:
            parameter.requires_grad_(True)


def has_adapter(model: nn.Module) -> bool:
    """Whether a model comes with an adapter: PEFT's wrapper, or one that transformers' `add_adapter` put in."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return isinstance(model, PeftModel) or bool(getattr(model, "_hf_peft_config_loaded", False))


def is_ours(model: nn.Module) -> bool:
    """Whether a model's active adapter is of this package's method."""
    return isinstance(model, PeftModel) and isinstance(model.peft_config[model.active_adapter], SpafitConfig)


def taken_out(model: nn.Module, strategy: Strategy) -> nn.Module:
    """The model within torch.compile or DataParallel, where names are to be those of the model's own."""
    plain = extract_model_from_parallel(model, keep_torch_compile=False)
    if plain is model or (strategy.full and not has_adapter(model)):
        return model
    logger.warning(
        "The model was given within %s: training goes on without, so that what is saved has the names of the "
        "model's own. To train it compiled: --torch_compile.",
        type(model).__name__,
    )
    return plain


def wrapped_before(model: nn.Module, strategy: Strategy) -> Wrapped | None:
    """What an earlier trainer has made of a plain model; None if nothing, or if it was merged or unloaded since.

    Raises:
        ValueError: when that is of another strategy.
    """
    if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        vars(model).pop(WRAPPED, None)
        return None
    before: Wrapped | None = vars(model).get(WRAPPED)
    if before is not None and before.plan.strategy != strategy:
        raise ValueError(
            f"the model holds the adapter of an earlier trainer, of {before.plan.strategy}, and this one is to train "
            f"{strategy}; load the model again before making this trainer."
        )
    return before


def wrap(model: nn.Module, strategy: Strategy, args: TrainingArguments) -> Wrapped:
    """Wrap a plain model for its training in strata.

    Raises:
        ValueError: for a strategy that does not fit the model.
    """
    if isinstance(model, PreTrainedModel) and model.is_activation_checkpointing:
        # Switched on by hand before: PEFT would turn input gradients on for it, so let `train` do it our way.
        model.activation_checkpointing_disable()
        model.disable_input_require_grads()
        args.activation_checkpointing = args.gradient_checkpointing = True
    trained = tuple(parameter for parameter in model.parameters() if parameter.requires_grad)
    initial = args.init_lora_weights if isinstance(args, StrataArguments) else "default"
    how = {} if initial == "default" else {"init_lora_weights": initial}
    with whole_again(model.parameters()):  # plan and layers read shapes, which ZeRO-3 hides
        the_plan = plan(model, strategy)
        untrained_pooler = has_untrained_pooler(model, the_plan.architecture)
        set_seed(args.seed)  # the same LoRA for the same seed, whatever drew random numbers before
        made = Wrapped(get_spafit_model(model, strategy, **how), the_plan, untrained_pooler, trained)
    # By the dictionary: as an attribute it would be a submodule of the model that it wraps.
    vars(model)[WRAPPED] = made
    return made


def warn_of_halves(model: nn.Module, args: TrainingArguments) -> None:
    """Warn before full fine-tuning of weights in half precision, where small steps are lost."""
    halves = {parameter.dtype for parameter in model.parameters()} & {torch.float16, torch.bfloat16}
    if halves and not args.deepspeed:  # which keeps fp32 copies itself
        logger.warning(
            "Full fine-tuning of weights in %s: small steps are lost. Load the model with dtype=torch.float32, and "
            "train with --bf16 for its speed.",
            halves.pop(),
        )


def warn_of_frozen(model: nn.Module) -> None:
    """Warn before full fine-tuning of a model most of which does not train, as merging an adapter leaves it."""
    trains = [each.requires_grad for each in model.parameters()]
    if 0 < 2 * sum(trains) < len(trains):
        logger.warning(
            "Full fine-tuning of %d of the model's %d tensors: the others require no gradient, as merge_and_unload() "
            "leaves them. To train all, call the model's requires_grad_(True) before.",
            *(sum(trains), len(trains)),
        )


def refuse_float16(model: nn.Module) -> None:
    """Refuse to train whole weights in fp16 with AdamW: one step makes them NaN.

    Raises:
        ValueError: where such weights train.
    """
    names = [name for name, each in model.named_parameters() if each.requires_grad and each.dtype == torch.float16]
    if names:
        raise ValueError(
            f"{len(names)} tensors that train are in float16 ({names[0]}), where AdamW divides by squares of "
            "gradients that have become zero: all would be NaN. Load the model with dtype=torch.float32; --fp16 or "
            "--bf16 give half precision's speed."
        )


def refuse_idle(model: nn.Module) -> None:
    """Refuse to train a model of which nothing trains, or with an adapter that trains without a part in what it says.

    Raises:
        ValueError: with an adapter that was loaded to be used, is disabled, or merged.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if any(layer.merged and any(each.requires_grad for each in layer.parameters()) for layer in layers):
        raise ValueError(
            "an adapter that trains is merged into the base, which does not; call the model's unmerge_adapter()."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        how = "call its requires_grad_(True)"
        if any(layer.disable_adapters for layer in layers):
            how = "its adapters are disabled, so call its enable_adapter_layers()"
        elif has_adapter(model):
            how = "load its adapter with is_trainable=True"
        raise ValueError(f"nothing of the model trains: none of its parameters requires a gradient; {how}.")


def refuse_unsaved(model: PeftModel, *, planned: bool) -> None:
    """Refuse what trains and no folder of the adapter would hold, before it is trained.

    Args:
        model: with an adapter of ours.
        planned: whether a strategy's plan made it; one of a configuration by hand is written once, to see.

    Raises:
        AdapterError: for a configuration whose adapter cannot be saved.
        ValueError: where a script lets tensors of the base train beside the adapter.
    """
    if not planned:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                save_adapter(model, scratch, model.active_adapter)
            except AdapterError as error:
                raise AdapterError(
                    f"this adapter could not be saved once it is trained: {error} Or where its configuration names no "
                    "strategy and no bias_modules, take PEFT's LoraConfig, which trains the same and is saved as PEFT "
                    "does."
                ) from error
    names = [name for name, each in plain_view(base_of(model)).named_parameters() if each.requires_grad]
    if names:
        raise ValueError(
            f"{len(names)} tensors of the base train beside the adapter ({names[0]}), and its folder would not hold "
            "what they learn: freeze them (requires_grad_(False)), or take strategy='full'."
        )


def refuse_smoothing(model: nn.Module, labels: object = None) -> None:
    """Refuse label smoothing where a label is no id of a class, whose share others could get a part of.

    Args:
        model: wrapped or plain.
        labels: of a batch; without them the configuration of the model decides.

    Raises:
        ValueError: for a model that predicts a number, and for labels that are not whole.
    """
    plain = base_of(model)
    config, kind = getattr(plain, "config", None), type(plain).__name__
    # transformers' rule for a head of one output; of tokens it takes ids all the same
    one = getattr(config, "num_labels", 0) == 1 and kind.endswith("Classification") and "Token" not in kind
    problem = getattr(config, "problem_type", None) or ("regression" if one else "")
    if problem == "regression" or (isinstance(labels, torch.Tensor) and labels.is_floating_point()):
        found = "this model predicts a number" if problem == "regression" else "these labels are no ids of classes"
        raise ValueError(f"label_smoothing_factor is for rows of one class each, and {found}; leave it out.")

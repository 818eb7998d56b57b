"""What must hold of a model before it is wrapped for training, so that the folder saved of it opens again."""

from __future__ import annotations

import logging

from torch import nn
from transformers import AutoConfig, PretrainedConfig

from spafit_hf.architecture.new import owners
from spafit_hf.planner import Plan
from spafit_hf.planner.notes import untrained
from spafit_hf.words import listed

logger = logging.getLogger(__name__)


def check_model(model: object) -> None:
    """Refuse what is no model, such as the name of one.

    Raises:
        ValueError: with what to do.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model is {model!r:.80}; load it first, as with AutoModel.from_pretrained(name).")


def name_obstacle(model: nn.Module, adapter_name: str) -> str:
    """Why nothing on a model can be an adapter of this name, and what to do; "" where it can."""
    # PEFT tells the tensors of adapters apart by these parts of their names.
    parts = {part for key, _ in model.named_parameters() for part in key.split(".")}
    odd = not isinstance(adapter_name, str) or not adapter_name
    if odd or "." in adapter_name or "lora_" in adapter_name or adapter_name in {"__base__", *parts}:
        return (
            f"adapter_name is {adapter_name!r}; it must not be empty, hold '.' or 'lora_', or be part of the name of "
            "a module: that cannot name an adapter. Choose another, as in 'reviews'."
        )
    return ""


def check_entrance(model: nn.Module, plan: Plan) -> None:
    """Refuse a plain model of which no adapter could be read back, and warn of what is new and does not train.

    Raises:
        ValueError: for embeddings that were resized, and an obstacle of the plan (`planner.obstacles`).
    """
    if embeddings_were_resized(model):
        raise ValueError(
            "the embeddings were resized after the base was loaded: their new rows are in no checkpoint, and an "
            "adapter could not be read back. Save the resized model and its tokenizer (model.save_pretrained(folder)) "
            "and train what is loaded from there."
        )
    if plan.obstacles:
        raise ValueError(plan.obstacles[0])
    idle = owners(model, tuple(untrained(plan, model)))
    if idle:
        logger.warning(
            "%s: not in the base's checkpoint, so random at each load, and nothing of it trains or is saved. Read the "
            "states before it, or take a class with a head.",
            listed(idle),
        )


def embeddings_were_resized(model: nn.Module) -> bool:
    """Whether a model's vocabulary has another size than that of the checkpoint it was loaded from."""
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig) or not config._name_or_path:
        return False
    try:
        # From the disk alone: PEFT's own test asks the Hub at every save, even for a run that never pushes.
        original = AutoConfig.from_pretrained(config._name_or_path, local_files_only=True)
    except (OSError, ValueError):
        return False
    return _vocabularies(original) != _vocabularies(config)


def _vocabularies(config: PretrainedConfig) -> set[int]:
    """Sizes of the vocabularies of a configuration and of those within it: of the text, of encoder and decoder."""
    own = getattr(config, "vocab_size", None)
    within = (each for each in vars(config).values() if isinstance(each, PretrainedConfig))
    return {own}.difference([None]).union(*map(_vocabularies, within))

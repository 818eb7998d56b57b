"""What must hold of a model before it is wrapped for training, so that the folder saved of it opens again."""

from __future__ import annotations

from collections import Counter

from torch import nn
from transformers import AutoConfig, PretrainedConfig

from spafit_hf.architecture.new import new_parameters, owners
from spafit_hf.tuner.model import labels_of
from spafit_hf.words import listed


def check_entrance(model: nn.Module) -> None:
    """Refuse a plain model of which no adapter could be read back.

    Raises:
        ValueError: for embeddings that were resized, label ids with gaps, two labels of one name, and a random
            parameter of no module of its own.
    """
    if embeddings_were_resized(model):
        raise ValueError(
            "the embeddings were resized after the base was loaded: their new rows are in no checkpoint, and an "
            "adapter could not be read back. Save the resized model and its tokenizer (model.save_pretrained(folder)) "
            "and train what is loaded from there."
        )
    names: dict[str, str] = (labels_of(model) or {"id2label": {}})["id2label"]
    if list(names) != [str(index) for index in range(len(names))]:
        raise ValueError(f"id2label has the ids {listed(names)}; they must be 0 to {len(names) - 1}: number them so.")
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise ValueError(f"two labels are called {twice[0]!r}; give each id of id2label a name of its own.")
    new = new_parameters(model)
    owned = tuple(f"{name}." for name in owners(model, new))
    for name in [name for name in new if not name.startswith(owned)]:
        value = model.get_parameter(name).reshape(-1)
        if not value.is_meta and (value != value[:1]).any():
            raise ValueError(
                f"{name} is new with the task and random at each load, and PEFT stores whole modules, of which it is "
                "none. Save the model once (model.save_pretrained(folder)) and train what is loaded from there, or "
                "configure it without (use_weighted_layer_sum=False)."
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
    return getattr(original, "vocab_size", None) != getattr(config, "vocab_size", None)

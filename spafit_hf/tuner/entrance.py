"""What must hold of a model before it is wrapped for training, so that the folder saved of it opens again."""

from __future__ import annotations

import logging
from collections import Counter

from torch import nn
from transformers import AutoConfig, PretrainedConfig

from spafit_hf.architecture.new import owners
from spafit_hf.names import MAX_HEADS, MAX_LABEL, MAX_LABELS
from spafit_hf.planner import Plan
from spafit_hf.planner.notes import untrained
from spafit_hf.tuner.labels import labels_of
from spafit_hf.words import listed

logger = logging.getLogger(__name__)


def check_entrance(model: nn.Module, plan: Plan) -> None:
    """Refuse a plain model of which no adapter could be read back, and warn of what is new and does not train.

    Raises:
        ValueError: for embeddings that were resized, label ids with gaps, two labels of one name, more or longer ones
            than a folder may name, a head with batch norms or of too many modules, and a new parameter that can
            neither train with a module of its own nor as a bias.
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
    if len(names) > MAX_LABELS or max(map(len, names.values()), default=0) > MAX_LABEL:
        raise ValueError(
            f"id2label has {len(names):,} names; an adapter folder holds at most {MAX_LABELS:,}, of {MAX_LABEL} "
            'characters each. Give the model the labels of the task (num_labels=...), or take strategy="full".'
        )
    if len(plan.head) > MAX_HEADS:
        raise ValueError(
            f"{len(plan.head):,} modules are to train whole ({plan.head[0]}, ...), most of them new with the task; "
            f"an adapter folder holds {MAX_HEADS}. Save the model once (model.save_pretrained(folder)) and train what "
            'is loaded from there, or take strategy="full".'
        )
    for head in plan.head:
        module = model.get_submodule(head)
        statistics = [key for key in module.state_dict() if key not in dict(module.named_parameters())]
        if statistics:
            raise ValueError(
                f"the head keeps {head}.{statistics[0]}, which changes in training and is no weight: no adapter "
                'folder holds it. Take strategy="full", or a class whose head has no batch norm.'
            )
    new = tuple(untrained(plan, model))
    idle = owners(model, new)
    loose = [name for name in new if not name.startswith(tuple(f"{module}." for module in idle))]
    if loose:
        raise ValueError(
            f"{loose[0]} is new with the task and would neither train nor be saved: PEFT stores whole modules, and it "
            "is none. Save the model once (model.save_pretrained(folder)) and train what is loaded from there, which "
            "keeps it as it is, or configure the model without it (use_weighted_layer_sum=False); in a model of your "
            "own, put it into a module of its own."
        )
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

"""What is new with the task: weights that a model has and its checkpoint had not.

    BertForSequenceClassification.from_pretrained(encoder of a masked language model)
    ├── bert.encoder ...         from the checkpoint
    ├── bert.pooler.dense        new: drawn at random at each load
    └── classifier               new: the head

Transformers marks each parameter that it read from a checkpoint. A model without a mark is random as a whole, and
nothing in it is new.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

MARK = "_is_hf_initialized"  # transformers 5: True on a parameter from the checkpoint, False or absent on others


def new_parameters(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that no checkpoint brought: in each pretrained part, where a mark says so."""
    names = []
    for prefix, part in _pretrained_parts(model):
        parameters = [(name, each) for name, each in part.named_parameters() if each.is_floating_point()]
        if any(getattr(each, MARK, False) is True for _, each in parameters):
            names += [prefix + name for name, each in parameters if getattr(each, MARK, False) is not True]
    return tuple(names)


def owners(model: nn.Module, parameters: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the modules that hold nothing but the given parameters: what can train whole."""
    given = set(parameters)
    modules = dict.fromkeys(name.rpartition(".")[0] for name in parameters)
    return tuple(
        name
        for name in modules
        if name and given.issuperset(f"{name}.{each}" for each, _ in model.get_submodule(name).named_parameters())
    )


def outside_pretrained(model: nn.Module) -> tuple[str, ...]:
    """Modules of a model of one's own that stand outside its pretrained parts: all of them are new with the task."""
    inside = tuple(prefix for prefix, _ in _pretrained_parts(model))
    names = [name for name, _ in model.named_parameters() if not name.startswith(inside)] if inside else []
    return owners(model, tuple(names))


def namesakes(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Other modules that PEFT would train whole with those named: for it a name means each that ends with it."""
    inside = tuple(f"{name}." for name in names)
    modules = [name for name, _ in model.named_modules()]
    return [name for name in modules if name.endswith(names) and name not in names and not name.startswith(inside)]


def told_apart(model: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, with the parts of a module in place of it where it has a namesake."""
    parts = {
        name: owners(model, tuple(f"{name}.{key}" for key, _ in model.get_submodule(name).named_parameters()))
        for name in names
        if any(other not in names for other in namesakes(model, (name,)))
    }
    return tuple(part for name in names for part in parts.get(name, (name,)))


def copy_marks(source: nn.Module, target: nn.Module) -> None:
    """Say of a copy's parameters what is said of the model's, which `copy.deepcopy` leaves out."""
    for theirs, ours in zip(source.parameters(), target.parameters(), strict=True):
        if hasattr(theirs, MARK):
            setattr(ours, MARK, getattr(theirs, MARK))


def _pretrained_parts(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, PreTrainedModel]]:
    if isinstance(model, PreTrainedModel):
        yield prefix, model
        return
    for name, child in model.named_children():
        yield from _pretrained_parts(child, f"{prefix}{name}.")

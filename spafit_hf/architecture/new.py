"""What is new with the task: weights that a model has and its checkpoint had not.

    BertForSequenceClassification.from_pretrained(encoder of a masked language model)
    ├── bert.encoder ...         from the checkpoint
    ├── bert.pooler.dense        new: drawn at random at each load
    └── classifier               new: the head

Transformers marks each parameter that it read from a checkpoint. A model without a mark is random as a whole, and
nothing in it is new. Copies lose their marks: for them the checkpoint is asked again.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from spafit_hf.architecture.kinds import has_weight, takes_delta
from spafit_hf.names import resolve_base
from spafit_hf.words import first_line

logger = logging.getLogger(__name__)

MARK = "_is_hf_initialized"  # transformers 5: True on a parameter from the checkpoint, False or absent on others
LOADED = "_weight_conversions"  # on a model that `from_pretrained` made, and on its copies

_HEAD_CLASS = re.compile(r"For\w*(Classification|XVector)$")


def new_parameters(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that no checkpoint brought: outside the pretrained parts, and where a mark says so."""
    names = outside_parameters(model)
    for prefix, part in _pretrained_parts(model):
        _mark_again(part)
        parameters = [(name, each) for name, each in part.named_parameters() if each.is_floating_point()]
        if any(getattr(each, MARK, False) is True for _, each in parameters):
            computed = _computed(part)
            new = (name for name, each in parameters if getattr(each, MARK, False) is not True)
            names += [prefix + name for name in new if not name.startswith(computed)]
        elif _HEAD_CLASS.search(type(part).__name__):
            # The weights of a sum over layers stand beside the head, in no module of it.
            names += [prefix + name for name, each in parameters if "." not in name]
    return tuple(names)


def _computed(part: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of what a module computes for itself at each load: Marian's sines of positions."""
    return tuple(f"{name}." for name, module in part.named_modules() if hasattr(module, "create_weight"))


def owners(model: nn.Module, parameters: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the modules that hold nothing but the given parameters: what can train whole, none within another."""
    given = set(parameters)
    modules = dict.fromkeys(name.rpartition(".")[0] for name in parameters)
    found = [
        name
        for name in modules
        if name and given.issuperset(f"{name}.{each}" for each, _ in model.get_submodule(name).named_parameters())
    ]
    return tuple(name for name in found if not any(name.startswith(f"{other}.") for other in found))


def new_biases(model: nn.Module, parameters: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the modules of which the bias alone is among the parameters, and can train as a delta.

    By identity: the new bias of a language model's output matrix may be named after the module around that.
    """
    given = {id(model.get_parameter(name)) for name in parameters}
    return tuple(
        name
        for name, module in model.named_modules()
        if has_weight(module)
        and takes_delta(module)
        and [id(each) in given for each in (module.weight, module.bias)] == [False, True]
    )


def outside_pretrained(model: nn.Module) -> tuple[str, ...]:
    """Modules of a model of one's own that stand outside its pretrained parts: all of them are new with the task."""
    return owners(model, tuple(outside_parameters(model)))


def outside_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that stand outside the pretrained parts of a model of one's own; [] for any other."""
    inside = tuple(prefix for prefix, _ in _pretrained_parts(model))
    return [name for name, _ in model.named_parameters() if not name.startswith(inside)] if inside else []


def namesakes(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Other modules that PEFT would train whole with those named: for it a name means each that ends with it.

    Also one within what is named (DPT's head.head), which PEFT would wrap a second time.
    """
    return [name for name, _ in model.named_modules() if name.endswith(names) and name not in names]


def told_apart(model: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, with the parts of a module in place of it where it has a namesake, or holds another's."""
    others = namesakes(model, names)
    parts = {
        name: owners(model, tuple(f"{name}.{key}" for key, _ in model.get_submodule(name).named_parameters()))
        for name in names
        if any(other.endswith(name) or other.startswith(f"{name}.") for other in others)
    }
    told = tuple(part for name in names for part in parts.get(name, (name,)))
    return told if told == names else told_apart(model, told)


def copy_marks(source: nn.Module, target: nn.Module) -> None:
    """Say of a copy's parameters what is said of the model's, which `copy.deepcopy` leaves out."""
    for theirs, ours in zip(source.parameters(), target.parameters(), strict=True):
        if hasattr(theirs, MARK):
            setattr(ours, MARK, getattr(theirs, MARK))


@contextmanager
def loading_quietly() -> Iterator[None]:
    """transformers loads a model within it without bars, and without a word of what is new in it."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _mark_again(part: PreTrainedModel) -> None:
    """Mark the parameters of a copy as those of the model that was loaded; others have marks, or were never loaded."""
    for model in part.modules():
        parameters = dict(model.named_parameters()) if LOADED in vars(model) else {}
        if parameters and not any(hasattr(each, MARK) for each in parameters.values()):
            brought = _brought(model)
            for name, each in parameters.items():
                setattr(each, MARK, name in brought)


def _brought(model: nn.Module) -> set[str]:
    """Names of the parameters that the checkpoint of a loaded model holds, read from the disk without their values."""
    try:
        with loading_quietly():
            loaded, info = type(model).from_pretrained(  # type: ignore[attr-defined]
                resolve_base(model.config._name_or_path),  # type: ignore[union-attr,arg-type]
                config=copy.deepcopy(model.config),
                device_map="meta",
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, ImportError, AttributeError, TypeError, LookupError) as error:
        logger.warning(
            "%s is a copy, which does not say what its checkpoint brought, and that cannot be read (%s): all of it is "
            "taken for pretrained. Load it again in place of copying it.",
            type(model).__name__,
            first_line(error),
        )
        return {name for name, _ in model.named_parameters()}
    absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return {name for name, _ in loaded.named_parameters()} - absent


def _pretrained_parts(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, PreTrainedModel]]:
    if isinstance(model, PreTrainedModel):
        yield prefix, model
        return
    for name, child in model.named_children():
        yield from _pretrained_parts(child, f"{prefix}{name}.")

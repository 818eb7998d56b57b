"""Finding the parts of a model: its stacks by their structure, and what lies outside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from spafit_hf.architecture.described import description_of
from spafit_hf.architecture.kinds import is_linear, is_norm
from spafit_hf.architecture.known import NEW_POOLER, PRETRAINED_OUTSIDE
from spafit_hf.architecture.new import new_biases, new_parameters, outside_pretrained, owners, told_apart
from spafit_hf.architecture.parts import Architecture, Stack
from spafit_hf.architecture.stacks import Roles, join, make_stack
from spafit_hf.architecture.structure import stacks_by_structure
from spafit_hf.strategy import EVERY_ROLE, EXPERT_ROLES, LORA_ROLES

# Heads of models whose class is its own base (T5ForQuestionAnswering), where children cannot tell head from body.
_HEAD_NAMES = ("projector", "pre_classifier", "classifier", "classification_head", "qa_outputs", "score")

# Classes whose head came with the pretraining.
_PRETRAINING_CLASS = re.compile(
    r"For(CausalLM|MaskedLM|ConditionalGeneration|PreTraining|NextSentencePrediction|MaskedImageModeling)|LMHead"
)


def find_architecture(model: nn.Module, *, layers: bool = True) -> Architecture:
    """The parts of a transformers model of any class, on any device, not wrapped by PEFT, found by its structure.

    Args:
        model: the model.
        layers: whether its layers must be found. Without, what has none that can be told has no stacks: enough for
            full fine-tuning and linear probing.

    Raises:
        ValueError: when the model is wrapped, holds one layer twice, or its parts cannot be found.
    """
    model_type = model_type_of(model)
    classes = {kind for each in {type(module) for module in model.modules()} for kind in each.__mro__}
    if any(kind.__module__.startswith("peft.") for kind in classes):
        raise ValueError(
            "the model is wrapped by PEFT already; pass the plain model (model.unload() of a PeftModel gives it back)."
        )
    if (described := description_of(model_type)) is not None:
        return describe_architecture(model, **described)
    try:
        stacks = stacks_by_structure(model, model_type)
    except ValueError:
        if layers:
            raise
        stacks = ()
    return _complete(model, stacks)


def describe_architecture(
    model: nn.Module,
    *,
    layers: str | Mapping[str, str],
    roles: Mapping[str, Any],
    head: Iterable[str] | None = None,
    pooler: Iterable[str] | None = None,
    outer_norms: Iterable[str] | None = None,
) -> Architecture:
    """The architecture of a model that cannot be found by itself, from what you know about it.

        describe_architecture(
            model,
            layers="model.blocks",
            roles={
                "query": "att.q", "key": "att.k", "value": "att.v", "attention_output": "att.o",
                "intermediate": ("ff.gate", "ff.up"), "output": "ff.down",
                "attention_norm": "norm_a", "output_norm": "norm_f",
            },
            head=["classifier"],
        )

    Args:
        model: the model, on any device.
        layers: name of the list of layers, or several as {"encoder": name, "decoder": name}.
        roles: role of `EVERY_ROLE`, or "experts" -> name or names relative to a layer (of experts those of their
            parameters, found by themselves where a name speaks of experts); those that a layer lacks are left out. Of
            several stacks either one such mapping for all, or one for each by the stack's name.
        head, pooler, outer_norms: names in the model; None: found as for any other model.

    Raises:
        ValueError: for an unknown role, a name that is not in the model, or a role no module plays.
    """
    names = {name for name, _ in model.named_modules()}
    paths = {"layers": layers} if isinstance(layers, str) else layers
    each_own = bool(roles) and set(roles) <= set(paths)
    stacks = []
    for stack_name, path in paths.items():
        if path not in names:
            raise ValueError(f"layers: the model has no module {path!r}; see model.named_modules() for the names.")
        own: Any = roles.get(stack_name, {}) if each_own else roles
        stacks.append(make_stack(model, stack_name, path, _layout(own), model_type_of(model)))
    parts = {"head": head, "pooler": pooler, "outer_norms": outer_norms}
    given: dict[str, Any] = {part: tuple(value) for part, value in parts.items() if value is not None}
    for part, part_names in given.items():
        for name in part_names:
            if name not in names:
                raise ValueError(f"{part}: the model has no module {name!r}; see model.named_modules() for the names.")
    return replace(_complete(model, tuple(stacks)), **given)


def _layout(roles: Any) -> Roles:
    """Role -> names, of what was written by hand."""
    if not isinstance(roles, Mapping) or not set(roles) & set(LORA_ROLES):
        raise ValueError(f"roles is {roles!r:.80}; it must name a matrix for at least one of {', '.join(LORA_ROLES)}.")
    for role in roles:
        if role not in (*EVERY_ROLE, *EXPERT_ROLES):
            raise ValueError(f"roles: unknown role {role!r}; allowed are {', '.join((*EVERY_ROLE, *EXPERT_ROLES))}.")
    return {role: (paths,) if isinstance(paths, str) else tuple(paths) for role, paths in roles.items()}


def model_type_of(model: nn.Module) -> str:
    """`config.model_type`, or the name of the class where there is no config."""
    return str(model.config.model_type) if isinstance(model, PreTrainedModel) else type(model).__name__


def _base(model: nn.Module) -> tuple[str, nn.Module]:
    """The base of a model without its head, and its name; ("", model) where the class is its own base."""
    if isinstance(model, PreTrainedModel) and not _is_bare(model):
        base = model.base_model
        for name, module in model.named_modules():
            if module is base:
                return name, module
    return "", model


def _is_bare(model: PreTrainedModel) -> bool:
    """Whether a class of transformers is a model without a task. Some of these call their inner encoder their base."""
    kind = type(model)
    return kind.__module__.startswith("transformers.") and not re.search("For[A-Z]|Head", kind.__name__)


def _complete(model: nn.Module, stacks: tuple[Stack, ...]) -> Architecture:
    """The architecture of a model with these stacks: with what lies outside them."""
    model_type = model_type_of(model)
    base_name, base = _base(model)
    kept = _kept(model)
    head, new, parameters = _new_with_the_task(model)
    # A head may have layers of its own (V-JEPA 2's attentive pooler): they train whole, with the head.
    whole = _below((*head, *_head(model, base, kept)))
    stacks = tuple(stack for stack in stacks if not f"{stack.path}.".startswith(whole))
    in_body = _below((base_name, *kept)) if base_name else ("",)
    apart = (*_below((*head, *new)), *(prefix for stack in stacks for prefix in stack.prefixes))
    outer = [
        (name, module)
        for name, module in model.named_modules()
        if f"{name}.".startswith(in_body) and not f"{name}.".startswith(apart)
    ]
    # The output matrix of a language model that is its own base (T5ForConditionalGeneration), or stands in one (BLIP's
    # decoder of texts), is no part of the body.
    tables = (each.get_output_embeddings() for each in model.modules() if isinstance(each, PreTrainedModel))
    outputs = {id(module) for table in tables if table is not None for module in table.modules()}
    linear = [name for name, module in outer if is_linear(module) and id(module) not in outputs]
    pooler = tuple(name for name in linear if "pooler" in name.split(".") or name.startswith(_below(kept)))
    return Architecture(
        model_type=model_type,
        stacks=stacks,
        embeddings=_embeddings(model, base_name, base),
        outer_norms=tuple(name for name, module in outer if is_norm(module)),
        pooler=pooler,
        projections=tuple(name for name in linear if name not in pooler),
        head=head,
        new=new,
        new_biases=new_biases(model, parameters),
    )


def find_head(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the modules that are new with the task: those of its head, and others; without looking for stacks."""
    described = description_of(model_type_of(model)) or {}
    head, new, _ = _new_with_the_task(model)
    return head if described.get("head") is None else tuple(described["head"]), new


def _kept(model: nn.Module) -> tuple[str, ...]:
    """Modules beside the base that came with the pretraining."""
    return tuple(name for name in PRETRAINED_OUTSIDE.get(model_type_of(model), ()) if name in model._modules)


def _new_with_the_task(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names of the head's modules, of others that no checkpoint brought, and of all parameters that none brought."""
    base_name, base = _base(model)
    head = told_apart(model, _head(model, base, _kept(model)))
    parameters = new_parameters(model)
    new = tuple(name for name in owners(model, parameters) if not f"{name}.".startswith(_below(head)))
    if not head:
        # A bare encoder's pooler is for whoever reads it; what is trained on the states never does.
        new = tuple(name for name in new if "pooler" not in name.split("."))
    elif model_type_of(model) in NEW_POOLER and "pooler" in dict(base.named_children()):
        head = (join(base_name, "pooler"), *head)
        new = tuple(name for name in new if not f"{name}.".startswith(_below(head)))
    return head, new, parameters


def _below(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def _head(model: nn.Module, base: nn.Module, kept: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the modules that are new with the task."""
    if isinstance(model, PreTrainedModel) and (
        model.get_output_embeddings() is not None or _PRETRAINING_CLASS.search(type(model).__name__)
    ):
        return ()
    if not isinstance(model, PreTrainedModel) and (outside := outside_pretrained(model)):
        return outside
    children = [(name, child) for name, child in model.named_children() if any(True for _ in child.parameters())]
    if base is model:
        return tuple(name for name, _ in children if name in _HEAD_NAMES)
    return tuple(
        name
        for child_name, child in children
        if child is not base and child_name not in kept
        for name in _unlisted(child_name, child)
    )


def _unlisted(name: str, module: nn.Module) -> Iterator[str]:
    """A module's name; of a list those in it: PEFT copies a head's modules, and no lists (x-vectors' TDNN)."""
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        for key, child in module._modules.items():
            yield from _unlisted(f"{name}.{key}", child)
    else:
        yield name


def _embeddings(model: nn.Module, base_name: str, base: nn.Module) -> str | None:
    if "embeddings" in dict(base.named_children()):
        return join(base_name, "embeddings")
    try:
        table = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    except NotImplementedError:  # speech models have no such table
        return None
    return next((name for name, module in model.named_modules() if module is table and name), None)

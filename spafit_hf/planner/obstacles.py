"""Why a plan cannot be carried out: what there is of a model that no adapter folder could give back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn

from spafit_hf.architecture.experts import by_module
from spafit_hf.architecture.labels import labels_of
from spafit_hf.architecture.new import owners
from spafit_hf.names import MAX_HEADS, MAX_LABEL, MAX_LABELS
from spafit_hf.planner.facts import PlanFacts
from spafit_hf.words import listed


def obstacles(result: PlanFacts, model: nn.Module, idle: list[str]) -> Iterator[str]:
    """Sentences with what to do: label ids with gaps, two labels of one name, more or longer ones than a folder may
    name, weights in float64, a head of too many modules, with lists, batch norms, computed or tied weights, and a new
    parameter that can neither train with a module of its own nor as a bias, out of those that are `idle`."""
    names: dict[str, str] = (labels_of(model) or {"id2label": {}})["id2label"]
    if list(names) != [str(index) for index in range(len(names))]:
        yield f"id2label has the ids {listed(names)}; they must be 0 to {len(names) - 1}: number them so."
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        yield f"two labels are called {twice[0]!r}; give each id of id2label a name of its own."
    if len(names) > MAX_LABELS or max(map(len, names.values()), default=0) > MAX_LABEL:
        yield (
            f"id2label has {len(names):,} names; an adapter folder holds at most {MAX_LABELS:,}, of {MAX_LABEL} "
            'characters each. Give the model the labels of the task (num_labels=...), or take strategy="full".'
        )
    if len(result.head) > MAX_HEADS:
        yield (
            f"{len(result.head):,} modules are to train whole ({result.head[0]}, ...), most new with the task, "
            f"and an adapter folder holds {MAX_HEADS}. Save the model once (model.save_pretrained(folder)) and train "
            'what is loaded from there, or take strategy="full".'
        )
    for name in (*result.lora, *by_module(result.experts), *result.head):
        if any(each.dtype == torch.float64 for each in model.get_submodule(name).parameters()):
            yield f"{name} is float64, which no adapter folder holds; load the model in float32 (dtype=torch.float32)."
            break
    if found := _second_place(model, result.head):
        yield (
            f"{found[1]} is a part of {found[0]} by a second name, and would go its own way from the copy that PEFT "
            'trains: give it weights of its own, or call one module in both places, or take strategy="full".'
        )
    for head in result.head:
        module = model.get_submodule(head)
        if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)):
            yield (
                f"{head} is to train whole and is a {type(module).__name__}: PEFT stores modules, and no lists. "
                "Put what it holds into a module of its own; if it is a weight norm or another parametrization that "
                "was added after loading, take it out again (torch.nn.utils.parametrize.remove_parametrizations)."
            )
            break
        held = [value for each in module.modules() for value in vars(each).values()]
        if any(isinstance(value, torch.Tensor) and not value.is_leaf for value in held):
            yield (
                f"{head} holds a weight that is computed from others before each pass, as torch.nn.utils.weight_norm "
                "does, and PEFT cannot copy it: take it out (torch.nn.utils.remove_weight_norm), or put in "
                "torch.nn.utils.parametrizations.weight_norm in its place."
            )
            break
        known, parameters = (dict(module.named_parameters(remove_duplicate=once)) for once in (True, False))
        odd = next((key for key in module.state_dict() if key not in known), None)
        if odd is not None:
            yield (
                f"{head}.{odd} is a weight of the head by a second name: an adapter folder holds each but once. Give "
                'it one name, or take strategy="full".'
                if odd in parameters
                else f"the head keeps {head}.{odd}, which is no weight, as the statistics of a batch norm: no adapter "
                'folder holds it. Take strategy="full", or a class whose head has none.'
            )
            break
    whole = tuple(f"{module}." for module in owners(model, tuple(idle)))
    loose = [name for name in idle if not name.startswith(whole)]
    if loose:
        yield (
            f"{loose[0]} is new with the task and would neither train nor be saved: PEFT stores whole modules, and it "
            "is none. Save the model once (model.save_pretrained(folder)) and train what is loaded from there, which "
            "keeps it as it is, or configure the model without it (use_weighted_layer_sum=False); in a model of your "
            "own, put it into a module of its own; what was added after loading, such as a weight norm, take out."
        )


def _second_place(model: nn.Module, heads: tuple[str, ...]) -> tuple[str, str] | None:
    """A head, and where a module or weight of it stands outside it as well; None where none does."""
    head_of: dict[object, str] = {}
    places = set()
    for head in heads:
        module, (parent, _, key) = model.get_submodule(head), head.rpartition(".")
        head_of |= dict.fromkeys((*module.modules(), *module.parameters()), head)
        places.add((model.get_submodule(parent), key))
    for name, module in model.named_modules():
        for key, held in (*module._modules.items(), *module._parameters.items()):
            if held in head_of and head_of.get(module) != head_of[held] and (module, key) not in places:
                return head_of[held], f"{name}.{key}" if name else key
    return None

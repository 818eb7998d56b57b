"""What trains gets a gradient: watched once, over the first accumulation window of a run.

    tensors that train -> the first window's backward passes -> those still without a gradient
                                                                 a few                        one warning
                                                                 all of a stratum in a stack
                                                                     that did not run         a warning of its own
                                                                     that ran                 ValueError
                                                                 all of a kind or a stratum   ValueError

A stack may rest for good reasons: texts alone for a model that can see, a decoder given the encoder's states. One that
runs and learns nothing was cut off from the loss.

LoRA A has a gradient of zeros at first, since B is zero: that is a gradient. None is what is looked for.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import nn

from spafit_hf.architecture.experts import by_module
from spafit_hf.planner import Plan
from spafit_hf.trainer.optimizer import parameter_kind
from spafit_hf.words import listing

logger = logging.getLogger(__name__)

KIND_WORDS = {
    "lora": "LoRA",
    "bottleneck": "the bottlenecks",
    "bias": "the biases",
    "head": "the head",
    "base": "the weights",
}

LAYER_DROP_STEPS = 20
"""Optimizer steps that are watched at most where layers are left out by chance."""


class GradientWatch:
    """Which tensors of a model (PEFT's wrapper) get no gradient, and which of their modules do not run.

    Names of strata come from its plan, where there is one. Of a compiled model no module is watched, as that would
    break the graph; tensors are.
    """

    def __init__(self, model: nn.Module, plan: Plan | None, *, compiled: bool = False) -> None:
        self.strata = {
            module: (group.name, group.stack)
            for group in (plan.groups if plan is not None else ())
            for modules in (group.lora_modules, group.bias_modules, group.bottleneck_modules, by_module(group.experts))
            for module in modules
        }
        # Which experts run is up to the router and the first tokens.
        self.tensors = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not _is_expert(name)
        }
        self.dead = set(self.tensors)
        self._steps = LAYER_DROP_STEPS if drops_layers(model) else 1
        self._ran: set[str] | None = None if compiled else set()
        self._hooks = ExitStack()
        if self._ran is not None:
            modules = dict(model.named_modules())
            owners = {owner_of(name) for name in self.tensors}
            for name in owners | {_parent(owner) for owner in owners}:
                if name in modules:
                    self._hooks.callback(modules[name].register_forward_pre_hook(partial(self._note, name)).remove)

    def _note(self, name: str, _module: nn.Module, _inputs: Any) -> None:
        assert self._ran is not None
        self._ran.add(name)

    def look(self) -> bool:
        """Look at the gradients after the backward passes of a window; True when this was the last look."""
        self.dead = {name for name in self.dead if self.tensors[name].grad is None}
        self._steps -= 1
        return not self.dead or self._steps == 0

    def close(self) -> None:
        """Take the hooks off."""
        self._hooks.close()

    def report(self, *, needs_all: bool = False) -> None:
        """Name what has no gradient, if anything has none; DDP `needs_all`, unless it searches for those missing.

        Raises:
            ValueError: for a stratum or a kind without any gradient, for a stratum in a stack that ran, and where all
                are needed.
        """
        if not self.dead:
            return
        strata = self._strata()
        idle = {key: names for key, names in strata.items() if self.dead.issuperset(names)}
        ran = {f"{what} of the {stack}": names for (what, stack), names in idle.items() if self._some_ran(names)}
        for what, names in (self._wholes(strata) | ran).items():
            if self.dead.issuperset(names):
                raise ValueError(
                    f"{what} would not train: in the first step none of its {len(names)} tensors got a gradient, "
                    f"{self._described(names)}. Take a strategy without it, freeze it in trainer.model "
                    "(requires_grad_(False)), or take a model and a task that use it."
                )
        text = f"In the first step {len(self.dead)} of {len(self.tensors)} tensors that train got no gradient: "
        text += self._described(self.dead)
        if needs_all:
            raise ValueError(f"{text}. DDP waits for them; --ddp_find_unused_parameters true lets it go on.")
        logger.warning("%s. They stay as they are.", text)
        for stratum, stack in idle:
            logger.warning("Of the stack %s nothing of %s trains: no tensor of it got one.", stack, stratum)

    def _strata(self) -> dict[tuple[str, str], set[str]]:
        """Name and stack of each stratum, with its tensors."""
        strata: dict[tuple[str, str], set[str]] = defaultdict(set)
        for name in self.tensors:
            stratum = self.strata.get(owner_of(name).removeprefix("base_model.model."))
            if stratum is not None:
                strata[stratum].add(name)
        return strata

    def _wholes(self, strata: Mapping[tuple[str, str], set[str]]) -> dict[str, set[str]]:
        """The kinds, and the strata over all stacks, each with its tensors."""
        wholes: dict[str, set[str]] = defaultdict(set)
        for name in self.tensors:
            wholes[KIND_WORDS[parameter_kind(name)]].add(name)
        for (stratum, _), names in strata.items():
            wholes[stratum] |= names
        return wholes

    def _described(self, names: Iterable[str]) -> str:
        """Modules by name for each reason, those of all layers under one."""
        reasons: dict[str, dict[str, None]] = defaultdict(dict)
        for owner in sorted({owner_of(name) for name in names}):
            short = re.sub(r"\.\d+(?=\.|$)", ".*", owner.removeprefix("base_model.model."))
            reasons[self._reason(owner)][short] = None
        return "; ".join(listing([*owners]) + (f" ({reason})" if reason else "") for reason, owners in reasons.items())

    def _some_ran(self, names: Iterable[str]) -> bool:
        """Whether any of the modules ran, or what is around it did."""
        owners = {owner_of(name) for name in names}
        return self._ran is not None and not self._ran.isdisjoint(owners | {_parent(owner) for owner in owners})

    def _reason(self, owner: str) -> str:
        if self._ran is None:
            return ""
        if owner in self._ran:
            return "they run, and the loss does not depend on them"
        if _parent(owner) in self._ran:
            return "never called: this task does not need them, or their weights are read past them"
        return "part of what this task never runs"


def owner_of(name: str) -> str:
    """The module that a trained tensor was put on: bert.pooler.dense of bert.pooler.dense.lora_A.default.weight.

    That of experts, too, around which wrapper their LoRA may be.
    """
    parts = name.split(".")
    own = (at for at, part in enumerate(parts) if part.startswith("lora_") or part == "modules_to_save")
    return re.sub(r"(\.base_layer)+$", "", ".".join(parts[: next(own, len(parts) - 1)]))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def drops_layers(model: nn.Module) -> bool:
    """Whether a model leaves out layers by chance while it trains (LayerDrop of wav2vec 2.0, BART, Whisper)."""
    configs = {id(config): config for module in model.modules() if (config := vars(module).get("config"))}
    names = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
    return any((getattr(config, name, 0) or 0) > 0 for config in configs.values() for name in names)


def may_pass_over(model: nn.Module | None) -> bool:
    """Whether a step may leave some of what trains without a gradient by chance: dropped layers, experts of a list.

    Those that are one tensor for all have one gradient for all, with zeros for whom no token chose.
    """
    if model is None:
        return False
    return drops_layers(model) or any(p.requires_grad and _is_expert(name) for name, p in model.named_parameters())


def _is_expert(name: str) -> bool:
    return re.search(r"(^|\.)experts\.(?!lora_|base_layer\.)", name) is not None

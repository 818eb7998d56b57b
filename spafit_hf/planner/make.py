"""Making a plan: the strata of a strategy laid on the layers of a model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from spafit_hf.architecture import (
    Architecture,
    DescriptionLike,
    Layer,
    Stack,
    biases_of,
    find_architecture,
    in_out,
    is_linear,
    register_architecture,
    takes_delta,
)
from spafit_hf.architecture.experts import by_module, expert_biases, lora_places
from spafit_hf.architecture.new import namesakes
from spafit_hf.architecture.structure import stays_frozen
from spafit_hf.planner import text
from spafit_hf.planner.cost import BATCH, SEQ, CostedPlan
from spafit_hf.planner.facts import Group
from spafit_hf.planner.notes import head_notes, notes, untrained
from spafit_hf.planner.obstacles import obstacles
from spafit_hf.planner.source import ModelLike, build_model
from spafit_hf.strategy import (
    EXPERT_ROLES,
    LORA_ROLES,
    METHODS,
    ROLES,
    Bottleneck,
    LoraSettings,
    Strategy,
    StrategyLike,
    Stratum,
)
from spafit_hf.words import listed, runs

PREFIX = "base_model.model."  # of every name in an adapter file

WRAPPER_PARTS = (
    "base_layer", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_dropout", "lora_magnitude_vector",
    "lora_delta", "lora_down", "lora_up",
)  # fmt: skip
"""Modules within a wrapped one, which stand in the model by the time that PEFT looks for those to train whole."""


class Plan(CostedPlan):
    """What trains in one model under one strategy, and what it costs. Made by `plan`; `str(plan)` is a table."""

    def table(self, batch: int = BATCH, seq: int = SEQ) -> str:
        """The plan as a text table, with memory and FLOPs for a batch of `batch` examples of `seq` tokens."""
        return text.plan_table(self, batch, seq)

    def layer_table(self) -> str:
        """A drawing of the strata, a line per layer: L is LoRA, b a bias, + both, A a bottleneck adapter, W every
        weight, . frozen."""
        return text.layer_table(self)

    def __str__(self) -> str:
        return self.table()


def plan(
    model: ModelLike,
    strategy: StrategyLike,
    num_labels: int | None = None,
    *,
    architecture: Architecture | DescriptionLike | None = None,
) -> Plan:
    """What `strategy` trains in `model`, and what that costs.

        plan("google-bert/bert-large-cased", "spafit-4-9-II", num_labels=3).trainable_parameters  # 7485443

    Args:
        model: a model (on any device, meta included), a config, a folder with a config.json, its path, or the id of a
            model on the Hub. Only the config is read: no weights are downloaded.
        strategy: a name, a `Strategy`, its dict, or a YAML or JSON file.
        num_labels: outputs of a classification head (of tokens or images where the config names such a head, else of
            sequences). None: the head the config names if it is one that people fine-tune (classification, question
            answering, language modeling), else sequence classification with the config's own number of labels, else,
            for a model type without it, no head.
        architecture: where the parts of the model are, when they cannot be found: what `register_architecture` takes,
            which is then known to whatever looks at such a model, or for this plan alone an `Architecture`.

    Raises:
        ValueError: when model or strategy cannot be read, they do not fit, the model's parts cannot be found, or
            nothing would train (linear probing of a model without a task head).
    """
    strategy = Strategy.coerce(strategy)
    if architecture is not None and not isinstance(architecture, Architecture):
        register_architecture(architecture)
        architecture = None
    built = build_model(model, num_labels)
    return _checked(_plan(built, strategy, architecture or _architecture(built, strategy)))[0]


def plan_each(
    model: ModelLike, strategies: Iterable[StrategyLike] = METHODS, num_labels: int | None = None
) -> tuple[Plan, ...]:
    """The plan of each strategy on one model, read once; by default of every method of the paper's Table 1.

    Of several, those that train nothing in this model are among them, with a note. Args and errors: as for `plan`.
    """
    wanted = [Strategy.coerce(strategy) for strategy in strategies]
    built = build_model(model, num_labels)
    architecture = _architecture(built, *wanted)
    return _checked(*(_plan(built, strategy, architecture) for strategy in wanted))


def plan_what_fits(
    model: ModelLike, strategies: Iterable[StrategyLike] = METHODS, num_labels: int | None = None
) -> tuple[tuple[Plan, ...], tuple[tuple[Strategy, str], ...]]:
    """As `plan_each`, of the strategies that the model does not refuse; and each of the others, with the reason.

    Raises:
        ValueError: when model or strategy cannot be read, or nothing would train by any.
    """
    wanted = [Strategy.coerce(strategy) for strategy in strategies]
    built = build_model(model, num_labels)
    found = find_architecture(built, layers=False)
    plans: list[Plan] = []
    refused: list[tuple[Strategy, str]] = []
    for strategy in wanted:
        try:
            # Where no layers were found, asking again for one that speaks of layers is the error that says why.
            plans.append(_plan(built, strategy, found if found.stacks else _architecture(built, strategy)))
        except ValueError as error:
            refused.append((strategy, str(error).removeprefix(f"{strategy.name} ")))
    return _checked(*plans), tuple(refused)


def _architecture(model: nn.Module, *strategies: Strategy) -> Architecture:
    """The parts of a model; its layers need not be told where no strategy speaks of them."""
    return find_architecture(model, layers=any(each.strata or each.outer_biases for each in strategies))


def _checked(*plans: Plan) -> tuple[Plan, ...]:
    if not any(each.trainable_parameters for each in plans):
        raise ValueError(
            f"{plans[0].strategy.name} trains nothing in {plans[0].model_class}, which has no new task head; take a "
            "strategy with strata, such as spafit-4-9-II, or a class with a head (AutoModelForSequenceClassification)."
        )
    return plans


def _plan(model: nn.Module, strategy: Strategy, architecture: Architecture) -> Plan:
    modules = dict(model.named_modules())
    names = [name for stack in architecture.stacks for layer in stack.layers for name in layer.names(LORA_ROLES)]
    table = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None  # Musicgen's is a list
    output = next((name for name, module in modules.items() if is_linear(module) and module is table), None)
    parameters = list(model.parameters())
    python_gelu = any(type(module).__name__ == "NewGELUActivation" for module in modules.values())
    base = Plan(
        strategy=strategy,
        architecture=architecture,
        model_type=architecture.model_type,
        model_class=type(model).__name__,
        num_labels=model.config.num_labels if architecture.head and isinstance(model, PreTrainedModel) else None,
        num_layers=architecture.num_layers,
        groups=(),
        lora={},
        biases=(),
        bottlenecks={},
        head=(*architecture.new, *architecture.head) if strategy.head else (),
        full=strategy.full,
        total_parameters=sum(parameter.numel() for parameter in parameters),
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        tensors={},
        linear={name: in_out(modules[name]) for name in (*names, *filter(None, [output]))},
        output_embeddings=output,
        activation_tensors=4 if python_gelu else 1,
    )
    if strategy.full:
        return _full_plan(base, model)
    also = [f"the pretrained {name}" for name in namesakes(model, base.head)]
    if strategy.strata:
        also += [f"its own {part}" for part in WRAPPER_PARTS if part.endswith(base.head)]
    if also:
        # Seen here and not when the model is wrapped: what a plan accepts is what can be trained.
        raise ValueError(
            f"{listed(base.head)} of {base.model_class} are to train whole, and for PEFT {also[0]} is one of "
            "them by the end of its name; rename the module of the head, or take a strategy without it "
            "(head=False)."
        )
    return _strata_plan(base, modules)


def _resolved(strategy: Strategy, stack: Stack, model_type: str) -> list[tuple[Stratum, tuple[int, ...]]]:
    """The layers of each stratum. Layers that are used again and again are all in one, or in none."""
    strategy = strategy.of_stack(stack.name)
    if stack.depth is None:
        return list(strategy.resolve(len(stack.layers)))
    resolved = [(stratum, layers) for stratum, layers in strategy.resolve(stack.depth) if layers]
    if resolved and len(resolved[0][1]) < stack.depth:
        raise ValueError(
            f"{strategy.name} cuts {stack.depth} layers into strata, and model type {model_type!r} has no strata: it "
            f"uses one set of weights for all of them ({stack.path}), so no layer can train apart from the others. "
            "Take bitfit, lora-I, lora-II, linear-probe or full, or a model with layers of its own, such as BERT, "
            "RoBERTa or DeBERTa."
        )
    return [(stratum, tuple(range(len(stack.layers)))) for stratum, _ in resolved]


def _full_plan(base: Plan, model: nn.Module) -> Plan:
    tensors = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    def inside(prefixes: tuple[str, ...]) -> int:
        return _values({name: shape for name, shape in tensors.items() if name.startswith(prefixes)})

    groups = [
        Group(
            "all layers", stack.name, tuple(range(len(stack.layers))), "every weight", (), (), inside(stack.prefixes)
        )
        for stack in base.architecture.stacks
    ]
    head = inside(tuple(f"{name}." for name in base.head))
    outside = _values(tensors) - head - sum(group.trainable_parameters for group in groups)
    groups.append(Group("outside the layers", "", (), "every weight", trainable_parameters=outside))
    if base.head:
        groups.append(Group("head", "", (), ", ".join(base.head), trainable_parameters=head))
    return replace(base, groups=tuple(groups), tensors=tensors, notes=head_notes(base))


def _strata_plan(base: Plan, modules: dict[str, nn.Module]) -> Plan:
    strategy, architecture = base.strategy, base.architecture
    tensors: dict[str, tuple[int, ...]] = {}
    lora: dict[str, LoraSettings] = {}
    experts: dict[str, LoraSettings] = {}
    bottlenecks: dict[str, Bottleneck] = {}
    groups: list[Group] = []
    passed_over: list[str] = []

    def add(name: str, what: str, own: dict[str, tuple[int, ...]], **others: Any) -> None:
        tensors.update(own)
        parts = {"stack": "", "layers": (), **others}
        groups.append(Group(name, what=what, trainable_parameters=_values(own), **parts))

    stacks = [stack.name for stack in architecture.stacks]
    if unknown := sorted({stratum.stack for stratum in strategy.strata} - {"", *stacks}):
        raise ValueError(
            f"{strategy.name} has a stratum for the stack {unknown[0]!r}, and {base.model_class} has "
            f"{listed(stacks)}; name one of these, or leave `stack` out for each of them."
        )
    for stack in architecture.stacks:
        for stratum, name, layers in _strata_of(strategy, stack, base.model_type):
            where: dict[str, Any] = {"stack": stack.name, "layers": layers}
            if stratum is None:
                add(name, "frozen", {}, **where)
                continue
            own: dict[str, LoraSettings] = {}
            biased: list[str] = []
            added: dict[str, Bottleneck] = {}
            chosen: dict[str, LoraSettings] = {}
            for layer in (stack.layers[index] for index in layers):
                own |= dict.fromkeys(_without(layer.names(stratum.lora_roles), base.head), stratum.lora_settings)
                biased += _without(_bias_names(layer, stratum, modules), base.head)
                added |= _bottlenecks(layer, stratum, base.head)
                chosen |= dict.fromkeys(layer.experts if stratum.trains_experts else (), stratum.lora_settings)
            deltas = tuple(module for module in biased if takes_delta(modules[module]))
            passed_over += [module for module in biased if module not in deltas]
            trained = _lora_tensors(own, base.linear) | _bias_tensors(modules, deltas)
            trained |= _bottleneck_tensors(added, base.linear) | _expert_tensors(chosen, modules)
            where |= {"lora_modules": tuple(own), "bias_modules": deltas, "bottleneck_modules": tuple(added)}
            where["experts"] = tuple(chosen)
            add(name, stratum.what(), trained, **where, stratum=stratum)
            lora |= own
            experts |= chosen
            bottlenecks |= added
    asked = {role for group in groups if group.stratum and group.layers for role in group.stratum.lora}
    if asked and not lora and not experts:
        every = [layer for stack in architecture.stacks for layer in stack.layers]
        there = [role for role in LORA_ROLES if any(layer.names((role,)) for layer in every)]
        there += EXPERT_ROLES if any(layer.experts for layer in every) else ()
        raise ValueError(
            f"{strategy.name} puts LoRA on {listed(role for role in (*LORA_ROLES, *EXPERT_ROLES) if role in asked)}, "
            f"and the layers of {base.model_class} have none of these; they have {listed(there)}: name them in a "
            "stratum (Stratum(layers=..., lora=...)), or take bitfit, linear-probe or full."
        )
    if strategy.outer_biases:
        outside = (*architecture.outer_norms, *architecture.pooler, *architecture.projections)
        biased = [name for name in outside if biases_of(modules[name])]
        outer = tuple(name for name in biased if takes_delta(modules[name]))
        passed_over += [name for name in biased if name not in outer]
        what = f"biases of {', '.join(outer)}" if outer else "no biases outside the layers"
        add("outer biases", what, _bias_tensors(modules, outer), bias_modules=outer)
    if strategy.head:
        head = ", ".join(architecture.head) or "none: the model has no task head"
        new = f"every weight of {_few(architecture.new)}, not in the base's checkpoint"
        fresh = tuple(
            name for name in architecture.new_biases if not any(name in each.bias_modules for each in groups)
        )
        if fresh:
            what = f"biases of {_few(fresh)}, not in the base's checkpoint"
            add("new biases", what, _bias_tensors(modules, fresh), bias_modules=fresh)
        for name, what, names in (("new", new, architecture.new), ("head", head, architecture.head)):
            if names or name == "head":
                add(name, what, _whole_tensors(modules, names))
    biases = tuple(module for group in groups for module in group.bias_modules)
    if experts:
        without_bias = [name for name in biases if not biases_of(modules[name])]
        _check_beside_experts(strategy, lora, without_bias)
    parts: dict[str, Any] = {"lora": lora, "biases": biases, "bottlenecks": bottlenecks, "experts": experts}
    result = replace(base, groups=tuple(groups), tensors=tensors, **parts)
    idle = untrained(result, modules[""])
    why_not = tuple(obstacles(result, modules[""], idle))
    said = tuple(f"no adapter can be made by this plan: {sentence}" for sentence in why_not)
    return replace(result, notes=(*said, *notes(result, modules, passed_over, idle)), obstacles=why_not)


def _check_beside_experts(strategy: Strategy, lora: dict[str, LoraSettings], without_bias: list[str]) -> None:
    """Refuse beside LoRA on experts what plain PEFT reads into their wrappers, too."""
    dora = [name for name, settings in lora.items() if settings.use_dora]
    for names, what, instead in (
        (dora, "DoRA on", "take use_dora out"),
        (without_bias, "a delta on a module without a bias,", "leave its role out of biases"),
    ):
        if names:
            raise ValueError(
                f"{strategy.name} has LoRA on experts and {what} {names[0]}, which no adapter can have at once: plain "
                f"PEFT would want the latter of the experts, too; {instead}, or take experts out of lora."
            )


def _without(names: Iterable[str], head: tuple[str, ...]) -> list[str]:
    """The names but for those that train whole, with the head."""
    return [name for name in names if name not in head]


def _bias_names(layer: Layer, stratum: Stratum, modules: dict[str, nn.Module]) -> tuple[str, ...]:
    """Modules of a layer whose bias trains. "Every bias" means those of matrices and norms without a role as well, but
    for routers. Experts are a feed-forward in one module, and PEFT lets none have LoRA and a delta."""
    others = [name for name in layer.others if stratum.biases == ROLES and not stays_frozen(name)]
    with_bias = [name for name in others if biases_of(modules[name])]
    if {"intermediate", "output"}.issubset(stratum.bias_roles) and not stratum.trains_experts:
        with_bias += [name for name in by_module(layer.experts) if expert_biases(modules[name])]
    return (*layer.names(stratum.bias_roles), *with_bias)


def _bottlenecks(layer: Layer, stratum: Stratum, head: tuple[str, ...]) -> dict[str, Bottleneck]:
    """The bottleneck adapters of a layer, by the modules that they are added to."""
    if stratum.bottleneck is None:
        return {}
    settings = stratum.bottleneck
    parallel = settings.kind == "parallel"
    missing = [role for role in (*settings.roles, *["intermediate"] * parallel) if not layer.names((role,))]
    if missing:
        raise ValueError(
            f"{layer.path} has no {listed(missing)}, where {settings.kind} bottlenecks go; take the layer out of the "
            "stratum, or LoRA or biases in their place."
        )
    names = layer.names((*settings.roles, *["cross_attention_output"] * (not parallel)))
    if parallel and len(names) > 1:
        raise ValueError(
            f"the feed-forward of {layer.path} has {len(names)} parts, and a parallel bottleneck stands "
            "beside one; take kind: series."
        )
    reads = layer.names(("intermediate",))[0] if parallel else ""
    return {name: Bottleneck(**settings.to_dict(), reads=reads) for name in _without(names, head)}


def _strata_of(strategy: Strategy, stack: Stack, model_type: str) -> list[tuple[Stratum | None, str, tuple[int, ...]]]:
    """The strata of a stack and the runs of layers in none, each with name and layers, by depth; empty strata last."""
    parts: list[tuple[Stratum | None, str, tuple[int, ...]]] = []
    free = set(range(len(stack.layers)))
    for index, (stratum, layers) in enumerate(_resolved(strategy, stack, model_type)):
        parts.append((stratum, stratum.name or f"stratum {index + 1}", layers))
        free.difference_update(layers)
    parts += [(None, "frozen", tuple(range(first, last + 1))) for first, last in runs(free)]
    return sorted(parts, key=lambda part: part[2][0] if part[2] else len(stack.layers))


def _lora_tensors(lora: dict[str, LoraSettings], linear: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {}
    for module, settings in lora.items():
        inputs, outputs = linear[module]
        tensors[f"{PREFIX}{module}.lora_A.weight"] = (settings.r, inputs)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = (outputs, settings.r)
        if settings.use_dora:
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = (outputs,)
    return tensors


def _expert_tensors(experts: dict[str, LoraSettings], modules: dict[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    return {
        f"{PREFIX}{wrapper}.{part}": shape
        for name, (wrapper, matrix) in lora_places(experts, modules).items()
        for part, shape in matrix.lora_shapes(experts[name].r).items()
    }


def _bottleneck_tensors(
    bottlenecks: dict[str, Bottleneck], linear: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {}
    for module, settings in bottlenecks.items():
        outputs = linear[module][1]
        inputs = linear[settings.reads][0] if settings.reads else outputs
        shapes = settings.shapes(inputs, outputs)
        tensors |= {f"{PREFIX}{module}.{part}": shape for part, shape in shapes.items()}
    return tensors


def _bias_tensors(modules: dict[str, nn.Module], names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {}
    for name in names:
        biases = {key: tuple(bias.shape) for key, bias in biases_of(modules[name]).items()}
        for key, shape in (biases or {"bias": in_out(modules[name])[1:]}).items():  # or the one that a matrix is given
            tensors[f"{PREFIX}{name}.{key}"] = shape
    return tensors


def _whole_tensors(modules: dict[str, nn.Module], names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    return {
        f"{PREFIX}{name}.{key}": tuple(parameter.shape)
        for name in names
        for key, parameter in modules[name].named_parameters()
    }


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _values(tensors: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, tensors.values()))

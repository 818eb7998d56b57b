"""What a user should read beside a plan: sentences about what could not be as asked."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable

from torch import nn

from spafit_hf.architecture import Layer, biases_of, is_linear, is_norm, takes_delta
from spafit_hf.architecture.experts import lora_places
from spafit_hf.architecture.new import new_parameters
from spafit_hf.planner.facts import PlanFacts
from spafit_hf.planner.text import some
from spafit_hf.strategy import EVERY_ROLE, MIXER_ROLES, NORM_ROLES, ROLES


def notes(
    result: PlanFacts, modules: dict[str, nn.Module], passed_over: list[str], idle: list[str]
) -> tuple[str, ...]:
    """The notes of a plan by strata; `passed_over` are the norms that were to get a delta and take none, `idle` the
    parameters that are `untrained`."""
    lines: list[str] = []
    for group in result.groups:
        if group.stratum is not None and not group.layers:
            stack = f" of the {group.stack}" if len(result.architecture.stacks) > 1 else ""
            lines.append(f"{group.name} has no layers at the depth{stack}.")
    without = [name for name in result.biases if not biases_of(modules[name])]
    if without:
        lines.append(f"{some(len(without), 'linear layer')} without a bias: the delta is added as one.")
    bare = [name for name in passed_over if not biases_of(modules[name])]
    across = [name for name in passed_over if name not in bare]
    for names, what in ((bare, "without a bias"), (across, "over another dimension than the last")):
        if names:
            kinds = ", ".join(sorted({type(modules[name]).__name__ for name in names}))
            lines.append(f"{some(len(names), 'norm')} {what} ({kinds}): left alone.")
    if idle:
        places = _places(dict.fromkeys(name.rpartition(".")[0] or name for name in idle))
        lines.append(f"not in the base's checkpoint, and frozen: {places}; its values are those of one load.")
    past = [name for name in dict.fromkeys((*result.lora, *result.biases)) if _is_read_past(name, modules)]
    if past:
        lines.append(
            f"no effect of LoRA and deltas on {_places(past)}: their attention hands the weights to torch's own "
            "function and never calls these modules, so nothing of them would get a gradient."
        )
    if any(isinstance(modules[name.rpartition(".")[0]], nn.TransformerEncoderLayer) for name in result.lora):
        lines.append(
            "plain PEFT passes over LoRA in nn.TransformerEncoderLayer in eval mode, where torch calls no modules: "
            "there, call torch.backends.mha.set_fastpath_enabled(False) first."
        )
    lines += _lacking_notes(result)
    lines += _frozen_notes(result, modules)
    lines += _fused_notes(result)
    sizes = result.linear | {name: each[1:] for name, (_, each) in lora_places(result.experts, modules).items()}
    every = result.lora | result.experts
    large = [name for name, each in every.items() if each.r * sum(sizes[name]) >= math.prod(sizes[name])]
    if large:
        lines.append(
            f"LoRA has at least as many parameters as the matrix it adapts in {some(len(large), 'module')}; lower r."
        )
    if result.bottlenecks:
        lines.append(NATIVE_NOTE)
    if result.strategy.outer_biases:
        convolutions = [
            name
            for name, module in modules.items()
            if isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.bias is not None
        ]
        if convolutions:
            lines.append(f"biases of convolutions ({', '.join(convolutions)}) stay frozen.")
    if result.strategy.name == "bitfit":
        lines.append(BITFIT_NOTE)
    return (*lines, *head_notes(result))


def untrained(result: PlanFacts, model: nn.Module) -> list[str]:
    """Names of the parameters that the base's checkpoint did not bring and that do not train all the same."""
    trained = [each for name in result.head for each in model.get_submodule(name).parameters()]
    trained += [bias for name in result.biases for bias in biases_of(model.get_submodule(name)).values()]
    known = {id(each) for each in trained}
    return [name for name in new_parameters(model) if id(model.get_parameter(name)) not in known]


NATIVE_NOTE = "plain PEFT has no bottleneck adapters: the folder is native, and needs spafit_hf to be read."

BITFIT_NOTE = (
    "bitfit trains every bias and no weight outside the head, so it is far below the 31.52 M that the paper gives for "
    "Full BitFit on BERT-large: that figure needs the embeddings (30.22 M) and the pooler (1.05 M) to train as well."
)


def head_notes(result: PlanFacts) -> tuple[str, ...]:
    """Notes where the strategy trains the head and the model has none, and where its layers are unknown."""
    lines = []
    if result.strategy.head and not result.head and not result.full:
        nothing = "" if result.trainable_parameters else ", so that nothing trains"
        lines.append(f"{result.model_class} has no new task head{nothing}.")
    if not result.architecture.stacks:
        lines.append("no layers could be told apart, so activations and step are not known: the figures say 0 and 1.")
    return tuple(lines)


def _lacking_notes(result: PlanFacts) -> list[str]:
    """What layers lack of attention and feed-forward, what stands in its place, and what the figures leave out."""
    lines = []
    for stack in result.architecture.stacks:
        of = f"of the {some(len(stack.layers), 'layer')} in {stack.path}"
        lacking: dict[tuple[str, ...], list[Layer]] = {}
        for layer in stack.layers:
            lacks = tuple(role for role in ROLES if role not in NORM_ROLES and not layer.modules[role])
            lacking.setdefault(lacks, []).append(layer)
        lines += [f"{len(layers)} {of} have no {', '.join(roles)}." for roles, layers in lacking.items() if roles]
        mixing = [layer for layer in stack.layers if layer.modules.get("mixer_in")]
        places = {
            role: _places(name.removeprefix(f"{layer.path}.") for layer in mixing for name in layer.names((role,)))
            for role in MIXER_ROLES
        }
        if mixing:
            parts = ", ".join(f"{role} ({place})" for role, place in places.items() if place)
            lines.append(
                f"{len(mixing)} {of} mix tokens in another way than attention. {parts}: LoRA on query, key and value "
                "means mixer_in there, and with attention_output mixer_out too."
            )
    if lines or result.experts:
        lines.append("figures of memory and step leave out experts, convolutions and scans.")
    for stack in result.architecture.stacks:
        first = stack.layers[0]
        if stack.depth:
            lines.append(f"{stack.path}: {stack.depth} layers run, with the weights of {len(stack.layers)}.")
        elif not first.more and first.path.rpartition(".")[0] != stack.path:
            lines.append(f"{stack.path}: the layers of its stages in a row; the figures count each on all tokens.")
    stacks = {stack.name: stack.layers for stack in result.architecture.stacks}
    for group in result.groups:
        where = f" of {group.stack}" if len(result.architecture.stacks) > 1 else ""
        if group.stratum is not None and group.stratum.trains_experts:
            without = [index for index in group.layers if not stacks[group.stack][index].experts]
            if without:
                lines.append(f"{group.name}{where} has no experts in {some(len(without), 'layer')}.")
        if group.stratum and group.layers and group.stratum.lora and not (group.lora_modules or group.experts):
            lines.append(f"{group.name}{where} has no {', '.join(group.stratum.lora)}, so no LoRA.")
    return lines


def _frozen_notes(result: PlanFacts, modules: dict[str, nn.Module]) -> list[str]:
    """What no stratum can name: every matrix that is neither in a role, nor in the head or the embeddings."""
    architecture = result.architecture
    layers = [layer for stack in architecture.stacks for layer in stack.layers]
    roleless: list[str] = []
    bare: list[str] = []
    experts: list[str] = []
    biases: list[str] = []
    stacks = {stack.name: stack.layers for stack in architecture.stacks}
    groups = [group for group in result.groups if group.stratum and group.trainable_parameters]
    changed = {stacks[group.stack][index].path for group in groups for index in group.layers}
    for layer in layers:
        for name in layer.others:
            if is_linear(modules[name]) or takes_delta(modules[name]):
                roleless.append(name.removeprefix(f"{layer.path}."))
        for name, module in (item for path in (layer.path, *layer.more) for item in modules[path].named_modules()):
            if not (is_linear(module) or is_norm(module) or isinstance(module, _OTHER_KINDS)):
                left_out = layer.path in changed and f"{layer.path}.{name}" not in result.biases
                of_experts = any(each.startswith(f"{layer.path}.{name}.") for each in layer.experts)
                for key, each in module._parameters.items():
                    if each is not None and each.dim() > 1:
                        its_own = f"{layer.path}.{name}.{key}" in layer.experts
                        kind = experts if its_own else biases if of_experts and "bias" in key else bare
                        if kind is not biases or left_out:
                            kind.append(f"{name}.{key}")
    apart = [*(prefix[:-1] for layer in layers for prefix in layer.prefixes), *architecture.head, *architecture.new]
    apart += architecture.new_biases
    apart += filter(None, [architecture.embeddings])
    outside = [
        name
        for name, module in modules.items()
        if is_linear(module) and not f"{name}.".startswith(tuple(f"{path}." for path in apart))
    ]
    found = (
        ("without a role in the layers", roleless),
        ("in the layers that are no matrix of their own (routers, kernels)", bare),
        ("outside the layers", outside),
    )
    lines = [f"frozen weights {what}: {_places(dict.fromkeys(names))}." for what, names in found if names]
    if experts and not result.experts:
        lines.append(f"experts train where a stratum names them (lora: [experts]), here in none: {_places(experts)}.")
    if biases:
        lines.append(
            f"frozen biases of experts: {_places(biases)}; they train in a stratum with the biases of intermediate "
            "and output, and without LoRA on experts."
        )
    return lines


def _is_read_past(name: str, modules: dict[str, nn.Module]) -> bool:
    """Whether the module around this one gives its weights to torch's attention: WavLM, nn.MultiheadAttention."""
    around, _, own = name.rpartition(".")
    codes = (getattr(method, "__code__", None) for method in vars(type(modules[around])).values())
    return any({"multi_head_attention_forward", own} <= {*code.co_names} for code in codes if code is not None)


_OTHER_KINDS = (nn.Embedding, nn.modules.conv._ConvNd)


def _places(names: Iterable[str]) -> str:
    """Names in short: what stands in a numbered list is that list, with how many there are."""
    counts = Counter(re.split(r"\.\d+\.", name)[0] + ".*" * bool(re.search(r"\.\d+\.", name)) for name in names)
    return ", ".join(f"{place} ({count} in it)" if place.endswith(".*") else place for place, count in counts.items())


def _fused_notes(result: PlanFacts) -> list[str]:
    """Where one matrix serves several roles and the strategy names only some of them."""
    notes: list[str] = []
    if not result.architecture.stacks:
        return []
    layer = result.architecture.stacks[0].layers[0]
    for stratum in result.strategy.strata:
        for part, roles in (("LoRA", stratum.lora_roles), ("the bias delta", stratum.bias_roles)):
            for module in layer.names(roles):
                serves = [role for role in EVERY_ROLE if module in layer.modules.get(role, ())]
                named = [role for role in serves if role in roles]
                if len(named) < len(serves):
                    short = module.removeprefix(f"{layer.path}.")
                    notes.append(
                        f"{short} is one matrix for {', '.join(serves)}: "
                        f"{part} covers all, not {', '.join(named)} alone."
                    )
    return list(dict.fromkeys(notes))

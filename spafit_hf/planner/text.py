"""Plans as text: a table of groups, a drawing of the layers, methods side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spafit_hf.architecture import Layer, Stack
from spafit_hf.architecture.experts import by_module
from spafit_hf.planner.cost import BATCH, SEQ, CostedPlan
from spafit_hf.strategy import EXPERT_ROLES, Strategy, layers_text
from spafit_hf.strategy.drawing import ABSENT, BOTTLENECK, MEANINGS, MIXED, WHOLE, columns, draw, mark, roles_to_draw


def plan_table(plan: CostedPlan, batch: int = BATCH, seq: int = SEQ) -> str:
    """One plan as a table: see `Plan.table`."""
    lines = [f"{plan.strategy.name} on {_model_text(plan)}"]
    lines += [f"scaled from {line}" for line in plan.scaling]
    rows = [("layers", "group", "what trains", "parameters", "share")]
    for group in plan.groups:
        where = layers_text(group.layers) if group.stack else ""
        if group.stack and len(plan.architecture.stacks) > 1:
            where = f"{group.stack} {where}"
        share = _percent(group.trainable_parameters / plan.total_parameters)
        rows.append((where, group.name, group.what, f"{group.trainable_parameters:,}", share))
    rows.append(("total", "", f"of {plan.total_parameters:,}", f"{plan.trainable_parameters:,}", _percent(plan.share)))
    lines += _text_table(rows, right=(3, 4))
    step = plan.flops_ratio(batch, seq)
    cached = plan.flops_ratio(batch, seq, cached_prefix=True)
    with_cache = f", {cached:.3f} with the frozen prefix cached" if cached < step else ""
    lines += [
        f"file       {_bytes(plan.adapter_bytes)} {'checkpoint' if plan.full else 'adapter'} (fp32)",
        f"memory     optimizer {_bytes(plan.optimizer_bytes)}, gradients {_bytes(plan.gradient_bytes)}, "
        f"activations {_bytes(plan.activation_bytes(batch, seq))} for {batch} x {seq} tokens "
        f"({plan.activation_ratio(seq):.3f} of full fine-tuning)",
        f"step       {_count(plan.flops(batch, seq).total)}FLOP ({step:.3f} of full fine-tuning{with_cache})",
    ]
    lines += [f"note       {note}" for note in plan.notes]
    return "\n".join(lines)


def layer_table(plan: CostedPlan) -> str:
    """A drawing of the strata: see `Plan.layer_table`."""
    lines = []
    layers = [layer for stack in plan.architecture.stacks for layer in stack.layers]
    there = [role for layer in layers for role, names in layer.modules.items() if names]
    experts = {*plan.experts, *plan.biases}.intersection(name for layer in layers for name in _experts(layer))
    roles = roles_to_draw([*there, *(EXPERT_ROLES if experts else ())])
    for stack in plan.architecture.stacks:
        title = f"{plan.strategy.name}, {len(stack.layers)} {_layers_of(stack, plan)}"
        starts = {group.layers[0]: group for group in plan.groups if group.stack == stack.name and group.layers}
        beside = {index: f"{group.name}: {group.what}" for index, group in starts.items()}
        rows = (
            (index, {role: _mark(plan, layer, role) for role in roles}, beside.get(index, ""))
            for index, layer in enumerate(stack.layers)
        )
        lines += [title, *draw(rows, roles)]
    outside = [f"{group.name}: {group.what}" for group in plan.groups if not group.stack]
    rare = () if plan.bottlenecks else (BOTTLENECK, MIXED)
    legend = [
        "   ".join(f"{each} {word}" for each, word in MEANINGS.items() if each not in rare),
        columns(roles),
    ]
    return "\n".join([*lines, *outside, *legend])


def _mark(plan: CostedPlan, layer: Layer, role: str) -> str:
    names = _experts(layer) if role in EXPERT_ROLES else layer.names((role,))
    if not names:
        return ABSENT
    if plan.full:
        return WHOLE
    lora = plan.lora | plan.experts
    return mark(*(any(name in part for name in names) for part in (lora, plan.biases, plan.bottlenecks)))


def _experts(layer: Layer) -> tuple[str, ...]:
    """The parameters of a layer's experts, which can have LoRA, and their modules, which can have a delta."""
    return (*layer.experts, *by_module(layer.experts))


def comparison_table(
    plans: Sequence[CostedPlan], batch: int = BATCH, seq: int = SEQ, *, refused: Iterable[tuple[Strategy, str]] = ()
) -> str:
    """Plans of one model side by side, a line for each; then a line for each reason why others were refused.

    Args:
        plans: of one model.
        batch, seq: examples of a step and tokens of each.
        refused: strategies that the model refuses, each with the reason.
    """
    first = plans[0]
    rows = [("method", "parameters", "share", "file", "optimizer", "activations", "step", "cached")]
    for each in plans:
        rows.append(
            (
                each.strategy.name,
                f"{each.trainable_parameters:,}",
                _percent(each.share),
                _bytes(each.adapter_bytes),
                _bytes(each.optimizer_bytes),
                f"{each.activation_ratio(seq):.3f}",
                f"{each.flops_ratio(batch, seq):.3f}",
                f"{each.flops_ratio(batch, seq, cached_prefix=True):.3f}",
            )
        )
    lines = [f"{_model_text(first)}, {first.total_parameters:,} parameters"]
    lines += _text_table(rows, right=range(1, 8))
    lines.append(
        f"activations and step: memory and FLOPs over full fine-tuning at {seq} tokens; "
        "cached: with the frozen prefix cached"
    )
    lines += [
        f"{each.strategy.name}: scaled from {line}" for each in plans for line in each.scaling if "group" in line
    ]
    lines += [f"note: {note}" for note in dict.fromkeys(note for each in plans for note in each.notes)]
    whom: dict[str, list[str]] = {}
    for strategy, reason in refused:
        whom.setdefault(reason, []).append(strategy.name)
    lines += [f"refused: {', '.join(names)}: {reason}" for reason, names in whom.items()]
    return "\n".join(lines)


def _text_table(rows: Sequence[tuple[str, ...]], right: Sequence[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = [str.rjust if i in right else str.ljust for i in range(len(widths))]
    lines = [
        "  ".join(put(cell, width) for put, cell, width in zip(align, row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    return [lines[0], rule, *lines[1:]]


def _model_text(plan: CostedPlan) -> str:
    depth = " + ".join(f"{len(stack.layers)} {_layers_of(stack, plan)}" for stack in plan.architecture.stacks)
    labels = f", {some(plan.num_labels, 'label')}" if plan.num_labels else ""
    return f"{plan.model_class} ({depth or 'layers unknown'}{labels})"


def _layers_of(stack: Stack, plan: CostedPlan) -> str:
    layers = "layers" if len(stack.layers) != 1 else "layer"
    return f"{stack.name} {layers}" if len(plan.architecture.stacks) > 1 else layers


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.{0 if count >= 100 * size else 2}f} {unit}"
    return f"{count} B"


def some(count: int, noun: str) -> str:
    """A count with its noun: "1 norm", "2 norms"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _count(count: int) -> str:
    for unit, size in (("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} "

"""FLOPs and saved activations of a training step, layer by layer; the package says first how they are counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spafit_hf.architecture import Layer, Stack
from spafit_hf.planner.facts import PlanFacts
from spafit_hf.strategy import CROSS_ROLES, LORA_ROLES, ROLES, Bottleneck

BATCH, SEQ = 16, 128
"""Examples and tokens per example for which `str(plan)` states memory and FLOPs (batch 16 is the paper's)."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one training step; a multiplication and an addition are two."""

    forward: int
    activation_gradient: int
    weight_gradient: int

    total = property(lambda self: self.forward + self.activation_gradient + self.weight_gradient, doc="All three.")


class Cost:
    """Adds up one layer, or the output matrix: FLOPs and values kept for the backward pass, per token.

    `grad` says whether the hidden states need a gradient at this point of the forward pass.
    """

    def __init__(self, plan: PlanFacts, full: bool, seq: int, grad: bool, in_prefix: bool = False) -> None:
        self.plan, self.full, self.seq, self.grad, self.in_prefix = plan, full, seq, grad, in_prefix
        self.forward = self.activation_gradient = self.weight_gradient = self.saved = 0
        self.biases = frozenset(plan.biases)

    def trains(self, name: str) -> bool:
        return self.keeps_input(name) or name in self.biases

    def keeps_input(self, name: str) -> bool:
        """The gradient of a matrix needs the input it was given; that of a bias does not."""
        return self.full or name in self.plan.lora

    def bottleneck(self, name: str, settings: Bottleneck, grad: bool) -> None:
        """Count the bottleneck adapter at a module, whose own input needs a gradient or not."""
        outputs = self.plan.linear[name][1]
        inputs = self.plan.linear[settings.reads][0] if settings.reads else outputs
        narrow = settings.shapes(inputs, outputs)["lora_down.bias"][0]
        self.forward += 2 * narrow * (inputs + outputs)
        self.activation_gradient += 2 * narrow * (outputs + inputs * grad)
        self.weight_gradient += 2 * narrow * (inputs + outputs)
        # Its input, and what goes into the activation and comes out of it: of relu and tanh the latter does for both.
        self.saved += inputs + narrow * (1 if settings.activation in ("relu", "tanh") else 2)

    def linear(self, name: str, grad: bool) -> bool:
        """Count a linear layer whose input needs a gradient or not; returns whether its output does."""
        inputs, outputs = self.plan.linear[name]
        self.forward += 2 * inputs * outputs
        self.activation_gradient += 2 * inputs * outputs * grad
        self.weight_gradient += 2 * inputs * outputs * self.full
        if name in self.plan.lora and not self.full:
            r = self.plan.lora[name].r
            self.forward += 2 * r * (inputs + outputs)
            self.activation_gradient += 2 * r * (outputs + inputs * grad)
            self.weight_gradient += 2 * r * (inputs + outputs)
            self.saved += r
        grad = grad or self.trains(name)
        settings = None if self.full else self.plan.bottlenecks.get(name)
        if settings is not None:
            self.bottleneck(name, settings, self.grad if settings.reads else grad)
        return grad or settings is not None

    def attention(self, layer: Layer, cross: bool, memory_grad: bool) -> None:
        """Self or cross attention; `memory_grad` says whether the encoder's states need a gradient."""
        query, key, value, output = (layer.names((role,)) for role in (CROSS_ROLES if cross else ROLES)[:4])
        if not (query or key or value):
            return
        out: dict[str, bool] = {}
        for name in dict.fromkeys([*query, *key, *value]):
            from_memory = cross and name not in query
            out[name] = self.linear(name, memory_grad if from_memory else self.grad)
        for source in (query, [name for name in (*key, *value) if name not in query]) if cross else (list(out),):
            if any(map(self.keeps_input, source)):
                self.saved += self.plan.linear[source[0]][0]
        q, k, v = (any(out[name] for name in names) for names in (query, key, value))
        width = sum(self.plan.linear[name][0] for name in output)
        product = 2 * self.seq * width  # one matrix product of the attention, per token
        self.forward += 2 * product
        self.activation_gradient += product * (v + (q or k) + q + k)
        if q or k or v:
            self.saved += sum(self.plan.linear[name][1] for name in out) + width
        self.grad |= not output and (q or k or v)  # what comes out is made of experts
        for name in output:
            if self.keeps_input(name) and not (q or k or v):
                self.saved += width  # otherwise the attention has kept it as its result
            self.grad |= self.linear(name, q or k or v)

    def norms(self, names: tuple[str, ...], width: int) -> None:
        for name in names:
            self.grad |= self.trains(name)
            self.saved += width * self.grad

    def mixer(self, layer: Layer) -> None:
        """The projections of a mixer; its convolution, its scan and its weights are not counted."""
        into, out_of = layer.names(("mixer_in",)), layer.names(("mixer_out",))
        if any(map(self.keeps_input, into)):
            self.saved += self.plan.linear[into[0]][0]
        inner = any([self.linear(name, self.grad) for name in into])
        self.saved += inner * sum(self.plan.linear[name][1] for name in into)
        for name in out_of:
            self.saved += self.plan.linear[name][0] * self.keeps_input(name)
            self.grad |= self.linear(name, inner)
        self.grad |= inner

    def feed_forward(self, layer: Layer) -> None:
        into, out_of = layer.modules["intermediate"], layer.modules["output"]
        if any(map(self.keeps_input, into)):
            self.saved += self.plan.linear[into[0]][0]
        inner = [self.linear(name, self.grad) for name in into]
        width = sum(self.plan.linear[name][0] for name in out_of)
        gated = sum(self.plan.linear[name][1] for name in into) == 2 * width
        if any(inner):
            # The input of the activation; in a gated feed-forward both factors of the product as well.
            self.saved += (self.plan.activation_tensors + 2 * gated) * width
        if any(map(self.keeps_input, out_of)):
            self.saved += width
        self.grad |= any([self.linear(name, any(inner)) for name in out_of])


def layer_costs(plan: PlanFacts, seq: int, *, full: bool) -> Iterator[Cost]:
    """The cost of each layer in turn, then of a language model's output matrix; `full`: as if every weight trained."""
    outer = (*plan.architecture.outer_norms, *plan.architecture.projections)
    start = full or any(name in plan.biases for name in outer if "embed" in name)
    memory_grad = grad = start
    for index, stack in enumerate(plan.architecture.stacks):
        prefix = 0 if full else prefix_length(plan, index)
        memory_grad, grad = grad, start
        for number, layer in enumerate(stack.layers):
            cost = Cost(plan, full, seq, grad, number < prefix)
            for cross in (False, True):
                cost.attention(layer, cross, memory_grad)
            cost.mixer(layer)
            width = _width(plan, layer)
            cost.norms(layer.names(("attention_norm", "cross_attention_norm")), width)
            cost.feed_forward(layer)
            cost.grad |= any(name in plan.experts for name in layer.experts)
            cost.norms(layer.modules["output_norm"], width)
            grad = cost.grad
            # Layers that are used again and again cost as much each time.
            for _ in range((stack.depth or len(stack.layers)) // len(stack.layers)):
                yield cost
    if plan.output_embeddings is not None:
        cost = Cost(plan, full, seq, grad)
        if cost.linear(plan.output_embeddings, grad):
            cost.saved += plan.linear[plan.output_embeddings][1]  # the log-softmax of the loss
        yield cost


def _width(plan: PlanFacts, layer: Layer) -> int:
    """Width of a layer's states: what its last matrix puts out, else what its first takes; 0 where it has none."""
    for role in ("output", "attention_output", "mixer_out"):
        if names := layer.names((role,)):
            return plan.linear[names[-1]][1]
    return next((plan.linear[name][0] for name in layer.names(LORA_ROLES)), 0)


def prefix_length(plan: PlanFacts, index: int) -> int:
    """Leading layers of a stack that can come from a cache: a decoder's only where its whole encoder is frozen."""
    if plan.full:
        return 0
    stacks = plan.architecture.stacks
    before = all(_frozen_layers(plan, stack) == len(stack.layers) for stack in stacks[:index])
    return _frozen_layers(plan, stacks[index]) if before else 0


def _frozen_layers(plan: PlanFacts, stack: Stack) -> int:
    """Leading layers in which nothing trains, neither by the strategy nor because it is new."""
    layers = stack.layers[: plan.strategy.of_stack(stack.name).prefix_length(stack.depth or len(stack.layers))]
    trains = (index for index, layer in enumerate(layers) if any(n.startswith(layer.prefixes) for n in plan.head))
    return next(trains, len(layers))


def check_step(batch: int, seq: int) -> None:
    """Refuse a batch or a length that is no positive integer."""
    for name, value in (("batch", batch), ("seq", seq)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a positive integer.")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0  # of a model whose layers are unknown


class CostedPlan(PlanFacts):
    """A plan with the figures of a training step."""

    def activation_bytes(self, batch: int = BATCH, seq: int = SEQ, *, element_size: int = 4) -> int:
        """Bytes of activations that one forward pass keeps for its backward pass.

        Of `batch` examples with `seq` tokens, padding included (in an encoder-decoder on both sides), in values of
        `element_size` bytes: 4 in fp32, 2 in bf16.
        """
        check_step(batch, seq)
        return element_size * batch * seq * sum(cost.saved for cost in layer_costs(self, seq, full=self.full))

    def flops(self, batch: int = BATCH, seq: int = SEQ, *, cached_prefix: bool = False) -> Flops:
        """FLOPs of one training step, forward and backward; `batch` and `seq` as in `activation_bytes`.

        With `cached_prefix` the states below the first layer that trains come from a cache and are not computed.
        """
        return self._flops(batch, seq, full=self.full, cached_prefix=cached_prefix)

    def flops_ratio(self, batch: int = BATCH, seq: int = SEQ, *, cached_prefix: bool = False) -> float:
        """FLOPs of one training step over those of full fine-tuning."""
        step = self.flops(batch, seq, cached_prefix=cached_prefix)
        return _share(step.total, self._flops(batch, seq, full=True, cached_prefix=False).total)

    def activation_ratio(self, seq: int = SEQ) -> float:
        """Activations kept for the backward pass over those of full fine-tuning."""
        kept, of_full = (sum(cost.saved for cost in layer_costs(self, seq, full=full)) for full in (self.full, True))
        return _share(kept, of_full)

    def _flops(self, batch: int, seq: int, *, full: bool, cached_prefix: bool) -> Flops:
        check_step(batch, seq)
        costs = list(layer_costs(self, seq, full=full))
        forward = sum(cost.forward for cost in costs if not (cached_prefix and cost.in_prefix))
        gradients = (sum(each.activation_gradient for each in costs), sum(each.weight_gradient for each in costs))
        return Flops(*(batch * seq * per_token for per_token in (forward, *gradients)))

    @property
    def prefix_lengths(self) -> dict[str, int]:
        """Stack name -> number of its leading layers that are frozen with all that feeds them."""
        return {stack.name: prefix_length(self, index) for index, stack in enumerate(self.architecture.stacks)}

    def to_dict(self, batch: int = BATCH, seq: int = SEQ) -> dict[str, Any]:
        """Everything as JSON types, with memory and FLOPs for a batch of `batch` examples of `seq` tokens."""
        sizes = ("trainable_parameters", "total_parameters", "share", "adapter_bytes")
        memory = ("weight_bytes", "optimizer_bytes", "gradient_bytes")
        return {
            "strategy": self.strategy.to_dict(),
            **{name: getattr(self, name) for name in ("model_type", "model_class", "num_labels")},
            "stacks": {stack.name: len(stack.layers) for stack in self.architecture.stacks},
            "scaling": list(self.scaling),
            "prefix_lengths": self.prefix_lengths,
            "groups": [group.to_dict() for group in self.groups],
            "head": list(self.head),
            "full": self.full,
            **{name: getattr(self, name) for name in (*sizes, *memory)},
            "step": {
                "batch": batch,
                "seq": seq,
                "activation_bytes": self.activation_bytes(batch, seq),
                "activation_ratio": self.activation_ratio(seq),
                "flops": self.flops(batch, seq).total,
                "flops_ratio": self.flops_ratio(batch, seq),
                "flops_ratio_cached_prefix": self.flops_ratio(batch, seq, cached_prefix=True),
            },
            "notes": list(self.notes),
        }

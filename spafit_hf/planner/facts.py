"""The plan itself: what trains, and the figures that follow from it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from spafit_hf.architecture import Architecture
from spafit_hf.planner import text
from spafit_hf.planner.cost import BATCH, SEQ, Flops, check_step, layer_costs, prefix_length
from spafit_hf.strategy import Strategy, Stratum


@dataclass(frozen=True)
class LoraSettings:
    """LoRA of one module, in PEFT's words."""

    r: int
    lora_alpha: float
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False

    @property
    def scaling(self) -> float:
        """Factor on B A x: lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


@dataclass(frozen=True)
class Group:
    """What trains in some layers of one stack, or outside the layers (then `stack` is "" and `layers` is ())."""

    name: str
    """The stratum's name, or "frozen"; outside the layers "outer biases", "outside the layers" or "head"."""
    stack: str
    """Name of the stack, "" outside the layers."""
    layers: tuple[int, ...]
    """Layers of the stack, from zero; () also for a stratum that is empty at this depth."""
    what: str
    """What trains, in words."""
    lora_modules: tuple[str, ...] = ()
    bias_modules: tuple[str, ...] = ()
    trainable_parameters: int = 0
    stratum: Stratum | None = None

    def to_dict(self) -> dict[str, Any]:
        """As a dict of JSON types, without the stratum (the strategy has it)."""
        return {
            "name": self.name,
            "stack": self.stack,
            "layers": list(self.layers),
            "what": self.what,
            "lora_modules": list(self.lora_modules),
            "bias_modules": list(self.bias_modules),
            "trainable_parameters": self.trainable_parameters,
        }


@dataclass(frozen=True)
class Plan:
    """What trains in one model under one strategy, and what it costs. Made by `plan`; `str(plan)` is a table."""

    strategy: Strategy
    architecture: Architecture
    model_type: str
    """`config.model_type`, such as "bert"."""
    model_class: str
    """Such as "BertForSequenceClassification"."""
    num_labels: int | None
    """Outputs of the task head; None where the model has no head."""
    num_layers: int
    """Layers of the first stack."""
    groups: tuple[Group, ...]
    """Strata and frozen layers in order of depth, stack by stack, then what trains outside the layers."""
    lora: dict[str, LoraSettings]
    """Module name -> its LoRA."""
    biases: tuple[str, ...]
    """Names of modules that get a bias delta. A linear layer without a bias gets the delta as one; a norm without one
    is not here."""
    head: tuple[str, ...]
    """Names of the modules of the task head that train whole; () where the strategy or the model has none."""
    full: bool
    """Every weight trains: there is nothing to adapt and no adapter."""
    trainable_parameters: int
    """Values that an optimizer trains: LoRA, deltas, head."""
    total_parameters: int
    """Parameters of the model before it is adapted, with its head; shared ones once."""
    weight_bytes: int
    """Bytes of these parameters in the model's own dtype."""
    tensors: dict[str, tuple[int, ...]] = field(repr=False)
    """Name -> shape of each trained tensor, as an adapter file holds them."""
    linear: dict[str, tuple[int, int]] = field(repr=False)
    """Name -> (inputs, outputs) of each linear layer in the layers, and of a language model's output matrix."""
    output_embeddings: str | None
    """Name of a language model's output matrix."""
    activation_tensors: int = 1
    """Tensors the activation function keeps for its backward pass: 4 for a GELU written out in Python (GPT-2, Phi)."""
    notes: tuple[str, ...] = ()
    """Sentences a user should read: what has no bias, what could not train, how a figure is meant."""

    # -- sizes --------------------------------------------------------------------------------------------------------

    @property
    def share(self) -> float:
        """Trained values over the parameters of the model, from 0 to 1."""
        return self.trainable_parameters / self.total_parameters

    @property
    def adapter_bytes(self) -> int:
        """Size of the adapter file: all trained tensors in fp32 in safetensors with the names PEFT gives them.

        The file of a run differs by some bytes per tensor (names), and more where it holds biases as LoRA of rank 1.
        """
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape in self.tensors.items():
            size = 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        length = len(json.dumps(header, separators=(",", ":")).encode())
        return 8 + length + -length % 8 + offset  # 8 bytes say how long the header is; it is padded to a multiple of 8

    @property
    def optimizer_bytes(self) -> int:
        """AdamW's two moments in fp32: 8 bytes per trained value."""
        return 8 * self.trainable_parameters

    @property
    def gradient_bytes(self) -> int:
        """Gradients in fp32: 4 bytes per trained value."""
        return 4 * self.trainable_parameters

    def activation_bytes(self, batch: int = BATCH, seq: int = SEQ, *, element_size: int = 4) -> int:
        """Bytes of activations that one forward pass keeps for its backward pass.

        Args:
            batch: examples.
            seq: tokens per example, padding included; in an encoder-decoder for both sides.
            element_size: bytes per value: 4 in fp32, 2 in bf16.
        """
        check_step(batch, seq)
        return element_size * batch * seq * sum(cost.saved for cost in layer_costs(self, seq, full=self.full))

    def flops(self, batch: int = BATCH, seq: int = SEQ, *, cached_prefix: bool = False) -> Flops:
        """FLOPs of one training step, forward and backward.

        Args:
            batch: examples.
            seq: tokens per example, padding included; in an encoder-decoder for both sides.
            cached_prefix: the hidden states below the first layer that trains come from a cache and are not computed.
        """
        return self._flops(batch, seq, full=self.full, cached_prefix=cached_prefix)

    def flops_ratio(self, batch: int = BATCH, seq: int = SEQ, *, cached_prefix: bool = False) -> float:
        """FLOPs of one training step over those of full fine-tuning."""
        step = self.flops(batch, seq, cached_prefix=cached_prefix)
        return step.total / self._flops(batch, seq, full=True, cached_prefix=False).total

    def activation_ratio(self, seq: int = SEQ) -> float:
        """Activations kept for the backward pass over those of full fine-tuning."""
        return sum(cost.saved for cost in layer_costs(self, seq, full=self.full)) / sum(
            cost.saved for cost in layer_costs(self, seq, full=True)
        )

    def _flops(self, batch: int, seq: int, *, full: bool, cached_prefix: bool) -> Flops:
        check_step(batch, seq)
        costs = list(layer_costs(self, seq, full=full))
        forward = sum(cost.forward for cost in costs if not (cached_prefix and cost.in_prefix))
        tokens = batch * seq
        return Flops(
            forward=tokens * forward,
            activation_gradient=tokens * sum(cost.activation_gradient for cost in costs),
            weight_gradient=tokens * sum(cost.weight_gradient for cost in costs),
        )

    # -- views --------------------------------------------------------------------------------------------------------

    @property
    def prefix_lengths(self) -> dict[str, int]:
        """Stack name -> number of its leading layers that are frozen with all that feeds them."""
        return {stack.name: prefix_length(self, index) for index, stack in enumerate(self.architecture.stacks)}

    @property
    def scaling(self) -> tuple[str, ...]:
        """What N1 and N2, or layers written for another depth, became here; () where nothing scaled."""
        lines = []
        for stack in self.architecture.stacks:
            line = self.strategy.scaling(len(stack.layers))
            if line:
                lines.append(f"{stack.name}: {line}" if len(self.architecture.stacks) > 1 else line)
        return tuple(lines)

    def to_dict(self, batch: int = BATCH, seq: int = SEQ) -> dict[str, Any]:
        """Everything as JSON types, with memory and FLOPs for a batch of `batch` examples of `seq` tokens."""
        return {
            "strategy": self.strategy.to_dict(),
            "model_type": self.model_type,
            "model_class": self.model_class,
            "num_labels": self.num_labels,
            "stacks": {stack.name: len(stack.layers) for stack in self.architecture.stacks},
            "scaling": list(self.scaling),
            "prefix_lengths": self.prefix_lengths,
            "groups": [group.to_dict() for group in self.groups],
            "head": list(self.head),
            "full": self.full,
            "trainable_parameters": self.trainable_parameters,
            "total_parameters": self.total_parameters,
            "share": self.share,
            "adapter_bytes": self.adapter_bytes,
            "weight_bytes": self.weight_bytes,
            "optimizer_bytes": self.optimizer_bytes,
            "gradient_bytes": self.gradient_bytes,
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

    def table(self, batch: int = BATCH, seq: int = SEQ) -> str:
        """The plan as a text table, with memory and FLOPs for a batch of `batch` examples of `seq` tokens."""
        return text.plan_table(self, batch, seq)

    def layer_table(self) -> str:
        """A drawing of the strata, a line per layer: L is LoRA, b a bias delta, + both, W every weight, . frozen."""
        return text.layer_table(self)

    def __str__(self) -> str:
        return self.table()

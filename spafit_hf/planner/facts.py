"""What a plan holds: which modules train and how, as names and numbers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from spafit_hf.architecture import Architecture
from spafit_hf.strategy import Bottleneck, LoraSettings, Strategy, Stratum


@dataclass(frozen=True)
class Group:
    """What trains in some layers of one stack, or outside the layers (then `stack` is "" and `layers` is ())."""

    name: str
    """The stratum's name, or "frozen"; outside the layers "outer biases", "outside the layers", "new biases",
    "new" or "head"."""
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
    bottleneck_modules: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    """Parameters of experts that get LoRA."""

    def to_dict(self) -> dict[str, Any]:
        """As a dict of JSON types, without the stratum (the strategy has it) and what is rare and not there."""
        rare = {"bottleneck_modules", "experts"}
        values = {key: value for key, value in vars(self).items() if key != "stratum" and (value or key not in rare)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


@dataclass(frozen=True)
class PlanFacts:
    """What trains in one model under one strategy, and how large that is."""

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
    bottlenecks: dict[str, Bottleneck]
    """Module name -> the bottleneck adapter that is added to its output."""
    head: tuple[str, ...]
    """Names of the modules that train whole: what is new with the task, its head last; () where nothing is new or
    the strategy leaves it alone."""
    full: bool
    """Every weight trains: there is nothing to adapt and no adapter."""
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
    experts: dict[str, LoraSettings] = field(default_factory=dict)
    """Name of a parameter with the matrices of experts -> its LoRA."""
    activation_tensors: int = 1
    """Tensors the activation function keeps for its backward pass: 4 for a GELU written out in Python (GPT-2, Phi)."""
    notes: tuple[str, ...] = ()
    """Sentences a user should read: what has no bias, what could not train, how a figure is meant."""
    obstacles: tuple[str, ...] = ()
    """Why no adapter could be made by it, though its figures hold: `get_spafit_model` refuses it with the first."""

    @cached_property
    def trainable_parameters(self) -> int:
        """Values that an optimizer trains: LoRA, deltas, head."""
        return sum(map(math.prod, self.tensors.values()))

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

    optimizer_bytes = property(lambda self: 8 * self.trainable_parameters, doc="AdamW's two moments in fp32.")
    gradient_bytes = property(lambda self: 4 * self.trainable_parameters, doc="Gradients in fp32.")

    @property
    def scaling(self) -> tuple[str, ...]:
        """What N1 and N2, or layers written for another depth, became here; () where nothing scaled."""
        stacks, of_stack = self.architecture.stacks, self.strategy.of_stack
        lines = ((each.name, of_stack(each.name).scaling(len(each.layers))) for each in stacks if not each.depth)
        return tuple(f"{name}: {line}" if len(stacks) > 1 else line for name, line in lines if line)

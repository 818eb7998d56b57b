"""Strategy x architecture -> plan: what trains in which layer of one model, and what that costs.

    strategy  ─┐
               ├─> plan ─> which modules get LoRA, which a bias delta, which head trains
    model ─────┘           parameters, adapter bytes, memory and FLOPs of a training step

A plan is made of names and numbers. The model may be on the meta device: no weights are downloaded, nothing is changed.

How the costs are counted, per token, over the layers (and the output matrix of a language model):

* a linear layer of a inputs and b outputs costs 2ab forward, 2ab for the gradient of its input where anything below it
  trains, 2ab for the gradient of its weight where it trains in full; LoRA of rank r costs 2r(a+b) in place of ab;
* attention over S tokens costs 4S times its width forward, and up to twice that backward;
* saved for the backward pass is each tensor once that autograd keeps: inputs of trained matrices, and, above the first
  trained module, query, key, value and result of the attention (fused kernel), inputs of norms and activations.

Left out as small: embeddings, softmax, norms, dropout masks, the task head, DoRA's norm of the weight.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from spafit_hf.architecture import Architecture, Layer, Stack, find_architecture, is_linear
from spafit_hf.strategy import METHODS, ROLES, Strategy, StrategyLike, Stratum, layers_text

ModelLike: TypeAlias = "str | os.PathLike[str] | PretrainedConfig | nn.Module"
"""A model as `plan` takes it: Hub id, folder, path of a config.json, config or model."""

BATCH, SEQ = 16, 128
"""Examples and tokens per example for which `str(plan)` states memory and FLOPs (batch 16 is the paper's)."""


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
    """The stratum's name; "frozen" for layers in no stratum; "outer biases", "outside the layers" or "head" outside them."""
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
class Flops:
    """Floating-point operations of one training step; a multiplication and an addition are two."""

    forward: int
    activation_gradient: int
    weight_gradient: int

    @property
    def total(self) -> int:
        """All three."""
        return self.forward + self.activation_gradient + self.weight_gradient


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
    """Names of modules that get a bias delta; a linear layer without a bias gets the delta as one, a norm without is not here."""
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
    """Tensors the activation function keeps for its backward pass: 4 for the GELU written out in Python (GPT-2, Phi)."""
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

        The file a run writes differs by a few bytes per tensor at most (names), or where it holds biases as LoRA of rank 1.
        """
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape in self.tensors.items():
            size = 4 * _product(shape)
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
        _check_step(batch, seq)
        return element_size * batch * seq * sum(cost.saved for cost in _costs(self, seq, full=self.full))

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
        return sum(cost.saved for cost in _costs(self, seq, full=self.full)) / sum(
            cost.saved for cost in _costs(self, seq, full=True)
        )

    def _flops(self, batch: int, seq: int, *, full: bool, cached_prefix: bool) -> Flops:
        _check_step(batch, seq)
        costs = list(_costs(self, seq, full=full))
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
        return {stack.name: _prefix(self, index) for index, stack in enumerate(self.architecture.stacks)}

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
        depth = " + ".join(f"{len(stack.layers)} {_layers_of(stack, self)}" for stack in self.architecture.stacks)
        labels = f", {self.num_labels} label{'s' * (self.num_labels != 1)}" if self.num_labels else ""
        lines = [f"{self.strategy.name} on {self.model_class} ({depth}{labels})"]
        lines += [f"scaled from {line}" for line in self.scaling]
        rows = [("layers", "group", "what trains", "parameters", "share")]
        for group in self.groups:
            where = layers_text(group.layers) if group.stack else ""
            if group.stack and len(self.architecture.stacks) > 1:
                where = f"{group.stack} {where}"
            share = f"{_percent(group.trainable_parameters / self.total_parameters)}"
            rows.append((where, group.name, group.what, f"{group.trainable_parameters:,}", share))
        rows.append(
            ("total", "", f"of {self.total_parameters:,}", f"{self.trainable_parameters:,}", _percent(self.share))
        )
        lines += _text_table(rows, right=(3, 4))
        step = self.flops_ratio(batch, seq)
        cached = self.flops_ratio(batch, seq, cached_prefix=True)
        with_cache = f", {cached:.3f} with the frozen prefix cached" if cached < step else ""
        lines += [
            f"file       {_bytes(self.adapter_bytes)} {'checkpoint' if self.full else 'adapter'} (fp32)",
            f"memory     optimizer {_bytes(self.optimizer_bytes)}, gradients {_bytes(self.gradient_bytes)}, activations "
            f"{_bytes(self.activation_bytes(batch, seq))} for {batch} x {seq} tokens ({self.activation_ratio(seq):.3f} of full fine-tuning)",
            f"step       {_count(self.flops(batch, seq).total)}FLOP ({step:.3f} of full fine-tuning{with_cache})",
        ]
        lines += [f"note       {note}" for note in self.notes]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def layer_table(self) -> str:
        """A drawing of the strata, one line per layer: L for LoRA, b for a bias delta, + for both, W for every weight."""
        lines = []
        for stack in self.architecture.stacks:
            title = f"{self.strategy.name}, {len(stack.layers)} {_layers_of(stack, self)}"
            lines += [title, "layer  " + "  ".join(_COLUMNS[role] for role in ROLES)]
            starts = {group.layers[0]: group for group in self.groups if group.stack == stack.name and group.layers}
            for index, layer in enumerate(stack.layers):
                marks = "  ".join(f"{self._mark(layer, role):<{len(_COLUMNS[role])}}" for role in ROLES)
                text = f"{starts[index].name}: {starts[index].what}" if index in starts else ""
                lines.append(f"{index:>5}  {marks}  {text}".rstrip())
        outside = [f"{group.name}: {group.what}" for group in self.groups if not group.stack]
        return "\n".join([*lines, *outside, "L LoRA   b bias delta   + both   W every weight   . frozen"])

    def _mark(self, layer: Layer, role: str) -> str:
        names = layer.modules[role]
        if self.full:
            return "W" if names else " "
        lora, bias = any(name in self.lora for name in names), any(name in self.biases for name in names)
        return ("+" if bias else "L") if lora else "b" if bias else "." if names else " "


_COLUMNS = {
    "query": "query",
    "key": "key",
    "value": "value",
    "attention_output": "attn.out",
    "attention_norm": "attn.norm",
    "intermediate": "ffn.in",
    "output": "ffn.out",
    "output_norm": "ffn.norm",
}


# -- making a plan ----------------------------------------------------------------------------------------------------


def plan(
    model: ModelLike,
    strategy: StrategyLike,
    num_labels: int | None = None,
    *,
    architecture: Architecture | None = None,
) -> Plan:
    """What `strategy` trains in `model`, and what that costs.

        plan("google-bert/bert-large-cased", "spafit-4-9-II", num_labels=3).trainable_parameters  # 7485443

    Args:
        model: a model (on any device, meta included), a config, a folder with a config.json, its path, or the id of a model on
            the Hub. Only the config is read: no weights are downloaded.
        strategy: a name, a `Strategy`, its dict, or a YAML or JSON file.
        num_labels: outputs of a classification head. None: the head that the config names if it names one that people fine-tune
            (sequence, token or image classification, question answering, language modeling), else sequence classification
            with the config's own number of labels, else (the model type has none) no head.
        architecture: where the parts of the model are, when they cannot be found (`Architecture.describe`).

    Raises:
        ValueError: when the model or the strategy cannot be read, does not fit the other, or its parts cannot be found.
    """
    strategy = Strategy.coerce(strategy)
    built = build_model(model, num_labels)
    return _plan(built, strategy, architecture or find_architecture(built))


def compare(
    model: ModelLike, strategies: Iterable[StrategyLike] = METHODS, num_labels: int | None = None
) -> tuple[Plan, ...]:
    """The plan of each strategy on one model; by default of every method of the paper's Table 1. See `comparison_table`."""
    built = build_model(model, num_labels)
    architecture = find_architecture(built)
    return tuple(_plan(built, Strategy.coerce(strategy), architecture) for strategy in strategies)


def comparison_table(plans: Sequence[Plan], batch: int = BATCH, seq: int = SEQ) -> str:
    """Plans of one model side by side, a line for each."""
    first = plans[0]
    depth = " + ".join(f"{len(stack.layers)} {_layers_of(stack, first)}" for stack in first.architecture.stacks)
    labels = f", {first.num_labels} label{'s' * (first.num_labels != 1)}" if first.num_labels else ""
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
    lines = [f"{first.model_class} ({depth}{labels}), {first.total_parameters:,} parameters"]
    lines += _text_table(rows, right=range(1, 8))
    lines.append(
        f"activations and step: memory and FLOPs over full fine-tuning at {seq} tokens; cached: with the frozen prefix cached"
    )
    notes = dict.fromkeys(note for each in plans for note in each.notes)
    lines += [
        f"{each.strategy.name}: scaled from {line}" for each in plans for line in each.scaling if "group" in line
    ]
    lines += [f"note: {note}" for note in notes]
    return "\n".join(lines)


def build_model(model: ModelLike, num_labels: int | None = None) -> nn.Module:
    """The model as a module without weights (meta device); a module is returned as it is.

    Args: as for `plan`.

    Raises:
        ValueError: when the config cannot be read or has no model class, or `num_labels` contradicts a model.
    """
    if num_labels is not None and (not isinstance(num_labels, int) or isinstance(num_labels, bool) or num_labels < 1):
        raise ValueError(f"num_labels is {num_labels!r}; it must be a positive integer (1 for regression).")
    if isinstance(model, nn.Module):
        own = model.config.num_labels if isinstance(model, PreTrainedModel) else None
        if num_labels is not None and num_labels != own:
            raise ValueError(
                f"num_labels is {num_labels} but the model was built with {own}; leave num_labels out, or pass the model's config."
            )
        return model
    config = copy.deepcopy(model if isinstance(model, PretrainedConfig) else _read_config(model))
    if num_labels is not None:
        config.num_labels = num_labels
    with torch.device("meta"):
        return _from_config(config, num_labels)


# Classes that are fine-tuned as they are; the masked language model that most encoders name is not among them.
_TASK_CLASS = re.compile(
    r"For(SequenceClassification|TokenClassification|ImageClassification|QuestionAnswering|MultipleChoice|CausalLM"
    r"|ConditionalGeneration)$|LMHeadModel$"
)
_LABELS_CLASS = re.compile(r"For(SequenceClassification|TokenClassification|ImageClassification)$")


def _from_config(config: PretrainedConfig, num_labels: int | None) -> nn.Module:
    wanted = _TASK_CLASS if num_labels is None else _LABELS_CLASS
    for name in config.architectures or ():
        kind = getattr(transformers, name, None) if wanted.search(name) else None
        if isinstance(kind, type) and issubclass(kind, PreTrainedModel):
            return kind(config)
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return AutoModelForSequenceClassification.from_config(config)
    if type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return AutoModelForImageClassification.from_config(config)
    if num_labels is not None:
        raise ValueError(
            f"model type {config.model_type!r} has no classification head in transformers {transformers.__version__}; "
            "leave num_labels out to plan for the model without one."
        )
    return AutoModel.from_config(config)


def _read_config(model: str | os.PathLike[str]) -> PretrainedConfig:
    """The config of a folder, a config.json or a Hub id."""
    if not isinstance(model, (str, os.PathLike)):
        raise ValueError(
            f"a model is {model!r}; it must be a Hub id, a folder, the path of a config.json, a config or a model."
        )
    name = os.fspath(model)
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        reason = (
            "it is an adapter; give its base model"
            if (path / "adapter_config.json").is_file()
            else "it has no config.json"
        )
        raise ValueError(f"{name}: not a model folder: {reason}.")
    if not path.exists() and (
        path.is_absolute() or name.startswith((".", "~")) or name.endswith(".json") or name.count("/") > 1
    ):
        raise ValueError(
            f"{name}: no such file or folder; check the path, or give a Hub id such as google-bert/bert-large-cased."
        )
    try:
        return AutoConfig.from_pretrained(name)
    except OSError as error:
        if path.exists():
            raise ValueError(f"{name}: the config cannot be read: {_first_sentence(error)}") from error
        raise ValueError(
            f"{name}: the config could not be fetched from the Hub ({_first_sentence(error)}); check the name and the connection, "
            "or pass a folder with a config.json, or the path of one."
        ) from error
    except (ValueError, KeyError) as error:
        raise ValueError(f"{name}: the config is not one transformers knows: {_first_sentence(error)}") from error


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _plan(model: nn.Module, strategy: Strategy, architecture: Architecture) -> Plan:
    modules = dict(model.named_modules())
    names = _linear_names(architecture)
    output = _output_embeddings(model, modules)
    linear = {name: _in_out(modules[name]) for name in (*names, *((output,) if output else ()))}
    parameters = dict(model.named_parameters())
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
        head=architecture.head if strategy.head else (),
        full=strategy.full,
        trainable_parameters=0,
        total_parameters=sum(parameter.numel() for parameter in parameters.values()),
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters.values()),
        tensors={},
        linear=linear,
        output_embeddings=output,
        activation_tensors=4 if any(type(module).__name__ == "NewGELUActivation" for module in modules.values()) else 1,
    )
    return _full_plan(base, model) if strategy.full else _strata_plan(base, modules)


def _full_plan(base: Plan, model: nn.Module) -> Plan:
    parameters = {name: parameter for name, parameter in model.named_parameters()}
    groups: list[Group] = []
    for stack in base.architecture.stacks:
        count = sum(parameter.numel() for name, parameter in parameters.items() if name.startswith(f"{stack.path}."))
        layers = tuple(range(len(stack.layers)))
        groups.append(Group("all layers", stack.name, layers, "every weight", trainable_parameters=count))
    prefixes = tuple(f"{name}." for name in base.head)
    head = sum(parameter.numel() for name, parameter in parameters.items() if prefixes and name.startswith(prefixes))
    outside = base.total_parameters - head - sum(group.trainable_parameters for group in groups)
    groups.append(Group("outside the layers", "", (), "every weight", trainable_parameters=outside))
    if base.head:
        groups.append(Group("head", "", (), ", ".join(base.head), trainable_parameters=head))
    return replace(
        base,
        groups=tuple(groups),
        trainable_parameters=base.total_parameters,
        tensors={name: tuple(parameter.shape) for name, parameter in parameters.items()},
        notes=_head_notes(base),
    )


def _strata_plan(base: Plan, modules: dict[str, nn.Module]) -> Plan:
    strategy, architecture = base.strategy, base.architecture
    tensors: dict[str, tuple[int, ...]] = {}
    lora: dict[str, LoraSettings] = {}
    biases: list[str] = []
    groups: list[Group] = []
    passed_over: list[str] = []
    for stack in architecture.stacks:
        for stratum, name, layers in _strata_of(strategy, stack):
            lora_modules: list[str] = []
            bias_modules: list[str] = []
            before = _values(tensors)
            if stratum is not None:
                for index in layers:
                    lora_modules += stack.layers[index].names(stratum.lora)
                    for module in stack.layers[index].names(stratum.biases):
                        (bias_modules if _bias_width(modules[module]) is not None else passed_over).append(module)
                settings = _settings(stratum)
                lora |= dict.fromkeys(lora_modules, settings)
                for module in lora_modules:
                    tensors |= _lora_tensors(module, base.linear[module], settings)
            tensors |= _bias_tensors(modules, bias_modules)
            biases += bias_modules
            what = stratum.what() if stratum is not None else "frozen"
            trained = _values(tensors) - before
            groups.append(
                Group(name, stack.name, layers, what, tuple(lora_modules), tuple(bias_modules), trained, stratum)
            )
    if strategy.outer_biases:
        outer = [
            name
            for name in (*architecture.outer_norms, *architecture.pooler, *architecture.projections)
            if isinstance(getattr(modules[name], "bias", None), torch.Tensor)
        ]
        before = _values(tensors)
        tensors |= _bias_tensors(modules, outer)
        biases += outer
        what = f"biases of {', '.join(outer)}" if outer else "no biases outside the layers"
        groups.append(Group("outer biases", "", (), what, (), tuple(outer), _values(tensors) - before))
    if strategy.head:
        before = _values(tensors)
        tensors |= {
            f"base_model.model.{head}.{name}": tuple(parameter.shape)
            for head in base.head
            for name, parameter in modules[head].named_parameters()
        }
        what = ", ".join(base.head) or "none: the model has no task head"
        groups.append(Group("head", "", (), what, trainable_parameters=_values(tensors) - before))
    result = replace(
        base,
        groups=tuple(groups),
        lora=lora,
        biases=tuple(biases),
        trainable_parameters=_values(tensors),
        tensors=tensors,
    )
    return replace(result, notes=_notes(result, modules, passed_over))


def _strata_of(strategy: Strategy, stack: Stack) -> list[tuple[Stratum | None, str, tuple[int, ...]]]:
    """The strata of a stack with names and layers, and the runs of layers in no stratum, in order of depth; empty strata last."""
    parts: list[tuple[Stratum | None, str, tuple[int, ...]]] = []
    for index, (stratum, layers) in enumerate(strategy.resolve(len(stack.layers))):
        parts.append((stratum, stratum.name or f"stratum {index + 1}", layers))
    taken = {layer for _, _, layers in parts for layer in layers}
    run: list[int] = []
    for layer in (*(each for each in range(len(stack.layers)) if each not in taken), None):
        if run and layer != run[-1] + 1:
            parts.append((None, "frozen", tuple(run)))
            run = []
        if layer is not None:
            run.append(layer)
    return sorted(parts, key=lambda part: part[2][0] if part[2] else len(stack.layers))


def _settings(stratum: Stratum) -> LoraSettings:
    return LoraSettings(stratum.r, stratum.lora_alpha, stratum.lora_dropout, stratum.use_rslora, stratum.use_dora)


def _lora_tensors(module: str, shape: tuple[int, int], settings: LoraSettings) -> dict[str, tuple[int, ...]]:
    inputs, outputs = shape
    prefix = f"base_model.model.{module}"
    tensors: dict[str, tuple[int, ...]] = {
        f"{prefix}.lora_A.weight": (settings.r, inputs),
        f"{prefix}.lora_B.weight": (outputs, settings.r),
    }
    if settings.use_dora:
        tensors[f"{prefix}.lora_magnitude_vector"] = (outputs,)
    return tensors


def _bias_tensors(modules: dict[str, nn.Module], names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    return {f"base_model.model.{name}.bias": (_bias_width(modules[name]) or 0,) for name in names}


def _values(tensors: dict[str, tuple[int, ...]]) -> int:
    return sum(map(_product, tensors.values()))


def _product(shape: Iterable[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _linear_names(architecture: Architecture) -> tuple[str, ...]:
    layers = [layer for stack in architecture.stacks for layer in stack.layers]
    roles = [role for role in ROLES if not role.endswith("norm")]
    return tuple(name for layer in layers for name in layer.names(roles))


def _in_out(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features  # a quantized weight has another shape, these are always true
    weight = module.get_parameter("weight")
    rows, columns = weight.shape
    return (rows, columns) if type(module).__name__ == "Conv1D" else (columns, rows)  # GPT-2's Conv1D is transposed


def _bias_width(module: nn.Module) -> int | None:
    """Length of a module's bias, its own or one it can be given; None for a norm without one."""
    bias = module._parameters.get("bias")
    if bias is not None:
        return bias.numel()
    return _in_out(module)[1] if is_linear(module) else None


def _output_embeddings(model: nn.Module, modules: dict[str, nn.Module]) -> str | None:
    table = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return next((name for name, module in modules.items() if module is table), None)


# -- notes ------------------------------------------------------------------------------------------------------------


def _notes(result: Plan, modules: dict[str, nn.Module], passed_over: list[str]) -> tuple[str, ...]:
    notes: list[str] = []
    for group in result.groups:
        if group.stratum is not None and not group.layers:
            stack = f" of the {group.stack}" if len(result.architecture.stacks) > 1 else ""
            notes.append(f"{group.name} has no layers at the depth{stack}.")
    without = [name for name in result.biases if modules[name]._parameters.get("bias") is None]
    if without:
        notes.append(f"{len(without)} linear layers have no bias; their delta is added as one.")
    if passed_over:
        kinds = ", ".join(sorted({type(modules[name]).__name__ for name in passed_over}))
        notes.append(f"{len(passed_over)} norms have no bias ({kinds}) and are left alone.")
    notes += _fused_notes(result)
    large = [
        name
        for name, each in result.lora.items()
        if each.r * sum(result.linear[name]) >= _product(result.linear[name])
    ]
    if large:
        notes.append(
            f"in {len(large)} modules LoRA has as many parameters as the matrix or more; a lower r does the same."
        )
    if result.strategy.outer_biases:
        convolutions = [
            name
            for name, module in modules.items()
            if isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.bias is not None
        ]
        if convolutions:
            notes.append(f"biases of convolutions ({', '.join(convolutions)}) stay frozen.")
    if result.strategy.name == "bitfit":
        notes.append(BITFIT_NOTE)
    return (*notes, *_head_notes(result))


BITFIT_NOTE = (
    "this trains every bias and nothing else, so it is far below the 31.52 M the paper gives for Full BitFit on BERT-large: that "
    "figure can only be reached with the embeddings (30.22 M) and the pooler (1.05 M) trainable as well."
)


def _head_notes(result: Plan) -> tuple[str, ...]:
    if result.strategy.head and not result.head and not result.full:
        nothing = "" if result.trainable_parameters else ", so that nothing trains"
        return (f"{result.model_class} has no new task head{nothing}.",)
    return ()


def _fused_notes(result: Plan) -> list[str]:
    """Where one matrix serves several roles and the strategy names only some of them."""
    notes = []
    layer = result.architecture.stacks[0].layers[0]
    for stratum in result.strategy.strata:
        for part, roles in (("LoRA", stratum.lora), ("the bias delta", stratum.biases)):
            for module in layer.names(roles):
                serves = [role for role in ROLES if module in layer.modules[role]]
                named = [role for role in serves if role in roles]
                if len(named) < len(serves):
                    short = module.removeprefix(f"{layer.path}.")
                    notes.append(
                        f"{short} is one matrix for {', '.join(serves)}: {part} covers all, not {', '.join(named)} alone."
                    )
    return list(dict.fromkeys(notes))


# -- costs ------------------------------------------------------------------------------------------------------------

_CROSS = re.compile(r"cross|encoder_attn|EncDec", re.IGNORECASE)


@dataclass(frozen=True)
class _Cost:
    """Of one layer, or of the output matrix: FLOPs and values kept for the backward pass, per token."""

    forward: int
    activation_gradient: int
    weight_gradient: int
    saved: int
    in_prefix: bool


class _Counter:
    """Adds up one layer; `grad` says whether the hidden states need a gradient at this point of the forward pass."""

    def __init__(self, plan: Plan, full: bool, seq: int, grad: bool) -> None:
        self.plan, self.full, self.seq, self.grad = plan, full, seq, grad
        self.forward = self.activation_gradient = self.weight_gradient = self.saved = 0
        self.biases = frozenset(plan.biases)

    def trains(self, name: str) -> bool:
        return self.full or name in self.plan.lora or name in self.biases

    def keeps_input(self, name: str) -> bool:
        """The gradient of a matrix needs the input it was given; that of a bias does not."""
        return self.full or name in self.plan.lora

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
        return grad or self.trains(name)

    def attention(self, layer: Layer, cross: bool, memory_grad: bool) -> None:
        """Self or cross attention; `memory_grad` says whether the encoder's states need a gradient."""
        query, key, value, output = (
            [name for name in layer.modules[role] if bool(_CROSS.search(name.removeprefix(layer.path))) == cross]
            for role in ("query", "key", "value", "attention_output")
        )
        if not value:
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
        for name in output:
            if self.keeps_input(name) and not (q or k or v):
                self.saved += width  # otherwise the attention has kept it as its result
            self.grad |= self.linear(name, q or k or v)

    def norms(self, names: tuple[str, ...]) -> None:
        for name in names:
            self.grad |= self.trains(name)
            self.saved += self.hidden * self.grad

    @property
    def hidden(self) -> int:
        first = self.plan.architecture.stacks[0].layers[0]
        return self.plan.linear[first.modules["output"][-1]][1]

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

    def cost(self, in_prefix: bool) -> _Cost:
        return _Cost(self.forward, self.activation_gradient, self.weight_gradient, self.saved, in_prefix)


def _costs(plan: Plan, seq: int, *, full: bool) -> Iterator[_Cost]:
    """The cost of each layer in turn, then of a language model's output matrix."""
    outer = (*plan.architecture.outer_norms, *plan.architecture.projections)
    start = full or any(name in plan.biases for name in outer if "embed" in name)
    memory_grad = grad = start
    for index, stack in enumerate(plan.architecture.stacks):
        prefix = 0 if full else _prefix(plan, index)
        memory_grad, grad = grad, start
        for number, layer in enumerate(stack.layers):
            counter = _Counter(plan, full, seq, grad)
            for cross in (False, True):
                counter.attention(layer, cross, memory_grad)
            counter.norms(layer.modules["attention_norm"])
            counter.feed_forward(layer)
            counter.norms(layer.modules["output_norm"])
            grad = counter.grad
            yield counter.cost(number < prefix)
    if plan.output_embeddings is not None:
        counter = _Counter(plan, full, seq, grad)
        if counter.linear(plan.output_embeddings, grad):
            counter.saved += plan.linear[plan.output_embeddings][1]  # the log-softmax of the loss
        yield counter.cost(False)


def _prefix(plan: Plan, index: int) -> int:
    """Leading layers of a stack that can come from a cache: a decoder's only where its whole encoder is frozen."""
    if plan.full:
        return 0
    lengths = [len(stack.layers) for stack in plan.architecture.stacks]
    before = all(plan.strategy.prefix_length(length) == length for length in lengths[:index])
    return plan.strategy.prefix_length(lengths[index]) if before else 0


def _check_step(batch: int, seq: int) -> None:
    for name, value in (("batch", batch), ("seq", seq)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a positive integer.")


# -- text -------------------------------------------------------------------------------------------------------------


def _text_table(rows: Sequence[tuple[str, ...]], right: Iterable[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = set(right)
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in aligned else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    rule = "  ".join("-" * width for width in widths)
    return [lines[0], rule, *lines[1:]]


def _layers_of(stack: Stack, plan: Plan) -> str:
    layers = "layers" if len(stack.layers) != 1 else "layer"
    return f"{stack.name} {layers}" if len(plan.architecture.stacks) > 1 else layers


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}" if count < 100 * size else f"{count / size:.0f} {unit}"
    return f"{count} B"


def _count(count: int) -> str:
    for unit, size in (("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} "

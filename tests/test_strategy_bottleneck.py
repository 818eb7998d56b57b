"""Bottleneck adapters as data: settings, files, and what a plan makes of them on a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import composed, tiny
from transformers import BertConfig

from spafit_hf import Strategy, Stratum, get_spafit_model, plan
from spafit_hf.architecture import find_architecture
from spafit_hf.planner import plan_each
from spafit_hf.planner.notes import NATIVE_NOTE
from spafit_hf.strategy import ADAPTER_METHODS
from spafit_hf.strategy.bottleneck import PARALLEL, SERIES, BottleneckSettings

BERT_LARGE_CASED = BertConfig(
    vocab_size=28996, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
)
MIXED = {
    "name": "mixed",
    "strata": [
        {"layers": [0, 0], "bottleneck": {"kind": "series", "reduction": 4}},
        {
            "layers": [2, 3],
            "lora": ["query", "output"],
            "r": 2,
            "biases": ["output"],
            "bottleneck": {"kind": "parallel"},
        },
    ],
}


@pytest.mark.parametrize("strategy", [*ADAPTER_METHODS, MIXED], ids=str)
def test_round_trips_are_exact(strategy: Any, tmp_path: Path) -> None:
    own = Strategy.coerce(strategy)
    assert Strategy.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    for ending in ("yaml", "json"):
        own.to_file(tmp_path / f"strategy.{ending}")
        assert Strategy.from_file(tmp_path / f"strategy.{ending}") == own


def test_what_is_left_open_is_the_presets() -> None:
    assert Stratum((0, 1), bottleneck={"kind": "series"}).bottleneck == SERIES
    assert Stratum((0, 1), bottleneck={"kind": "parallel", "reduction": 8}).bottleneck == BottleneckSettings(
        kind="parallel", reduction=8, activation="relu", scaling=4.0
    )
    assert Strategy.from_name("Parallel_Adapter").strata[0].bottleneck == PARALLEL


def test_strata_without_bottlenecks_are_written_as_before() -> None:
    for each in plan_each(tiny("bert")):
        assert "bottleneck" not in json.dumps([each.strategy.to_dict(), each.to_dict()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("series", "a bottleneck is 'series'; it must be a mapping"),
        ({}, "kind is None; allowed are series, parallel"),
        ({"kind": "serial"}, "kind is 'serial'"),
        ({"kind": "series", "width": 3}, "unknown key 'width'"),
        ({"kind": "series", "reduction": 0}, "reduction is 0; it must be an integer from 1 to 65536"),
        ({"kind": "series", "reduction": 2.0}, "reduction is 2.0"),
        ({"kind": "series", "reduction": 2**17}, "reduction is 131072"),
        ({"kind": "series", "activation": "eval"}, "activation is 'eval'; allowed are relu, gelu, swish, tanh"),
        ({"kind": "series", "scaling": float("nan")}, "scaling is nan"),
        ({"kind": "series", "scaling": 0}, "scaling is 0"),
    ],
)
def test_settings_that_cannot_be(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stratum.from_dict({"layers": [0, 1], "bottleneck": settings})


def test_an_unknown_name_is_shown_the_adapters() -> None:
    with pytest.raises(ValueError, match=r"series-adapter, parallel-adapter.*did you mean 'series-adapter'"):
        Strategy.from_name("serial-adapter")


@pytest.mark.parametrize(
    ("name", "per_layer", "narrow"), [("series-adapter", 2, 1024 // 16), ("parallel-adapter", 1, 1024 // 2)]
)
def test_parameters_to_the_digit(name: str, per_layer: int, narrow: int) -> None:
    """2 d m + d + m of each, as the library adapters 1.3.0 counts them: 6,343,680 and 25,202,688 on BERT-large."""
    each = plan(BERT_LARGE_CASED, name, num_labels=3)
    layers = 24 * per_layer * (2 * 1024 * narrow + 1024 + narrow)
    assert layers == {2: 6_343_680, 1: 25_202_688}[per_layer]
    assert each.trainable_parameters == layers + 3_075
    assert each.prefix_lengths == {"encoder": 0}
    assert NATIVE_NOTE in each.notes


@pytest.mark.parametrize("family", ["bert", "gpt2", "opt", "llama", "t5", "bart"])
@pytest.mark.parametrize("strategy", [*ADAPTER_METHODS, MIXED], ids=["series", "parallel", "mixed"])
def test_counts_are_those_of_a_model_that_trains(family: str, strategy: Any) -> None:
    each = plan(tiny(family), strategy)
    model = get_spafit_model(tiny(family), strategy)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == each.trainable_parameters
    there = {name.replace(".default", ""): tuple(p.shape) for name, p in trained.items() if ".lora_" in name}
    planned = {name: shape for name, shape in each.tensors.items() if ".lora_" in name}
    assert {name: shape for name, shape in there.items() if "lora_delta" not in name} == planned


@pytest.mark.parametrize("strategy", [*ADAPTER_METHODS, MIXED], ids=["series", "parallel", "mixed"])
def test_activations_are_what_autograd_keeps(strategy: Any) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "max_position_embeddings": 64}
    base = tiny("bert", **sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    each = plan(base, strategy)
    model = get_spafit_model(base, strategy).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # held on to, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=torch.randint(5, 50, (4, 64)), labels=torch.zeros(4, dtype=torch.long))
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert each.activation_bytes(4, 64) == pytest.approx(measured, rel=0.05)


def test_work_is_that_of_two_matrices() -> None:
    frozen, series = (plan(tiny("bert"), name) for name in ("linear-probe", "series-adapter"))
    d, m, layers = 16, 1, 4
    assert series.flops(1, 7).forward - frozen.flops(1, 7).forward == 7 * layers * 2 * 2 * m * 2 * d
    assert series.flops(1, 7).weight_gradient == 7 * layers * 2 * 2 * m * 2 * d


def test_drawing_and_words() -> None:
    text = plan(tiny("bert"), MIXED).layer_table()
    assert "    0  . . . A .  | . A .  stratum 1: series bottlenecks of 1/4 swish\n" in text
    assert "    1  . . . . .  | . . .  frozen: frozen\n" in text
    assert (
        "    2  L . . . .  | . * .  stratum 2: LoRA q,output r=2 alpha=128 + biases output + parallel bottlenecks"
        in text
    )
    assert "A bottleneck adapter   * bottleneck adapter, and LoRA or bias" in text
    assert "bottleneck" not in plan(tiny("bert"), "lora-I").layer_table()


def test_layers_without_the_place_are_refused_in_a_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"layer\.0 has 4 parts, and a parallel bottleneck stands beside one; take kind"
    ):
        plan(composed("mobilebert"), "parallel-adapter")
    model = tiny("bert")
    found = find_architecture(model)
    layer = found.stacks[0].layers[0]
    bare = replace(layer, modules=layer.modules | {"attention_output": ()})
    stack = replace(found.stacks[0], layers=(bare, *found.stacks[0].layers[1:]))
    with pytest.raises(
        ValueError, match=r"layer\.0 has no attention_output, where series bottlenecks go; take the layer"
    ):
        plan(model, "series-adapter", architecture=replace(found, stacks=(stack,)))

"""Plans: the paper's counts to the digit, what trains where, and figures held against real models and files."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import COMPOSED, composed, tiny
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PretrainedConfig,
    WavLMConfig,
    WavLMForSequenceClassification,
)

from benchmarks import architectures
from spafit_hf.architecture import describe_architecture, find_architecture, is_linear
from spafit_hf.planner import LoraSettings, Plan, build_model, comparison_table, plan, plan_each
from spafit_hf.strategy import EVERY_ROLE, METHODS, ROLES, Strategy, Stratum

BERT_LARGE_CASED = BertConfig(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=28996
)

# Table 2 of the paper in full, with a 3-label head; bitfit as it is meant, not as the paper counts it.
PAPER = {
    "full": 333_582_339,
    "bitfit": 24 * 11_264 + 1_024 + 1_024 + 3_075,
    "lora-I": 9_440_259,
    "lora-II": 12_585_987,
    "spafit-8-12-I": 4_441_091,
    "spafit-8-12-II": 5_882_883,
    "spafit-8-16-II": 3_806_211,
    "spafit-4-9-I": 5_650_435,
    "spafit-4-9-II": 7_485_443,
    "spafit-4-14-II": 4_889_603,
    "linear-probe": 3_075,
}

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "vocab_size": 100,
    "pad_token_id": 0,
}
BART = {
    "d_model": 64,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "vocab_size": 100,
}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 4, "num_heads": 4, "vocab_size": 100}


@pytest.fixture(scope="module")
def paper_plans() -> dict[str, Plan]:
    return {each.strategy.name: each for each in plan_each(BERT_LARGE_CASED, num_labels=3)}


def small(model_type: str, **changes: Any) -> PretrainedConfig:
    sizes = {"bart": BART, "t5": T5, "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 100}}
    return AutoConfig.for_model(model_type, **(sizes.get(model_type, SMALL) | changes))


# -- the paper's figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_papers_counts_to_the_digit(name: str, paper_plans: dict[str, Plan]) -> None:
    each = paper_plans[name]
    assert each.trainable_parameters == PAPER[name]
    assert each.total_parameters == 333_582_339
    assert sum(group.trainable_parameters for group in each.groups) == PAPER[name]


def test_plan_is_the_public_function() -> None:
    import spafit_hf

    assert spafit_hf.plan(BERT_LARGE_CASED, "SPAFIT-4-9-II", num_labels=3).trainable_parameters == 7_485_443
    assert spafit_hf.Plan is Plan


def test_bitfit_says_why_the_paper_has_another_figure(paper_plans: dict[str, Plan]) -> None:
    outside, note = paper_plans["bitfit"].notes
    assert outside == "frozen weights outside the layers: bert.pooler.dense."
    assert "31.52 M" in note
    assert note in str(paper_plans["bitfit"])
    model = build_model(BERT_LARGE_CASED, 3)
    embeddings = sum(each.numel() for each in model.bert.embeddings.parameters())
    pooler = sum(each.numel() for each in model.bert.pooler.parameters())
    assert (f"{embeddings / 1e6:.2f} M" in note, f"{pooler / 1e6:.2f} M" in note) == (True, True)
    assert 31.0e6 < embeddings + pooler < 31.52e6


# The limit of matrix products at 64 tokens: over full fine-tuning, over LoRA-II, and with the frozen prefix cached.
FLOPS = {
    "bitfit": (0.670, 0.947, 0.670, 0.947),
    "lora-I": (0.697, 0.985, 0.697, 0.985),
    "spafit-4-9-I": (0.615, 0.868, 0.545, 0.770),
    "spafit-4-9-II": (0.621, 0.877, 0.551, 0.779),
    "spafit-8-12-I": (0.555, 0.784, 0.430, 0.607),
    "spafit-8-12-II": (0.559, 0.790, 0.434, 0.614),
    "spafit-8-16-II": (0.552, 0.781, 0.427, 0.604),
    "spafit-4-14-II": (0.612, 0.865, 0.543, 0.767),
}


@pytest.mark.parametrize("name", FLOPS)
def test_flops_over_full_fine_tuning_and_lora(name: str, paper_plans: dict[str, Plan]) -> None:
    full, lora = (paper_plans[each].flops(8, 64).total for each in ("full", "lora-II"))
    step = paper_plans[name].flops(8, 64)
    cached = paper_plans[name].flops(8, 64, cached_prefix=True)
    got = (step.total / full, step.total / lora, cached.total / full, cached.total / lora)
    assert got == pytest.approx(FLOPS[name], abs=6e-4)
    assert paper_plans[name].flops_ratio(8, 64) == pytest.approx(got[0])
    assert paper_plans[name].flops_ratio(8, 64, cached_prefix=True) == pytest.approx(got[2])


def test_flops_by_hand() -> None:
    config = BertConfig(**SMALL)
    layer = 4 * 64 * 64 + 2 * 64 * 256
    attention = 2 * 16 * 64  # scores and values over 16 tokens
    full = plan(config, "full").flops(2, 16)
    assert full.forward == 2 * 16 * 4 * 2 * (layer + attention)
    assert full.activation_gradient == 2 * 16 * 4 * 2 * (layer + 2 * attention)
    assert full.weight_gradient == 2 * 16 * 4 * 2 * layer
    probe = plan(config, "linear-probe").flops(2, 16)
    assert (probe.forward, probe.activation_gradient, probe.weight_gradient) == (full.forward, 0, 0)
    assert plan(config, "linear-probe").flops(2, 16, cached_prefix=True).total == 0
    # Deltas on the last feed-forward output alone: nothing goes back through it.
    last = plan(config, Strategy((Stratum((3, 3), biases=("output",)),))).flops(2, 16)
    assert (last.activation_gradient, last.weight_gradient) == (0, 0)
    # LoRA on the last output: forward and both gradients of its two factors, but none into the layer.
    one = plan(config, Strategy((Stratum((3, 3), lora=("output",), r=2),))).flops(2, 16)
    assert one.forward - full.forward == 2 * 16 * 2 * 2 * (64 + 256)
    assert one.activation_gradient == 2 * 16 * 2 * 2 * 64
    assert one.weight_gradient == 2 * 16 * 2 * 2 * (64 + 256)


# -- held against real models -----------------------------------------------------------------------------------------


def wrap(model: nn.Module, each: Plan) -> nn.Module:
    """The plan carried out with stock PEFT and biases that train in place: the same tensors train."""
    for parameter in model.parameters():
        parameter.requires_grad = each.full
    if each.lora:
        settings = next(iter(each.lora.values()))
        get_peft_model(model, LoraConfig(r=settings.r, target_modules=list(each.lora), use_dora=settings.use_dora))
    for name in each.biases:
        module = model.get_submodule(name)
        module = module.get_submodule("base_layer") if hasattr(module, "base_layer") else module
        if module.bias is None:
            module.bias = nn.Parameter(torch.zeros(module.out_features))
        module.bias.requires_grad = True
    for name in each.head:
        model.get_submodule(name).requires_grad_(True)
    return model


STRATEGIES = (
    "full",
    "bitfit",
    "linear-probe",
    Strategy.from_name("lora-I", r=4),
    Strategy.from_name("spafit-4-9-I", r=4),
    Strategy.from_name("spafit-8-16-II", r=4, use_dora=True),
)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: getattr(strategy, "name", strategy))
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "t5", "bart"])
@pytest.mark.filterwarnings("ignore")
def test_counts_are_those_of_a_model_that_trains(model_type: str, strategy: Any) -> None:
    config = small(model_type)
    each = plan(config, strategy)
    model = wrap(AutoModelForSequenceClassification.from_config(config), each)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == each.trainable_parameters


NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "pad_token_id": 0},
    "llama": {},
    "bart": {"dropout": 0.0},
}


@pytest.mark.parametrize("strategy", STRATEGIES[:-1], ids=lambda strategy: getattr(strategy, "name", strategy))
@pytest.mark.parametrize(
    ("model_type", "tolerance"), [("bert", 0.05), ("llama", 0.12), ("bart", 0.05), ("gpt2", 0.15)]
)
@pytest.mark.filterwarnings("ignore")
def test_activations_are_what_autograd_keeps(model_type: str, tolerance: float, strategy: Any) -> None:
    config = small(model_type, **NO_DROPOUT[model_type])
    each = plan(config, strategy)
    model = wrap(AutoModelForSequenceClassification.from_config(config), each).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    # The tensors are held on to, so that no address is used twice.
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(5, 100, (4, 64))
    ids[:, -1] = 2
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, labels=torch.zeros(4, dtype=torch.long))
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    if each.activation_bytes(4, 64) == 0:
        assert measured < 2 * 4 * 64 * 64 * 4  # the input of the head, one hidden state at most
    else:
        assert each.activation_bytes(4, 64) == pytest.approx(measured, rel=tolerance)


@pytest.mark.parametrize("name", ["lora-II", "linear-probe"])
@pytest.mark.filterwarnings("ignore")
def test_adapter_bytes_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    config = small("bert")
    each = plan(config, Strategy.from_name(name, r=4))
    model = AutoModelForSequenceClassification.from_config(config)
    targets = list(each.lora) or ["bert.pooler.dense"]
    peft_config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=targets, modules_to_save=list(each.head))
    get_peft_model(model, peft_config).save_pretrained(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    if not each.lora:  # PEFT needs a LoRA module at least: take it off again, tensors and header
        size -= 4 * (4 * 64 + 64 * 4) + 2 * 130
        assert each.adapter_bytes == pytest.approx(size, abs=64)
    else:
        assert each.adapter_bytes == pytest.approx(size, abs=64)


def test_bytes_of_training_state() -> None:
    each = plan(small("bert"), "bitfit")
    assert each.optimizer_bytes == 8 * each.trainable_parameters
    assert each.gradient_bytes == 4 * each.trainable_parameters
    assert each.weight_bytes == 4 * each.total_parameters
    half = plan(small("bert", dtype="bfloat16"), "bitfit")
    assert half.activation_bytes(2, 8, element_size=2) * 2 == each.activation_bytes(2, 8)
    file = 4 * each.trainable_parameters
    assert file < each.adapter_bytes < file + 200 * len(each.tensors)


# -- what trains where ------------------------------------------------------------------------------------------------


def test_groups_of_a_scaled_strategy() -> None:
    each = plan(small("bert"), Strategy.from_name("spafit-4-9-II", r=4))
    assert [(group.name, group.stack, group.layers) for group in each.groups] == [
        ("group 1", "encoder", (0,)),
        ("group 2", "encoder", (1,)),
        ("group 3", "encoder", (2, 3)),
        ("head", "", ()),
    ]
    first, second, third, head = each.groups
    assert (first.lora_modules, first.bias_modules, first.trainable_parameters) == ((), (), 0)
    assert len(second.bias_modules) == 8
    assert second.trainable_parameters == 3 * 64 + 64 + 64 + 256 + 64 + 64
    assert len(third.lora_modules) == 8
    assert [name.removeprefix("bert.encoder.layer.2.") for name in third.bias_modules[:3]] == [
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    ]
    assert head.trainable_parameters == 2 * 64 + 2
    assert each.biases == (*second.bias_modules, *third.bias_modules)
    assert set(each.lora) == set(third.lora_modules)
    assert set(each.lora.values()) == {LoraSettings(r=4, lora_alpha=128)}
    assert each.head == ("classifier",)
    assert each.prefix_lengths == {"encoder": 1}
    assert each.scaling == (
        "24 -> 4 layers: group 1 0-4 -> 0, group 2 5-9 -> 1, group 3 10-23 -> 2-3 (N1 = 4 -> 0, N2 = 9 -> 1)",
    )


def test_each_stratum_has_its_own_lora() -> None:
    strategy = Strategy(
        (
            Stratum((2, 2), lora=("query",), r=2, lora_alpha=4, lora_dropout=0.1),
            Stratum((3, 3), lora=("value",), biases=("value",), r=8, lora_alpha=16, use_rslora=True),
        )
    )
    each = plan(small("bert"), strategy)
    assert each.lora == {
        "bert.encoder.layer.2.attention.self.query": LoraSettings(r=2, lora_alpha=4, lora_dropout=0.1),
        "bert.encoder.layer.3.attention.self.value": LoraSettings(r=8, lora_alpha=16, use_rslora=True),
    }
    assert [settings.scaling for settings in each.lora.values()] == [2.0, pytest.approx(16 / 8**0.5)]
    assert each.biases == ("bert.encoder.layer.3.attention.self.value",)
    assert [(group.name, group.layers) for group in each.groups if group.stack] == [
        ("frozen", (0, 1)),
        ("stratum 1", (2,)),
        ("stratum 2", (3,)),
    ]


def test_modules_without_a_bias_get_one_and_norms_do_not() -> None:
    each = plan(small("llama", num_key_value_heads=2), Strategy((Stratum((0, 0), biases=ROLES),)))
    assert each.biases == tuple(
        f"model.layers.0.{name}"
        for name in (
            *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
            *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        )
    )
    assert each.trainable_parameters == (64 + 32 + 32 + 64 + 256 + 256 + 64) + 2 * 64
    assert each.notes == (
        "7 linear layers without a bias: the delta is added as one.",
        "2 norms without a bias (LlamaRMSNorm): left alone.",
    )
    assert plan(small("llama"), "bitfit").groups[-2].bias_modules == ()  # no biases outside the layers


def test_fused_projections_are_counted_once() -> None:
    each = plan(small("gpt2"), Strategy((Stratum((0, 0), lora=("query", "value"), biases=("key",), r=2),)))
    assert list(each.lora) == ["transformer.h.0.attn.c_attn"] == list(each.biases)
    assert each.trainable_parameters == 2 * (64 + 192) + 192 + 2 * 64
    assert each.notes == (
        "attn.c_attn is one matrix for query, key, value: LoRA covers all, not query, value alone.",
        "attn.c_attn is one matrix for query, key, value: the bias delta covers all, not key alone.",
    )


def test_two_stacks_get_strata_each() -> None:
    config = small("t5", num_layers=6, num_decoder_layers=3, architectures=["T5ForConditionalGeneration"])
    each = plan(config, Strategy.from_name("spafit-4-9-II", r=2))
    assert each.model_class == "T5ForConditionalGeneration"
    layers = [(group.stack, group.name, group.layers) for group in each.groups if group.stack]
    assert layers == [
        ("encoder", "group 1", (0,)),
        ("encoder", "group 2", (1, 2)),
        ("encoder", "group 3", (3, 4, 5)),
        ("decoder", "group 1", (0,)),
        ("decoder", "group 3", (1, 2)),
        ("decoder", "group 2", ()),
    ]
    assert each.prefix_lengths == {"encoder": 1, "decoder": 0}
    assert "group 2 has no layers at the depth of the decoder." in each.notes
    assert "T5ForConditionalGeneration has no new task head." in each.notes
    assert any(name.startswith("decoder.block.1.layer.1.EncDecAttention") for name in each.lora)
    assert each.scaling[1].startswith("decoder: 24 -> 3 layers")
    config.architectures = ["T5ForSequenceClassification"]
    assert plan(config, Strategy((Stratum((0.99, 1.0), biases=ROLES),))).prefix_lengths == {"encoder": 6, "decoder": 3}


def test_bitfit_trains_every_bias_and_nothing_else() -> None:
    for model_type in ("bert", "electra", "gpt2", "vit"):
        sizes = {"image_size": 32, "patch_size": 8, "vocab_size": None} if model_type == "vit" else {}
        config = small(model_type, **({"embedding_size": 32} if model_type == "electra" else {}))
        if model_type == "vit":
            config = AutoConfig.for_model("vit", **{k: v for k, v in (SMALL | sizes).items() if v is not None})
        model = build_model(config)
        each = plan(config, "bitfit")
        biases = {name.removesuffix(".bias") for name, _ in model.named_parameters() if name.endswith(".bias")}
        heads = tuple(f"{name}" for name in each.head)
        expected = {name for name in biases if not name.startswith(heads)} - {
            "vit.embeddings.patch_embeddings.projection"
        }
        assert set(each.biases) == expected
        assert ("convolutions" in str(each)) == (model_type == "vit")


def small_model(name: str) -> nn.Module:
    """A small model of a class, without weights."""
    kind = getattr(transformers, name)
    with torch.device("meta"):
        model: nn.Module = kind(architectures.tiny(kind.config_class, ()))
    return model


OF_OTHER_KINDS = (
    "JetMoeForCausalLM", "ZayaForCausalLM", "NemotronHForCausalLM", "Qwen3NextForCausalLM",
    "HieraForImageClassification", "XLMForSequenceClassification", "FunnelForSequenceClassification",
    "AlbertForSequenceClassification",
)  # fmt: skip


@pytest.mark.parametrize("name", [*COMPOSED, "bert", "gpt2", "modernbert", "t5", *OF_OTHER_KINDS])
def test_no_matrix_is_left_out_in_silence(name: str) -> None:
    """Each is in a role of a layer, in the head, in the embeddings, or in a note."""
    model = small_model(name) if name in OF_OTHER_KINDS else composed(name) if name in COMPOSED else tiny(name)
    each = plan(model, "lora-II" if name.startswith("Albert") else "spafit-4-9-II")
    layers = [layer for stack in each.architecture.stacks for layer in stack.layers]
    roles = {module for layer in layers for module in layer.names(EVERY_ROLE)}
    parts = tuple(f"{part}." for part in (*each.head, each.architecture.embeddings) if part)
    for module, kind in model.named_modules():
        if is_linear(kind) and module not in roles and not f"{module}.".startswith(parts):
            inside = next((f"{layer.path}." for layer in layers if module.startswith(f"{layer.path}.")), "")
            place = re.split(r"\.\d+\.", module.removeprefix(inside))[0]
            assert any(note.startswith("frozen weights") and place in note for note in each.notes), module


def test_experts_train_where_a_stratum_names_them_and_else_a_note_says_so() -> None:
    notes = plan(composed("qwen2_moe"), "bitfit").notes
    assert "frozen weights in the layers that are no matrix of their own (routers, kernels): mlp.gate.weight." in notes
    names = "mlp.experts.gate_up_proj, mlp.experts.down_proj"
    idle = f"experts train where a stratum names them (lora: [experts]), here in none: {names}."
    assert idle in notes

    upper = Stratum((0.5, 1.0), ("query", "experts"), name="upper", r=2, lora_alpha=4)
    each = plan(composed("qwen2_moe"), Strategy((upper,)))
    layers = each.architecture.stacks[0].layers
    assert layers[0].experts == tuple(f"model.layers.0.{name}" for name in names.split(", "))
    assert tuple(each.experts) == layers[1].experts == each.groups[1].experts
    assert {(one.r, one.lora_alpha) for one in each.experts.values()} == {(2, 4)}
    # 4 experts, 32 to 16 and back, gate and up in one: 2 * 4 * ((32 + 2 * 16) + (16 + 32)), and a query's 2 * 64.
    assert [group.trainable_parameters for group in each.groups[:2]] == [0, 2 * 4 * 112 + 2 * 64]
    assert each.tensors["base_model.model.model.layers.1.mlp.experts.base_layer.lora_B.weight"] == (32, 8)
    assert each.tensors["base_model.model.model.layers.1.mlp.experts.lora_A.weight"] == (8, 16)
    assert idle not in each.notes
    assert "figures of memory and step leave out experts, convolutions and scans." in each.notes
    assert each.layer_table().splitlines()[2:5] == [
        "layer  q k v o n  | i o n  | e",
        "    0  . . . . .  | . . .  | .  frozen: frozen",
        "    1  L . . . .  | . . .  | L  upper: LoRA q,experts r=2 alpha=4",
    ]
    assert each.to_dict()["groups"][1]["experts"] == list(each.experts)
    assert not any("experts" in group for group in plan(composed("qwen2_moe"), "bitfit").to_dict()["groups"])


def test_experts_that_are_not_there_and_what_cannot_stand_beside_them() -> None:
    only = Strategy((Stratum((0.0, 1.0), ("experts",), r=2),), "only")
    with pytest.raises(ValueError, match=r"only puts LoRA on experts, and the layers of BertFor.* none of these"):
        plan(tiny("bert"), only)
    both = Strategy((Stratum((0.0, 1.0), ("query", "experts"), r=2, name="all"),))
    assert "all has no experts in 4 layers." in plan(tiny("bert"), both).notes

    upper = Stratum((0.5, 1.0), ("experts",), r=2)
    for lower, what in (
        (
            Stratum((0.0, 0.5), ("query",), use_dora=True),
            "DoRA on model.layers.0.self_attn.q_proj, .*take use_dora out",
        ),
        (
            Stratum((0.0, 0.5), biases=("attention_output",)),
            "a module without a bias, model.layers.0.self_attn.o_proj",
        ),
    ):
        with pytest.raises(ValueError, match=f"two has LoRA on experts and .*{what}"):
            plan(composed("qwen2_moe"), Strategy((lower, upper), "two"))


def test_an_attention_that_reads_the_weights_past_their_modules_is_noted() -> None:
    config = WavLMConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
    note = "no effect of LoRA and deltas on wavlm.encoder.layers.* (16 in it): "
    with torch.device("meta"):
        model = WavLMForSequenceClassification(config)
    for strategy in ("lora-II", "bitfit"):
        assert any(each.startswith(note) for each in plan(model, strategy).notes)
    assert not any(each.startswith("no effect") for each in plan(model, "linear-probe").notes)


def planned(name: str, strategy: Any) -> Plan:
    return plan(small_model(name), strategy)


def test_what_mixes_tokens_trains_in_the_place_of_attention() -> None:
    each = planned("RecurrentGemmaForCausalLM", Strategy.from_name("spafit-8-12-II", r=2))
    first = "model.layers.3.temporal_block."
    assert {name for name in each.lora if name.startswith(first)} == {
        f"{first}{name}" for name in ("linear_x", "linear_y", "linear_out")
    }
    assert {"model.layers.2.temporal_block.q_proj", "model.layers.2.temporal_block.o_proj"} <= {*each.lora}
    only_in = planned("RecurrentGemmaForCausalLM", Strategy.from_name("lora-I", r=2)).lora
    assert not any(name.endswith(("linear_out", "o_proj")) for name in only_in)
    assert "1 of the 4 layers in model.layers have no query, key, value, attention_output." not in each.notes
    assert "3 of the 4 layers in model.layers have no query, key, value, attention_output." in each.notes
    assert each.layer_table().splitlines()[1:3] == [
        "       attention  | feed-forw.  | mixer",
        "layer  q k v o n  | i o n  | i o",
    ]


def test_routers_and_experts_stay_frozen_and_are_named() -> None:
    each = planned("ZayaForCausalLM", "bitfit")
    assert not any(".gate." in name for name in each.biases)
    assert any("mlp.gate.router_mlp.fc1" in note and "mlp.gate.down_proj" in note for note in each.notes)
    each = planned("GptOssForCausalLM", Strategy.from_name("lora-II", r=2))
    assert "4 of the 4 layers in model.layers have no intermediate, output." in each.notes
    assert any(note.startswith("frozen weights") and "mlp.router.weight" in note for note in each.notes)
    names = "mlp.experts.gate_up_proj_bias, mlp.experts.down_proj_bias"
    assert any(note.startswith(f"frozen biases of experts: {names}; they train in") for note in each.notes)
    assert {name.rpartition(".")[2] for name in each.lora} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_one_layer_for_all_trains_as_one() -> None:
    with pytest.raises(ValueError, match=r"cuts 4 layers into strata.*'albert' has no strata.*Take bitfit, lora-I"):
        planned("AlbertForSequenceClassification", "spafit-4-9-II")
    for name in ("bitfit", "lora-I", "linear-probe", "full"):
        assert planned("AlbertForSequenceClassification", name).trainable_parameters
    each = planned("AlbertForSequenceClassification", Strategy.from_name("lora-II", r=2))
    assert len(each.lora) == 4
    assert "albert.encoder.albert_layer_groups: 4 layers run, with the weights of 1." in each.notes
    alone = planned("BertForSequenceClassification", Strategy.from_name("lora-II", r=2))
    assert each.flops().forward == alone.flops().forward  # of the same sizes, with four layers


def test_lora_on_what_no_layer_has_is_refused_with_what_is_there() -> None:
    with pytest.raises(ValueError, match=r"LoRA on query, key, value, attention_output, and .*they have intermediate"):
        planned("XLNetForSequenceClassification", "spafit-4-9-II")
    own = Strategy((Stratum((0, -1), lora=("intermediate",), r=2),))
    assert len(planned("XLNetForSequenceClassification", own).lora) == 4
    assert any("rel_attn.q," in note for note in planned("XLNetForSequenceClassification", "bitfit").notes)


def test_the_layers_of_all_stages_in_a_row() -> None:
    each = planned("SwinForImageClassification", Strategy.from_name("spafit-4-9-II", r=2))
    assert each.scaling[0].startswith("24 -> 12 layers")
    assert "swin.encoder.layers.1.blocks.0" not in str(each.lora)
    assert any(name.startswith("swin.encoder.layers.2.blocks.5.") for name in each.lora)
    assert any("the layers of its stages in a row" in note for note in each.notes)
    assert "swin.encoder.layers.0.downsample.norm" in planned("SwinForImageClassification", "bitfit").biases


def test_where_no_layers_can_be_told_head_and_whole_model_train() -> None:
    with pytest.raises(ValueError, match="take linear-probe or full"):
        planned("ResNetForImageClassification", "bitfit")
    for name in ("linear-probe", "full"):
        each = planned("ResNetForImageClassification", name)
        assert "(layers unknown, 2 labels)" in str(each)
        assert (each.activation_ratio(), each.flops_ratio(), each.num_layers) == (1.0, 1.0, 0)
        assert each.notes[-1].startswith("no layers could be told apart")


def test_every_bias_is_that_of_modules_without_a_role_too() -> None:
    biases = plan(composed("mobilebert"), "bitfit").biases
    assert "mobilebert.encoder.layer.0.bottleneck.attention.dense" in biases
    some = Strategy((Stratum((0, 1), biases=ROLES[:-1]),))
    assert not any(".bottleneck." in name for name in plan(composed("mobilebert"), some).biases)


def test_no_head() -> None:
    model = small("gpt2", architectures=["GPT2LMHeadModel"])
    for call in (plan, lambda model, strategy: plan_each(model, [strategy])):
        with pytest.raises(ValueError, match="linear-probe trains nothing in GPT2LMHeadModel, which has no new task"):
            call(model, "linear-probe")
    *_, each = plan_each(model)
    assert (each.head, each.num_labels, each.trainable_parameters) == ((), None, 0)
    assert "GPT2LMHeadModel has no new task head, so that nothing trains." in each.notes
    headless = Strategy((Stratum((0, 0), biases=ROLES),), head=False)
    assert plan(small("bert"), headless).head == ()
    assert plan(small("bert"), headless).num_labels == 2


def test_a_head_whose_name_ends_another_is_refused() -> None:
    """PEFT would wrap both."""
    model = tiny("bert")
    model.bert.encoder.layer[0].add_module("old_classifier", nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"classifier of Bert.* pretrained bert\..*old_classifier is one of them"):
        plan(model, "lora-I")
    assert plan(model, "full").full
    assert plan(model, Strategy((Stratum((0, 0), biases=ROLES),), head=False)).head == ()


def test_a_rank_that_saves_nothing_is_noted() -> None:
    notes = plan(small("bert"), "lora-I").notes
    assert notes[-1] == "LoRA has at least as many parameters as the matrix it adapts in 12 modules; lower r."


def test_language_models_count_their_output_matrix() -> None:
    config = small("gpt2", architectures=["GPT2LMHeadModel"])
    each, small_vocabulary = (plan(config, "bitfit"), plan(small("gpt2", vocab_size=64), "bitfit"))
    assert each.output_embeddings == "lm_head"
    assert each.flops(1, 8).forward - small_vocabulary.flops(1, 8).forward == 8 * 2 * 64 * 100


# -- where the model comes from ---------------------------------------------------------------------------------------


def test_every_source_gives_the_same_plan(tmp_path: Path) -> None:
    config = small("bert")
    config.save_pretrained(tmp_path)
    sources = [config, tmp_path, str(tmp_path), tmp_path / "config.json", build_model(config)]
    sources.append(BertForSequenceClassification(config))
    first, *others = (plan(source, "spafit-4-9-I") for source in sources)
    assert all(other == first for other in others)


def test_the_config_is_left_alone() -> None:
    config = small("bert")
    before = config.to_dict()
    assert plan(config, "bitfit", num_labels=5).num_labels == 5
    assert config.to_dict() == before


@pytest.mark.parametrize(
    ("model_type", "architectures", "num_labels", "expected"),
    [
        ("bert", None, None, "BertForSequenceClassification"),
        ("bert", ["BertForMaskedLM"], None, "BertForSequenceClassification"),
        ("bert", ["BertModel"], 3, "BertForSequenceClassification"),
        ("bert", ["BertForTokenClassification"], None, "BertForTokenClassification"),
        ("bert", ["BertForTokenClassification"], 9, "BertForTokenClassification"),
        ("bert", ["BertForQuestionAnswering"], None, "BertForQuestionAnswering"),
        ("bert", ["BertForQuestionAnswering"], 3, "BertForSequenceClassification"),
        ("bert", ["RobertaForTokenClassification"], None, "BertForSequenceClassification"),
        ("bert", ["NoSuchForTokenClassification"], None, "BertForSequenceClassification"),
        ("llama", ["LlamaForCausalLM"], None, "LlamaForCausalLM"),
        ("llama", ["LlamaForCausalLM"], 2, "LlamaForSequenceClassification"),
        ("t5", ["T5ForConditionalGeneration"], None, "T5ForConditionalGeneration"),
        ("vit", None, 10, "ViTForImageClassification"),
        ("dinov2", None, None, "Dinov2ForImageClassification"),
        ("data2vec-audio", None, None, "Data2VecAudioModel"),
    ],
)
def test_which_class_is_planned_for(
    model_type: str, architectures: list[str] | None, num_labels: int | None, expected: str
) -> None:
    config = small(model_type, architectures=architectures)
    assert type(build_model(config, num_labels)).__name__ == expected


def test_a_model_described_by_hand() -> None:
    config = small("bert")
    model = build_model(config)
    found = find_architecture(model)
    roles = {
        role: [name.removeprefix("bert.encoder.layer.0.") for name in names]
        for role, names in found.stacks[0].layers[0].modules.items()
    }
    described = describe_architecture(model, layers="bert.encoder.layer", roles=roles, pooler=["bert.pooler.dense"])
    assert plan(model, "bitfit", architecture=described).biases == plan(model, "bitfit").biases


def test_sources_that_are_wrong(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "other.json").write_text('{"model_type": "nonsense"}')
    (tmp_path / "typed.json").write_text('{"model_type": "bert", "hidden_size": "wide"}')
    (tmp_path / "heads.json").write_text('{"model_type": "bert", "hidden_act": "nope"}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for source, message in [
        (tmp_path / "nowhere", "no such file or folder"),
        ("./nowhere/config.json", "no such file or folder"),
        (tmp_path / "bad.json", "the config cannot be read: .*not a valid JSON"),
        (tmp_path / "other.json", "not one transformers knows: .*nonsense"),
        (tmp_path / "typed.json", "not one transformers knows: .*hidden_size"),
        (tmp_path / "heads.json", "config of model type 'bert' makes no model: 'nope'"),
        (tmp_path / "empty", "not a model folder: it has no config.json"),
        (tmp_path / "adapter", "it is an adapter; give its base model"),
        (None, "it must be a Hub id, a folder"),
        (3, "it must be a Hub id, a folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            plan(source, "bitfit")  # type: ignore[arg-type]


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.\nCheck your connection.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(ValueError, match=r"could not be fetched from the Hub .*or pass a folder with a config\.json"):
        plan("google-bert/bert-large-cased", "bitfit")


@pytest.mark.parametrize("place", ["bert", "bert.encoder.layer.3", "classifier"])
@pytest.mark.parametrize("around", [partial(torch.compile, backend="eager"), nn.DataParallel])
def test_parts_whose_names_would_change_are_refused(place: str, around: Any) -> None:
    model = tiny("bert")
    model.set_submodule(place, around(model.get_submodule(place)))
    with pytest.raises(ValueError, match=rf"^{place} is within (OptimizedModule|DataParallel), and what trains there"):
        plan(model, "spafit-4-9-II")
    inplace = tiny("bert")
    inplace.get_submodule(place).compile(backend="eager")
    assert plan(inplace, "spafit-4-9-II").tensors == plan(tiny("bert"), "spafit-4-9-II").tensors
    with pytest.raises(ValueError, match=r"^the model is within .*: give the model that is within"):
        plan(around(tiny("bert")), "bitfit")


def test_wrong_arguments() -> None:
    config = small("bert")
    for num_labels in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="num_labels is"):
            plan(config, "bitfit", num_labels=num_labels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"num_labels is 3 but the model was built with 2"):
        plan(build_model(config), "bitfit", num_labels=3)
    with pytest.raises(ValueError, match="has no classification head in transformers"):
        plan(small("data2vec-audio"), "bitfit", num_labels=3)
    with pytest.raises(ValueError, match="did you mean 'bitfit'"):
        plan(config, "bitfitt")
    with pytest.raises(ValueError, match="beyond the last layer: there are 4"):
        plan(config, Strategy.from_bounds(1, 4))
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="positive integer"):
            plan(config, "bitfit").flops(size, 8)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="positive integer"):
            plan(config, "bitfit").activation_bytes(8, size)  # type: ignore[arg-type]


# -- text -------------------------------------------------------------------------------------------------------------


def test_the_table(paper_plans: dict[str, Plan]) -> None:
    assert str(paper_plans["spafit-4-9-II"]) == (
        "spafit-4-9-II on BertForSequenceClassification (24 layers, 3 labels)\n"
        "layers  group    what trains                                                           parameters   share\n"
        "------  -------  --------------------------------------------------------------------  ----------  ------\n"
        "0-4     group 1  frozen                                                                         0  0.00 %\n"
        "5-9     group 2  every bias                                                                56,320  0.02 %\n"
        "10-23   group 3  LoRA q,k,v,o r=64 alpha=128 + biases intermediate,output,output_norm   7,426,048  2.23 %\n"
        "        head     classifier                                                                 3,075  0.00 %\n"
        "total            of 333,582,339                                                         7,485,443  2.24 %\n"
        "file       29.97 MB adapter (fp32)\n"
        "memory     optimizer 59.88 MB, gradients 29.94 MB, activations 1.74 GB for 16 x 128 tokens "
        "(0.540 of full fine-tuning)\n"
        "step       2.36 TFLOP (0.623 of full fine-tuning, 0.554 with the frozen prefix cached)\n"
        "note       frozen weights outside the layers: bert.pooler.dense."
    )


def test_the_drawing_of_the_layers() -> None:
    each = plan(small("phi"), Strategy.from_name("spafit-4-9-I", r=4).with_bounds(0, 1))
    assert each.layer_table() == (
        "spafit-0-1-I-absolute, 4 layers\n"
        "       attention  | feed-forw.\n"
        "layer  q k v o n  | i o n\n"
        "    0  . . . . .  | . .    group 1: frozen\n"
        "    1  b b b b b  | b b    group 2: every bias\n"
        "    2  L L L . .  | b b    group 3: LoRA q,k,v r=4 alpha=128 + biases intermediate,output,output_norm\n"
        "    3  L L L . .  | b b\n"
        "head: score\n"
        "L LoRA   b bias   + LoRA and bias   W every weight   . frozen\n"
        "q query, k key, v value, o output and n norm of the attention; i in, o out and n norm of the feed-forward"
    )
    assert "    0  W W W W W  | W W W" in plan(small("bert"), "full").layer_table()
    both = Strategy((Stratum((0, 0), lora=("query",), biases=("query",), r=2),))
    assert "    0  + . . . .  | . . ." in plan(small("bert"), both).layer_table()


def test_methods_side_by_side(paper_plans: dict[str, Plan]) -> None:
    text = comparison_table(tuple(paper_plans.values()), 8, 64)
    assert text.startswith("BertForSequenceClassification (24 layers, 3 labels), 333,582,339 parameters\nmethod ")
    for name in METHODS:
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
        assert f"{PAPER[name]:,}" in line
    assert "0.621   0.551" in text
    assert "31.52 M" in text
    assert "spafit-4-9-I: scaled from 24 -> 4 layers" in comparison_table(plan_each(small("bert")))


@pytest.mark.parametrize("name", METHODS)
def test_to_dict_is_json(name: str) -> None:
    each = plan(small("bart"), name)
    data = json.loads(json.dumps(each.to_dict(4, 32)))
    assert data == each.to_dict(4, 32)
    assert data["trainable_parameters"] == each.trainable_parameters
    assert data["adapter_bytes"] == each.adapter_bytes
    assert data["step"]["flops"] == each.flops(4, 32).total
    assert Strategy.from_dict(data["strategy"]) == each.strategy
    assert sum(group["trainable_parameters"] for group in data["groups"]) == each.trainable_parameters


def test_self_and_cross_attention_apart() -> None:
    apart = Stratum((0, -1), lora=("query", "cross_value"), biases=("cross_attention_norm",), r=2, stack="decoder")
    each = plan(small("bart"), Strategy((apart,)))
    assert {name.rpartition("layers.")[2][2:] for name in each.lora} == {"self_attn.q_proj", "encoder_attn.v_proj"}
    assert {name.rpartition(".")[2] for name in each.biases} == {"encoder_attn_layer_norm"}
    both = plan(small("bart"), Strategy((Stratum((0, -1), lora=("query",), r=2, stack="decoder"),)))
    assert {name.rpartition("layers.")[2][2:] for name in both.lora} == {"self_attn.q_proj", "encoder_attn.q_proj"}
    drawn = each.layer_table().splitlines()
    assert "       attention  | cross att.  | feed-forw." in drawn
    assert any(line.startswith("    0  L . . . .  | . . L . b  | . . .  stratum 1") for line in drawn)
    assert any(line.endswith("the same of the cross attention") for line in drawn)


def test_a_frozen_encoder_and_a_decoder_in_strata() -> None:
    strategy = Strategy(
        (
            Stratum((0, 1), biases=("output",), stack="decoder"),
            Stratum((2, -1), lora=("query", "value"), r=2, stack="decoder"),
        )
    )
    found = plan(small("t5"), strategy)
    assert found.lora
    assert all(".decoder." in f".{name}" for name in (*found.lora, *found.biases))
    depth = len(found.architecture.stacks[0].layers)
    assert found.prefix_lengths == {"encoder": depth, "decoder": 0}
    assert [group.what for group in found.groups if group.stack == "encoder"] == ["frozen"]
    with pytest.raises(ValueError, match=r"stack 'decodr', and .* has encoder, decoder; name one of these"):
        plan(small("t5"), Strategy((Stratum((0, 1), biases=ROLES, stack="decodr"),)))

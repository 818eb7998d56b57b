"""Architectures: every part of well-known model types, as a table says, and of others."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers as hf
from layouts import LAYOUTS
from models import COMPOSED, FAMILIES, composed
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from benchmarks.architectures import DEPTH, tiny
from spafit_hf.architecture import Architecture, describe_architecture, find_architecture, is_linear, is_norm
from spafit_hf.strategy import CROSS_ROLES, EVERY_ROLE, NORM_ROLES, ROLES

COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 64,
    "pad_token_id": 0,
}
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 8}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 64,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "vocab_size": 64}

KNOWN: dict[str, dict[str, Any]] = {
    "bert": COMMON,
    "roberta": COMMON,
    "xlm-roberta": COMMON,
    "camembert": COMMON,
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "vocab_size": 64},
    "electra": COMMON | {"embedding_size": 16},
    "mpnet": COMMON,
    "deberta-v2": COMMON
    | {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": False,
        "norm_rel_ebd": "layer_norm",
    },
    "modernbert": COMMON,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "vocab_size": 64,
        "word_embed_proj_dim": 16,
    },
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "mistral": GROUPED,
    "gemma": GROUPED,
    "gemma2": GROUPED,
    "gemma3_text": GROUPED,
    "phi": COMMON,
    "phi3": GROUPED,
    "t5": T5,
    "bart": BART,
    "vit": {key: value for key, value in COMMON.items() if key not in ("vocab_size", "pad_token_id")}
    | {"image_size": 32, "patch_size": 8},
}

AUTO_CLASSES = (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
    AutoModelForMultipleChoice,
    AutoModelForImageClassification,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForMaskedLM,
)

# Linear layers and norms in a layer that play no role, on purpose.
LEFT_OUT = {"qwen3": ("q_norm", "k_norm"), "gemma3_text": ("q_norm", "k_norm")}


def config_of(model_type: str, **changes: Any) -> PretrainedConfig:
    return AutoConfig.for_model(model_type, **(KNOWN[model_type] | changes))


def meta(auto: Any, config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return auto.from_config(config)


def classes_of(model_type: str) -> list[Any]:
    config = config_of(model_type)
    return [auto for auto in AUTO_CLASSES if type(config) in auto._model_mapping]


CASES = [(model_type, auto) for model_type in KNOWN for auto in classes_of(model_type)]
IDS = [f"{model_type}-{auto.__name__.removeprefix('AutoModel') or 'Model'}" for model_type, auto in CASES]


def names_in(architecture: Architecture) -> list[str]:
    """Every name an architecture holds."""
    layers = [layer for stack in architecture.stacks for layer in stack.layers]
    in_layers = [name for layer in layers for name in (*layer.names(EVERY_ROLE), *layer.others, layer.path)]
    outside = [*architecture.outer_norms, *architecture.pooler, *architecture.projections, *architecture.head]
    return [*in_layers, *outside, *([architecture.embeddings] if architecture.embeddings else [])]


def test_the_table_is_tested_whole() -> None:
    assert set(KNOWN) == set(LAYOUTS)


@functools.cache
def looked_at(model_type: str, auto: Any) -> tuple[Any, Architecture]:
    """A model that two tests look at, and what was found in it."""
    model = meta(auto, config_of(model_type))
    return model, find_architecture(model)


@pytest.mark.parametrize(("model_type", "auto"), CASES, ids=IDS)
def test_every_linear_layer_and_norm_is_accounted_for(model_type: str, auto: Any) -> None:
    model, architecture = looked_at(model_type, auto)
    modules = dict(model.named_modules())
    assert architecture.model_type == model_type
    names = names_in(architecture)
    assert all(name in modules for name in names)
    # Each layer: every matrix and norm plays a role, but those left out on purpose.
    for stack in architecture.stacks:
        for layer in stack.layers:
            assert {*ROLES} <= {*layer.modules} <= {*ROLES, *CROSS_ROLES}
            assert all(layer.modules[role] for role in ROLES if role not in NORM_ROLES)
            inside = {
                name
                for name, module in modules.items()
                if name.startswith(f"{layer.path}.") and (is_linear(module) or is_norm(module))
            }
            assert set(layer.names(EVERY_ROLE)) | set(layer.others) == inside
            assert {name.rpartition(".")[2] for name in layer.others} == set(LEFT_OUT.get(model_type, ()))
            for role, played in layer.modules.items():
                assert all(is_norm(modules[name]) == (role in NORM_ROLES) for name in played)
    # Outside: every bias of a matrix or norm belongs to one part, or to the pretrained head of a language model.
    parts = (architecture.outer_norms, architecture.pooler, architecture.projections, architecture.head)
    taken = [name for part in parts for name in part]
    assert len(set(taken)) == len(taken)
    prefixes = tuple(f"{name}." for name in (*taken, *(stack.path for stack in architecture.stacks)))
    rest = [
        name
        for name, module in modules.items()
        if (is_linear(module) or is_norm(module)) and not f"{name}.".startswith(prefixes)
    ]
    assert not rest or (not architecture.head and model.get_output_embeddings() is not None), rest


@pytest.mark.parametrize(("model_type", "auto"), CASES, ids=IDS)
def test_structure_finds_what_the_table_says(model_type: str, auto: Any) -> None:
    model, architecture = looked_at(model_type, auto)
    names = {name for name, module in model.named_modules() if getattr(module, "weight", None) is not None}
    stacks = architecture.stacks
    known = [row for row in LAYOUTS[model_type] if any(stack.path.endswith(row[1]) for stack in stacks)]
    for found, (name, path, roles) in zip(stacks, known, strict=True):
        assert found.name == name
        assert found.path.endswith(path)
        for layer in found.layers:
            expected = {role: [f"{layer.path}.{each}" for each in own] for role, own in roles.items()}
            present = {role: tuple(each for each in full if each in names) for role, full in expected.items()}
            assert {role: tuple(sorted(each)) for role, each in layer.modules.items()} == {
                role: tuple(sorted(each)) for role, each in present.items() if each or role in ROLES
            }


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "t5", "vit"])
def test_real_and_meta_models_give_the_same(model_type: str) -> None:
    config = config_of(model_type)
    assert find_architecture(AutoModel.from_config(config)) == find_architecture(meta(AutoModel, config))


def test_bert_in_full() -> None:
    model = meta(AutoModelForSequenceClassification, config_of("bert"))
    architecture = find_architecture(model)
    (stack,) = architecture.stacks
    assert (stack.name, stack.path, architecture.num_layers) == ("encoder", "bert.encoder.layer", 3)
    layer = stack.layers[2]
    assert layer.path == "bert.encoder.layer.2"
    assert layer.modules == {
        "query": ("bert.encoder.layer.2.attention.self.query",),
        "key": ("bert.encoder.layer.2.attention.self.key",),
        "value": ("bert.encoder.layer.2.attention.self.value",),
        "attention_output": ("bert.encoder.layer.2.attention.output.dense",),
        "attention_norm": ("bert.encoder.layer.2.attention.output.LayerNorm",),
        "intermediate": ("bert.encoder.layer.2.intermediate.dense",),
        "output": ("bert.encoder.layer.2.output.dense",),
        "output_norm": ("bert.encoder.layer.2.output.LayerNorm",),
    }
    assert architecture.embeddings == "bert.embeddings"
    assert architecture.outer_norms == ("bert.embeddings.LayerNorm",)
    assert architecture.pooler == ("bert.pooler.dense",)
    assert architecture.head == ("classifier",)


HEADS = {
    ("bert", AutoModelForSequenceClassification): ("classifier",),
    ("bert", AutoModelForQuestionAnswering): ("qa_outputs",),
    ("bert", AutoModelForMaskedLM): (),
    ("bert", AutoModel): (),
    ("roberta", AutoModelForSequenceClassification): ("classifier",),
    ("roberta", AutoModelForMultipleChoice): ("roberta.pooler", "classifier"),
    ("bert", AutoModelForMultipleChoice): ("classifier",),
    ("distilbert", AutoModelForSequenceClassification): ("pre_classifier", "classifier"),
    ("electra", AutoModelForSequenceClassification): ("classifier",),
    ("electra", AutoModelForTokenClassification): ("classifier",),
    ("mpnet", AutoModelForSequenceClassification): ("classifier",),
    ("deberta-v2", AutoModelForSequenceClassification): ("pooler", "classifier"),
    ("modernbert", AutoModelForSequenceClassification): ("classifier",),
    ("modernbert", AutoModelForMaskedLM): (),
    ("gpt2", AutoModelForSequenceClassification): ("score",),
    ("gpt2", AutoModelForCausalLM): (),
    ("opt", AutoModelForSequenceClassification): ("score",),
    ("llama", AutoModelForSequenceClassification): ("score",),
    ("llama", AutoModelForTokenClassification): ("score",),
    ("llama", AutoModelForQuestionAnswering): ("qa_outputs",),
    ("llama", AutoModelForCausalLM): (),
    ("t5", AutoModelForSequenceClassification): ("classification_head",),
    ("t5", AutoModelForTokenClassification): ("classifier",),
    ("t5", AutoModelForQuestionAnswering): ("qa_outputs",),
    ("t5", AutoModelForSeq2SeqLM): (),
    ("bart", AutoModelForSequenceClassification): ("classification_head",),
    ("bart", AutoModelForSeq2SeqLM): (),
    ("bart", AutoModelForCausalLM): (),
    ("vit", AutoModelForImageClassification): ("classifier",),
}


@pytest.mark.parametrize(("case", "head"), HEADS.items(), ids=[f"{m}-{a.__name__}" for m, a in HEADS])
def test_heads(case: tuple[str, Any], head: tuple[str, ...]) -> None:
    model_type, auto = case
    assert find_architecture(meta(auto, config_of(model_type))).head == head


def test_modernbert_keeps_its_pretrained_head_as_a_pooler() -> None:
    model = meta(AutoModelForSequenceClassification, config_of("modernbert"))
    architecture = find_architecture(model)
    assert architecture.pooler == ("head.dense",)
    assert architecture.outer_norms == ("model.embeddings.norm", "model.final_norm", "head.norm")
    masked = meta(AutoModelForMaskedLM, config_of("modernbert"))
    # The reason: the masked language model brings the same modules under the same names.
    pretrained = {name for name, _ in masked.named_parameters()}
    assert {"head.dense.weight", "head.norm.weight"} <= pretrained
    assert not any(
        name.startswith("pooler") for name, _ in meta(AutoModelForMaskedLM, config_of("deberta-v2")).named_parameters()
    )


def test_a_head_of_ones_own_is_found() -> None:
    from transformers import BertModel, BertPreTrainedModel

    class BertForRegression(BertPreTrainedModel):
        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            self.bert = BertModel(config)
            self.regressor = nn.Linear(config.hidden_size, 1)
            self.post_init()

    assert find_architecture(BertForRegression(config_of("bert"))).head == ("regressor",)


def test_two_stacks() -> None:
    for model_type, auto in (("t5", AutoModelForSeq2SeqLM), ("bart", AutoModelForSeq2SeqLM)):
        architecture = find_architecture(meta(auto, config_of(model_type)))
        assert [(stack.name, len(stack.layers)) for stack in architecture.stacks] == [("encoder", 2), ("decoder", 3)]
        encoder, decoder = (stack.layers[0] for stack in architecture.stacks)
        assert len(encoder.modules["query"]) == 1
        for role, across in zip(ROLES[:5], CROSS_ROLES, strict=True):
            assert across not in encoder.modules
            (here,), (there,) = decoder.modules[role], decoder.modules[across]
            assert here != there
    (only,) = find_architecture(meta(AutoModelForCausalLM, config_of("bart"))).stacks
    assert (only.name, only.path) == ("decoder", "model.decoder.layers")


def test_fused_projections_stand_under_each_role() -> None:
    layer = find_architecture(meta(AutoModel, config_of("gpt2"))).stacks[0].layers[0]
    assert layer.modules["query"] == layer.modules["key"] == layer.modules["value"] == ("h.0.attn.c_attn",)
    assert layer.names(("query", "key", "value", "output")) == ("h.0.attn.c_attn", "h.0.mlp.c_proj")


def test_cross_attention_of_a_decoder() -> None:
    layer = (
        find_architecture(meta(AutoModelForCausalLM, config_of("gpt2", add_cross_attention=True))).stacks[0].layers[0]
    )
    assert layer.others == ()
    assert layer.modules["key"] == layer.modules["query"] == ("transformer.h.0.attn.c_attn",)
    assert layer.modules["cross_key"] == ("transformer.h.0.crossattention.c_attn",)
    assert layer.modules["cross_query"] == ("transformer.h.0.crossattention.q_attn",)
    bert = config_of("bert", is_decoder=True, add_cross_attention=True)
    layer = find_architecture(meta(AutoModelForCausalLM, bert)).stacks[0].layers[0]
    assert layer.others == ()
    assert layer.modules["cross_attention_norm"] == ("bert.encoder.layer.0.crossattention.output.LayerNorm",)


def test_norms_that_are_not_there() -> None:
    layers = find_architecture(meta(AutoModel, config_of("modernbert"))).stacks[0].layers
    assert [layer.modules["attention_norm"] for layer in layers] == [
        (),
        ("layers.1.attn_norm",),
        ("layers.2.attn_norm",),
    ]
    assert find_architecture(meta(AutoModel, config_of("phi"))).stacks[0].layers[0].modules["output_norm"] == ()


OTHERS: dict[str, dict[str, Any]] = {
    "gpt_neox": COMMON,
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "rotary_dim": 4},
    "falcon": COMMON,
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64},
    "deberta": COMMON,
    "longformer": COMMON,
    "esm": COMMON,
    "stablelm": COMMON,
    "starcoder2": COMMON | {"num_key_value_heads": 2},
    "mt5": T5,
    "pegasus": BART,
    "dinov2": KNOWN["vit"],
    "wav2vec2": COMMON,
}


@pytest.mark.parametrize("model_type", OTHERS)
def test_others_are_found_by_structure(model_type: str) -> None:
    model = meta(AutoModel, AutoConfig.for_model(model_type, **OTHERS[model_type]))
    architecture = find_architecture(model)
    assert model_type not in LAYOUTS
    assert len(architecture.stacks[-1].layers) == 3
    names = dict(model.named_modules())
    assert all(name in names for name in names_in(architecture))
    layer = architecture.stacks[0].layers[0]
    assert set(layer.modules["attention_norm"]).isdisjoint(layer.modules["output_norm"])


@pytest.mark.parametrize("name", COMPOSED)
def test_every_tower_is_a_stack(name: str) -> None:
    architecture = find_architecture(composed(name))
    assert [stack.path for stack in architecture.stacks] == COMPOSED[name].stacks
    if len(architecture.stacks) > 1:
        assert architecture.head == ()
        for layer in (layer for stack in architecture.stacks for layer in stack.layers):
            assert all(layer.modules[role] for role in ROLES)
            assert {other.rpartition(".")[2] for other in layer.others} <= {"q_norm", "k_norm"}


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ATTENTION = ("query", "key", "value", "attention_output")
ROLES_BY_STRUCTURE: dict[str, tuple[dict[str, Any], dict[str, tuple[str, ...]], set[str]]] = {
    "mobilebert": (
        COMMON | {"embedding_size": 16, "intra_bottleneck_size": 16},
        {
            "attention_output": ("attention.output.dense",),
            "attention_norm": ("attention.output.LayerNorm",),
            "output_norm": ("output.LayerNorm", *(f"ffn.{index}.output.LayerNorm" for index in range(3))),
        },
        {"output.bottleneck.dense", "bottleneck.input.dense", "bottleneck.attention.dense"},
    ),
    "timesformer": (
        SIZES,
        {"attention_norm": ("layernorm_before", "temporal_layernorm"), "output_norm": ("layernorm_after",)},
        {"temporal_dense"},
    ),
    "longformer": (
        COMMON | {"attention_window": [4, 4, 4]},
        {role: (f"attention.self.{role}", f"attention.self.{role}_global") for role in ATTENTION[:3]},
        set(),
    ),
    "lilt": (
        COMMON,
        {role: (f"attention.self.{role}", f"attention.self.layout_{role}") for role in ATTENTION[:3]},
        set(),
    ),
    "deberta": (
        COMMON | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        {
            "query": ("attention.self.in_proj", "attention.self.pos_q_proj"),
            "key": ("attention.self.in_proj", "attention.self.pos_proj"),
        },
        set(),
    ),
    "deepseek_v2": (  # multi-head latent attention: what a query, and a key with its value, are compressed to
        GROUPED | {"q_lora_rank": 8, "kv_lora_rank": 8, "first_k_dense_replace": 3},
        {
            "query": ("self_attn.q_a_proj", "self_attn.q_b_proj"),
            "key": ("self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj"),
            "value": ("self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj"),
            "attention_norm": ("input_layernorm",),
        },
        set(),
    ),
    "deepseek_v32": (  # what chooses the tokens that are attended to gets no gradient
        GROUPED | {"q_lora_rank": 8, "kv_lora_rank": 8, "first_k_dense_replace": 3, "index_n_heads": 2},
        {"key": ("self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj")},
        {f"self_attn.indexer.{name}" for name in ("wk", "wq_b", "weights_proj")},
    ),
    "wav2vec2-conformer": (
        SIZES,
        {
            "key": ("self_attn.linear_k", "self_attn.linear_pos"),
            "attention_norm": ("self_attn_layer_norm",),
            "output_norm": ("ffn1_layer_norm", "ffn2_layer_norm", "final_layer_norm"),
        },
        set(),
    ),
    "ctrl": (  # its feed-forward is a Sequential without names: told by the shapes
        {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "vocab_size": 64},
        {"intermediate": ("ffn.0",), "output": ("ffn.2",)},
        set(),
    ),
}


@pytest.mark.parametrize("model_type", ROLES_BY_STRUCTURE)
def test_roles_by_structure(model_type: str) -> None:
    sizes, expected, without = ROLES_BY_STRUCTURE[model_type]
    model = meta(AutoModel, AutoConfig.for_model(model_type, **sizes))
    layer = find_architecture(model).stacks[0].layers[-1]
    found = {role: tuple(name.removeprefix(f"{layer.path}.") for name in layer.modules[role]) for role in ROLES}
    assert found | expected == found
    matrices = {name.removeprefix(f"{layer.path}.") for name in layer.others if is_linear(model.get_submodule(name))}
    assert matrices == without


_SELF = {role: f"self_attn.{role[0]}_proj" for role in ATTENTION[:3]} | {"attention_output": "self_attn.o_proj"}
_PRE = {"attention_norm": "input_layernorm", "output_norm": "post_attention_layernorm"}
_GATED = {"intermediate": "mlp.gate_proj mlp.up_proj", "output": "mlp.down_proj"}
_SHARED_EXPERT = {role: names.replace("mlp.", "mlp.shared_expert.") for role, names in _GATED.items()}
_SWIN = {role: f"attention.{role[0]}_proj" for role in ATTENTION[:3]} | {
    "attention_output": "attention.o_proj",
    "intermediate": "mlp.fc1",
    "output": "mlp.fc2",
    "attention_norm": "layernorm_before",
    "output_norm": "layernorm_after",
}
_BERT = {role: f"attention.self.{role}" for role in ATTENTION[:3]} | {"attention_output": "attention.output.dense"}
#: Class -> paths of its stacks, depth of the first, and some of its layers: place, path, modules by role, the rest.
LAYERS_BY_HAND: dict[str, tuple[str, int, list[tuple[int, str, dict[str, str], str]]]] = {
    # experts are no matrices
    "MixtralForCausalLM": ("model.layers", 4, [(3, "model.layers.3", _SELF | _PRE, "")]),
    "GptOssForCausalLM": ("model.layers", 4, [(0, "model.layers.0", _SELF | _PRE, "")]),
    "MiMoV2FlashForCausalLM": (
        "model.layers",
        4,
        [(0, "model.layers.0", _SELF | _PRE | _GATED, ""), (1, "model.layers.1", _SELF | _PRE, "")],
    ),
    "JetMoeForCausalLM": (
        "model.layers",
        4,
        [
            (
                0,
                "model.layers.0",
                _PRE | {"key": "self_attention.kv_proj", "value": "self_attention.kv_proj"},
                "mlp.router.layer self_attention.experts.router.layer",
            )
        ],
    ),
    # layers of several kinds
    "MambaForCausalLM": (
        "backbone.layers",
        4,
        [
            (
                1,
                "backbone.layers.1",
                {"mixer_in": "mixer.in_proj", "attention_norm": "norm"},
                "mixer.x_proj mixer.dt_proj mixer.out_proj",  # the last is read past by a fused kernel
            )
        ],
    ),
    "MiniMaxForCausalLM": (
        "model.layers",
        4,
        [
            (0, "model.layers.0", _SELF | _PRE, ""),
            (
                1,
                "model.layers.1",
                dict.fromkeys(ATTENTION[:3], "self_attn.qkv_proj")
                | {
                    "attention_output": "self_attn.out_proj",
                    "attention_norm": "self_attn.norm input_layernorm",
                    "output_norm": "post_attention_layernorm",
                },
                "self_attn.output_gate",
            ),
        ],
    ),
    "NemotronHForCausalLM": (
        "model.layers",
        4,
        [
            (
                0,
                "model.layers.0",
                {"mixer_in": "mixer.in_proj", "attention_norm": "norm mixer.norm"},
                "mixer.out_proj",
            ),
            (
                2,
                "model.layers.2",
                {role: f"mixer.{role[0]}_proj" for role in ATTENTION[:3]}
                | {"attention_output": "mixer.o_proj", "attention_norm": "norm"},
                "",
            ),
            (
                3,
                "model.layers.3",
                {"intermediate": "mixer.up_proj", "output": "mixer.down_proj", "output_norm": "norm"},
                "",
            ),
        ],
    ),
    "RecurrentGemmaForCausalLM": (
        "model.layers",
        4,
        [
            (
                0,
                "model.layers.0",
                {
                    "mixer_in": "temporal_block.linear_y temporal_block.linear_x",
                    "mixer_out": "temporal_block.linear_out",
                    "intermediate": "mlp_block.gate_proj mlp_block.up_proj",
                    "output": "mlp_block.down_proj",
                    "attention_norm": "temporal_pre_norm",
                    "output_norm": "channel_pre_norm",
                },
                "",
            )
        ],
    ),
    "RwkvForCausalLM": (
        "rwkv.blocks",
        4,
        [
            (
                1,
                "rwkv.blocks.1",
                {
                    "mixer_in": "attention.key attention.value attention.receptance",
                    "mixer_out": "attention.output",
                    "intermediate": "feed_forward.key",
                    "output": "feed_forward.value",
                    "attention_norm": "ln1",
                    "output_norm": "ln2",
                },
                "feed_forward.receptance",
            )
        ],
    ),
    "Qwen3NextForCausalLM": (
        "model.layers",
        4,
        [
            (
                0,
                "model.layers.0",
                _SHARED_EXPERT
                | {
                    "mixer_in": "linear_attn.in_proj_qkvz linear_attn.in_proj_ba",
                    "mixer_out": "linear_attn.out_proj",
                    "attention_norm": "linear_attn.norm input_layernorm",
                    "output_norm": "post_attention_layernorm",
                },
                "mlp.shared_expert_gate",
            ),
            (
                3,
                "model.layers.3",
                _SELF | _PRE | _SHARED_EXPERT,
                "self_attn.q_norm self_attn.k_norm mlp.shared_expert_gate",
            ),
        ],
    ),
    # stages
    "SwinForImageClassification": ("swin.encoder.layers", 12, [(2, "swin.encoder.layers.1.blocks.0", _SWIN, "")]),
    "SegformerForImageClassification": (
        "segformer.stages",
        8,
        [
            (
                7,
                "segformer.stages.3.blocks.1",
                _SWIN,
                "",
            )
        ],
    ),
    "FocalNetForImageClassification": (
        "focalnet.encoder.stages",
        12,
        [
            (
                3,
                "focalnet.encoder.stages.1.layers.1",
                {
                    "mixer_in": "modulation.projection_in",
                    "mixer_out": "modulation.projection_out",
                    "intermediate": "mlp.fc1",
                    "output": "mlp.fc2",
                    "attention_norm": "norm1",
                    "output_norm": "norm2",
                },
                "",
            )
        ],
    ),
    "ConvNextForImageClassification": (
        "convnext.encoder.stages",
        18,
        [
            (
                3,
                "convnext.encoder.stages.1.layers.0",
                {"intermediate": "pwconv1", "output": "pwconv2", "output_norm": "layernorm"},
                "",
            )
        ],
    ),
    "FunnelForSequenceClassification": (
        "funnel.encoder.blocks",
        12,
        [
            (
                5,
                "funnel.encoder.blocks.1.1",
                {role: f"attention.{role[0]}_head" for role in ATTENTION[:3]}
                | {
                    "attention_output": "attention.post_proj",
                    "intermediate": "ffn.linear_1",
                    "output": "ffn.linear_2",
                    "attention_norm": "attention.layer_norm",
                    "output_norm": "ffn.layer_norm",
                },
                "",
            )
        ],
    ),
    "CvtForImageClassification": (
        "cvt.encoder.stages",
        13,
        [
            (
                12,
                "cvt.encoder.stages.2.layers.9",
                {role: f"attention.attention.projection_{role}" for role in ATTENTION[:3]}
                | {
                    "attention_output": "attention.output.dense",
                    "attention_norm": " ".join(
                        f"attention.attention.convolution_projection_{role}.convolution_projection.normalization"
                        for role in ATTENTION[:3]
                    )
                    + " layernorm_before",
                    "intermediate": "intermediate.dense",
                    "output": "output.dense",
                    "output_norm": "layernorm_after",
                },
                "",
            )
        ],
    ),
    "HieraForImageClassification": (
        "hiera.encoder.stages",
        24,
        [
            (
                2,
                "hiera.encoder.stages.1.layers.0",
                _SWIN | dict.fromkeys(ATTENTION[:3], "attn.qkv") | {"attention_output": "attn.proj"},
                "proj",
            )
        ],
    ),
    "PvtForImageClassification": (
        "pvt.encoder.block",
        8,
        [
            (
                0,
                "pvt.encoder.block.0.0",
                _BERT
                | {
                    "intermediate": "mlp.dense1",
                    "output": "mlp.dense2",
                    "attention_norm": "layer_norm_1 attention.self.layer_norm",
                    "output_norm": "layer_norm_2",
                },
                "",
            )
        ],
    ),
    "LevitForImageClassification": (  # attention and feed-forward are blocks of their own; some are the attention
        "levit.encoder.stages",
        28,
        [
            (
                1,
                "levit.encoder.stages.0.layers.1",
                {
                    "intermediate": "module.linear_up.linear",
                    "output": "module.linear_down.linear",
                    "output_norm": "module.linear_up.batch_norm module.linear_down.batch_norm",
                },
                "",
            ),
            (
                8,
                "levit.encoder.stages.0.layers.8",
                {
                    "query": "queries.linear",
                    "key": "keys_values.linear",
                    "value": "keys_values.linear",
                    "attention_output": "projection.linear",
                    "attention_norm": "keys_values.batch_norm queries.batch_norm projection.batch_norm",
                },
                "",
            ),
        ],
    ),
    # whole layers within a layer; attention to something else, by its class alone
    "Florence2ForConditionalGeneration": (
        "model.vision_tower.blocks model.language_model.encoder.layers model.language_model.decoder.layers",
        12,
        [
            (
                0,
                "model.vision_tower.blocks.0.0",
                dict.fromkeys(ATTENTION[:3], "spatial_block.window_attn.qkv channel_block.channel_attn.qkv")
                | {
                    "attention_output": "spatial_block.window_attn.proj channel_block.channel_attn.proj",
                    "intermediate": "spatial_block.ffn.fc1 channel_block.ffn.fc1",
                    "output": "spatial_block.ffn.fc2 channel_block.ffn.fc2",
                    "attention_norm": "spatial_block.norm1 channel_block.norm1",
                    "output_norm": "spatial_block.norm2 channel_block.norm2",
                },
                "",
            )
        ],
    ),
    "LxmertForQuestionAnswering": (
        "lxmert.encoder.x_layers lxmert.encoder.layer lxmert.encoder.r_layers",
        5,
        [
            (
                0,
                "lxmert.encoder.x_layers.0",
                {role: f"lang_self_att.self.{role} visn_self_att.self.{role}" for role in ATTENTION[:3]}
                | {f"cross_{role}": f"visual_attention.att.{role}" for role in ATTENTION[:3]}
                | {
                    "attention_output": "lang_self_att.output.dense visn_self_att.output.dense",
                    "attention_norm": "lang_self_att.output.LayerNorm visn_self_att.output.LayerNorm",
                    "cross_attention_output": "visual_attention.output.dense",
                    "cross_attention_norm": "visual_attention.output.LayerNorm",
                    "intermediate": "lang_inter.dense visn_inter.dense",
                    "output": "lang_output.dense visn_output.dense",
                    "output_norm": "lang_output.LayerNorm visn_output.LayerNorm",
                },
                "",
            )
        ],
    ),
    "MoonshineForConditionalGeneration": (
        "model.decoder.layers model.encoder.layers",
        4,
        [
            (
                0,
                "model.decoder.layers.0",
                _SELF
                | {f"cross_{role}": name.replace("self_attn", "encoder_attn") for role, name in _SELF.items()}
                | {
                    "attention_norm": "input_layernorm",
                    "cross_attention_norm": "post_attention_layernorm",
                    "intermediate": "mlp.fc1",
                    "output": "mlp.fc2",
                    "output_norm": "final_layernorm",
                },
                "",
            )
        ],
    ),
    "EvollaForProteinText2Text": (
        "model.layers model.protein_encoder.model.encoder.layer "
        "model.protein_encoder.sequence_compressor_resampler.layers",
        4,
        [
            (
                3,
                "model.layers.3",
                _SELF
                | {
                    "attention_norm": "input_layernorm",
                    "cross_query": "adapter.query",
                    "cross_key": "adapter.key_protein",
                    "cross_value": "adapter.value_protein",
                    "cross_attention_output": "adapter.out_proj",
                    "cross_attention_norm": "adapter.attention_norm",
                    "intermediate": "mlp.gate_proj mlp.up_proj adapter.ff.fc1",
                    "output": "mlp.down_proj adapter.ff.fc2",
                    "output_norm": "post_attention_layernorm adapter.ff.norm",
                },
                "",
            )
        ],
    ),
    # lists side by side, weights that are no matrices, one layer for all
    "XLMForSequenceClassification": (
        "transformer",
        4,
        [
            (
                1,
                "transformer.attentions.1",
                {role: f"{role[0]}_lin" for role in ATTENTION[:3]}
                | {
                    "attention_output": "out_lin",
                    "intermediate": "transformer.ffns.1.lin1",
                    "output": "transformer.ffns.1.lin2",
                    "attention_norm": "transformer.layer_norm1.1",
                    "output_norm": "transformer.layer_norm2.1",
                },
                "",
            )
        ],
    ),
    "XLNetForSequenceClassification": (
        "transformer.layer",
        4,
        [
            (
                0,
                "transformer.layer.0",
                {
                    "intermediate": "ff.layer_1",
                    "output": "ff.layer_2",
                    "attention_norm": "rel_attn.layer_norm",
                    "output_norm": "ff.layer_norm",
                },
                "",
            )
        ],
    ),
    "FNetForSequenceClassification": (
        "fnet.encoder.layer",
        4,
        [
            (
                0,
                "fnet.encoder.layer.0",
                {"intermediate": "intermediate.dense", "output": "output.dense", "output_norm": "output.LayerNorm"},
                "fourier.output.LayerNorm",
            )
        ],
    ),
    "AlbertForSequenceClassification": (
        "albert.encoder.albert_layer_groups",
        1,
        [
            (
                0,
                "albert.encoder.albert_layer_groups.0.albert_layers.0",
                {role: f"attention.{role}" for role in ATTENTION[:3]}
                | {
                    "attention_output": "attention.dense",
                    "intermediate": "ffn",
                    "output": "ffn_output",
                    "attention_norm": "attention.LayerNorm",
                    "output_norm": "full_layer_layer_norm",
                },
                "",
            )
        ],
    ),
}


@pytest.mark.parametrize("name", LAYERS_BY_HAND)
def test_layers_of_other_kinds(name: str) -> None:
    paths, depth, expected = LAYERS_BY_HAND[name]
    kind = getattr(hf, name)
    with torch.device("meta"):
        model = kind(tiny(kind.config_class, ()))
    stacks = {stack.path: stack for stack in find_architecture(model).stacks}
    assert set(stacks) == set(paths.split())
    stack = stacks[paths.split()[0]]
    assert len(stack.layers) == depth
    for place, layer_path, roles, without in expected:
        layer = stack.layers[place]
        assert layer.path == layer_path
        found = {
            role: " ".join(name.removeprefix(f"{layer.path}.") for name in names)
            for role, names in layer.modules.items()
            if names
        }
        assert found == roles
        assert [name.removeprefix(f"{layer.path}.") for name in layer.others] == without.split()


def test_a_layer_that_holds_a_whole_one() -> None:
    """Zamba's hybrid layers: the norms of the attention and of the feed-forward within are told apart there."""
    config = tiny(hf.ZambaConfig, DEPTH)
    config.num_hidden_layers, config.layers_block_type = 4, ["mamba", "hybrid", "mamba", "hybrid"]
    with torch.device("meta"):
        (stack,) = find_architecture(hf.ZambaForCausalLM(config)).stacks
    layer = stack.layers[1]
    found = {
        role: [name.removeprefix(f"{layer.path}.") for name in layer.modules[role]]
        for role in ("attention_norm", "output_norm")
    }
    assert found == {
        "attention_norm": ["shared_transf.input_layernorm", "mamba_decoder.input_layernorm"],
        "output_norm": ["shared_transf.pre_ff_layernorm"],
    }
    assert layer.names(("mixer_in", "query")) == (
        "model.layers.1.shared_transf.self_attn.q_proj",
        "model.layers.1.mamba_decoder.mamba.in_proj",
    )


def test_the_output_matrix_of_a_model_within_is_no_part_of_the_body() -> None:
    with torch.device("meta"):
        architecture = find_architecture(hf.BlipForConditionalGeneration(tiny(hf.BlipConfig, ())))
    assert architecture.projections == ("text_decoder.cls.predictions.transform.dense",)


def test_what_is_between_stages_is_outside_the_layers() -> None:
    with torch.device("meta"):
        architecture = find_architecture(hf.SwinForImageClassification(tiny(hf.SwinConfig, ())))
    assert architecture.projections[0] == "swin.encoder.layers.0.downsample.reduction"
    assert "swin.encoder.layers.0.downsample.norm" in architecture.outer_norms


def test_lists_of_modules_are_no_head() -> None:
    """PEFT copies the modules of a head, and cannot copy a list of them."""
    config = hf.WavLMConfig(**SIZES, tdnn_dim=[8, 8], tdnn_kernel=[2, 2], tdnn_dilation=[1, 1])
    with torch.device("meta"):
        head = find_architecture(hf.WavLMForXVector(config)).head
    assert head == ("projector", "tdnn.0", "tdnn.1", "feature_extractor", "classifier", "objective")
    with torch.device("meta"):
        model = FAMILIES["bert"].classifier(FAMILIES["bert"].config())
        model.classifier = nn.ModuleDict({"tasks": nn.ModuleList([nn.Linear(16, 2)]), "one": nn.Linear(16, 2)})
    assert find_architecture(model).head == ("classifier.tasks.0", "classifier.one")


def test_layers_of_a_head_are_no_stack() -> None:
    sizes = {"pred_hidden_size": 32, "pred_num_hidden_layers": 2, "pred_num_attention_heads": 4}
    model = meta(hf.AutoModelForVideoClassification, hf.VJEPA2Config(**SIZES, **sizes, num_pooler_layers=1))
    architecture = find_architecture(model)
    assert architecture.head == ("pooler", "classifier")
    assert [stack.path for stack in architecture.stacks] == ["vjepa2.encoder.layer", "vjepa2.predictor.layer"]


def test_a_bare_model_has_no_head() -> None:
    architecture = find_architecture(meta(AutoModel, AutoConfig.for_model("dinov3_vit", **SIZES)))
    assert architecture.head == ()
    assert (architecture.embeddings, architecture.outer_norms) == ("embeddings", ("norm",))


# -- what cannot be found ---------------------------------------------------------------------------------------------


def test_a_net_of_convolutions_has_no_layers_to_train() -> None:
    model = meta(AutoModelForImageClassification, hf.ResNetConfig(hidden_sizes=[8, 8], depths=[1, 1]))
    with pytest.raises(ValueError, match=r"'resnet': LoRA .* have BatchNorm2d, Conv2d .*take linear-probe or full\."):
        find_architecture(model)
    found = find_architecture(model, layers=False)
    assert (found.stacks, found.num_layers, found.head) == ((), 0, ("classifier",))


def test_a_wrapped_model_is_refused() -> None:
    model = get_peft_model(AutoModel.from_config(config_of("bert")), LoraConfig(target_modules=["query"], r=2))
    for each in (model, model.get_base_model()):
        with pytest.raises(ValueError, match="wrapped by PEFT already"):
            find_architecture(each)


def test_layers_that_are_one_object_are_refused() -> None:
    model = AutoModel.from_config(config_of("bert"))
    model.encoder.layer[2] = model.encoder.layer[1]
    with pytest.raises(ValueError, match="uses the same layer more than once"):
        find_architecture(model)


# -- by hand ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("ask", "see", "say", "join")})
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)


class Unusual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.last = nn.LayerNorm(8)
        self.decide = nn.Linear(8, 2)


BY_HAND: dict[str, Any] = {
    "query": "mix.ask",
    "key": "mix.see",
    "value": ["mix.say"],
    "attention_output": "mix.join",
    "intermediate": "wide",
    "output": "narrow",
    "attention_norm": "first",
    "output_norm": "second",
}


def test_describing_by_hand() -> None:
    model = Unusual()
    with pytest.raises(ValueError, match=r"model type 'Unusual'.*a layer holds mix\.ask, mix\.see"):
        find_architecture(model)
    architecture = describe_architecture(model, layers="blocks", roles=BY_HAND, head=["decide"])
    assert architecture.head == ("decide",)
    assert architecture.outer_norms == ("last",)
    assert architecture.stacks[0].layers[3].names(("query", "output")) == ("blocks.3.mix.ask", "blocks.3.narrow")
    assert architecture.stacks[0].layers[0].others == ()


def test_describing_gives_what_finding_gives() -> None:
    model = meta(AutoModelForSequenceClassification, config_of("bert"))
    roles = {role: names for role, names in LAYOUTS["bert"][0][2].items() if role in ROLES}
    assert describe_architecture(model, layers={"encoder": "bert.encoder.layer"}, roles=roles) == find_architecture(
        model
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "block"}, "the model has no module 'block'"),
        ({"roles": BY_HAND | {"querry": "mix.ask"}}, "unknown role 'querry'; allowed are query"),
        (
            {"roles": BY_HAND | {"query": "mix.tell"}},
            r"no layer in blocks has a module for the role 'query' \(looked for mix.tell\)",
        ),
        (
            {"roles": BY_HAND | {"key": []}},
            r"no layer in blocks has .* role 'key' \(looked for nothing\)",
        ),
        ({"roles": {"attention_norm": "first"}}, "it must name a matrix for at least one of query, key"),
        ({"roles": {"layers": {}}}, "roles is {}; it must name"),
        ({"head": ["decider"]}, "head: the model has no module 'decider'"),
        ({"outer_norms": ["norm"]}, "outer_norms: the model has no module 'norm'"),
    ],
)
def test_describing_wrongly(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        describe_architecture(Unusual(), **({"layers": "blocks", "roles": BY_HAND} | changes))


def test_a_model_cut_in_memory_is_no_model_that_shares_its_layers() -> None:
    model = AutoModel.from_config(AutoConfig.for_model("roformer", **COMMON))
    model.encoder.layer = model.encoder.layer[:2]
    (stack,) = find_architecture(model).stacks
    assert (len(stack.layers), stack.depth) == (2, None)
    model.config.num_hidden_groups = 2
    assert find_architecture(model).stacks[0].depth == 3


def test_a_norm_belongs_to_the_attention_whose_name_begins_alike() -> None:
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    vision = text | {"image_size": 16, "patch_size": 8, "mit_hidden_size": 32, "mit_intermediate_size": 64}
    vision |= {"mit_num_hidden_layers": 2, "mit_num_attention_heads": 2, "num_frames": 2}
    with torch.device("meta"):
        model = hf.XCLIPModel(hf.XCLIPConfig(text_config=text, vision_config=vision))
    layer = find_architecture(model).stacks[1].layers[0]
    roles = ("attention_norm", "output_norm")
    ends = {role: [name.rpartition(".")[2] for name in layer.modules[role]] for role in roles}
    assert ends == {"attention_norm": ["layer_norm1", "message_ln"], "output_norm": ["layer_norm2"]}


def test_bark_has_one_matrix_for_query_key_and_value() -> None:
    with torch.device("meta"):
        sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "input_vocab_size": 9, "output_vocab_size": 9}
        model = hf.BarkSemanticModel(hf.BarkSemanticConfig(**sizes))
    layer = find_architecture(model).stacks[0].layers[0]
    assert {layer.modules[role] for role in ROLES[:3]} == {("layers.0.attn.att_proj",)}
    assert layer.modules["attention_norm"] == ("layers.0.layernorm_1",)


def test_lists_of_nothing_and_several_output_matrices() -> None:
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "prediction_length": 4, "context_length": 8}
    informer = hf.InformerForPrediction(hf.InformerConfig(**sizes, num_time_features=1))
    assert [len(stack.layers) for stack in find_architecture(informer).stacks] == [2, 2]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "vocab_size": 16}
    with torch.device("meta"):
        musicgen = hf.MusicgenForCausalLM(hf.MusicgenDecoderConfig(**sizes, num_codebooks=2))
    assert find_architecture(musicgen).projections == ()


def test_layers_in_a_sequential_are_found_as_in_a_list() -> None:
    config = hf.MgpstrConfig(image_size=[16, 32], patch_size=4, hidden_size=32, num_hidden_layers=4)
    with torch.device("meta"):
        model = hf.MgpstrForSceneTextRecognition(config)
    found = find_architecture(model)
    model.mgp_str.encoder.blocks = nn.ModuleList(model.mgp_str.encoder.blocks)
    assert find_architecture(model) == found
    assert [(stack.path, len(stack.layers)) for stack in found.stacks] == [("mgp_str.encoder.blocks", 4)]
    assert found.stacks[0].layers[0].modules["intermediate"] == ("mgp_str.encoder.blocks.0.mlp.fc1",)

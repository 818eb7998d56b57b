"""Tiny random models of each family, for tests: a second or less for all of them, the same for the same seed.

Biases and norms get random values. As initialized they are 0 and 1 in every model, so a test would not see an adapter
on the wrong base, or a bias that was dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pytest
import torch
import transformers as hf
from packaging.version import Version
from torch import nn
from transformers.initialization import no_init_weights
from transformers.integrations.peft import MIN_PEFT_VERSION

VOCAB, WIDTH, LAYERS, LENGTH = 50, 16, 4, 7
EOS, PAD = 2, 1

transformers_takes_adapters = pytest.mark.skipif(
    Version(version("peft")) < Version(MIN_PEFT_VERSION),
    reason=f"transformers {hf.__version__} adds and loads adapters with peft >= {MIN_PEFT_VERSION}",
)


@dataclass(frozen=True)
class Family:
    """How to make one kind of model, and what sets it apart from the others."""

    config: Callable[..., hf.PretrainedConfig]
    classifier: type[hf.PreTrainedModel]
    generator: type[hf.PreTrainedModel] | None = None
    #: Every dense module has a bias: adapters merge, and their files hold absolute biases.
    every_bias: bool = True
    images: bool = False


def _bert_like(cls: type[hf.PretrainedConfig]) -> Callable[..., hf.PretrainedConfig]:
    def make(**kwargs: Any) -> hf.PretrainedConfig:
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 32}
        return cls(**{**sizes, "vocab_size": VOCAB, "max_position_embeddings": 32, "pad_token_id": PAD, **kwargs})

    return make


def _llama_like(cls: type[hf.PretrainedConfig], **fixed: Any) -> Callable[..., hf.PretrainedConfig]:
    make = _bert_like(cls)
    return lambda **kwargs: make(
        **{"num_key_value_heads": 2, "eos_token_id": EOS, "bos_token_id": EOS, **fixed, **kwargs}
    )


def _distilbert(**kwargs: Any) -> hf.PretrainedConfig:
    return hf.DistilBertConfig(
        **{"vocab_size": VOCAB, "dim": WIDTH, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 32, **kwargs},
        max_position_embeddings=32,
        pad_token_id=PAD,
    )


def _gpt2(**kwargs: Any) -> hf.PretrainedConfig:
    sizes = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": 32}
    return hf.GPT2Config(**{**sizes, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": EOS, **kwargs})


def _opt(**kwargs: Any) -> hf.PretrainedConfig:
    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    return hf.OPTConfig(
        **{**sizes, "ffn_dim": 32, "word_embed_proj_dim": WIDTH, "max_position_embeddings": 32, **kwargs},
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=EOS,
    )


def _t5(**kwargs: Any) -> hf.PretrainedConfig:
    sizes = {"vocab_size": VOCAB, "d_model": WIDTH, "num_layers": LAYERS, "num_heads": 2, "d_kv": 8, "d_ff": 32}
    return hf.T5Config(**{**sizes, "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD, **kwargs})


def _bart(**kwargs: Any) -> hf.PretrainedConfig:
    sizes = {"d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "vocab_size": VOCAB}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return hf.BartConfig(
        **{**sizes, **heads, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32, **kwargs},
        pad_token_id=PAD,
        bos_token_id=0,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=EOS,
    )


def _vit(**kwargs: Any) -> hf.PretrainedConfig:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 32}
    return hf.ViTConfig(**{**sizes, "image_size": 8, "patch_size": 4, **kwargs})


FAMILIES: dict[str, Family] = {
    "bert": Family(_bert_like(hf.BertConfig), hf.BertForSequenceClassification),
    "roberta": Family(_bert_like(hf.RobertaConfig), hf.RobertaForSequenceClassification),
    "distilbert": Family(_distilbert, hf.DistilBertForSequenceClassification),
    "electra": Family(
        lambda **kwargs: _bert_like(hf.ElectraConfig)(embedding_size=WIDTH, **kwargs),
        hf.ElectraForSequenceClassification,
    ),
    "modernbert": Family(
        lambda **kwargs: _bert_like(hf.ModernBertConfig)(
            eos_token_id=EOS, bos_token_id=0, cls_token_id=0, sep_token_id=EOS, **kwargs
        ),
        hf.ModernBertForSequenceClassification,
        every_bias=False,
    ),
    "gpt2": Family(_gpt2, hf.GPT2ForSequenceClassification, hf.GPT2LMHeadModel),
    "opt": Family(_opt, hf.OPTForSequenceClassification, hf.OPTForCausalLM),
    "llama": Family(
        _llama_like(hf.LlamaConfig), hf.LlamaForSequenceClassification, hf.LlamaForCausalLM, every_bias=False
    ),
    "llama-bias": Family(
        _llama_like(hf.LlamaConfig, attention_bias=True, mlp_bias=True),
        hf.LlamaForSequenceClassification,
        hf.LlamaForCausalLM,
    ),
    "qwen2": Family(
        _llama_like(hf.Qwen2Config), hf.Qwen2ForSequenceClassification, hf.Qwen2ForCausalLM, every_bias=False
    ),
    "t5": Family(_t5, hf.T5ForSequenceClassification, hf.T5ForConditionalGeneration, every_bias=False),
    "bart": Family(_bart, hf.BartForSequenceClassification, hf.BartForConditionalGeneration),
    "vit": Family(_vit, hf.ViTForImageClassification, images=True),
}


#: One family of each build: dense layers, Conv1D, without biases, encoder-decoders, local attention, images.
BUILDS = ["bert", "gpt2", "llama", "t5", "bart", "modernbert", "vit"]


@dataclass(frozen=True)
class Composed:
    """A model of several towers, or one with names of its own."""

    kind: type[hf.PreTrainedModel]
    sizes: dict[str, Any]
    #: Names of its lists of layers.
    stacks: list[str]


_SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
_DECODER = _SIZES | {"vocab_size": VOCAB, "num_key_value_heads": 2}
_PAIR = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("layers", 2), ("ffn_dim", 48))}
_PAIR |= {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": VOCAB}
_OPT = _SIZES | {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "vocab_size": VOCAB}
_QWEN_VISION = {"hidden_size": 32, "depth": 2, "num_heads": 4, "intermediate_size": 48, "out_hidden_size": 32}
_SPEECH = {"conv_dim": [8, 8], "conv_kernel": [8, 4], "conv_stride": [4, 2], "num_feat_extract_layers": 2}
_SPEECH |= {"num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 4}

COMPOSED: dict[str, Composed] = {
    "led": Composed(hf.LEDModel, _PAIR | {"attention_window": [4, 4]}, ["encoder.layers", "decoder.layers"]),
    "bigbird_pegasus": Composed(hf.BigBirdPegasusModel, _PAIR, ["encoder.layers", "decoder.layers"]),
    "lxmert": Composed(
        hf.LxmertModel,
        _SIZES | {"l_layers": 2, "x_layers": 2, "r_layers": 2, "vocab_size": VOCAB},
        ["encoder.layer", "encoder.x_layers", "encoder.r_layers"],
    ),
    "blip": Composed(
        hf.BlipForConditionalGeneration,
        {"vision_config": _SIZES, "text_config": _SIZES},
        ["vision_model.encoder.layers", "text_decoder.bert.encoder.layer"],
    ),
    "blip-2": Composed(
        hf.Blip2ForConditionalGeneration,
        {"vision_config": _SIZES, "qformer_config": _SIZES, "text_config": _OPT},
        ["vision_model.encoder.layers", "qformer.encoder.layer", "language_model.model.decoder.layers"],
    ),
    "internvl": Composed(
        hf.InternVLForConditionalGeneration,
        {"vision_config": _SIZES, "text_config": _DECODER | {"model_type": "qwen2"}},
        ["model.vision_tower.encoder.layer", "model.language_model.layers"],
    ),
    "qwen3_vl": Composed(
        hf.Qwen3VLForConditionalGeneration,
        {
            "vision_config": _QWEN_VISION | {"deepstack_visual_indexes": [0]},
            "text_config": _DECODER | {"head_dim": 8},
        },
        ["model.visual.blocks", "model.language_model.layers"],
    ),
    "mobilebert": Composed(
        hf.MobileBertForSequenceClassification,
        _SIZES | {"embedding_size": 16, "intra_bottleneck_size": 16, "vocab_size": VOCAB},
        ["mobilebert.encoder.layer"],
    ),
    "conformer": Composed(
        hf.Wav2Vec2ConformerForSequenceClassification, _SIZES | _SPEECH, ["wav2vec2_conformer.encoder.layers"]
    ),
    "qwen2_moe": Composed(
        hf.Qwen2MoeForCausalLM,
        _DECODER | {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        ["model.layers"],
    ),
}


def composed(name: str, device: str = "meta") -> Any:
    """A composed model in eval mode."""
    with torch.device(device):
        kind = COMPOSED[name].kind
        return kind(kind.config_class(**COMPOSED[name].sizes)).eval()


def tiny(name: str, num_labels: int = 2, *, seed: int = 0, **config: Any) -> Any:
    """A classifier of a family, in eval mode. Equal seeds give equal bases, whatever the number of labels."""
    family = FAMILIES[name]
    return _make(family.classifier, family.config(num_labels=num_labels, **config), seed)


def tiny_generator(name: str, *, seed: int = 0, **config: Any) -> Any:
    """A language model of a family, in eval mode."""
    family = FAMILIES[name]
    assert family.generator is not None
    return _make(family.generator, family.config(**config), seed)


#: Mixtures of experts that are one tensor for all; the last one's is transposed, and has biases.
MIXTURES = ("Mixtral", "Qwen3Moe", "GptOss")


def mixture(name: str, num_labels: int = 2, *, seed: int = 0, **config: Any) -> Any:
    """A classifier whose feed-forward is a mixture of four experts, in eval mode; `inputs("llama")` are for it."""
    sizes = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 24}
    make = _llama_like(getattr(hf, f"{name}Config"), head_dim=8, intermediate_size=24, **sizes)
    return _make(getattr(hf, f"{name}ForSequenceClassification"), make(num_labels=num_labels, **config), seed)


def _make(cls: type[hf.PreTrainedModel], config: hf.PretrainedConfig, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with no_init_weights():  # they are drawn below
            model = cls(config)
        model.tie_weights()
        # Each tensor from a generator of its own, or the head's size would shift what the later ones draw.
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            generator = torch.Generator().manual_seed(1000 * seed + index)
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.dim() == 1 and not name.endswith("bias")
            parameter.data = 1 + 0.1 * noise if is_norm else (0.3 if parameter.dim() > 1 else 0.1) * noise
    return model.eval()


def inputs(name: str, rows: int = 4, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of a family's classifier; every text ends with its end-of-sequence token, as BART and T5 ask."""
    generator = torch.Generator().manual_seed(seed)
    if FAMILIES[name].images:
        return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=generator)}
    ids = torch.randint(5, VOCAB, (rows, LENGTH), generator=generator)
    ids[:, -1] = EOS
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
    """What a model in eval mode says to a batch."""
    training = model.training
    model.eval()
    result = model(**batch, **kwargs).logits
    model.train(training)
    return result


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer of a plain model, by name."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def base_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of what the base of a wrapped model holds, under the plain model's names."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = {}
    for name, tensor in plain.state_dict().items():
        if ".lora_" in name or ".modules_to_save." in name:
            continue
        names[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor.detach().clone()
    return names


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Same names, and each tensor the same bit for bit."""
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def stir(model: nn.Module, adapter_name: str = "default", *, seed: int = 0, std: float = 0.1) -> None:
    """Random values for everything an adapter trains, as if it had been trained for long."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if f".{adapter_name}." in f"{name}." and (".lora_" in name or ".modules_to_save." in name):
            noise = torch.randn(parameter.shape, generator=generator)
            # The magnitudes of DoRA are norms of weights: they scatter around their values, not around zero.
            parameter.data += (std * noise).to(parameter)


def train(model: nn.Module, batch: dict[str, torch.Tensor], steps: int = 3) -> None:
    """Some real steps of AdamW on everything that is trainable, with dropout as configured."""
    rows = next(iter(batch.values())).shape[0]
    outputs = model.config.num_labels
    labels = torch.linspace(0, 1, rows) if outputs == 1 else torch.arange(rows) % outputs
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()

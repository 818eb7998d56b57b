"""One wrapped module: its deltas compute what a bias trained in place would, and can be put in and taken out."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Embedding as PeftEmbedding
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn
from transformers.models.mobilebert.modeling_mobilebert import NoNorm
from transformers.pytorch_utils import Conv1D

from spafit_hf.architecture import takes_delta
from spafit_hf.tuner.layer import DeltaLayer, Linear, Norm, adopt, wrap

KINDS = ("linear", "linear without bias", "conv1d", "norm")


def base_module(kind: str) -> nn.Module:
    modules = {
        "linear": lambda: nn.Linear(6, 5),
        "linear without bias": lambda: nn.Linear(6, 5, bias=False),
        "conv1d": lambda: Conv1D(5, 6),
        "norm": lambda: nn.LayerNorm(6),
    }
    module = modules[kind]()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.requires_grad_(False)


def wrapped(kind: str, *adapters: str, zero: bool = False) -> DeltaLayer:
    layer = wrap(base_module(kind))
    for adapter in adapters:
        layer.add_delta(adapter, zero=zero)
    layer.set_adapter([*adapters[:1]])
    return layer


def with_bias_in_place(module: nn.Module, delta: torch.Tensor) -> nn.Module:
    module = copy.deepcopy(module)
    bias = delta if module.bias is None else module.bias + delta
    module.bias = nn.Parameter(bias.detach().to(module.weight.dtype))
    return module


X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_delta_changes_nothing(kind):
    layer = wrapped(kind, "a", zero=True)
    assert torch.equal(layer(X), layer.get_base_layer()(X))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_is_a_bias_trained_in_place(kind, dtype):
    layer = wrapped(kind, "a")
    layer.get_base_layer().to(dtype)
    assert layer.lora_delta["a"].dtype == torch.float32
    delta = layer.lora_delta["a"].to(torch.float64 if dtype == torch.float64 else torch.float32)
    x = X.to(dtype)
    if kind == "linear without bias" and dtype == torch.bfloat16:  # rounded where plain PEFT does: twice
        expected = (layer.get_base_layer()(x).float() + delta).to(dtype)
    else:
        expected = with_bias_in_place(layer.get_base_layer(), delta)(x)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_a_bias(kind):
    layer = wrapped(kind, "a")
    reference = with_bias_in_place(layer.get_base_layer(), layer.lora_delta["a"])
    layer(X).square().sum().backward()
    reference(X).square().sum().backward()
    assert torch.equal(layer.lora_delta["a"].grad, reference.bias.grad)
    assert all(parameter.grad is None for parameter in layer.get_base_layer().parameters())


UNREADABLE = {
    "a hook": lambda base: base.register_forward_hook(lambda *_: None),
    "accelerate": lambda base: setattr(base, "_hf_hook", object()),
    "ZeRO-3": lambda base: setattr(base.weight, "ds_id", 0),
}


@pytest.mark.parametrize("why", UNREADABLE)
@pytest.mark.parametrize("kind", KINDS)
def test_where_the_base_cannot_be_read_the_delta_comes_after_it(kind, why):
    layer = wrapped(kind, "a")
    fused = layer(X)
    UNREADABLE[why](layer.get_base_layer())
    assert torch.equal(layer(X), layer.get_base_layer()(X) + layer.lora_delta["a"])
    assert torch.allclose(layer(X), fused, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_may_be_a_plain_tensor(kind):
    """As FSDP leaves it in the place of the parameter while it computes."""
    layer = wrapped(kind, "a")
    expected, delta = layer(X), layer.lora_delta["a"].detach()
    layer.lora_delta._parameters.pop("a")
    layer.lora_delta.a = delta
    assert torch.equal(layer(X), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disabled_layer_is_its_base(kind):
    layer = wrapped(kind, "a")
    layer.enable_adapters(False)
    assert torch.equal(layer(X), layer.get_base_layer()(X))
    layer.enable_adapters(True)
    assert not torch.equal(layer(X), layer.get_base_layer()(X))


@pytest.mark.parametrize("kind", KINDS)
def test_several_active_adapters_add_up(kind):
    layer = wrapped(kind, "a", "b")
    layer.set_adapter(["a", "b"])
    both = layer.lora_delta["a"] + layer.lora_delta["b"]
    assert torch.equal(layer(X), with_bias_in_place(layer.get_base_layer(), both)(X))


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_its_own_adapter(kind):
    layer = wrapped(kind, "a", "b").eval()
    mixed = layer(X, adapter_names=["b", "__base__", "a"])
    for row, name in enumerate(["b", "__base__", "a"]):
        layer.enable_adapters(name != "__base__")
        layer.set_adapter([name] if name != "__base__" else [])
        assert torch.allclose(mixed[row], layer(X)[row], atol=1e-6)
    with pytest.raises(ValueError, match="same as the number of inputs"):
        layer(X, adapter_names=["a"])


@pytest.mark.parametrize("kind", ["linear", "conv1d", "norm"])
def test_unmerging_puts_back_the_very_same_tensors(kind):
    layer = wrapped(kind, "a", "b")
    base = layer.get_base_layer()
    before = {name: parameter.data_ptr() for name, parameter in base.named_parameters()}
    values = {name: parameter.clone() for name, parameter in base.named_parameters()}
    expected = layer(X)
    layer.merge()
    assert layer.merged_adapters == ["a"]
    assert torch.equal(layer(X), expected)
    assert torch.equal(base(X), expected)
    layer.merge(adapter_names=["b"])
    assert layer.merged_adapters == ["a", "b"]
    layer.unmerge()
    assert layer.merged_adapters == []
    for name, parameter in base.named_parameters():
        assert parameter.data_ptr() == before[name]
        assert torch.equal(parameter, values[name])
    assert torch.equal(layer(X), expected)


def test_merging_into_a_module_without_a_bias_is_refused():
    layer = wrapped("linear without bias", "a")
    with pytest.raises(ValueError, match=r"has no bias.*Nothing was merged.*save_adapter"):
        layer.merge()
    assert not layer.merged
    assert layer.get_base_layer().bias is None


def test_a_safe_merge_refuses_what_is_not_finite():
    layer = wrapped("linear", "a")
    before = layer.get_base_layer().bias.clone()
    layer.lora_delta["a"].data[0] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.get_base_layer().bias, before)
    assert not layer.merged


def test_unmerging_what_is_not_merged_warns_as_peft_does():
    with pytest.warns(UserWarning, match="Already unmerged"):
        wrapped("linear", "a").unmerge()


def test_lora_and_delta_live_in_one_layer():
    layer = wrap(base_module("linear"))
    assert isinstance(layer, PeftLinear)
    layer.update_layer("a", 2, 4, config=LoraConfig(init_lora_weights=False))
    layer.add_delta("a", zero=False)
    layer.set_adapter(["a"])
    expected = layer.get_base_layer()(X) + layer.get_delta_weight("a").matmul(X.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(layer(X), expected + layer.lora_delta["a"], atol=1e-5)
    layer.merge()
    assert torch.allclose(layer(X), expected + layer.lora_delta["a"], atol=1e-5)
    layer.unmerge()
    layer.delete_adapter("a")
    assert not layer.lora_delta
    assert not layer.lora_A
    assert torch.equal(layer(X), layer.get_base_layer()(X))


class LayerNorm2d(nn.LayerNorm):
    """As vision models have it: the features are the second dimension."""


@pytest.mark.parametrize(
    "module",
    [
        nn.Embedding(3, 4),
        nn.Conv2d(1, 1, 1),
        nn.ReLU(),
        nn.LayerNorm(4, bias=False),
        nn.RMSNorm(4),
        nn.BatchNorm1d(4),
        nn.GroupNorm(2, 4),
        LayerNorm2d(4),
    ],
)
def test_other_modules_cannot_have_a_delta(module):
    assert not takes_delta(module)
    with pytest.raises(ValueError, match=r"allowed are Linear, Conv1D, and norms with a bias over their last dim"):
        wrap(module)


def test_kinds_are_told_apart():
    assert type(wrap(nn.Linear(2, 2))) is Linear
    assert type(wrap(Conv1D(2, 2))) is Linear
    assert wrap(Conv1D(2, 2)).fan_in_fan_out
    assert type(wrap(nn.LayerNorm(2))) is Norm
    assert type(wrap(NoNorm(2))) is Norm


def test_layers_that_peft_built_are_adopted_with_their_state():
    theirs = PeftLinear(nn.Linear(6, 5), "a", LoraConfig(init_lora_weights=False), r=2, lora_alpha=4)
    expected = theirs(X)
    ours = adopt(theirs)
    assert type(ours) is Linear
    assert torch.equal(ours(X), expected)
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    embedding = PeftEmbedding(nn.Embedding(4, 3), "a", LoraConfig(), r=2)
    assert repr(adopt(embedding)).startswith("lora.Embedding(")

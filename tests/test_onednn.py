"""Products by oneDNN are PyTorch's, up to the order of their sums, in both directions; and nothing of it stays."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scripts import tiny
from scripts.runs import losses, spafit_trainer
from torch import nn

from spafit_hf import get_spafit_model
from spafit_hf.onednn import NotOneDnn, PackedWeights, attached, linear, packed, padding, replaceable_of

if not linear.is_available():
    pytest.skip("PyTorch without oneDNN", allow_module_level=True)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the weights that oneDNN multiplied with; batches may have any number of rows."""
    seen: list[torch.Size] = []
    product = linear._product

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append(weight.shape)
        return product(x, weight, bias)

    monkeypatch.setattr(linear, "_product", counted)
    monkeypatch.setattr(linear, "ROWS", 1)
    monkeypatch.setattr(linear, "SMALLEST", 1)
    return seen


# ---- one product ----

INPUTS = {
    "rows": lambda: torch.randn(7, 24),
    "tokens": lambda: torch.randn(3, 5, 24),
    "first token": lambda: torch.randn(3, 5, 24)[:, :1],
    "transposed": lambda: torch.randn(24, 7).t(),
    "expanded": lambda: torch.randn(24).expand(4, 24),
}


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("which", list(INPUTS))
def test_values_and_gradients_are_those_of_f_linear(which: str, with_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = INPUTS[which](), torch.randn(16, 24), torch.randn(16)
    found = []
    for product in (F.linear, linear.onednn_linear):
        own_x = x.detach().requires_grad_()
        own_bias = bias.clone().requires_grad_() if with_bias else None
        result = product(own_x, weight, own_bias)
        result.mul(torch.arange(16.0)).sum().backward()
        result_of_sum = product(own_x, weight, own_bias).sum()  # whose gradient is one number, expanded
        result_of_sum.backward()
        found.append((result, own_x.grad, *([own_bias.grad] if own_bias is not None else [])))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-6)
        assert got.is_contiguous() or which == "transposed"


def test_only_asked_gradients_are_computed(products: list[torch.Size]) -> None:
    x, weight, bias = torch.randn(2, 4), torch.randn(3, 4), torch.randn(3, requires_grad=True)
    linear.onednn_linear(x, weight, bias).sum().backward()
    assert products == [(3, 4)]  # the first layer after frozen ones has no use for its input's
    assert bias.grad is not None


def test_a_second_derivative_is_an_error() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    y = linear.onednn_linear(x, torch.randn(3, 4), None)
    (gradient,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# ---- modules ----


def test_modules_are_replaced_and_put_back(products: list[torch.Size]) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).requires_grad_(False)
    x = torch.randn(5, 8)
    expected = model(x)
    modules = replaceable_of(model)
    assert modules == [model[0], model[2]]
    with attached(modules):
        torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=0)
    assert not any("forward" in vars(module) for module in model)
    with pytest.raises(RuntimeError), attached(modules):
        model(torch.randn(5, 9))
    assert products == [(6, 8), (2, 6), (6, 8)]
    assert not any("forward" in vars(module) for module in model)


def test_small_modules_are_left_to_pytorch() -> None:
    small, large = nn.Linear(256, 256), nn.Linear(384, 384)
    assert linear.replaceable([small, large]) == [large]
    with pytest.raises(NotOneDnn, match="no dense module of 131,072 numbers"):
        replaceable_of(small.requires_grad_(False))


def test_others_keep_their_forward(products: list[torch.Size]) -> None:
    class Other(nn.Linear):
        pass

    hooked = nn.Linear(4, 4)
    hooked.forward = lambda input: input  # type: ignore[method-assign]  # as accelerate does
    modules = [nn.Linear(4, 4, dtype=torch.float16), nn.Linear(4, 4, device="meta"), nn.Bilinear(4, 4, 4), Other(4, 4)]
    assert linear.replaceable([*modules, hooked]) == []


def test_what_it_cannot_do_is_left_to_pytorch(products: list[torch.Size]) -> None:
    layer = nn.Linear(8, 4)
    with attached([layer]):
        layer(torch.randn(2, 8)).sum().backward()  # the weight trains
        assert layer.weight.grad is not None
        layer.requires_grad_(False)
        assert layer(torch.randn(8)).shape == (4,)
        assert layer(torch.randn(0, 8)).shape == (0, 4)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.randn(2, 8)).dtype == torch.bfloat16
        with torch.no_grad():
            assert layer(torch.randn(2, 8)).shape == (2, 4)
        layer.double()
        assert layer(torch.randn(2, 8, dtype=torch.float64)).dtype == torch.float64
    assert products == []


def test_numbers_of_rows_are_few(products: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ROWS", 64)
    layer = nn.Linear(8, 4).requires_grad_(False)
    with attached([layer]):
        for shape in ((64, 8), (16, 12, 8), (2, 32, 8), (63, 8), (16, 13, 8)):
            layer(torch.randn(shape))
    assert len(products) == 3


@pytest.mark.parametrize(("batch", "tokens"), [(1, 64), (8, 8), (16, 4), (24, 8), (64, 1), (128, 1), (5, 64)])
def test_padding_makes_batches_fit(batch: int, tokens: int) -> None:
    assert padding(batch) == tokens
    assert batch * tokens % linear.ROWS == 0


# ---- packed weights ----


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("which", list(INPUTS))
def test_packed_products_are_those_of_f_linear(which: str, with_bias: bool, packed_rows: list[int]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 16, bias=with_bias), INPUTS[which]()
    weights = PackedWeights(layer)
    assert len(weights) == 1
    with torch.inference_mode(), weights.attached():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=0)
    assert packed_rows == [16]
    assert "forward" not in vars(layer)


def test_rows_are_filled_up_to_few_sizes() -> None:
    assert [packed.filled(rows) for rows in (1, 16, 17, 576, 1024, 1025, 4096, 4097)] == [
        *(16, 16, 32, 576, 1024, 1088, 4096),
        0,  # PyTorch's
    ]
    assert len({packed.filled(rows) for rows in range(1, 5000)}) == 64 + 48 + 1


def test_what_packed_weights_cannot_do_is_left_to_pytorch(
    packed_rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Linear(8, 4)
    with PackedWeights(layer).attached():
        layer(torch.randn(2, 8)).sum().backward()
        assert layer.weight.grad is not None
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(torch.randn(2, 8)).dtype == torch.bfloat16
            assert layer(torch.randn(0, 8)).shape == (0, 4)
            monkeypatch.setattr(packed, "MOST", 2)
            assert layer(torch.randn(3, 8)).shape == (3, 4)
            layer.double()
            assert layer(torch.randn(2, 8, dtype=torch.float64)).dtype == torch.float64
    assert packed_rows == []


def test_changed_weights_are_packed_anew(packed_rows: list[int]) -> None:
    layer, x = nn.Linear(8, 4), torch.randn(2, 8)
    weights = PackedWeights(layer)

    def compare() -> None:
        with torch.inference_mode(), weights.attached():
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=0)

    compare()
    other = nn.Linear(8, 4).weight
    assert other._version == layer.weight._version  # told apart by nothing else
    layer.weight = other
    compare()
    with torch.no_grad():
        layer.weight.mul_(2)
    compare()
    layer.load_state_dict(nn.Linear(8, 4).state_dict())
    compare()
    layer.weight.data = torch.randn(4, 8)  # as PEFT merges
    compare()
    layer.double().float()
    compare()
    assert packed_rows == [16] * 6


def test_weights_without_versions_are_not_packed(packed_rows: list[int]) -> None:
    with torch.inference_mode():
        made = nn.Linear(8, 4)
    assert not PackedWeights(made)
    layer = nn.Linear(8, 4)
    weights = PackedWeights(layer)
    layer.weight = made.weight
    x = torch.randn(2, 8)
    with torch.inference_mode(), weights.attached():
        assert torch.equal(layer(x), F.linear(x, made.weight, layer.bias))
    assert packed_rows == []


def test_a_forward_that_came_later_stays(packed_rows: list[int]) -> None:
    layer = nn.Linear(8, 4)
    weights = PackedWeights(layer)
    layer.forward = own = lambda input: input  # type: ignore[method-assign]  # as accelerate does
    with torch.inference_mode(), weights.attached():
        assert layer(torch.ones(1)) == 1
    assert layer.forward is own
    assert packed_rows == []


# ---- training ----


@pytest.mark.parametrize("strategy", ["spafit-4-9-II", "bitfit", "lora-II"])
def test_training_is_the_same(strategy: str, tmp_path: Path, products: list[torch.Size]) -> None:
    found = []
    for use_onednn in (False, True):
        trainer = spafit_trainer(
            tmp_path, strategy=strategy, use_onednn=use_onednn, num_train_epochs=3, eval_strategy="epoch"
        )
        assert products == []
        trainer.train()
        found.append(trainer)
        assert not any("forward" in vars(module) for module in trainer.model.modules())
    torch.testing.assert_close(losses(found[1]), losses(found[0]), atol=1e-5, rtol=0)
    # Nine steps, six modules in each of six layers, forward; and backward, from the first that trains.
    in_layers = products.count(torch.Size((32, 16))) + products.count(torch.Size((16, 32)))
    assert in_layers > 9 * 2 * 6 * 1.5
    before = len(products)
    found[1].evaluate()
    assert len(products) == before  # is PyTorch's own, bit for bit


def test_two_runs_are_the_same_bit_for_bit(tmp_path: Path, products: list[torch.Size]) -> None:
    runs = [
        spafit_trainer(tmp_path, num_train_epochs=2, use_onednn=True, gradient_checkpointing=checkpointing)
        for checkpointing in (False, False, True)
    ]
    for trainer in runs:
        trainer.train()
    assert products
    states = [trainer.model.state_dict() for trainer in runs]
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in states[0])


def test_with_the_prefix_cache_and_the_first_token(tmp_path: Path, products: list[torch.Size]) -> None:
    given = {"prefix_cache": str(tmp_path / "cache"), "prefix_cache_dtype": "float32", "num_train_epochs": 2}
    plain = spafit_trainer(tmp_path, num_train_epochs=2)
    cached = spafit_trainer(tmp_path, use_onednn=True, **given)
    for trainer in (plain, cached):
        trainer.train()
    assert cached.prefix_cache is not None
    assert cached.first_token is not None
    assert products
    torch.testing.assert_close(losses(cached), losses(plain), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"bf16": True}, "bf16"),
        ({"strategy": "full"}, "no dense module"),
        ({"torch_compile": True, "torch_compile_backend": "eager"}, "compiled"),
    ],
)
def test_where_it_has_no_effect_it_says_so(
    given: dict[str, Any], reason: str, tmp_path: Path, products: list[torch.Size], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = spafit_trainer(tmp_path, num_train_epochs=1, max_steps=1, use_onednn=True, **given)
    with caplog.at_level(logging.WARNING, "spafit_hf"):
        trainer.train()
    assert reason in trainer.onednn_refused
    assert f"use_onednn has no effect: {trainer.onednn_refused}" in caplog.text
    assert products == []


def test_a_failure_leaves_the_model_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, products: list[torch.Size]
) -> None:
    trainer = spafit_trainer(tmp_path, num_train_epochs=1, use_onednn=True)

    def fail(*_: Any, **__: Any) -> None:
        assert any("forward" in vars(module) for module in trainer.model.modules())
        raise RuntimeError("out of memory")

    monkeypatch.setattr(trainer, "compute_loss", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert not any("forward" in vars(module) for module in trainer.model.modules())


def test_deltas_and_lora_pass_through_it(products: list[torch.Size]) -> None:
    model = get_spafit_model(tiny.bert(dropout=0.0), "spafit-4-9-II").eval()
    batch = {"input_ids": torch.arange(5, 15).view(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    expected = model(**batch).logits
    modules = replaceable_of(model)
    with attached(modules):
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-6, rtol=0)
    # Each once, with LoRA, delta or neither: six modules a layer and the pooler. The base's own head is not used.
    assert len(products) == 6 * model.config.num_hidden_layers + 1 == len(modules) - 1

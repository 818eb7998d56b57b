"""The last layer for the first token: the same numbers, found out for each model, and put back afterwards."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import transformers as hf
from scripts import tiny
from scripts.runs import losses, spafit_trainer
from torch import nn

from spafit_hf import SpafitTrainer, SpafitTrainingArguments, Strategy, Stratum, get_spafit_model
from spafit_hf.shortcuts.first_token import FirstToken, NotFirstToken, probe, tokens_of
from spafit_hf.tuner.plain import base_of

SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
NARROWED = ("bert", "roberta", "distilbert", "electra", "modernbert", "vit")

EVERYTHING = Strategy(
    (
        Stratum(
            (0.0, 1.0),
            lora=("query", "key", "value", "attention_output", "intermediate", "output"),
            biases=("query", "key", "attention_output", "attention_norm", "intermediate", "output", "output_norm"),
            r=2,
        ),
    )
)


def batch(name: str) -> dict[str, torch.Tensor]:
    found = models.inputs(name)
    if "attention_mask" in found:
        found["attention_mask"][1, 4:] = 0
    return found


def gradients(model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    rows = next(iter(inputs.values())).shape[0]
    loss = model(**inputs, labels=torch.arange(rows) % 2).loss
    model.zero_grad()
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert sorted(first) == sorted(second)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("name", NARROWED)
@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
def test_loss_and_gradients_are_those_of_the_whole_layer(name: str, full: bool) -> None:
    model = models.tiny(name)
    if not full:
        model = get_spafit_model(model, EVERYTHING)
        models.stir(model)
    inputs = batch(name)
    with probe(base_of(model), inputs).attached():
        found = gradients(model, inputs)[0]
    assert found == pytest.approx(gradients(model, inputs)[0], abs=1e-6)
    # Gradients of random weights are up to 500 and what rounding makes of that hides a mistake: look at them in fp64.
    model, inputs = model.double(), {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
    first = probe(base_of(model), inputs)
    expected = gradients(model, inputs)
    with first.attached():
        found = gradients(model, inputs)
    assert found[0] == pytest.approx(expected[0], abs=1e-12)
    assert_same(expected[1], found[1])
    again = gradients(model, inputs)  # and it is off
    assert all(torch.equal(again[1][n], value) for n, value in expected[1].items())


def test_less_is_computed() -> None:
    model = models.tiny("bert")
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, forward: Any, states: torch.Tensor) -> torch.Tensor:
        shapes[name] = states.shape
        return forward(states)

    for name in ("attention.self.query", "attention.self.key", "attention.output.dense", "intermediate.dense"):
        module = model.get_submodule(f"bert.encoder.layer.3.{name}")
        module.forward = functools.partial(note, name, module.forward)
    inputs = batch("bert")
    with probe(model, inputs).attached():
        model(**inputs)
    assert {name: shape[1] for name, shape in shapes.items()} == {
        "attention.self.query": 1, "attention.self.key": 7, "attention.output.dense": 1, "intermediate.dense": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: models.tiny("gpt2"), "outputs differ"),
        (lambda: models.tiny("llama"), "outputs differ"),
        (lambda: models.tiny("bart"), "encoder and a decoder"),
        (lambda: models.tiny("modernbert", classifier_pooling="mean"), "outputs differ"),
        (lambda: hf.BertForTokenClassification(hf.BertConfig(vocab_size=50, **SIZES)), "other shapes"),
        (lambda: hf.BertModel(hf.BertConfig(vocab_size=50, **SIZES)), "no head"),
        (lambda: models.tiny("bert", output_hidden_states=True), "asks for hidden states"),
    ],
    ids=["gpt2", "llama", "bart", "mean", "tokens", "bare", "states"],
)  # fmt: skip
def test_a_check_finds_models_whose_head_reads_more(make: Any, reason: str) -> None:
    model = make()
    model(**models.inputs("bert"))  # transformers puts hooks in once, where states are asked for
    before = hooks(model)
    with pytest.raises(NotFirstToken, match=reason):
        probe(model, models.inputs("bert"))
    assert hooks(model) == before


def test_rows_of_one_token_decide_nothing() -> None:
    inputs = models.inputs("gpt2", 6)
    for name, padding in (("input_ids", models.PAD), ("attention_mask", 0)):
        inputs[name][:5, 1:] = padding
    assert tokens_of(inputs) == [1, 1, 1, 1, 1, models.LENGTH]
    with pytest.raises(NotFirstToken, match="outputs differ"):
        probe(models.tiny("gpt2"), inputs)


def test_a_zero_head_is_seen_by_its_gradient() -> None:
    model = models.tiny("modernbert", classifier_pooling="mean")
    model.classifier.weight.data.zero_()
    model.classifier.bias.data.zero_()
    with pytest.raises(NotFirstToken, match="gradients differ"):
        probe(model, models.inputs("modernbert"))


def test_asking_for_states_or_attentions_gets_them() -> None:
    model = models.tiny("bert", attn_implementation="eager")
    inputs = batch("bert")
    expected = model(**inputs, output_hidden_states=True, output_attentions=True)
    with probe(model, inputs).attached():
        found = model(**inputs, output_hidden_states=True, output_attentions=True)
        model(**inputs)
        body = model.bert(**inputs)  # without the head, as a script's own loss may call it
    assert torch.equal(body.last_hidden_state, expected.hidden_states[-1])
    for kind in ("hidden_states", "attentions"):
        assert all(torch.equal(one, other) for one, other in zip(found[kind], expected[kind], strict=True))


def test_checkpointed_layers_run_narrowed_again() -> None:
    plain = models.tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = get_spafit_model(plain, EVERYTHING).double()
    models.stir(model)
    inputs = batch("bert")
    expected = gradients(model.train(), inputs)
    first = probe(base_of(model), inputs)
    base_of(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with first.attached():
        found = gradients(model, inputs)
    assert found[0] == pytest.approx(expected[0], abs=1e-12)
    assert_same(expected[1], found[1])


def test_dropout_is_the_same_in_distribution() -> None:
    model = models.tiny("bert", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2).train()
    inputs = {name: value[:1].repeat(4000, 1) for name, value in batch("bert").items()}
    first = probe(model, batch("bert"))
    torch.manual_seed(0)
    with torch.no_grad():
        live = model(**inputs).logits
        with first.attached():
            narrowed = model(**inputs).logits
    error = (live.var(0) / len(live) * 2).sqrt()
    assert bool(((live.mean(0) - narrowed.mean(0)).abs() < 4 * error).all())
    assert torch.allclose(live.std(0), narrowed.std(0), rtol=0.1)


# -- in the trainer --


def run(folder: Path, model: nn.Module | None = None, **given: Any) -> SpafitTrainer:
    return spafit_trainer(folder, model, **{"num_train_epochs": 2, **given})


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"strategy": "full", "learning_rate": 1e-3},
        {"activation_checkpointing": True},
        {"gradient_accumulation_steps": 3, "eval_strategy": "epoch"},
    ],
    ids=["adapter", "full", "checkpointing", "accumulation"],
)
def test_a_training_is_the_same(tmp_path: Path, given: dict[str, Any]) -> None:
    live, found = run(tmp_path, first_token_only="off", **given), run(tmp_path, first_token_only="on", **given)
    live.train()
    found.train()
    assert found.first_token is not None, found.first_token_refused
    assert found.first_token.passes > 6
    assert live.first_token is None
    assert losses(found) == pytest.approx(losses(live), abs=1e-6)
    assert found.evaluate()["eval_loss"] == pytest.approx(live.evaluate()["eval_loss"], abs=1e-6)
    assert hooks(found.model) == hooks(live.model)


def test_auto_narrows_evaluation_and_leaves_a_seed_its_training(tmp_path: Path) -> None:
    off = run(tmp_path, tiny.bert(), first_token_only="off", eval_strategy="epoch")
    hf.set_seed(42)
    auto = run(tmp_path, tiny.bert(), eval_strategy="epoch")
    off.train()
    hf.set_seed(42)  # the trainer has set it when it was made
    auto.train()
    assert losses(off) == losses(auto)  # dropout is on: bit for bit
    assert auto.first_token is not None
    assert auto.first_token.passes == 1 + 2 * 2  # the probe, and two batches in each of two evaluations
    expected, found = off.predict(off.eval_dataset), auto.predict(auto.eval_dataset)
    assert found.predictions == pytest.approx(expected.predictions, abs=1e-6)
    full = run(tmp_path, strategy="full")
    full.evaluate()
    assert full.first_token is None


@pytest.mark.parametrize("where", ["bert.encoder.layer.5", "bert.encoder", "bert.pooler"])
def test_a_hook_of_the_scripts_own_sees_every_token(where: str, tmp_path: Path) -> None:
    found = run(tmp_path)
    found.evaluate()
    assert found.first_token is not None
    passes, widths = found.first_token.passes, []

    def look(_module: nn.Module, args: tuple[torch.Tensor, ...], _output: Any = None) -> None:
        widths.append(args[0].shape[1])

    module = base_of(found.model).get_submodule(where)
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        with register(look):
            found.evaluate()
    assert min(widths) > 1
    assert len(widths) == 4
    assert found.first_token.passes == passes
    found.evaluate()
    assert found.first_token.passes == passes + 2
    module.register_forward_hook(look)
    later = run(tmp_path / "later", base_of(found.model))
    later.evaluate()
    assert later.first_token is None
    assert "a hook on" in later.first_token_refused
    assert len(widths) == 6  # no row more than were evaluated


def test_with_the_prefix_cache(tmp_path: Path) -> None:
    cache = {"prefix_cache": str(tmp_path / "cache"), "prefix_cache_dtype": "float32", "eval_strategy": "epoch"}
    live, found = run(tmp_path), run(tmp_path, **cache)
    live.train()
    found.train()
    assert found.prefix_cache is not None
    assert found.first_token is not None
    assert found.first_token.passes > 6
    assert losses(found) == pytest.approx(losses(live), abs=1e-6)
    assert found.evaluate()["eval_loss"] == pytest.approx(live.evaluate()["eval_loss"], abs=1e-6)


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_last_layer_from_the_cache_is_whole(tmp_path: Path, mode: str) -> None:
    given: dict[str, Any] = {"strategy": "linear-probe", "eval_strategy": "epoch"}
    live = run(tmp_path, first_token_only="off", **given)
    found = run(
        tmp_path, first_token_only=mode, prefix_cache=str(tmp_path / "cache"), prefix_cache_dtype="float32", **given
    )
    live.train()
    found.train()
    found.train()
    live.train()
    assert found.prefix_cache is not None
    assert losses(found) == pytest.approx(losses(live), abs=1e-6)
    assert found.evaluate()["eval_loss"] == pytest.approx(live.evaluate()["eval_loss"], abs=1e-6)


def test_a_model_that_reads_more_says_so_and_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spafit_hf")
    model = tiny.bert(dropout=0.0)
    model.bert.pooler.forward = lambda states: states.mean(1)  # type: ignore[method-assign]
    found = run(tmp_path, model, first_token_only="on")
    found.train()
    assert found.first_token is None
    assert "reads more than the first token" in found.first_token_refused
    assert "The last layer is computed for all tokens" in caplog.text
    assert len(losses(found)) == 6


def test_wrong_mode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allowed are auto, on, off"):
        SpafitTrainingArguments(str(tmp_path), first_token_only="yes")


def test_a_shared_projection_stays_whole() -> None:
    assert FirstToken(models.tiny("modernbert")).queries == ()

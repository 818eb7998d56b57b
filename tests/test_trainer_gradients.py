"""What trains gets a gradient: dead parts are named, dead kinds and strata refused, and chance is no death."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import transformers as hf
from scripts import tiny
from scripts.runs import spafit_trainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spafit_hf import SpafitTrainer, Strategy, Stratum, get_spafit_model, plan
from spafit_hf.trainer.gradients import GradientWatch, may_pass_over, owner_of

IDS = torch.tensor([[5, 6, 7, 8, 9, 2], [9, 8, 7, 6, 5, 2]])


def decoder() -> hf.BartForCausalLM:
    """Half of a BART: its layers keep the attention to an encoder that is not there."""
    return hf.BartForCausalLM(models.FAMILIES["bart"].config(is_decoder=True))


def wavlm() -> hf.WavLMForSequenceClassification:
    """A model that reads the weights of its projections and never calls them."""
    small = {"conv_dim": [16] * 2, "conv_kernel": [8, 4], "conv_stride": [4, 2], "num_feat_extract_layers": 2}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
    return hf.WavLMForSequenceClassification(hf.WavLMConfig(**small, **sizes, **positions, layerdrop=0.0))


def watched(model: nn.Module, strategy: Any = "lora-II", **given: Any) -> tuple[nn.Module, GradientWatch]:
    the_plan = plan(model, strategy)
    wrapped = get_spafit_model(model, strategy, r=2).train()
    return wrapped, GradientWatch(wrapped, the_plan, **given)


def rows(count: int = 16) -> list[dict[str, Any]]:
    return [{"input_ids": IDS[index % 2], "labels": IDS[index % 2]} for index in range(count)]


def test_a_kind_that_is_dead_as_a_whole_is_refused_before_the_first_step(tmp_path: Path) -> None:
    data = [{"input_values": torch.randn(400), "labels": index % 2} for index in range(16)]
    run = spafit_trainer(
        tmp_path, wavlm(), strategy="lora-II", data=data, collator=hf.default_data_collator, max_steps=2
    )
    before = tiny.state(run.model)
    with pytest.raises(ValueError, match=r"LoRA would not train: .* none of its 16 tensors .*q_proj .*never called"):
        run.train()
    assert tiny.differences(before, tiny.state(run.model)) == []


def test_dead_tensors_are_named_once_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = spafit_trainer(
        tmp_path, decoder(), strategy="lora-II", data=rows(), collator=hf.default_data_collator, max_steps=2
    )
    run.train()
    (line,) = [record.getMessage() for record in caplog.records if "got no gradient" in record.getMessage()]
    assert line.startswith("In the first step 32 of 64 tensors that train got no gradient: model.decoder.layers.*.")
    assert "encoder_attn.q_proj" in line
    assert "part of what this task never runs" in line


def test_a_stack_that_is_dead_beside_a_living_one_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model, watch = watched(models.tiny_generator("bart"), "spafit-4-9-II")
    model.get_base_model().model.decoder(input_ids=IDS).last_hidden_state.sum().backward()
    assert watch.look()
    watch.report()
    assert "Of the stack encoder nothing of group 3 trains" in caplog.text
    assert "Of the stack decoder" not in caplog.text


def test_a_stack_that_runs_and_is_cut_off_from_the_loss_is_refused() -> None:
    model, watch = watched(models.tiny_generator("bart"), "spafit-4-9-II")
    with torch.no_grad():
        states = model.get_base_model().model.encoder(input_ids=IDS)
    model(encoder_outputs=states, labels=IDS).loss.backward()
    assert watch.look()
    with pytest.raises(ValueError, match=r"group 2 of the encoder would not train: .*loss does not depend on them"):
        watch.report()


@pytest.mark.parametrize("given", [{}, {"activation_checkpointing": True}])
def test_nothing_is_logged_of_a_whole_model_and_no_hook_stays(
    given: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = spafit_trainer(tmp_path, max_steps=2, **given)
    with caplog.at_level(logging.WARNING):
        run.train()
    assert "gradient" not in caplog.text
    assert not any(module._forward_pre_hooks for module in run.model.modules())


class HeadEverySecondTime(SpafitTrainer):
    calls = 0

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        self.calls += 1
        output = model(**inputs, output_hidden_states=True)
        return output.loss if self.calls % 2 == 0 else output.hidden_states[-1].pow(2).mean()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_whole_first_window_counts(accumulated: int, tmp_path: Path) -> None:
    args = spafit_trainer(tmp_path, gradient_accumulation_steps=accumulated, max_steps=2).args
    run = HeadEverySecondTime(tiny.bert(), args, train_dataset=tiny.dataset(24), processing_class=tiny.tokenizer())
    if accumulated == 2:
        run.train()
        return
    with pytest.raises(ValueError, match=r"the head would not train: .*the loss does not depend on them"):
        run.train()


def test_an_expert_without_a_token_is_not_dead() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.experts[0](x)

    model = Mixture()
    watch = GradientWatch(model, None)
    model(torch.ones(1, 2)).sum().backward()
    assert watch.look()
    watch.report()
    assert may_pass_over(model)
    assert not may_pass_over(models.tiny("bert"))


def test_experts_that_are_one_tensor_are_watched_as_their_stratum() -> None:
    strategy = Strategy((Stratum((0.0, 0.5), ("query",)), Stratum((0.5, 1.0), ("experts",), name="upper")))
    model, watch = watched(models.mixture("Mixtral"), strategy)
    assert not may_pass_over(model)
    for name, parameter in watch.tensors.items():
        parameter.grad = None if "experts" in name else torch.zeros_like(parameter)
    watch.look()
    with pytest.raises(
        ValueError, match=r"upper would not train: .* its 8 tensors .*, model.layers.\*.mlp.experts \("
    ):
        watch.report()
    token = {"input_ids": torch.tensor([[5]]), "labels": torch.tensor([1])}  # two of the four experts have none
    model(**token).loss.backward()
    assert watch.look()
    watch.report()


def test_layers_that_are_dropped_by_chance_are_waited_for() -> None:
    torch.manual_seed(0)
    model, watch = watched(models.tiny_generator("bart", encoder_layerdrop=0.7))
    assert may_pass_over(model)
    steps = 1
    while not watch.look():
        model(input_ids=IDS, labels=IDS).loss.backward()
        steps += 1
    assert 2 < steps < 20
    watch.report()


def test_a_compiled_model_is_not_hooked() -> None:
    model, watch = watched(decoder(), compiled=True)
    assert not any(module._forward_pre_hooks for module in model.modules())
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert watch.look()
    assert {"model.decoder.layers.0.encoder_attn.q_proj"} <= {
        owner_of(name).removeprefix("base_model.model.") for name in watch.dead
    }


@pytest.mark.parametrize("searches", [False, True])
def test_under_ddp(searches: bool, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model, watch = watched(decoder())
        spread = DistributedDataParallel(model, find_unused_parameters=searches)
        spread(input_ids=IDS, labels=IDS).loss.backward()
        assert watch.look()
        assert len(watch.dead) == 32
        watch.report()
        with pytest.raises(ValueError, match="--ddp_find_unused_parameters true"):
            watch.report(needs_all=True)
    finally:
        torch.distributed.destroy_process_group()

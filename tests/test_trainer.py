"""The trainer in one process: what it wraps, trains, logs and saves, on tiny random models."""

from __future__ import annotations

import functools
import inspect
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import transformers_takes_adapters
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from scripts import tiny
from scripts.runs import losses
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    EvalPrediction,
    Seq2SeqTrainer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import PredictionOutput

from spafit_hf import (
    SpafitConfig,
    SpafitSeq2SeqTrainer,
    SpafitSeq2SeqTrainingArguments,
    SpafitTrainer,
    SpafitTrainingArguments,
    Strategy,
    Stratum,
    get_spafit_model,
    load_adapter,
)
from spafit_hf.strategy import METHODS
from spafit_hf.trainer.optimizer import KINDS, parameter_kind
from spafit_hf.tuner.plain import base_of

bert = functools.partial(tiny.bert, layers=4)


def arguments(folder: Path, cls: type = SpafitTrainingArguments, **fields: Any) -> Any:
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    if cls is not TrainingArguments:
        quiet["lora_r"] = 4
    return cls(str(folder), **{**quiet, "max_steps": 3, "learning_rate": 1e-2, **fields})


def trainer(folder: Path, model: nn.Module | None = None, rows: int = 32, **given: Any) -> SpafitTrainer:
    """A trainer on tiny rows; `given` are arguments of the trainer or, of other names, fields of `args`."""
    own = set(inspect.signature(SpafitTrainer.__init__).parameters)
    kept = {name: given.pop(name) for name in list(given) if name in own}
    kept.setdefault("args", arguments(folder, **given))
    kept.setdefault("train_dataset", tiny.dataset(rows))
    kept.setdefault("eval_dataset", tiny.dataset(12, seed=1))
    kept.setdefault("processing_class", tiny.tokenizer())
    if model is None and "model_init" not in kept:
        model = bert()
    return SpafitTrainer(model=model, **kept)


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# -- what is wrapped --


@pytest.mark.parametrize(
    ("ours", "theirs"), [(SpafitTrainer, Trainer), (SpafitSeq2SeqTrainer, Seq2SeqTrainer)], ids=["plain", "seq2seq"]
)
def test_signature_is_transformers_with_ours_at_the_end(ours: type, theirs: type) -> None:
    mine = list(inspect.signature(ours.__init__).parameters.values())
    others = list(inspect.signature(theirs.__init__).parameters.values())
    assert [p.name for p in mine] == [*[p.name for p in others], "strategy", "architecture"]
    assert [p.default for p in mine[:-2]] == [p.default for p in others]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in mine[-2:])
    assert issubclass(ours, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_paper_runs_through_the_same_class(method: str, tmp_path: Path) -> None:
    model = bert()
    before = tiny.state(model)
    run = trainer(tmp_path, model, strategy=method)
    assert run.strategy.name == Strategy.from_name(method).name
    run.train()
    assert len(losses(run)) == 3
    if method == "full":
        assert run.model is model
        assert trained_names(model) == {name for name, _ in model.named_parameters()}
        return
    assert isinstance(run.model, PeftModel)
    kinds = {parameter_kind(name) for name in trained_names(run.model)}
    assert "head" in kinds
    assert kinds - {"head"} == {
        "bitfit": {"bias"}, "lora-I": {"lora"}, "lora-II": {"lora"}, "linear-probe": set()
    }.get(method, {"lora", "bias"})  # fmt: skip
    base = run.model.unload()
    after = tiny.state(base)
    assert [
        name for name in before if not name.startswith("classifier") and not torch.equal(before[name], after[name])
    ] == []


def test_full_fine_tuning_is_transformers_own_bit_for_bit(tmp_path: Path) -> None:
    ours = trainer(tmp_path, strategy="full", train_sampling_strategy="random", weight_decay=0.1)
    ours.train()
    theirs = Trainer(
        bert(),
        arguments(tmp_path, TrainingArguments, weight_decay=0.1),
        train_dataset=tiny.dataset(32),
        processing_class=tiny.tokenizer(),
    )
    theirs.train()
    assert tiny.differences(tiny.state(ours.model), tiny.state(theirs.model)) == []
    assert losses(ours) == losses(theirs)


def test_full_fine_tuning_of_what_merging_left_frozen_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path, strategy="full", max_steps=1).train()
    merged = trainer(tmp_path, trainer(tmp_path).model.merge_and_unload(), strategy="full", max_steps=1)
    merged.evaluate()
    assert "tensors: the others require no gradient" not in caplog.text
    merged.train()
    assert "Full fine-tuning of 2 of the model's 73 tensors" in caplog.text


def test_what_is_no_model_and_no_strategy_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^a model is 'bert'; load it first"):
        trainer(tmp_path, "bert", strategy="bitfit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^a strategy is 3; it must be a name"):
        trainer(tmp_path, strategy=3)


@pytest.mark.parametrize("given", [{"bias": "all"}, {"trainable_token_indices": [1]}, {"modules_to_save": ["pooler"]}])
def test_what_no_folder_holds_is_refused_before_training(given: dict[str, Any], tmp_path: Path) -> None:
    config = SpafitConfig(target_modules=["query"], task_type="SEQ_CLS", **given)
    run = trainer(tmp_path, get_peft_model(bert(), config))
    with pytest.raises(ValueError, match=r"could not be saved .* take PEFT's LoraConfig"):
        run.train()
    assert run.state.global_step == 0


def test_tensors_of_the_base_that_a_script_has_unfrozen_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    table = base_of(run.model).bert.embeddings.word_embeddings
    table.requires_grad_(True)
    with pytest.raises(ValueError, match=r"^1 tensors of the base train .*\(bert\.embeddings.*\), and its folder"):
        run.train()
    table.requires_grad_(False)
    run.train()
    assert len(losses(run)) == 3


def test_a_peft_model_is_taken_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = get_spafit_model(bert(), "bitfit")
    run = trainer(tmp_path, model, args=arguments(tmp_path), strategy="lora-I")
    assert run.model is model
    assert "has an adapter already" in caplog.text
    stock = get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    run = trainer(tmp_path, stock)
    assert run.model is stock
    run.train()
    run.save_model()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert not (tmp_path / "training_args.bin").exists()
    with pytest.raises(ValueError, match=r"nothing of the model trains.* with is_trainable=True"):
        trainer(tmp_path, PeftModel.from_pretrained(tiny.bert(), tmp_path)).train()
    stock.merge_adapter()
    model.disable_adapter_layers()
    for idle, words in ((stock, "unmerge_adapter"), (model, "enable_adapter_layers")):
        with pytest.raises(ValueError, match=words):
            trainer(tmp_path, idle).train()


@transformers_takes_adapters
def test_a_model_with_transformers_own_adapter_is_taken_as_it_is(tmp_path: Path) -> None:
    model = bert()
    model.add_adapter(LoraConfig(r=2, target_modules=["query"]))
    assert trainer(tmp_path, model).model is model


@pytest.mark.parametrize("strategy", ["bitfit", "full"])
def test_the_card_of_pairs_asks_with_a_pair(strategy: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, strategy=strategy)
    assert not run.card_facts().takes_pairs
    run.task = {"columns": ["question", "answer"]}
    assert run.card_facts().takes_pairs


def test_plain_training_arguments_work(tmp_path: Path) -> None:
    run = trainer(tmp_path, args=arguments(tmp_path, TrainingArguments), strategy="spafit-4-9-I")
    assert run.strategy == Strategy.from_name("spafit-4-9-I")
    run.train()
    assert trainer(tmp_path, args=arguments(tmp_path, TrainingArguments)).strategy.name == "spafit-4-9-II"
    assert trainer(tmp_path, args=None, strategy="bitfit").args.strategy == "bitfit"


def test_the_keyword_takes_the_place_of_the_arguments_strategy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = arguments(tmp_path, strategy="lora-I")
    run = trainer(tmp_path, args=args, strategy="bitfit")
    assert run.strategy.name == args.strategy == "bitfit"
    assert "takes the place of the arguments' strategy=lora-I" in caplog.text
    caplog.clear()
    mine = Strategy((Stratum((2, -1), lora=("query",), r=3),), name="mine")
    run = trainer(tmp_path, args=arguments(tmp_path), strategy=mine)
    assert run.strategy == mine
    assert Strategy.coerce(run.args.strategy) == mine  # whole in the arguments, for logs and cards
    assert "takes the place" not in caplog.text
    run = trainer(tmp_path, args=arguments(tmp_path), strategy=mine.to_dict())
    assert run.strategy == mine
    with pytest.raises(ValueError, match="unknown strategy"):
        trainer(tmp_path, args=arguments(tmp_path), strategy="bitfitt")


def test_a_strategy_that_does_not_fit_the_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are 4"):
        trainer(tmp_path, n1=2, n2=11)


def test_wrapping_depends_on_the_seed_alone(tmp_path: Path) -> None:
    def adapters(draws: int, **given: Any) -> dict[str, torch.Tensor]:
        model = bert()
        torch.rand(draws)
        run = trainer(tmp_path, **({"model": model} if "model_init" not in given else {}), **given)
        return {name: tensor for name, tensor in tiny.state(run.model).items() if "lora_" in name}

    first = adapters(0)
    assert tiny.differences(first, adapters(17)) == []
    assert tiny.differences(first, adapters(3, model_init=lambda: bert())) == []
    assert tiny.differences(first, adapters(0, seed=7)) != []


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_initialization_of_lora_passes_through(init: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, init_lora_weights=init)
    assert run.model.peft_config["default"].init_lora_weights == init


def test_the_table_of_strata_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "spafit_hf"):
        run = trainer(tmp_path, max_steps=1)
        run.train()
    assert str(run.plan) in caplog.text
    assert "24 -> 4 layers" in caplog.text  # what N1 and N2 became
    caplog.clear()
    with caplog.at_level(logging.INFO, "spafit_hf"):
        trainer(tmp_path, strategy="full", max_steps=1).train()
    assert "Training strategy full:" in caplog.text


# -- optimizer --


def groups(run: SpafitTrainer) -> dict[tuple[str, float], dict[str, Any]]:
    return {(group["kind"], group["weight_decay"]): group for group in run.optimizer.param_groups}


def test_groups_by_kind_and_decay(tmp_path: Path) -> None:
    run = trainer(tmp_path, weight_decay=0.1, bias_learning_rate=5e-2, head_learning_rate=2e-2)
    run.create_optimizer()
    found = groups(run)
    assert set(found) == {("lora", 0.1), ("bias", 0.0), ("head", 0.1), ("head", 0.0)}
    assert {key[0]: group["lr"] for key, group in found.items()} == {"lora": 1e-2, "bias": 5e-2, "head": 2e-2}
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    held = [names[id(parameter)] for group in run.optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(trained_names(run.model))
    assert all("lora_delta" in names[id(parameter)] for parameter in found["bias", 0.0]["params"])
    assert [group["kind"] for group in run.optimizer.param_groups] == ["lora", "bias", "head", "head"]


def test_full_fine_tuning_can_have_a_head_rate(tmp_path: Path) -> None:
    run = trainer(tmp_path, strategy="full", head_learning_rate=0.5)
    run.create_optimizer()
    assert {group["kind"]: group["lr"] for group in run.optimizer.param_groups} == {"base": 1e-2, "head": 0.5}
    count = sum(parameter.numel() for group in run.optimizer.param_groups for parameter in group["params"])
    assert count == run.model.num_parameters()


def test_rates_are_scheduled_and_logged(tmp_path: Path) -> None:
    run = trainer(tmp_path, head_learning_rate=1.0, lr_scheduler_type="linear", max_steps=4)
    run.train()
    logged = [entry for entry in run.state.log_history if "learning_rate" in entry]
    assert [entry["learning_rate"] for entry in logged] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert [entry["head_learning_rate"] for entry in logged] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert "bias_learning_rate" not in logged[0]


def test_a_rate_of_zero_keeps_a_kind_as_it_is(tmp_path: Path) -> None:
    run = trainer(tmp_path, head_learning_rate=0.0)
    before = tiny.state(run.model)
    run.train()
    changed = tiny.differences(before, tiny.state(run.model))
    assert changed
    assert not any("modules_to_save" in name for name in changed)


def test_a_rate_without_parameters_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, strategy="lora-I", bias_learning_rate=1e-3).create_optimizer()
    assert "bias_learning_rate is set, and no parameter of that kind trains" in caplog.text


class OwnOptimizer(SpafitTrainer):
    """A script's trainer that makes its optimizer itself."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        self.optimizer = torch.optim.SGD([each for each in self.model.parameters() if each.requires_grad], lr=0.5)
        return self.optimizer


@pytest.mark.parametrize("passed", [True, False])
def test_rates_without_effect_on_an_optimizer_of_the_scripts_own_are_said(
    passed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = get_spafit_model(bert(), "spafit-4-9-II")
    given = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.5)
    own = {"processing_class": tiny.tokenizer(), "train_dataset": tiny.dataset(8)}
    args = arguments(tmp_path, max_steps=1, bias_learning_rate=1e-3, head_learning_rate=1e-3)
    run = SpafitTrainer(model, args, optimizers=(given, None), **own) if passed else OwnOptimizer(model, args, **own)
    run.train()
    assert caplog.text.count("have no effect: bias_learning_rate, head_learning_rate") == 1


def base_with_pooler(*, trained: bool) -> nn.Module:
    """A BERT whose layers have been trained, as far as their biases tell, and whose pooler has, or has not."""
    model = bert()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") and (trained or "pooler" not in name):
                parameter.uniform_(0.1, 0.2)
    return model


@pytest.mark.parametrize(
    ("pooler", "given", "head"),
    [(False, {}, 0.1), (False, {"head_learning_rate": 0.3}, 0.3), (True, {}, 0.01)],
    ids=["never trained", "a rate is given", "trained"],
)
def test_the_head_learns_faster_behind_a_pooler_that_was_never_trained(
    pooler: bool, given: dict[str, float], head: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(tmp_path, model=base_with_pooler(trained=pooler), **given)
    run.create_optimizer()
    rates = {group["kind"]: group["lr"] for group in run.optimizer.param_groups}
    assert rates == pytest.approx({"lora": 0.01, "bias": 0.01, "head": head})
    assert ("pooler was never trained" in caplog.text) == (head == 0.1)


def test_an_untrained_pooler_changes_no_rate_of_full_fine_tuning_or_of_a_given_optimizer(tmp_path: Path) -> None:
    full = trainer(tmp_path, model=base_with_pooler(trained=False), strategy="full")
    full.create_optimizer()
    assert {group["lr"] for group in full.optimizer.param_groups} == {0.01}
    model = get_spafit_model(base_with_pooler(trained=False), "spafit-4-9-II")
    given = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    run = trainer(tmp_path, model=model, optimizers=(given, None))
    run.create_optimizer()
    assert [group["lr"] for group in given.param_groups] == [0.5]


def test_optimizer_cls_and_kwargs(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        args=arguments(tmp_path, head_learning_rate=0.25),
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.5}),
    )
    run.train()
    assert isinstance(run.optimizer.optimizer, torch.optim.SGD)
    assert {group["kind"]: group["initial_lr"] for group in run.optimizer.param_groups} == {
        "lora": 0.5, "bias": 0.5, "head": 0.25
    }  # fmt: skip


@pytest.mark.parametrize("name", ["adafactor", "adamw_torch", "sgd"])
def test_optimizers_by_name(name: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, optim=name, head_learning_rate=1e-3)
    run.train()
    assert all(np.isfinite(losses(run)))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"init_adapter": "/nonexistent"}, "nonexistent"),
        ({"eval_strategy": "epoch", "eval_dataset": None}, "eval_dataset"),
        ({"optimizers": (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), None)}, "the optimizer holds 0"),
    ],
)
def test_a_model_is_plain_again_where_no_trainer_could_be_made(
    given: dict[str, Any], error: str, tmp_path: Path
) -> None:
    model = bert()
    before, trained = tiny.state(model), trained_names(model)
    with pytest.raises(ValueError, match=error):
        trainer(tmp_path, model, **given)
    assert trained_names(model) == trained
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state(model).items())
    assert trainer(tmp_path, model).plan is not None


@pytest.mark.parametrize(
    ("wrap", "adapted"), [(lambda model: torch.compile(model, backend="eager"), True), (nn.DataParallel, False)]
)
def test_a_model_within_another_is_taken_out(
    wrap: Any, adapted: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = bert(dropout=0.0)
    model.save_pretrained(tmp_path / "base")
    run = trainer(tmp_path, wrap(get_spafit_model(model, "lora-I", r=2) if adapted else model), max_steps=1)
    assert "--torch_compile" in caplog.text
    run.train()
    run.save_model(str(tmp_path / "saved"))
    names = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.bert.") or ".classifier." in name for name in names)
    again = PeftModel.from_pretrained(type(model).from_pretrained(tmp_path / "base"), tmp_path / "saved").eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    assert torch.equal(again(input_ids=ids).logits, run.model.eval()(input_ids=ids).logits)


def test_a_probe_of_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    model = tiny.llama()
    with pytest.raises(ValueError, match="linear-probe trains nothing in LlamaForCausalLM"):
        trainer(tmp_path, model, strategy="linear-probe")
    trainer(tmp_path, model)


def test_a_second_trainer_on_the_same_variable_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = bert(dropout=0.0)
    first = trainer(tmp_path, model, max_steps=2)
    first.train()
    loss = first.evaluate()["eval_loss"]
    before = tiny.state(first.model)
    del first
    second = trainer(tmp_path, model, max_steps=2)
    assert "going on with it" in caplog.text
    assert tiny.differences(before, tiny.state(second.model)) == []
    assert second.plan is not None
    assert second.evaluate()["eval_loss"] == loss
    second.train()
    with pytest.raises(ValueError, match=r"bitfit.*load the model again"):
        trainer(tmp_path, model, strategy="bitfit")
    with pytest.raises(ValueError, match="the model has an adapter already"):
        trainer(tmp_path, model, init_adapter="somewhere")
    second.model.unload()
    assert trainer(tmp_path, model, strategy="bitfit").plan.strategy.name == "bitfit"


def test_an_optimizer_of_the_unwrapped_model_is_refused(tmp_path: Path) -> None:
    model = bert()
    with pytest.raises(ValueError, match=r"the optimizer holds 0 of the .* pass optimizer_cls_and_kwargs"):
        trainer(tmp_path, model, optimizers=(torch.optim.AdamW(model.parameters()), None))
    wrapped = get_spafit_model(bert(), "bitfit")
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.1)
    run = trainer(tmp_path, wrapped, optimizers=(optimizer, None))
    run.train()
    assert run.optimizer.optimizer is optimizer


# -- data --


def order(run: SpafitTrainer) -> list[int]:
    return list(run._get_train_sampler())


def test_batches_hold_similar_lengths(tmp_path: Path) -> None:
    run = trainer(tmp_path, rows=64)
    lengths = [len(ids) for ids in run.train_dataset["input_ids"]]
    batches = [[lengths[index] for index in order(run)[start : start + 8]] for start in range(0, 64, 8)]
    grouped = sum(max(batch) * 8 for batch in batches)
    shuffled = sum(max(lengths[start : start + 8]) * 8 for start in range(0, 64, 8))
    assert grouped < 0.9 * shuffled
    sampler = run._get_train_sampler()
    first = list(sampler)
    assert list(sampler) == first  # the seed and the epoch alone
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert sorted(sampler) == list(range(64))


@pytest.mark.parametrize(
    "rows",
    [
        [{"pixel_values": torch.zeros(3, 4, 4), "labels": 0}] * 8,
        [{"features": [1, 2], "labels": 0}] * 8,
        [(torch.zeros(3), 0)] * 8,
    ],
    ids=["pixels", "other names", "tuples"],
)
def test_examples_without_length_are_sampled_at_random(
    rows: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "spafit_hf"):
        run = trainer(tmp_path, train_dataset=rows)
        assert sorted(order(run)) == list(range(8))
    assert isinstance(run._get_train_sampler(), torch.utils.data.RandomSampler)
    assert "sampling at random" in caplog.text


def test_lengths_are_found_wherever_they_are(tmp_path: Path) -> None:
    plain = tiny.dataset(24)
    run = trainer(tmp_path, train_dataset=plain)
    expected = order(run)
    lists = [dict(row) for row in plain]
    tensors = plain.with_format("torch")
    measured = plain.add_column("length", [len(ids) for ids in plain["input_ids"]])
    indexed = plain.select(range(24))  # rows through an indices mapping
    for same in (lists, tensors, measured, indexed):
        run.train_dataset = same
        assert order(run) == expected


def test_an_iterable_dataset_trains(tmp_path: Path) -> None:
    run = trainer(tmp_path, train_dataset=tiny.dataset(24).to_iterable_dataset())
    run.train()
    assert len(losses(run)) == 3


def test_predictions_come_in_the_order_of_the_rows(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    rows = tiny.dataset(20, seed=3)
    output = run.predict(rows)
    assert isinstance(output, PredictionOutput)
    assert output.label_ids.tolist() == rows["label"]
    run.model.eval()
    collate = DataCollatorWithPadding(tiny.tokenizer())
    for index, row in enumerate(rows):
        batch = collate([{key: row[key] for key in ("input_ids", "attention_mask")}])
        with torch.no_grad():
            assert run.model(**batch).logits[0].numpy() == pytest.approx(output.predictions[index], abs=1e-6)


def test_evaluation_sorts_by_length_and_metrics_see_the_order_of_the_rows(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def look(rows: EvalPrediction) -> dict[str, float]:
        seen.update(predictions=rows.predictions, labels=rows.label_ids, inputs=rows.inputs, losses=rows.losses)
        return {"rows": float(len(rows.label_ids))}

    args = {"include_for_metrics": ["inputs", "loss"], "per_device_eval_batch_size": 4}
    run = trainer(tmp_path, compute_metrics=look, **args)
    rows = tiny.dataset(22, seed=3)
    widths: list[int] = []
    run.model.register_forward_pre_hook(
        lambda model, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    figures = run.evaluate(rows)
    assert run.compute_metrics is look
    assert figures["eval_rows"] == 22
    assert widths == sorted(widths, reverse=True)
    assert seen["labels"].tolist() == rows["label"]
    kept = [[token for token in ids if token > 0] for ids in seen["inputs"].tolist()]
    assert kept == [list(ids) for ids in rows["input_ids"]]
    output = run.predict(rows)
    assert np.array_equal(output.predictions, seen["predictions"])
    plain = trainer(tmp_path, model=run.model, compute_metrics=look, train_sampling_strategy="random", **args)
    again = plain.evaluate(rows)
    assert again["eval_loss"] == pytest.approx(figures["eval_loss"], abs=1e-6)
    assert seen["predictions"] == pytest.approx(output.predictions, abs=1e-6)


@pytest.mark.parametrize("args", [{"batch_eval_metrics": True}, {"eval_do_concat_batches": False}])
def test_evaluation_keeps_the_order_of_batches_that_are_not_gathered(args: dict[str, bool], tmp_path: Path) -> None:
    run = trainer(tmp_path, **args)
    assert list(run._get_eval_sampler(tiny.dataset(9))) == list(range(9))


def test_evaluation_with_fewer_rows_out_than_in(tmp_path: Path) -> None:
    rows = tiny.dataset(13, seed=3)
    run = trainer(tmp_path, dataloader_drop_last=True, per_device_eval_batch_size=8)
    assert run.predict(rows).label_ids.tolist() == rows["label"][:8]  # as Trainer: the last rows are dropped
    run = trainer(tmp_path, preprocess_logits_for_metrics=lambda logits, labels: logits.mean(0, keepdim=True))
    output = run.predict(rows)
    assert output.predictions.shape == (2, 2)
    assert output.label_ids.tolist() == rows["label"]


# -- activation checkpointing --


def gradients(run: SpafitTrainer) -> tuple[dict[str, torch.Tensor], dict[int, tuple[bool, int]]]:
    """Gradients of the first step; and of each layer whether its input is on the way of the backward pass, and how
    often its query projection ran (twice where the layer was checkpointed)."""
    seen: dict[str, torch.Tensor] = {}
    layers: dict[int, tuple[bool, int]] = {}

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            seen.update({n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None})

    def watch(index: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            on_the_way = inputs[0].grad_fn is not None or inputs[0].requires_grad
            layers[index] = (on_the_way, layers.get(index, (False, 0))[1] + 1)

        return hook

    base = run.model.get_base_model() if isinstance(run.model, PeftModel) else run.model
    for index, layer in enumerate(base.bert.encoder.layer):
        layer.attention.self.query.register_forward_hook(watch(index))
    run.add_callback(Look())
    run.train()
    return seen, layers


@pytest.mark.parametrize(
    "how",
    [
        {"activation_checkpointing": True},
        {"gradient_checkpointing": True},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        "by hand",
    ],
    ids=["new name", "old name", "reentrant", "by hand"],
)
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_checkpointing_stays_above_the_frozen_layers_and_keeps_the_gradients(how: Any, tmp_path: Path) -> None:
    strategy = {"strategy": "spafit-8-12-II", "max_steps": 1}  # on 6 layers: group 1 = 0, 1; group 2 = 2
    expected, layers = gradients(trainer(tmp_path, tiny.bert(), **strategy))
    assert [layers[index] for index in range(6)] == [(False, 1)] * 3 + [(True, 1)] * 3
    model = tiny.bert()
    if how == "by hand":
        model.activation_checkpointing_enable()
    run = trainer(tmp_path, model, **strategy, **({} if how == "by hand" else how))
    found, layers = gradients(run)
    # The input of layer 2, the first that trains, carries no gradient: there is no backward pass into group 1.
    assert [layers[index] for index in range(6)] == [(False, 1)] * 2 + [(False, 2)] + [(True, 2)] * 3
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-7)


def test_checkpointing_every_other_layer(tmp_path: Path) -> None:
    kwargs = {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"every_n_layers": 2},
        "max_steps": 1,
    }
    _, layers = gradients(trainer(tmp_path, tiny.bert(), strategy="spafit-8-12-II", **kwargs))
    assert [runs for _, runs in layers.values()] == [1, 1, 2, 1, 2, 1]


def test_checkpointing_of_full_fine_tuning_is_transformers_own(tmp_path: Path) -> None:
    expected, _ = gradients(trainer(tmp_path, strategy="full", max_steps=1))
    found, layers = gradients(trainer(tmp_path, strategy="full", max_steps=1, activation_checkpointing=True))
    assert layers[0] == (True, 2)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-7)


def test_checkpointing_a_decoder_over_a_training_encoder(tmp_path: Path) -> None:
    # The decoder's frozen layers are above the encoder's adapters: gradients pass through them.
    strategy = Strategy((Stratum((1, 1), lora=("query",), r=2),), head=False)

    def run(**given: Any) -> dict[str, torch.Tensor]:
        rows = [{"input_ids": [4, 5, 6], "attention_mask": [1, 1, 1], "labels": [7, 8]}] * 8
        one = trainer(tmp_path, tiny.bart(), train_dataset=rows, strategy=strategy, args=arguments(tmp_path, **given),
                      data_collator=DataCollatorForSeq2Seq(tiny.tokenizer()))  # fmt: skip
        one.train()
        return tiny.state(one.model)

    first, second = run(), run(activation_checkpointing=True)
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-6) for name in first)


# -- what Trainer does besides --


def test_the_loss_falls(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, tiny.bert(layers=2, dropout=0.0), strategy="spafit-4-9-II", max_steps=40, learning_rate=1e-2
    )
    run.train()
    assert np.mean(losses(run)[-10:]) < 0.9 * np.mean(losses(run)[:10])


@pytest.mark.parametrize(("strategy", "causal"), [("spafit-4-9-II", False), ("full", False), ("spafit-4-9-II", True)])
def test_accumulated_gradients_equal_a_larger_batch(strategy: str, causal: bool, tmp_path: Path) -> None:
    # BERT's loss ignores num_items_in_batch, Llama's takes it (transformers issue 47688): both must come out right.
    def run(size: int, steps: int) -> tuple[dict[str, torch.Tensor], list[float]]:
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        if causal:
            rows = [{"input_ids": (ids := [2, *range(4, 6 + i % 5), 3]), "labels": ids} for i in range(32)]
            given = {"train_dataset": rows, "data_collator": DataCollatorForSeq2Seq(tiny.tokenizer())}
            one = trainer(tmp_path, tiny.llama(), **given, **sizes)
        else:
            one = trainer(tmp_path, bert(dropout=0.0), strategy=strategy, **sizes)
        one.train()
        return tiny.state(one.model), losses(one)

    (first, first_losses), (second, second_losses) = run(8, 1), run(2, 4)
    assert first_losses == pytest.approx(second_losses, abs=1e-5)
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-5


def test_a_short_last_batch_weighs_what_its_rows_weigh(tmp_path: Path) -> None:
    states = []
    for size, steps in ((16, 1), (8, 2)):  # of 10 rows: one batch, or batches of 8 and 2
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 3}
        run = trainer(tmp_path, bert(dropout=0.0), train_dataset=tiny.dataset(10), **sizes)
        run.train()
        states.append((tiny.state(run.model), losses(run)))
    (first, first_losses), (second, second_losses) = states
    assert first_losses == pytest.approx(second_losses, abs=1e-5)
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-5


class OwnLoss(SpafitTrainer):
    """A loss whose labels BERT's own cannot take, and what it is given as the number of items."""

    seen: Any = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.seen = [*(self.seen or ()), num_items_in_batch]
        labels = inputs.pop("labels")
        return (model(**inputs).logits.sum(-1) - labels).pow(2).sum() / num_items_in_batch


def test_a_loss_of_a_script_s_own_is_left_to_it(tmp_path: Path) -> None:
    rows = tiny.dataset(32, label=lambda row: 5 * row["label"])
    found = []
    for size, steps in ((8, 1), (2, 4)):
        args = arguments(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        run = OwnLoss(bert(dropout=0.0), args, train_dataset=rows, processing_class=tiny.tokenizer())
        run.train()
        assert [int(items) for items in run.seen] == [8] * 3 * steps
        found.append(losses(run))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_first_batch_without_labels_decides_nothing(tmp_path: Path) -> None:
    ids = [2, 5, 6, 7, 3]
    rows = [{"input_ids": ids, "labels": [-100] * 5 if index < 2 else ids} for index in range(8)]
    given = {"train_dataset": rows, "data_collator": DataCollatorForSeq2Seq(tiny.tokenizer())}
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2}
    run = trainer(tmp_path, tiny.llama(), train_sampling_strategy="sequential", **given, **sizes)
    run.train()
    assert run.model_accepts_loss_kwargs


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_autocast(dtype: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, **{dtype: True})
    run.train()
    assert all(np.isfinite(losses(run)))
    assert {p.dtype for p in run.model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    ("dtype", "given"),
    [
        (torch.float16, {}),
        (torch.bfloat16, {}),
        (torch.float16, {"fp16": True}),
        (torch.bfloat16, {"bf16": True}),
        (torch.bfloat16, {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 1}),
    ],
)
def test_a_base_stored_in_half_precision(dtype: torch.dtype, given: dict[str, Any], tmp_path: Path) -> None:
    run = trainer(tmp_path, tiny.bert(layers=1, dropout=0.0).to(dtype), learning_rate=1e-3, **given)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in before.values()} == {torch.float32}
    run.train()
    assert all(np.isfinite(losses(run)))
    head = [name for name in before if "modules_to_save" in name]
    assert all((run.model.get_parameter(name) != before[name]).all() for name in head)


def test_full_fine_tuning_in_half_precision_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = trainer(tmp_path, bert().to(torch.bfloat16), strategy="full", max_steps=1)
    run.evaluate()
    assert "Full fine-tuning" not in caplog.text
    run.train()
    assert "Full fine-tuning of weights in torch.bfloat16" in caplog.text


def test_full_fine_tuning_in_float16_is_refused_before_it_is_nan(tmp_path: Path) -> None:
    given = {"strategy": "full", "max_steps": 1}
    run = trainer(tmp_path, tiny.bert(layers=1).to(torch.float16), **given)
    before = tiny.state(run.model)
    with pytest.raises(ValueError, match=r"float16 \(bert\..*dtype=torch.float32"):
        run.train()
    assert tiny.differences(before, tiny.state(run.model)) == []
    run.evaluate()  # trains nothing
    run = trainer(tmp_path, tiny.bert(layers=1).to(torch.float16), optim="adafactor", **given)
    run.train()  # which keeps its states in fp32
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())


def test_metrics_callbacks_and_smoothing(tmp_path: Path) -> None:
    steps: list[int] = []

    class Count(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append(state.global_step)

    def accuracy(prediction: Any) -> dict[str, float]:
        logits, labels = prediction
        return {"accuracy": float((logits.argmax(-1) == labels).mean())}

    run = trainer(
        tmp_path,
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=1, label_smoothing_factor=0.1),
        compute_metrics=accuracy,
        callbacks=[Count()],
    )
    run.train()
    assert steps == [1, 2, 3]
    assert [e["eval_accuracy"] for e in run.state.log_history if "eval_accuracy" in e] != []
    assert run.label_names == ["labels"]
    assert run.evaluate()["eval_accuracy"] <= 1


@pytest.mark.parametrize("config", [{"problem_type": "regression"}, {}])
def test_smoothing_of_numbers_is_refused_and_leaves_the_model_plain(config: dict[str, Any], tmp_path: Path) -> None:
    model = bert(num_labels=1, **config)
    with pytest.raises(ValueError, match="rows of one class each, and this model predicts a number; leave it out"):
        trainer(tmp_path, model, label_smoothing_factor=0.1)

    def loss(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
        return ((outputs.logits[:, 0] - labels) ** 2).mean()

    rows = tiny.dataset(16, label=lambda row: row["label"] / 3)
    trainer(tmp_path, model, label_smoothing_factor=0.1, train_dataset=rows, compute_loss_func=loss).train()


def test_smoothing_of_several_labels_is_refused(tmp_path: Path) -> None:
    rows = tiny.dataset(16, label=lambda row: [1.0, 0.0, float(row["label"])])
    run = trainer(tmp_path, bert(num_labels=3), label_smoothing_factor=0.1, train_dataset=rows)
    with pytest.raises(ValueError, match="these labels are no ids of classes; leave it out"):
        run.train()


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"num_labels": 1, "problem_type": "regression"}, lambda row: row["label"] / 3),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, lambda row: [1.0, 0.0, float(row["label"])]),
        ({"num_labels": 3}, lambda row: row["label"] + 1),
    ],
    ids=["regression", "multi-label", "three labels"],
)
def test_problem_types(config: dict[str, Any], label: Any, tmp_path: Path) -> None:
    run = trainer(tmp_path, bert(**config), train_dataset=tiny.dataset(16, label=label))
    run.train()
    assert all(np.isfinite(losses(run)))
    shape = run.predict(tiny.dataset(5, label=label)).predictions.shape
    assert shape == (5, config["num_labels"])


def test_causal_language_modeling(tmp_path: Path) -> None:
    rows = [{"input_ids": [2, *[4 + (start + i) % 12 for i in range(6)], 3]} for start in range(24)]
    rows = [{**row, "attention_mask": [1] * 8, "labels": row["input_ids"]} for row in rows]
    run = trainer(tmp_path, tiny.llama(), train_dataset=rows, eval_dataset=rows[:8], max_steps=30)
    run.train()
    assert losses(run)[-1] < losses(run)[0]
    run.save_model()
    again = load_adapter(tiny.llama(), tmp_path)
    ids = torch.tensor([row["input_ids"] for row in rows[:3]])
    run.model.eval()
    torch.testing.assert_close(again.eval()(ids).logits, run.model(ids).logits, rtol=0, atol=1e-6)


def test_sequence_to_sequence_with_generation(tmp_path: Path) -> None:
    rows = [{"input_ids": [2, 4 + i % 12, 3], "attention_mask": [1] * 3, "labels": [4 + i % 12, 3]} for i in range(16)]
    args = arguments(
        tmp_path,
        SpafitSeq2SeqTrainingArguments,
        predict_with_generate=True,
        generation_max_length=6,
        eval_strategy="steps",
    )

    def count(prediction: Any) -> dict[str, float]:
        return {"width": float(prediction.predictions.shape[1])}

    run = SpafitSeq2SeqTrainer(
        tiny.bart(),
        args,
        DataCollatorForSeq2Seq(tiny.tokenizer()),
        rows,
        rows[:6],
        tiny.tokenizer(),
        compute_metrics=count,
        strategy="spafit-4-9-II",
    )
    run.train()
    # Seq2SeqTrainer pads to the default max_length of generation, 20
    assert run.evaluate()["eval_width"] == 20
    predictions = run.predict(rows[:3]).predictions
    assert predictions.shape == (3, 20)
    assert (predictions[:, 6:] == tiny.tokenizer().pad_token_id).all()


def test_seq2seq_generation_config(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    args = arguments(tmp_path, SpafitSeq2SeqTrainingArguments, predict_with_generate=True)
    args.generation_config = GenerationConfig(
        max_new_tokens=3, decoder_start_token_id=2, pad_token_id=0, eos_token_id=3
    )
    rows = [{"input_ids": [2, 4, 3], "attention_mask": [1] * 3, "labels": [4, 3]}] * 4
    run = SpafitSeq2SeqTrainer(
        tiny.bart(), args, DataCollatorForSeq2Seq(tiny.tokenizer()), rows, rows, tiny.tokenizer()
    )
    assert (run.predict(rows).predictions[:, 4:] == 0).all()


def test_default_arguments_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(SpafitTrainer(bert()).args, SpafitTrainingArguments)
    assert isinstance(SpafitSeq2SeqTrainer(tiny.bart()).args, SpafitSeq2SeqTrainingArguments)


def test_evaluation_leaves_the_random_state_alone(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    before = torch.get_rng_state()
    run.evaluate()
    assert torch.equal(torch.get_rng_state(), before)


# -- saving --


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_saved_folder_opens_in_plain_peft_with_equal_logits(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "base")
    run = trainer(tmp_path / "run", BertForSequenceClassification.from_pretrained(tmp_path / "base"))
    run.train()
    run.save_model()
    assert files(tmp_path / "run") == {
        *("adapter_config.json", "adapter_model.safetensors", "spafit_config.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    inputs = dict(DataCollatorWithPadding(tiny.tokenizer())(tiny.dataset(4).remove_columns("label").to_list()))
    run.model.eval()
    expected = run.model(**inputs).logits
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    plain = PeftModel.from_pretrained(base, tmp_path / "run").eval()
    torch.testing.assert_close(plain(**inputs).logits, expected, rtol=0, atol=1e-6)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    ours = load_adapter(base, tmp_path / "run").eval()
    torch.testing.assert_close(ours(**inputs).logits, expected, rtol=0, atol=1e-6)


def test_checkpoints_hold_the_adapter_alone_and_no_pickled_arguments(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_strategy="steps", save_steps=2, hub_token="hf_secret")
    run.train()
    checkpoint = tmp_path / "checkpoint-2"
    assert json.loads((checkpoint / "adapter_config.json").read_text())["peft_type"] == "SPAFIT"
    assert {
        "adapter_model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    } <= files(checkpoint)
    assert not [name for name in files(checkpoint) if name.startswith(("model", "pytorch_model"))]
    assert list(tmp_path.rglob("training_args.bin")) == []
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"hf_secret" in p.read_bytes()]


def test_full_fine_tuning_saves_a_transformers_folder(tmp_path: Path) -> None:
    run = trainer(tmp_path, strategy="full", save_strategy="steps", save_steps=2)
    run.train()
    run.save_model()
    again = BertForSequenceClassification.from_pretrained(tmp_path)
    assert tiny.differences(tiny.state(run.model), tiny.state(again)) == []
    assert "model.safetensors" in files(tmp_path / "checkpoint-2")
    assert list(tmp_path.rglob("training_args.bin")) == []


def test_a_plain_module_is_saved_as_its_state(tmp_path: Path) -> None:
    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.linear(x)
            return {"loss": ((y - labels) ** 2).mean(), "logits": y}

    rows = [{"x": torch.ones(2), "labels": torch.ones(1)}] * 8
    run = trainer(tmp_path, Toy(), train_dataset=rows, processing_class=None, strategy="full")
    run.train()
    run.save_model()
    assert files(tmp_path) == {"model.safetensors"}


def test_tokenizer_of_the_collator_is_saved_where_there_is_no_other(tmp_path: Path) -> None:
    run = trainer(tmp_path, processing_class=None, data_collator=DataCollatorWithPadding(tiny.tokenizer()))
    run.save_model()
    assert "tokenizer.json" in files(tmp_path)


def test_adapters_that_plain_peft_cannot_hold_are_saved_natively_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = Strategy((Stratum((0, 1), lora=("query",), r=2, use_dora=True), Stratum((2, 3), lora=("query",), r=2)))
    run = trainer(tmp_path, args=arguments(tmp_path), strategy=mixed)
    run.save_model()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "SPAFIT"
    assert "needs spafit_hf to be read" in caplog.text


def test_best_model_is_loaded_at_the_end_and_trains_on(tmp_path: Path) -> None:
    values = iter([0.1, 0.9, 0.2])

    def score(prediction: Any) -> dict[str, float]:
        return {"score": next(values)}

    run = trainer(
        tmp_path,
        args=arguments(
            tmp_path, save_strategy="steps", eval_strategy="steps", save_steps=1, eval_steps=1,
            load_best_model_at_end=True, metric_for_best_model="score",
        ),
        compute_metrics=score,
    )  # fmt: skip
    states: dict[int, dict[str, torch.Tensor]] = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            states[state.global_step] = tiny.state(run.model)

    run.add_callback(Keep())
    trained = trained_names(run.model)
    run.train()
    assert tiny.differences(tiny.state(run.model), states[2]) == []
    assert trained_names(run.model) == trained
    assert isinstance(run.model.peft_config["default"], SpafitConfig)


def test_model_card_with_a_local_base(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "base")
    run = trainer(tmp_path / "run", BertForSequenceClassification.from_pretrained(tmp_path / "base"))
    run.train()
    run.save_model()
    run.create_model_card(finetuned_from=str(tmp_path / "base"), tasks="text-classification", language="en")
    assert "library_name" in (tmp_path / "run" / "README.md").read_text()


def test_kinds_are_those_the_arguments_name() -> None:
    assert KINDS == ("lora", "bottleneck", "base", "bias", "head")
    assert parameter_kind("base_model.model.bert.x.lora_A.default.weight") == "lora"
    assert parameter_kind("base_model.model.bert.x.lora_down.default.bias") == "bottleneck"
    assert parameter_kind("base_model.model.bert.x.lora_up.default.weight") == "bottleneck"
    assert parameter_kind("base_model.model.bert.x.lora_delta.default") == "bias"
    assert parameter_kind("base_model.model.bert.x.bias") == "bias"
    assert parameter_kind("base_model.model.classifier.modules_to_save.default.bias") == "head"
    assert parameter_kind("classifier.weight", ("classifier",)) == "head"
    assert parameter_kind("bert.x.bias", ("classifier",)) == "base"

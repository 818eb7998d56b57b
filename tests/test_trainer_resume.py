"""Killed at any moment and resumed, a run ends bit for bit where it would have ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny as tiny_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from scripts import tiny
from transformers import TrainerCallback, ViTForImageClassification
from transformers.trainer_utils import get_last_checkpoint

from spafit_hf import SpafitTrainer, SpafitTrainingArguments, Strategy, Stratum
from spafit_hf.trainer.checkpoints import checkpoints_of, damage_of, resumable

FORK = multiprocessing.get_context("fork")  # a real process to kill, without importing torch again


def build(folder: Path, **fields: Any) -> SpafitTrainer:
    """Two epochs of 4 steps, with dropout everywhere, saves of the steps 3, 6 and 8."""
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_steps": 3}
    schedule = {"num_train_epochs": 2, "learning_rate": 1e-2, "lora_r": 4, "lora_dropout": 0.2, "weight_decay": 0.1}
    args = SpafitTrainingArguments(str(folder), **{**quiet, **schedule, **fields})
    return SpafitTrainer(
        tiny.bert(layers=4),
        args,
        train_dataset=tiny.dataset(30),
        eval_dataset=tiny.dataset(8, seed=1),
        processing_class=tiny.tokenizer(),
    )


class KillAtStep(TrainerCallback):
    """Kills its own process, without any clean-up, when a step is done and nothing has been saved for it yet."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(work: Callable[[], Any]) -> None:
    process = FORK.Process(target=work)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def outcome(run: SpafitTrainer) -> tuple[dict[str, torch.Tensor], list[tuple[int, float, float]]]:
    logged = [(e["step"], e["loss"], e["grad_norm"]) for e in run.state.log_history if "loss" in e]
    return tiny.state(run.model), logged


@dataclass(frozen=True)
class Whole:
    """A run that was not stopped."""

    folder: Path
    weights: dict[str, torch.Tensor]
    losses: list[tuple[int, float, float]]


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Whole]:
    """The run of some fields, made once for all tests that compare with it."""
    made: dict[str, Whole] = {}

    def whole(**fields: Any) -> Whole:
        key = json.dumps(fields, sort_keys=True)
        if key not in made:
            torch.manual_seed(0)
            run = build(tmp_path_factory.mktemp("whole"), **fields)
            run.train()
            made[key] = Whole(Path(str(run.args.output_dir)), *outcome(run))
        return made[key]

    return whole


def copied(whole: Whole, step: int, folder: Path) -> str:
    """A checkpoint of it in another folder."""
    return str(shutil.copytree(whole.folder / f"checkpoint-{step}", folder / f"checkpoint-{step}"))


def resume(folder: Path, checkpoint: str | bool | None, *callbacks: TrainerCallback, **fields: Any) -> SpafitTrainer:
    torch.rand(7)  # another random state than that of the run that was stopped
    run = build(folder, **fields)
    for each in callbacks:
        run.add_callback(each)
    run.train(resume_from_checkpoint=checkpoint)
    return run


def kill_and_resume(folder: Path, step: int, **fields: Any) -> SpafitTrainer:
    def work() -> None:
        run = build(folder, **fields)
        run.add_callback(KillAtStep(step))
        run.train()

    killed(work)
    return resume(folder, get_last_checkpoint(str(folder)), **fields)


def noisy(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A collator that draws from every generator, as one that masks words does."""
    batch = dict(tiny.tokenizer().pad(rows, return_tensors="pt"))
    drawn = torch.rand(batch["input_ids"].shape) < 0.2 + 0.1 * random.random() + 0.1 * np.random.rand()
    batch["input_ids"] = batch["input_ids"].masked_fill(drawn & (batch["attention_mask"] == 1), 5)
    return {"labels": torch.as_tensor(batch.pop("label")), **batch}


@pytest.mark.parametrize(("accumulated", "saved"), [(1, 3), (2, 1), (2, 3)])
def test_what_batches_draw_at_random_is_drawn_again(accumulated: int, saved: int, tmp_path: Path) -> None:
    more = {"gradient_accumulation_steps": accumulated, "save_steps": saved, "max_steps": saved + 2}
    more |= {"per_device_train_batch_size": 4, "eval_strategy": "steps", "eval_steps": 1}

    def run(checkpoint: str | None) -> SpafitTrainer:
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        made = build(tmp_path, **more)
        made.data_collator = noisy
        made.train(resume_from_checkpoint=checkpoint)
        return made

    whole, resumed = run(None), run(str(tmp_path / f"checkpoint-{saved}"))
    assert tiny.differences(outcome(whole)[0], outcome(resumed)[0]) == []
    assert outcome(whole)[1] == outcome(resumed)[1]


def test_a_full_checkpoint_of_a_model_with_other_names_on_the_hub(tmp_path: Path) -> None:
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": index % 2} for index in range(16)]
    fields = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_steps": 1, "max_steps": 2}

    def run(checkpoint: str | None) -> SpafitTrainer:
        args = SpafitTrainingArguments(str(tmp_path), strategy="full", learning_rate=1e-2, **fields)
        made = SpafitTrainer(tiny_model("vit"), args, train_dataset=rows)
        made.train(resume_from_checkpoint=checkpoint)
        return made

    whole, checkpoint = run(None), tmp_path / "checkpoint-1"
    resumed = run(str(checkpoint))
    assert tiny.differences(outcome(whole)[0], outcome(resumed)[0]) == []
    again = ViTForImageClassification.from_pretrained(checkpoint, output_loading_info=True)[1]
    assert not again["missing_keys"]
    assert not again["unexpected_keys"]
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({key: each for key, each in tensors.items() if "fc1" not in key}, checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match=r"has no vit\.layers\.0\.mlp\.fc1"):
        run(str(checkpoint))


VARIANTS: dict[str, dict[str, Any]] = {
    "random order": {"train_sampling_strategy": "random"},
    "order without a seed": {
        "train_sampling_strategy": "random",
        "accelerator_config": {"use_seedable_sampler": False},
    },
    "accumulation and rates": {
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "head_learning_rate": 0.02,
    },
    "bf16": {"bf16": True},
    "fp16": {"fp16": True},
    "full": {"strategy": "full"},
    "bitfit, evaluation by epoch": {"strategy": "bitfit", "eval_strategy": "epoch", "save_steps": 4},
    "dora": {"use_dora": True, "activation_checkpointing": True},
    "epoch saves": {"save_strategy": "epoch"},
    "bottlenecks": {
        "strategy": json.dumps(
            {
                "strata": [
                    {"layers": [1, 2], "bottleneck": {"kind": "series"}, "biases": ["output"], "lora": ["output"]},
                    {"layers": [3, 3], "bottleneck": {"kind": "parallel"}},
                ]
            }
        ),
        "activation_checkpointing": True,
    },
}


@pytest.mark.parametrize(
    ("variant", "step"),
    [
        ("random order", 6),
        ("order without a seed", 3),  # in the first epoch alone, as in plain Trainer
        ("accumulation and rates", 6),
        ("bf16", 3),
        ("fp16", 3),
        ("full", 6),
        ("bitfit, evaluation by epoch", 4),  # resumes at the end of an epoch, from before its evaluation
        ("dora", 6),
        ("epoch saves", 4),
        ("bottlenecks", 3),
    ],
)
def test_weights_and_losses_are_those_of_the_run_that_was_not_stopped(
    variant: str, step: int, tmp_path: Path, unstopped: Callable[..., Whole]
) -> None:
    """What a kill leaves is what the whole run had saved until then."""
    fields = VARIANTS[variant]
    whole = unstopped(**fields)
    resumed = resume(tmp_path, copied(whole, step, tmp_path), **fields)
    assert_same(whole, resumed, "model" if variant == "full" else "adapter_model")


@pytest.mark.parametrize("step", [4, 6, 8])
def test_a_run_that_was_killed(step: int, tmp_path: Path, unstopped: Callable[..., Whole]) -> None:
    assert_same(unstopped(), kill_and_resume(tmp_path, step))


def assert_same(whole: Whole, run: SpafitTrainer, name: str = "adapter_model") -> None:
    found, logged = outcome(run)
    assert tiny.differences(whole.weights, found) == []
    assert logged == whole.losses  # the resumed log holds the steps before the checkpoint as well
    last = max(step for step, *_ in whole.losses)
    one, other = (Path(folder) / f"checkpoint-{last}" for folder in (whole.folder, str(run.args.output_dir)))
    files = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
    assert tiny.differences(*files) == []
    states = [torch.load(folder / "optimizer.pt", weights_only=True)["state"] for folder in (one, other)]
    for index, state in states[0].items():
        assert tiny.differences(state, states[1][index]) == []


class StopAtStep(TrainerCallback):
    """Ends a training when a step is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize("step", range(1, 8))
def test_every_step(step: int, tmp_path: Path, unstopped: Callable[..., Whole]) -> None:
    """From each checkpoint to the next one, all that a run is: from any of them it so ends where it would have."""
    whole = unstopped(save_steps=1)
    run = resume(tmp_path, copied(whole, step, tmp_path), StopAtStep(step + 1), save_steps=1)
    assert outcome(run)[1] == whole.losses[: step + 1]
    one, other = (folder / f"checkpoint-{step + 1}" for folder in (whole.folder, tmp_path))
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


WRITTEN = ("adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
"""Files of a checkpoint, in their order."""


@pytest.mark.parametrize("last_file", WRITTEN)
def test_a_checkpoint_cut_short_is_replaced_by_the_one_before(
    last_file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, unstopped: Callable[..., Whole]
) -> None:
    whole = unstopped()
    for step in (3, 6):
        copied(whole, step, tmp_path)
    # What is there when the save of step 6 is killed just before one of its files is complete.
    for name in WRITTEN[WRITTEN.index(last_file) + 1 :]:
        (tmp_path / "checkpoint-6" / name).unlink()
    cut(tmp_path / "checkpoint-6" / last_file)
    last = get_last_checkpoint(str(tmp_path))
    assert last == str(tmp_path / "checkpoint-6")
    run = resume(tmp_path, last)
    assert "cut short" in caplog.text
    assert "checkpoint-3" in caplog.text
    assert tiny.differences(whole.weights, tiny.state(run.model)) == []


def test_a_run_killed_in_its_first_save_starts_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, unstopped: Callable[..., Whole]
) -> None:
    whole = unstopped()
    copied(whole, 3, tmp_path)
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()
    run = resume(tmp_path, True)
    assert "training starts from the beginning" in caplog.text
    assert tiny.differences(whole.weights, tiny.state(run.model)) == []


@pytest.mark.parametrize(
    "length", [{"max_steps": 7, "num_train_epochs": -1}, {}], ids=["within an epoch", "at its end"]
)
def test_a_run_killed_after_its_last_checkpoint_makes_no_step_more(
    length: dict[str, Any], tmp_path: Path, unstopped: Callable[..., Whole]
) -> None:
    whole = unstopped(lr_scheduler_type="constant", **length)
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    run = resume(tmp_path, True, lr_scheduler_type="constant", **length)
    found, logged = outcome(run)
    assert tiny.differences(whole.weights, found) == []
    assert logged == whole.losses


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def spoil(file: Path) -> None:
    tensors = load_file(file)
    next(iter(tensors.values()))[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    for at in range(len(content) // 3, len(content) // 3 + 100):  # of unused bytes there are fewer in a row
        content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("how", [cut, lambda file: file.write_bytes(b""), Path.unlink, flip, spoil])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"])
def test_a_damaged_neighbour_of_a_whole_state_leads_to_the_checkpoint_before(
    name: str, how: Callable[[Path], Any], tmp_path: Path, unstopped: Callable[..., Whole], caplog: Any
) -> None:
    if (how is spoil) != name.endswith(".safetensors") and how in (spoil, flip):
        return  # safetensors hold no checksums, and the others no numbers that are looked at
    for step in (3, 6):
        copied(unstopped(), step, tmp_path)
    last = tmp_path / "checkpoint-6"
    assert resumable(True, str(tmp_path)) is True
    how(last / name)
    assert resumable(True, str(tmp_path)) == resumable(str(last), "elsewhere") == str(tmp_path / "checkpoint-3")
    assert name.split(".")[0] in caplog.text or "weights are missing" in caplog.text
    with pytest.raises(ValueError, match="is no whole checkpoint"):
        resumable(str(last.rename(tmp_path / "kept")), str(tmp_path))


def test_a_run_resumes_without_the_adapter_that_it_started_from(tmp_path: Path) -> None:
    first = build(tmp_path / "first", max_steps=1)
    first.train()
    first.save_model(str(tmp_path / "start"))
    fields = {"init_adapter": str(tmp_path / "start"), "max_steps": 6}
    whole = build(tmp_path / "whole", **fields)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    shutil.rmtree(tmp_path / "start")
    resumed = build(tmp_path / "run", **fields)
    with pytest.raises(ValueError, match="start is no folder here"):
        resumed.train()
    resumed.train(resume_from_checkpoint=True)
    assert tiny.differences(tiny.state(whole.model), tiny.state(resumed.model)) == []
    with pytest.raises(ValueError, match="start is no folder here"):
        build(tmp_path / "new", **fields)


def test_which_checkpoint_is_taken(tmp_path: Path) -> None:
    for step, whole in ((2, True), (10, True), (9, False), (11, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}" if whole else '{"epoch"')
        save_file({}, folder / "model.safetensors")
        assert (damage_of(folder) == "") is whole
    (tmp_path / "checkpoint-best").mkdir()
    assert [path.name for path in checkpoints_of(tmp_path)] == [f"checkpoint-{n}" for n in (11, 10, 9, 2)]
    name = str(tmp_path / "checkpoint-{}")
    assert resumable(True, str(tmp_path)) == name.format(10)
    assert resumable(name.format(9), "elsewhere") == name.format(2)
    assert resumable(name.format(10), "elsewhere") == name.format(10)
    assert resumable(str(tmp_path / "typo"), "elsewhere") == str(tmp_path / "typo")  # for Trainer to refuse
    for word in ("True", "true", "TRUE"):  # as a command line has them
        assert resumable(word, str(tmp_path)) == name.format(10)
        with pytest.raises(ValueError, match="empty holds no checkpoint to resume from"):
            resumable(word, str(tmp_path / "empty"))
    for nothing in (None, False, "False", "false", ""):
        assert resumable(nothing, str(tmp_path)) is None


def test_resuming_with_another_strategy_is_refused(tmp_path: Path) -> None:
    run = build(tmp_path, max_steps=3)
    run.train()
    for fields, words in (
        ({"strategy": "bitfit"}, "not there"),
        ({"lora_r": 8}, r"\(4, 16\) in the checkpoint, \(8, 16\) in the model"),
        ({"strategy": "spafit-8-12-II"}, "tensors differ"),
        ({"lora_alpha": 7}, r"scaled by 32 in the checkpoint and by 1\.75 in the model"),
        ({"use_rslora": True}, "scaled by 32 in the checkpoint and by 64 in the model"),
        ({"strategy": "full"}, "a checkpoint of an adapter, and this run trains the whole model"),
        ({"optim": "adafactor"}, "another optimizer, which has no 'beta1'"),
    ):
        with pytest.raises(ValueError, match=words):
            build(tmp_path, **fields).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    with pytest.raises(ValueError, match="Can't find a valid checkpoint"):
        build(tmp_path).train(resume_from_checkpoint=str(tmp_path / "nothing"))


@pytest.mark.parametrize("weights_alone", [True, False])
def test_a_checkpoint_of_full_fine_tuning_is_none_of_strata(weights_alone: bool, tmp_path: Path) -> None:
    build(tmp_path, strategy="full", max_steps=3, save_only_model=weights_alone).train()
    for strategy in ("spafit-4-9-II", "bitfit", "linear-probe"):
        with pytest.raises(ValueError, match="a checkpoint of the whole model, and this run trains an adapter"):
            build(tmp_path, strategy=strategy).train(resume_from_checkpoint=True)
    if not weights_alone:
        with pytest.raises(ValueError, match=r"another optimizer or schedule .* groups\); resume with the arguments"):
            build(tmp_path, strategy="full", head_learning_rate=1e-4).train(resume_from_checkpoint=True)


def test_a_checkpoint_with_other_bottlenecks_is_refused(tmp_path: Path) -> None:
    def strategy(scaling: float) -> str:
        return json.dumps({"strata": [{"layers": [1, 2], "bottleneck": {"kind": "parallel", "scaling": scaling}}]})

    build(tmp_path, strategy=strategy(4.0), max_steps=3).train()
    with pytest.raises(ValueError, match=r"the bottleneck of \S+ is .*4\.0.* in the checkpoint and .*2\.0"):
        build(tmp_path, strategy=strategy(2.0)).train(resume_from_checkpoint=True)
    build(tmp_path, strategy=strategy(4.0), max_steps=4).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("optim", ["adafactor", "sgd", "adagrad"])
def test_the_optimizer_of_the_checkpoint_goes_on(optim: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path, optim=optim, max_steps=3).train()
    run = build(tmp_path, optim=optim, max_steps=4, bias_learning_rate=1e-3)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 4
    assert "checkpoint-3: lr 0.01 of the biases, not 0.001." in caplog.text


@pytest.mark.parametrize("name", ["default", "mine"])
def test_lora_of_plain_peft_resumes_with_its_own_settings(name: str, tmp_path: Path) -> None:
    def run(steps: int, **fields: Any) -> SpafitTrainer:
        lora = {"r": 4, "target_modules": r".*\.(query|value)", "alpha_pattern": {r"layer\.[01]\..*query": 3}}
        made = build(tmp_path, max_steps=steps)
        config = LoraConfig(**{**lora, **fields}, task_type="SEQ_CLS")
        return SpafitTrainer(
            get_peft_model(tiny.bert(), config, adapter_name=name),
            made.args,
            train_dataset=made.train_dataset,
            processing_class=made.processing_class,
        )

    first = run(3)
    first.train()
    again = run(3)
    again.train(resume_from_checkpoint=True)  # no step is left: what the checkpoint holds
    assert tiny.differences(tiny.state(first.model), tiny.state(again.model)) == []
    for fields in ({"lora_alpha": 99}, {"use_rslora": True}):
        with pytest.raises(ValueError, match=r"scaled by 2 in the checkpoint and by (24\.75|4) in the model"):
            run(4, **fields).train(resume_from_checkpoint=True)


def test_strata_of_ones_own_resume(tmp_path: Path, unstopped: Callable[..., Whole]) -> None:
    file = tmp_path / "strata.yaml"
    Strategy(
        (Stratum((0.5, 0.75), biases=("query",)), Stratum((0.75, 1.0), lora=("value",), r=2)), name="mine"
    ).to_file(file)
    whole = unstopped(strategy=str(file))
    found, logged = outcome(kill_and_resume(tmp_path / "killed", 7, strategy=str(file)))
    assert tiny.differences(whole.weights, found) == []
    assert logged == whole.losses


def test_best_model_of_a_resumed_run(tmp_path: Path, unstopped: Callable[..., Whole]) -> None:
    fields = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True, "save_total_limit": 2}
    run = kill_and_resume(tmp_path, 7, **fields)
    assert tiny.differences(unstopped(**fields).weights, tiny.state(run.model)) == []
    best = Path(str(run.state.best_model_checkpoint))
    assert json.loads((best / "adapter_config.json").read_text())["peft_type"] == "SPAFIT"

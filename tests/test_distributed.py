"""Whole programs: the script as it stands, alone, on two processes, and sharded over two processes.

Two processes on gloo, half a batch each, must end where one process with the whole batch ends.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from programs import LIMIT, Program, python, ranks
from safetensors.torch import load_file
from scripts import tiny
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
LAUNCHERS = ("--use_fsdp", "--fsdp_version")  # options of accelerate's launcher, not of the script
STEPS = 5  # of 4 in an epoch: the second epoch has begun, in another order
SAVED = 2
TOLERANCE = 1e-6  # of a weight after STEPS steps of Adam, which turns the last bit of a small gradient into more


@dataclass(frozen=True)
class Work:
    """A folder with a model and rows, and the programs run in it."""

    folder: Path

    def command(self, out: str, *options: str, rows: int) -> list[str]:
        """The script and its options; `rows` to a batch of one process."""
        common = {
            "model_name_or_path": "model", "train_file": "train.json", "validation_file": "validation.json",
            "test_file": "test.json", "lora_r": "4", "max_steps": str(STEPS), "save_steps": str(SAVED),
            "logging_steps": "1", "learning_rate": "2e-3", "cache_dir": "cache", "disable_tqdm": "true",
            "per_device_train_batch_size": str(rows), "output_dir": out,
        }  # fmt: skip
        flags = [word for name, value in common.items() for word in (f"--{name}", value)]
        script = str(HERE / "scripts" / "watched.py")
        return [script, "--do_train", "--do_eval", "--do_predict", "--use_cpu", *flags, *options]

    def start(self, out: str, *options: str, processes: int = 1) -> list[Program]:
        """Start the script with `options`, its output in `out`; several processes share the batch."""
        log = self.folder / f"{out}.log"
        if processes == 1:
            return [Program(self.command(out, *options, rows=8), self.folder, environment(), log)]
        argv = self.command(out, *options, "--ddp_backend", "gloo", rows=8 // processes)
        return ranks(processes, argv, self.folder, environment(), log)

    def run(self, out: str, *options: str, processes: int = 1) -> str:
        """What the script prints."""
        return self._finish(out, self.start(out, *options, processes=processes))

    def launch(self, out: str, *options: str, launcher: str) -> str:
        """What the script prints on two processes that torchrun or `accelerate launch` makes."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        start = {
            "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port],
            # --cpu would start one process (accelerate 1.15 wants MPI for more), so the script says --use_cpu itself
            "accelerate": [
                *("-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"),
                *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port),
                *(option for option in options if option.startswith(LAUNCHERS)),
                *(() if "--use_fsdp" in options else ("--multi_gpu",)),
            ],
        }[launcher]
        own = [option for option in options if not option.startswith(LAUNCHERS)]
        command = [*start, *self.command(out, *own, "--ddp_backend", "gloo", rows=4)]
        env = {**environment(), "PYTHON_EXEC": str(python(self.folder))}  # what torchrun starts
        return self._finish(out, [Program(command, self.folder, env, self.folder / f"{out}.log")])

    def _finish(self, out: str, programs: list[Program]) -> str:
        """What programs print, all of which end well."""
        codes = [program.wait() for program in programs]
        text = (self.folder / f"{out}.log").read_text()
        assert set(codes) == {0}, text[-5000:]
        return text

    def weights(self, out: str, name: str = "adapter_model.safetensors") -> dict[str, torch.Tensor]:
        return load_file(self.folder / out / name)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parent)}


def facts(text: str) -> list[dict[str, float]]:
    return [json.loads(found) for found in re.findall(r"FACTS (\{.*?\})", text)]  # processes may share a line


def gap(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference between two states of the same names."""
    assert set(first) == set(second)
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    tiny.bert(layers=4, dropout=0.0).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    for seed, (split, count) in enumerate({"train": 32, "validation": 16, "test": 10}.items()):
        lines = [json.dumps(row) + "\n" for row in tiny.sentences(count, seed)]
        (folder / f"{split}.json").write_text("".join(lines))
    return Work(folder)


@pytest.fixture(scope="module")
def alone(work: Work) -> str:
    """One process, the whole batch."""
    return work.run("alone", "--strategy", "spafit-4-9-II")


def test_the_script_trains_evaluates_predicts_and_writes_a_card(work: Work, alone: str) -> None:
    out = work.folder / "alone"
    assert "Training in strata" in alone  # the table, through the script's own logging
    assert "eval_accuracy" in json.loads((out / "eval_results.json").read_text())
    assert len((out / "predict_results.txt").read_text().splitlines()) == 11
    assert (out / "README.md").is_file()
    assert list(out.rglob("training_args.bin")) == []
    base = AutoModelForSequenceClassification.from_pretrained(work.folder / "model", num_labels=2)
    model = PeftModel.from_pretrained(base, out).eval()
    encode = tiny.tokenizer()
    batch = DataCollatorWithPadding(encode)([encode(row["text"]) for row in tiny.sentences(10, 2)])
    predicted = [line.split("\t")[1] for line in (out / "predict_results.txt").read_text().splitlines()[1:]]
    assert [str(label) for label in model(**batch).logits.argmax(-1).tolist()] == predicted


def test_the_script_resumes_when_started_again(work: Work, alone: str) -> None:
    kill_after_save(work.folder / "again", work.start("again"))
    text = work.run("again")
    assert "resuming from it" in text
    assert facts(text)[-1]["resumed_at"] == SAVED
    assert gap(work.weights("alone"), work.weights("again")) == 0


def kill_after_save(folder: Path, programs: list[Program]) -> None:
    """Kill a run after its first save. What it may have saved since is removed: something has to be left to do."""
    saved = folder / f"checkpoint-{SAVED}" / "trainer_state.json"
    deadline = time.monotonic() + LIMIT
    while not saved.is_file() and not any(one.ended for one in programs) and time.monotonic() < deadline:
        time.sleep(0.02)
    for one in programs:
        one.kill()
    assert saved.is_file(), folder.with_suffix(".log").read_text()[-5000:]
    for later in folder.glob("checkpoint-*"):
        if later != saved.parent:
            shutil.rmtree(later)


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_equal_one(launcher: str, work: Work, alone: str) -> None:
    text = work.launch(launcher, launcher=launcher)
    assert [(one["ddp"], one["searches"]) for one in facts(text)] == [(True, False)] * 2
    assert gap(work.weights("alone"), work.weights(launcher)) < TOLERANCE
    results = [(work.folder / out / "predict_results.txt").read_text() for out in ("alone", launcher)]
    assert results[0] == results[1]
    assert {path.name for path in (work.folder / "alone").iterdir()} == {
        path.name for path in (work.folder / launcher).iterdir()
    }


def test_two_processes_that_accumulate_equal_one(work: Work, alone: str) -> None:
    options = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")
    work.run("accumulated", *options, processes=2)
    assert gap(work.weights("alone"), work.weights("accumulated")) < TOLERANCE


def test_sharded_training_equals_one_process_and_resumes(work: Work, alone: str) -> None:
    options = ("--fsdp", "--fsdp_config", '{"version": 2}')
    kill_after_save(work.folder / "sharded", work.start("sharded", *options, processes=2))
    checkpoint = work.folder / "sharded" / f"checkpoint-{SAVED}"
    adapter_bytes = (checkpoint / "adapter_model.safetensors").stat().st_size
    # accelerate keeps a copy of its own, of the trained tensors alone
    assert (checkpoint / "pytorch_model_fsdp.bin").stat().st_size < 3 * adapter_bytes
    text = work.run("sharded", *options, processes=2)
    assert [one["sharded"] for one in facts(text)][-2:] == [1.0, 1.0]
    assert facts(text)[-1]["resumed_at"] == SAVED
    assert gap(work.weights("alone"), work.weights("sharded")) < TOLERANCE
    names = [{path.name for path in (work.folder / out).iterdir()} for out in ("alone", "sharded")]
    assert names[0] == names[1]
    configs = [json.loads((work.folder / out / "adapter_config.json").read_text()) for out in ("alone", "sharded")]
    assert configs[0] == configs[1]
    assert configs[0]["peft_type"] == "LORA"
    sidecars = [json.loads((work.folder / out / "spafit_config.json").read_text()) for out in ("alone", "sharded")]
    assert sidecars[0] == sidecars[1]


def test_sharded_checkpoints_best_model_and_activation_checkpointing(work: Work) -> None:
    best = ("--load_best_model_at_end", "--eval_strategy", "steps", "--eval_steps", str(SAVED), "--use_dora")
    config = '{"version": 2, "state_dict_type": "SHARDED_STATE_DICT", "activation_checkpointing": true}'
    work.run("best", *best)
    text = work.run("best_sharded", *best, "--fsdp", "--fsdp_config", config, processes=2)
    assert facts(text)[-1]["sharded"] == 1.0
    assert gap(work.weights("best"), work.weights("best_sharded")) < TOLERANCE


def test_sharded_full_fine_tuning_through_accelerate(work: Work) -> None:
    work.run("full", "--strategy", "full")
    options = ("--use_fsdp", "--fsdp_version=2", "--strategy", "full")
    text = work.launch("full_sharded", *options, launcher="accelerate")
    assert facts(text)[-1]["sharded"] == 1.0
    assert (
        gap(work.weights("full", "model.safetensors"), work.weights("full_sharded", "model.safetensors")) < TOLERANCE
    )


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_zero_3_writes_what_the_engine_computes_and_resumes(work: Work) -> None:
    """On two processes. accelerate counts one on CPUs and gives both the same rows, which is all the same to ZeRO."""
    environ = {**environment(), "DS_ACCELERATOR": "cpu"}
    for out, resumed in (("zero", ""), ("zero_resumed", "zero/checkpoint-2")):
        log = work.folder / f"{out}.log"
        both = ranks(2, [HERE / "scripts" / "zero.py", "model", out, resumed], work.folder, environ, log)
        assert [program.wait() for program in both] == [0, 0], log.read_text()[-5000:]
    base = AutoModelForSequenceClassification.from_pretrained(work.folder / "model")
    model = PeftModel.from_pretrained(base, work.folder / "zero").eval()
    batch = {name: torch.as_tensor(value) for name, value in tiny.dataset(1)[0].items() if name != "label"}
    with torch.no_grad():
        found = model(**{name: value[None] for name, value in batch.items()}).logits
    assert torch.equal(found, torch.load(work.folder / "zero" / "logits.pt"))
    assert gap(work.weights("zero"), work.weights("zero_resumed")) == 0

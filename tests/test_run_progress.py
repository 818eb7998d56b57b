"""Progress and quiet: what is shown, by whom, and that nothing else is left out."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import transformers
from safetensors.torch import load_file, save_file
from transformers import TrainerState

from spafit_hf.data import TextData
from spafit_hf.run import BaseArguments, Progress, load_classifier, progress, quiet

NO_TERMINAL = SimpleNamespace(disable_tqdm=True)


def play(shown: Progress, state: TrainerState, steps: int) -> None:
    """A training as Trainer tells of it: steps, each logged, and an evaluation."""
    shown.on_train_begin(NO_TERMINAL, state, None)
    for _ in range(steps):
        state.global_step += 1
        shown.on_step_end(NO_TERMINAL, state, None)
        shown.on_log(NO_TERMINAL, state, None, logs={"loss": 0.5})
    state.epoch = 1.0
    shown.on_prediction_step(NO_TERMINAL, state, None, eval_dataloader=[0])
    shown.on_evaluate(
        NO_TERMINAL, state, None, metrics={"eval_accuracy": 0.75, "eval_f1": float("nan"), "eval_loss": 0.4}
    )
    shown.on_train_end(NO_TERMINAL, state, None)
    shown.on_evaluate(NO_TERMINAL, state, None, metrics={"eval_accuracy": 0.8, "eval_f1": 0.8, "eval_loss": 0.3})


@pytest.mark.parametrize("main", [True, False])
def test_without_a_terminal_the_main_process_prints_whole_lines(
    main: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    play(Progress("full", ("accuracy", "f1")), TrainerState(is_world_process_zero=main, max_steps=100), 50)
    line = "epoch 1: accuracy 0.7500, f1 undefined, loss 0.4000, training loss 0.5000\n"
    assert capsys.readouterr() == (line if main else "", "")


def test_a_resumed_run_begins_at_its_step(capsys: pytest.CaptureFixture[str]) -> None:
    shown, state = Progress("full"), TrainerState(is_world_process_zero=True, max_steps=100, global_step=80)
    shown.on_train_begin(SimpleNamespace(disable_tqdm=False), state, None)
    assert "full:  80%" in capsys.readouterr().err
    state.global_step += 1
    shown.on_step_end(NO_TERMINAL, state, None)
    assert shown.training_bar.n == 81


def test_quiet_leaves_out_three_things_and_nothing_else(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    message, category, module = progress.OLD_NAME
    loader = logging.getLogger("transformers.modeling_utils")
    loader.addHandler(caplog.handler)
    with quiet():
        assert not transformers.logging.is_progress_bar_enabled()
        assert datasets.are_progress_bars_disabled()
        for text, file in ((message, module), (message, "mine"), ("another", module)):
            warnings.warn_explicit(text, category, f"{file}.py", 1, module=file)
        loader.warning("BertModel LOAD REPORT from: here")
        loader.warning("another")
    loader.warning("BertModel LOAD REPORT from: there")
    loader.removeHandler(caplog.handler)
    assert [(str(each.message), each.filename) for each in recwarn] == [
        (message, "mine.py"),
        ("another", f"{module}.py"),
    ]
    shown = list(dict.fromkeys(caplog.messages))  # by the handler above, and by the one at the root
    assert shown == ["another", "BertModel LOAD REPORT from: there"]
    assert transformers.logging.is_progress_bar_enabled()
    assert not datasets.are_progress_bars_disabled()


def test_a_base_that_lacks_weights_of_its_own_is_named(
    base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in base_folder.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    file = base / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "pooler" not in name}
    save_file(kept, file, {"format": "pt"})
    text = TextData(datasets.DatasetDict(), ("text",), "here", labels=("bad", "good"))
    for folder, missing in ((base_folder, []), (base, ["bert.pooler.dense.bias and bert.pooler.dense.weight"])):
        caplog.clear()
        load_classifier(BaseArguments(base=str(folder)), text)
        found = [message for message in caplog.messages if "has no weights" in message]
        assert found == [f"The base {folder} has no weights for {names}; they start at random." for names in missing]

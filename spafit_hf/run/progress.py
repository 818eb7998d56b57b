"""What a run shows while it goes on, and what of others' output it leaves out.

    stdout   the page: a line per evaluation
    stderr   the way there: a bar on a terminal, elsewhere a line now and then

Under several processes the main one alone shows anything.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from spafit_hf.run.result import figures_text

LINES = 10
"""Where there is no terminal: at most so many lines about the steps of a training ..."""
SECONDS_APART = 10.0
"""... and none sooner than this after the last."""

# peft 0.21 asks for a name that transformers 5.23 renamed; it goes with peft 0.22.
OLD_NAME = ("`is_gradient_checkpointing` is deprecated", FutureWarning, "transformers.modeling_utils")
"""A warning on each adapter that the user of a command can't act on: message, category, module."""


class Progress(TrainerCallback):
    """One bar per training with the time that is left, and a line per evaluation within it.

    Example:
        trainer = SpafitTrainer(...)
        Progress("spafit-4-9-II", ("accuracy",)).attach(trainer)
        trainer.train()

    Args:
        title: what stands before the bar.
        figures: names of the figures of an evaluation, as `compute_metrics` returns them; the loss follows them.
    """

    def __init__(self, title: str, figures: Sequence[str] = ()) -> None:
        self.title = title
        self.figures = (*figures, "loss")
        self._silent = False
        self._bar: tqdm | None = None  # while the main process trains
        self._measuring: tqdm | None = None
        self._training_loss: float | None = None
        self._last_line = 0.0

    def attach(self, trainer: Trainer) -> None:
        """Take the place of the bar and the dictionaries of Trainer."""
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)
        self._silent = bool(trainer.args.disable_tqdm)
        trainer.args.disable_tqdm = self._silent or not sys.stderr.isatty()  # for the bar of the prefix cache, too

    # Trainer calls these; their parameters are its own.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar; a resumed run begins at its step."""
        self.on_train_end(args, state, control)  # of an attempt with a larger batch (auto_find_batch_size)
        if state.is_world_process_zero:
            self._bar = _bar(args, self.title, state.max_steps, "step", state.global_step)
            self._first, self._begin = state.global_step, time.monotonic()
            self._last_line = self._begin

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar, or say in a line how far it is."""
        if self._bar is None:
            return
        self._bar.update(state.global_step - self._bar.n)
        now = time.monotonic()
        due = state.global_step % max(1, state.max_steps // LINES) == 0 and now - self._last_line >= SECONDS_APART
        if self._bar.disable and due and not self._silent:
            self._last_line = now
            left = (now - self._begin) / (state.global_step - self._first) * (state.max_steps - state.global_step)
            steps = f"step {state.global_step:,} of {state.max_steps:,}"
            loss = "" if self._training_loss is None else f", loss {self._training_loss:.4f}"
            print(f"{self.title}: {steps}, {tqdm.format_interval(left)} left{loss}", file=sys.stderr, flush=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the training loss, and show it beside the bar."""
        if self._bar is not None and "loss" in logs:
            self._training_loss = float(logs["loss"])
            self._bar.set_postfix(loss=f"{self._training_loss:.4f}")

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Show how far an evaluation is."""
        if state.is_world_process_zero and has_length(eval_dataloader):
            self._measuring = self._measuring or _bar(args, "measuring", len(eval_dataloader), "batch")
            self._measuring.update()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Print the figures of an evaluation within the training; those after it are the caller's to show."""
        self._close_measuring()
        if self._bar is None:
            return
        figures = {name: metrics[f"eval_{name}"] for name in self.figures}
        if self._training_loss is not None:
            figures["training loss"] = self._training_loss
        with tqdm.external_write_mode():
            print(f"epoch {state.epoch:.3g}: {figures_text(figures)}", flush=True)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Close the bar of a prediction."""
        self._close_measuring()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar; it leaves no trace."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _close_measuring(self) -> None:
        if self._measuring is not None:
            self._measuring.close()
        self._measuring = None


def _bar(args: Any, title: str, total: int, unit: str, first: int = 0) -> tqdm:
    hidden = args.disable_tqdm
    return tqdm(desc=title, total=total, initial=first, unit=unit, leave=False, dynamic_ncols=True, disable=hidden)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what libraries print of their own work and no one can act on; every other message stays.

    That is PEFT's call of a name that transformers deprecates, the bars of weights and tokens, and the report on a
    base's weights: `load_classifier` warns of those that a base should have and has not.
    """
    loader = logging.getLogger("transformers.modeling_utils")
    weights, tokens = transformers.logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    downloads = not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", *OLD_NAME)
        loader.addFilter(_is_no_load_report)
        transformers.logging.disable_progress_bar()
        if downloads:
            enable_progress_bars()  # the Hub's, which the line above turns off too: a download takes minutes
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            loader.removeFilter(_is_no_load_report)
            if weights:
                transformers.logging.enable_progress_bar()
            if not tokens:
                datasets.enable_progress_bars()


def _is_no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()

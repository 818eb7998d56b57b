"""What a run shows while it goes on, and what of others' output it leaves out.

    stdout   the page: a line per evaluation
    stderr   on a terminal a bar with the time that is left, elsewhere nothing

Under several processes the main one alone shows anything.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import has_length

from spafit_hf.run.result import figures_text

# peft 0.21 asks for a name that transformers 5.23 renamed; it goes with peft 0.22.
NEW_LOSS = ("Version v4.12.0 introduces a better way to train encoder-decoder models", FutureWarning)
"""What transformers says in each training of such a model, whoever makes its decoder's inputs."""
OLD_NAME = ("`is_gradient_checkpointing` is deprecated", FutureWarning, "transformers.modeling_utils")
"""A warning on each adapter that the user of a command can't act on: message, category, module."""


class Progress(ProgressCallback):
    """Trainer's bars under a title and leaving no trace, and a line per evaluation within a training.

    Example:
        trainer = SpafitTrainer(...)
        Progress("spafit-4-9-II", ("accuracy",)).attach(trainer)
        trainer.train()

    Args:
        title: what stands before the bar.
        figures: names of the figures of an evaluation, as `compute_metrics` returns them; the loss follows them.
    """

    def __init__(self, title: str, figures: Sequence[str] = ()) -> None:
        super().__init__()
        self.title = title
        self.figures = (*figures, "loss")
        self._training_loss: dict[str, float] = {}

    def attach(self, trainer: Trainer) -> None:
        """Take the place of the bar and the dictionaries of Trainer."""
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)
        # For the bar of the prefix cache, too.
        trainer.args.disable_tqdm = bool(trainer.args.disable_tqdm) or not sys.stderr.isatty()

    # Trainer calls these; their parameters are its own.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar; a resumed run begins at its step."""
        if state.is_world_process_zero:
            self.training_bar = _bar(args, desc=self.title, total=state.max_steps, initial=state.global_step)
        self.current_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the training loss, and show it beside the bar."""
        if self.training_bar is not None and "loss" in logs:
            self._training_loss = {"training loss": float(logs["loss"])}
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.4f}")

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Show how far an evaluation is."""
        if self.prediction_bar is None and state.is_world_process_zero and has_length(eval_dataloader):
            self.prediction_bar = _bar(args, desc="measuring", total=len(eval_dataloader))
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Print the figures of an evaluation within the training; those after it are the caller's to show."""
        super().on_evaluate(args, state, control, **kwargs)
        if self.training_bar is not None:
            figures = {name: metrics[f"eval_{name}"] for name in self.figures} | self._training_loss
            with tqdm.external_write_mode():
                print(f"epoch {state.epoch:.3g}: {figures_text(figures)}", flush=True)


def _bar(args: Any, **what: Any) -> tqdm:
    return tqdm(leave=False, dynamic_ncols=True, disable=args.disable_tqdm, **what)


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
        warnings.filterwarnings("ignore", *NEW_LOSS)
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

"""The trainer's side: the first batch of a training or an evaluation is run both ways, and then the layer is narrowed.

train()      first batch -> probe -> narrowed until the end; in evaluations alone where `auto` says so
evaluate()   first batch -> probe (outputs alone) -> narrowed until the end
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from spafit_hf.shortcuts.first_token import FirstToken, NotFirstToken
from spafit_hf.shortcuts.first_token_probe import probe, tokens_of
from spafit_hf.trainer.arguments import StrataArguments
from spafit_hf.tuner.plain import base_of

logger = logging.getLogger(__name__)


class FirstTokenTrainer(Trainer):
    """Trainer that computes the last layer for the first token alone where that changes nothing."""

    first_token: FirstToken | None = None
    """The narrowed last layer of the model; None while there is none."""
    first_token_refused: str = ""
    """Why the last layer is computed whole, though narrowing it was asked for."""
    _first_token_open: ExitStack | None = None
    _first_token_waits = False
    _first_token_checked: tuple[nn.Module, bool] | None = None
    """The model that the last check was of, and whether it was of gradients too."""

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`, with the last layer put back afterwards."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._close_first_token()

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        self._close_first_token()  # of an attempt with a larger batch (auto_find_batch_size)
        self._first_token_waits = self._wants_first_token()
        return super()._prepare_for_training(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """`Trainer.evaluation_loop`; outside of training it narrows the layer for itself."""
        if self.is_in_train:
            return super().evaluation_loop(*args, **kwargs)
        self._first_token_waits = self._wants_first_token()
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self._close_first_token()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """`Trainer.training_step`, after a look at the first batch."""
        self._look_at(inputs, training=True)
        return super().training_step(model, inputs, num_items_in_batch)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: Any = None,
        **kwargs: Any,
    ) -> Any:
        """`Trainer.prediction_step`, after a look at the first batch."""
        self._look_at(inputs, training=False)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **kwargs)

    # ---- what a cache changes ----

    def _reads_prefix(self) -> bool:
        """Whether frozen layers come from a cache."""
        return False

    def _last_layer_runs(self) -> bool:
        """Whether the model computes its last layer in each pass; a cache may hold what it says."""
        return True

    # ---- opening and closing ----

    @property
    def _first_token_mode(self) -> str:
        return self.args.first_token_only if isinstance(self.args, StrataArguments) else "off"

    def _wants_first_token(self) -> bool:
        return self._first_token_mode == "on" or (
            # Full fine-tuning is transformers' own, bit for bit.
            self._first_token_mode == "auto" and isinstance(self.accelerator.unwrap_model(self.model), PeftModel)
        )

    def _narrows_training(self) -> bool:
        return self._first_token_mode == "on" or (self._first_token_mode == "auto" and self._reads_prefix())

    def _close_first_token(self) -> None:
        self._first_token_waits = False
        if self._first_token_open is not None:
            self._first_token_open.close()
            self._first_token_open = None

    def _look_at(self, inputs: dict[str, Any], *, training: bool) -> None:
        # One token alone says nothing about the others.
        if not self._first_token_waits or tokens_of(inputs) == 1 or (training and not self._narrows_training()):
            return
        self._first_token_waits = False
        gradients = self.is_in_train and self._narrows_training()
        base = base_of(self.accelerator.unwrap_model(self.model))
        known = self._first_token_checked
        if known is None or known[0] is not base or (gradients and not known[1]):
            self.first_token, self.first_token_refused = None, ""
            self._first_token_checked = (base, gradients)
            try:
                self._check_first_token_setup()
                with torch.random.fork_rng(devices=[]), self.compute_loss_context_manager():
                    self.first_token = probe(base, self._prepare_inputs(inputs), gradients=gradients)
            except NotFirstToken as error:
                self.first_token_refused = str(error)
                if self.args.should_log:
                    logger.info("The last layer is computed for all tokens: %s", error)
        if self.first_token is not None and self._last_layer_runs():
            self._first_token_open = ExitStack()
            self._first_token_open.enter_context(self.first_token.attached(training=gradients))

    def _check_first_token_setup(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise NotFirstToken("the model is sharded by FSDP or DeepSpeed.")
        if self.args.n_gpu > 1:
            raise NotFirstToken("DataParallel copies the model in each step; use DDP (torchrun), or one GPU.")
        if self.args.torch_compile:
            raise NotFirstToken("a compiled model keeps the shapes it was compiled with.")
        if not self._last_layer_runs():
            raise NotFirstToken("the states of the last layer come from the prefix cache.")

"""The trainer's side: attached from the first step to the end of a training."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from spafit_hf.onednn.arguments import OneDnnArguments
from spafit_hf.onednn.linear import NotOneDnn, attached, is_available, replaceable_of

logger = logging.getLogger(__name__)


class OneDnnTrainer(Trainer):
    """Trainer that has products with frozen weights computed by oneDNN where `use_onednn` asks for it."""

    onednn_refused: str = ""
    """Why PyTorch's own products are taken, though oneDNN's were asked for."""
    _onednn_open: ExitStack | None = None

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`, with the modules as they were afterwards."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._close_onednn()

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        self._close_onednn()  # of an attempt with a larger batch (auto_find_batch_size)
        prepared = super()._prepare_for_training(*args, **kwargs)
        self._open_onednn()
        return prepared

    def _open_onednn(self) -> None:
        if not (isinstance(self.args, OneDnnArguments) and self.args.use_onednn):
            return
        self.onednn_refused = self._why_not_onednn()
        if not self.onednn_refused:
            try:
                modules = replaceable_of(self.accelerator.unwrap_model(self.model))
            except NotOneDnn as error:
                self.onednn_refused = str(error)
            else:
                self._onednn_open = ExitStack()
                self._onednn_open.enter_context(attached(modules))
        if self.onednn_refused and self.args.should_log:
            logger.warning("use_onednn has no effect: %s", self.onednn_refused)

    def _why_not_onednn(self) -> str:
        if not is_available():
            return "this PyTorch was built without oneDNN."
        if self.args.device.type != "cpu":
            return f"the model is on {self.args.device}, and oneDNN computes on the CPU."
        if self.accelerator.mixed_precision != "no":
            return f"in {self.accelerator.mixed_precision} PyTorch takes oneDNN on its own."
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return "the model is sharded by FSDP or DeepSpeed."
        if self.args.torch_compile:
            return "a compiled model has products of its own."
        return ""

    def _close_onednn(self) -> None:
        if self._onednn_open is not None:
            self._onednn_open.close()
            self._onednn_open = None

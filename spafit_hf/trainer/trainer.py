"""Trainer in strata: give it a plain model and a strategy, and only what the strategy names is trained and saved.

    model --wrap--> PeftModel --Trainer--> checkpoint-N/   native: deltas as they are, for a bit-exact resume
                                           output_dir/     portable: save_model() writes what plain PEFT reads

Everything else is Trainer's. Overridden is what is wrong or wasteful for strata; each method says why.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from operator import attrgetter
from typing import Any

import safetensors.torch
import torch
from accelerate.utils import DistributedDataParallelKwargs
from peft import PeftModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler
from transformers import EvalPrediction, PreTrainedModel, Seq2SeqTrainer, Trainer, TrainingArguments, set_seed
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_pt_utils import find_batch_size, get_model_param_count
from transformers.trainer_utils import BestRun, EvalLoopOutput, TrainOutput, has_length
from transformers.training_args import OptimizerNames
from transformers.utils import SAFE_WEIGHTS_NAME

from spafit_hf.adapter import AdapterError, save_adapter, start_from
from spafit_hf.architecture import DescriptionLike, find_head, register_architecture
from spafit_hf.planner import Plan
from spafit_hf.planner.notes import NATIVE_NOTE
from spafit_hf.strategy import Strategy, StrategyLike
from spafit_hf.trainer.ahead import FetchedAhead
from spafit_hf.trainer.arguments import (
    DEFAULT_STRATEGY,
    NOT_SET,
    SpafitSeq2SeqTrainingArguments,
    SpafitTrainingArguments,
    StrataArguments,
)
from spafit_hf.trainer.checkpoints import ANEW, check_fits, check_optimizer, checkpoints_of, resumable, settings_of
from spafit_hf.trainer.gradients import GradientWatch, may_pass_over
from spafit_hf.trainer.hub import HubPushMixin
from spafit_hf.trainer.optimizer import UNTRAINED_POOLER_FACTOR, split_groups
from spafit_hf.trainer.sampler import LengthGroupedSampler, LengthSortedSampler, example_lengths
from spafit_hf.trainer.sharding import gather_deltas, shard_by_layer, whole_parameters
from spafit_hf.trainer.shortcuts import FirstTokenShortCut, PrefixShortCut
from spafit_hf.trainer.wrapping import (
    has_adapter,
    is_ours,
    refuse_float16,
    refuse_idle,
    refuse_smoothing,
    refuse_unsaved,
    taken_out,
    warn_of_frozen,
    warn_of_halves,
    wrap,
    wrapped_before,
)
from spafit_hf.tuner.entrance import check_model
from spafit_hf.tuner.plain import base_of
from spafit_hf.words import listed

logger = logging.getLogger(__name__)


class StrataTrainer(Trainer):
    """What `SpafitTrainer` and `SpafitSeq2SeqTrainer` share: every override of Trainer."""

    plan: Plan | None = None
    """The plan of the wrapped model; None for a model taken as it is and for full fine-tuning."""

    task: dict[str, Any] | None = None
    """What a saved adapter says of its task, in JSON types: {"name": "rte", "columns": ["sentence1", "sentence2"]}."""

    _window_rows: int | None = None
    """Rows of the accumulation window, where its batches differ in size."""
    _watch: GradientWatch | None = None
    """Until the first optimizer step of a run."""

    _has_state = False
    """Whether the random state of the checkpoint that is resumed from is in place."""

    _undo: ExitStack | None = None
    """While the trainer is made: what makes a model plain again that was given plain."""

    # Trainer's own, None only until they are made.
    model: Any
    current_gradient_accumulation_steps: Any
    optimizer: Any
    hub_model_id: Any
    push_in_progress: Any

    # ---- the model ----

    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        strategy: StrategyLike | None = None,
        architecture: DescriptionLike | None = None,
        **others: Any,
    ) -> None:
        """Trainer's, with the model wrapped first. Where that fails, a model that was given plain is plain again."""
        if model is not None:
            check_model(model)
        if args is None:
            seq2seq = isinstance(self, Seq2SeqTrainer)
            args = (SpafitSeq2SeqTrainingArguments if seq2seq else SpafitTrainingArguments)(output_dir="tmp_trainer")
        self._opened = ExitStack()
        """What the short cuts of a training or an evaluation have changed on the model, to be undone at its end."""
        self._prefix = PrefixShortCut(self, self._opened)
        self._first_token = FirstTokenShortCut(self, self._opened, self._prefix)
        self._ahead = FetchedAhead()
        self.args = args
        self._optimizer_was_given = optimizers[0] is not None
        self._native = False
        self._not_started: AdapterError | None = None
        self._loss_was_probed = False
        self._pooler_is_untrained = False
        self._rates: dict[str, Any] = {}
        self._length_sampler: LengthGroupedSampler | None = None
        # This package logs where transformers does, as scripts set the level of transformers alone.
        package, level = logging.getLogger("spafit_hf"), args.get_process_log_level()
        if args.log_level != "passive" or level < package.getEffectiveLevel():
            package.setLevel(level)
        if described := architecture or getattr(args, "architecture", ""):
            register_architecture(described)
        self._settle_strategy(strategy, model)
        with ExitStack() as self._undo:
            if model is not None:
                model = self._in_strata(model)
                if optimizers[0] is not None:
                    _check_holds_trainable(optimizers[0], model)
            super().__init__(model=model, args=args, optimizers=optimizers, **others)
            if self.label_smoother and not self._scripts_loss:
                refuse_smoothing(self.model)
            self._undo.pop_all()
        self._undo = None
        if isinstance(self.model, PeftModel) and getattr(args, "generation_config", None) is not None:
            # Seq2SeqTrainer sets it on PEFT's wrapper, which `generate` does not ask.
            self.model.get_base_model().generation_config = self.model.generation_config

    def _settle_strategy(self, strategy: StrategyLike | None, model: nn.Module | None) -> None:
        if strategy is not None and model is not None and has_adapter(model):
            logger.warning("The model has an adapter already; strategy=%s is not used.", strategy)
        if not isinstance(self.args, StrataArguments):
            self._plain_strategy = Strategy.coerce(DEFAULT_STRATEGY if strategy is None else strategy)
        elif strategy is not None:
            text = _as_text(strategy)
            if self.args.n1 != NOT_SET or self.args.strategy not in (DEFAULT_STRATEGY, text):
                logger.warning(
                    "The trainer's strategy=%s takes the place of the arguments' strategy=%s, n1=%d, n2=%d; drop one.",
                    *(text, self.args.strategy, self.args.n1, self.args.n2),
                )
            # Into the arguments, so that logs, cards and a search over strategies have one place to look at.
            self.args.strategy, self.args.n1, self.args.n2 = text, NOT_SET, NOT_SET
            self.args.build_strategy()

    @property
    def strategy(self) -> Strategy:
        """The strategy that the next plain model is wrapped with. A search changes it from trial to trial."""
        return self.args.build_strategy() if isinstance(self.args, StrataArguments) else self._plain_strategy

    def _in_strata(self, model: nn.Module) -> nn.Module:
        """Wrap a plain model. One with an adapter is taken as it is, and full fine-tuning leaves it plain."""
        self.plan, self._pooler_is_untrained = None, False
        strategy = self.strategy
        model = taken_out(model, strategy)
        wrapped = wrapped_before(model, strategy)
        there = wrapped is not None or has_adapter(model)
        start = self.args.init_adapter if isinstance(self.args, StrataArguments) else ""
        if start and (there or strategy.full):
            found = "the model has an adapter already" if there else "full fine-tuning trains none"
            raise ValueError(f"init_adapter={start!r} starts a new adapter, and {found}; leave it out.")
        if wrapped is not None:
            logger.warning(
                "The model holds the adapter of an earlier trainer, of the same strategy: going on with it."
            )
        elif there or strategy.full:
            return model
        else:
            wrapped = wrap(model, strategy, self.args)
            if self._undo is not None:
                self._undo.callback(wrapped.undo)
            if start:
                try:
                    start_from(wrapped.model, start, token=self.args.hub_token)
                except AdapterError as error:
                    if not checkpoints_of(self.args.output_dir or "") or os.path.exists(start):
                        raise
                    self._not_started = error  # for `train` to raise where it resumes from none
        self.plan, self._pooler_is_untrained = wrapped.plan, wrapped.untrained_pooler
        return wrapped.model

    # ---- the short cuts ----

    prefix_cache = property(attrgetter("_prefix.cache"))
    """The cache of the model that trains; None while there is none."""
    prefix_cache_refused = property(attrgetter("_prefix.refused"))
    """Why the model is trained without one, though one was wanted."""
    first_token = property(attrgetter("_first_token.narrowed"))
    """The narrowed last layer of the model; None while there is none."""
    first_token_refused = property(attrgetter("_first_token.refused"))
    """Why the last layer is computed whole, though narrowing it was wanted."""

    @property
    def _scripts_loss(self) -> bool:
        """Whether the loss is a script's own, which comes before Trainer's with smoothed labels."""
        return bool(self.compute_loss_func) or type(self).compute_loss is not Trainer.compute_loss

    def _trains_adapter(self) -> bool:
        return has_adapter(self.model) if self.model is not None else not self.strategy.full

    # ---- training ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`; a checkpoint that was cut short by a kill is replaced by the whole one before it.

        _prepare_for_training   table of strata, sharding, optimizer; the prefix cache opens and is built
        _run_epoch              training_step, evaluation_loop, save_model
        """
        if self.args.activation_checkpointing:
            given: Any = self.args.activation_checkpointing_kwargs or {}
            if given.get("use_reentrant"):
                logger.warning("use_reentrant=True would send gradients through frozen layers; using False.")
            self.args.activation_checkpointing_kwargs = {**given, "use_reentrant": False}
            self.args.gradient_checkpointing_kwargs = self.args.activation_checkpointing_kwargs
        checkpoint = resumable(resume_from_checkpoint, self.args.output_dir or "")
        if self._not_started is not None and not checkpoint:
            raise self._not_started
        try:
            return super().train(checkpoint, *args, **kwargs)
        finally:
            self._opened.close()

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        self._opened.close()  # of an attempt with a larger batch (auto_find_batch_size)
        refuse_idle(self.model)
        if is_ours(self.model) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            refuse_unsaved(self.model, planned=self.plan is not None)
        if not self._trains_adapter():  # said here: to be evaluated, a model may be so
            warn_of_halves(self.model, self.args)
            warn_of_frozen(self.model)
        self._log_strata()
        own = self._optimizer_was_given or self.optimizer_cls_and_kwargs is not None
        adamw = self.args.optim in (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED) and not own
        if adamw and not self.is_deepspeed_enabled and not self._trains_adapter():
            refuse_float16(self.model)
        if self.args.activation_checkpointing and self._trains_adapter():
            _spare_frozen_prefix(self.model)
        if self.is_fsdp_enabled:
            shard_by_layer(self.model, self.accelerator.state.fsdp_plugin)
        if self.is_deepspeed_enabled:
            if resume_from_checkpoint is not None:  # DeepSpeed loads it past `_load_from_checkpoint`
                check_fits(self.model, resume_from_checkpoint, sharded=True)
            gather_deltas(self.model)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._warn_of_unsplit()
        self._prefix.open_for_training()
        self._first_token.open()
        self._watch = None
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if is_ours(model) and not self.is_deepspeed_enabled:  # which keeps gradients elsewhere
            self._watch = GradientWatch(model, self.plan, compiled=self.args.torch_compile)
            self._opened.callback(self._watch.close)
        return prepared

    def _log_strata(self) -> None:
        if not self.args.should_log:
            return
        if self.plan is not None:
            logger.info("Training in strata:\n%s", self.plan)
            if self.plan.bottlenecks:  # said now, and not when hours of training are to be saved
                logger.warning("%s%s", NATIVE_NOTE[0].upper(), NATIVE_NOTE[1:])
        else:
            what = "the adapter of the model given" if has_adapter(self.model) else f"strategy {self.strategy.name}"
            trained, total = get_model_param_count(self.model, trainable_only=True), get_model_param_count(self.model)
            logger.info("Training %s: %s of %s parameters.", what, f"{trained:,}", f"{total:,}")

    def _run_epoch(self, model: nn.Module, epoch: int, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            # A run killed after its last checkpoint: Trainer 5.23 would take one more step before it looks.
            self.control.should_training_stop = True
            return
        # accelerate's set_epoch does not reach the sampler of a run that resumes within an epoch on several processes.
        if self._length_sampler is not None:
            self._length_sampler.set_epoch(epoch)
        self._ahead.watch(kwargs["train_dataloader"])
        checkpoint = kwargs["resume_from_checkpoint"]
        midst = epoch == kwargs["epochs_trained"] and kwargs["steps_trained_in_current_epoch"] > 0
        if checkpoint is None or not midst or self.args.ignore_data_skip:
            super()._run_epoch(model, epoch, *args, **kwargs)
            return
        load = partial(super()._load_rng_state, checkpoint)
        process, loader = self.args.process_index, kwargs["train_dataloader"]
        with self._ahead.resuming(checkpoint, process, loader, load) as self._has_state:
            super()._run_epoch(model, epoch, *args, **kwargs)
        self._has_state = False

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self._ahead.save(output_dir, self.args.process_index)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # Trainer's own moment is after two batches were fetched.
        if not self._has_state:
            super()._load_rng_state(checkpoint)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], torch.Tensor | int | None]:
        """`Trainer.get_batch_samples`, with a look at the rows of a window: its batches may differ in size."""
        self._ahead.begin()
        samples, items = super().get_batch_samples(*args, **kwargs)
        rows = [find_batch_size(batch) for batch in samples]
        self._window_rows = sum(rows) if None not in rows and len(set(rows)) > 1 else None
        return samples, items

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """`Trainer.training_step`, after a look at the first batch: does the model's loss take the number of items?

        Trainer 5.23 believes so of every `forward` with `**kwargs`. BERT and many more have them and take the mean of
        the batch all the same: accumulating k batches, or training on k processes, then multiplied the gradients by k
        (https://github.com/huggingface/transformers/issues/47688).
        """
        own = self._scripts_loss  # it knows what it takes
        if self.label_smoother and not own:
            refuse_smoothing(self.model, inputs.get("labels"))
        several = self.args.gradient_accumulation_steps * self.args.world_size * max(self.args.n_gpu, 1) > 1
        asks = not (own or self.label_smoother or self._loss_was_probed)
        if several and num_items_in_batch is not None and asks:
            found = self._loss_takes_items(model, inputs, num_items_in_batch)
            if found is not None:
                self.model_accepts_loss_kwargs, self._loss_was_probed = found, True
        if self._window_rows is not None:
            # A loss that is the mean of its batch is divided by this. Trainer gives each batch of a window the same
            # weight, also the two rows that are left at the end of an epoch.
            self.current_gradient_accumulation_steps = self._window_rows / find_batch_size(inputs)
        self._first_token.look_at(inputs, training=True)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._watch is not None and self.accelerator.sync_gradients and self._watch.look():
            watch, self._watch = self._watch, None
            watch.close()
            watch.report(needs_all=isinstance(model, DistributedDataParallel) and not model.find_unused_parameters)
        return loss

    def _loss_takes_items(self, model: nn.Module, inputs: dict[str, Any], items: torch.Tensor | int) -> bool | None:
        """Whether the loss halves when the number of items doubles; None where the batch, without labels, has none.

        Without dropout: no random number is drawn.
        """
        model.eval()
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = [model(**inputs, num_items_in_batch=items * factor) for factor in (1, 2)]
        once, twice = (float(out["loss"] if isinstance(out, Mapping) else out[0]) for out in outputs)
        if once == 0 or not math.isfinite(once):
            return None
        return abs(once - 2 * twice) < abs(once - twice)

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Trainer's loop; over examples sorted by length, metrics and caller see them in the order of the dataset."""
        sampler = getattr(dataloader.batch_sampler, "sampler", None)
        compute_metrics = self.compute_metrics
        if isinstance(sampler, LengthSortedSampler) and compute_metrics is not None:

            def of_dataset(rows: EvalPrediction) -> dict[str, float]:
                # Trainer counts the last batch as a full one.
                losses = None if rows.losses is None else rows.losses[: len(sampler)]
                return compute_metrics(
                    EvalPrediction(*map(sampler.restore, (rows.predictions, rows.label_ids, rows.inputs, losses)))
                )

            self.compute_metrics = of_dataset
        try:
            # Leaves the random state as it was: a run that was killed between a save and an evaluation goes on without
            # that evaluation, and has to draw the same dropout.
            with torch.random.fork_rng(devices=[]):
                if not self.is_in_train:  # which has opened the short cuts
                    if self._prefix.wanted:
                        self._prefix.open(dataloader.dataset)
                    self._first_token.open()
                output = super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.compute_metrics = compute_metrics
            if not self.is_in_train:
                self._opened.close()
        if isinstance(sampler, LengthSortedSampler):
            parts = {name: sampler.restore(getattr(output, name)) for name in ("predictions", "label_ids")}
            return output._replace(**parts)
        return output

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """`Trainer.prediction_step`, after a look at the first batch."""
        self._first_token.look_at(inputs, training=False)
        return super().prediction_step(model, inputs, *args, **kwargs)

    # ---- data ----

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        self._length_sampler = None
        if self.args.train_sampling_strategy != "group_by_length" or dataset is None or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        lengths = self._lengths(dataset)
        if lengths is None:
            logger.info("The training examples have no length (no column of tokens or lengths): sampling at random.")
            return RandomSampler(dataset)  # type: ignore[arg-type]
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._length_sampler = LengthGroupedSampler(lengths, batch, seed)
        return self._length_sampler

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        # Under group_by_length Trainer shuffles evaluation too, and `predict` returns its rows in that order.
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        if eval_dataset is None or not has_length(eval_dataset) or self.args.world_size > 1:
            return None
        # Batches that are not gathered into one array cannot be put back into the dataset's order.
        gathered = self.args.eval_do_concat_batches and not self.args.batch_eval_metrics
        # A last batch that is dropped is the dataset's last, and not that of the shortest examples.
        lengths = self._lengths(eval_dataset) if gathered and not self.args.dataloader_drop_last else None
        return SequentialSampler(eval_dataset) if lengths is None else LengthSortedSampler(lengths)  # type: ignore[arg-type]

    def _lengths(self, dataset: Any) -> list[int] | None:
        return example_lengths(dataset, self.processing_class, self.args.length_column_name)

    # ---- optimizer ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimizer with its parameter groups split by kind, each kind at its own learning rate."""
        exists = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        rates = self._own_rates()
        if not exists:
            opt_model = self.model if model is None else model
            if self._pooler_is_untrained and "head" not in rates:
                rates["head"] = UNTRAINED_POOLER_FACTOR * self.args.learning_rate
                logger.warning(
                    "The base's pooler was never trained (its bias is zero), and what the head reads of it is small: "
                    "the head learns at %g, %d times --learning_rate. Another rate: --head_learning_rate.",
                    *(rates["head"], UNTRAINED_POOLER_FACTOR),
                )
            head = find_head(opt_model)[0] if "head" in rates and not self._trains_adapter() else ()
            present = split_groups(optimizer, opt_model, rates, head)
            for kind in sorted(set(rates) - present):
                logger.warning("%s_learning_rate is set, and no parameter of that kind trains.", kind)
        return optimizer

    def _own_rates(self) -> dict[str, float]:
        """The learning rates that the arguments give to single kinds of parameters."""
        if not isinstance(self.args, StrataArguments):
            return {}
        rates = {kind: getattr(self.args, f"{kind}_learning_rate") for kind in ("bias", "head")}
        return {kind: rate for kind, rate in rates.items() if rate != NOT_SET}

    def _warn_of_unsplit(self) -> None:
        """Say which rates have no effect on an optimizer that was passed, or that a script's own method made."""
        rates = self._own_rates()
        if rates and not any("kind" in group for group in self.optimizer.param_groups):
            logger.warning(
                "%s, so these have no effect: %s. Give its parameter groups the rates in their place, or leave it to "
                "the trainer.",
                "An optimizer was passed" if self._optimizer_was_given else "The optimizer is the script's own",
                listed(f"{kind}_learning_rate" for kind in rates),
            )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Trainer's choice without the bias deltas: a bias does not decay, whether trained in place or as a delta."""
        return [name for name in super().get_decay_parameter_names(model) if "lora_delta" not in name.split(".")]

    def _get_learning_rate(self) -> float:
        # Called once per step, before the scheduler moves on: the moment to note the rates for `log`.
        self._rates = {group["kind"]: group["lr"] for group in self.optimizer.param_groups if "kind" in group}
        return super()._get_learning_rate()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """`Trainer.log`, with the learning rates of deltas and head where they differ from `learning_rate`."""
        if "learning_rate" in logs:
            for kind in ("bias", "head"):
                rate = self._rates.get(kind, logs["learning_rate"])
                if rate != logs["learning_rate"]:
                    logs[f"{kind}_learning_rate"] = float(rate)
        super().log(logs, start_time)

    # ---- several processes ----

    def create_accelerator_and_postprocess(self) -> None:
        """Trainer's; FSDP version 1 is refused, and FSDP's own activation checkpointing replaced by Trainer's."""
        super().create_accelerator_and_postprocess()
        if not (self.is_fsdp_enabled and self._trains_adapter()):
            return
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version == 1:
            raise ValueError(
                "FSDP version 1 cannot shard layers in which some tensors train and others do not; "
                """use version 2, as in --fsdp --fsdp_config '{"version": 2}'."""
            )
        if plugin.activation_checkpointing:
            # FSDP's own checkpoints frozen layers too, in wrappers whose names would get into the adapter file.
            plugin.activation_checkpointing = False
            self.args.fsdp_plugin_args = {**(self.args.fsdp_plugin_args or {}), "activation_checkpointing": False}
            self.args.activation_checkpointing = self.args.gradient_checkpointing = True

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        built = super()._build_accelerator_args(**kwargs)
        # Trainer lets DDP search for unused parameters in every model that is not a PreTrainedModel, in each step.
        # Whatever trains in strata is used in every step, but for layers and experts that a step may pass over.
        if self.args.ddp_find_unused_parameters is None and self._trains_adapter() and not may_pass_over(self.model):
            for handler in built["kwargs_handlers"]:
                if isinstance(handler, DistributedDataParallelKwargs):
                    handler.find_unused_parameters = False
        return built

    # ---- hyperparameter search ----

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> BestRun | list[BestRun]:
        """`Trainer.hyperparameter_search`; each trial starts from the arguments as they are now."""
        self._args_before_search = dict(vars(self.args))
        try:
            return super().hyperparameter_search(*args, **kwargs)
        finally:
            vars(self.args).update(self._args_before_search)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """`Trainer.call_model_init`, after the trial's values are in place.

        Trainer 5.23 builds the model first and sets the values then: each trial trains the model of the one before.
        """
        if trial is not None and self.hp_search_backend is not None:
            vars(self.args).update(self._args_before_search)
            self._hp_search_setup(trial)
            set_seed(self.args.seed)
        return self._in_strata(super().call_model_init(trial))

    # ---- saving and loading ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter so that plain PEFT can read it too, and the tokenizer; for full fine-tuning the model."""
        self._native = _internal_call and output_dir is not None  # how Trainer saves a checkpoint
        if is_ours(self.model) and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            # Trainer would gather the whole base on each save. The adapter and the base's biases are enough.
            with whole_parameters(self.model, keep=self.args.should_save):
                self._save(output_dir)
        elif self.is_fsdp_enabled and not self._native:
            # Trainer would write no model at all where checkpoints are sharded.
            self._save(output_dir, self.accelerator.get_state_dict(self.model))
        else:
            super().save_model(output_dir, _internal_call)
            return
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        # In place of Trainer's, which also pickles the arguments, Hub token included. Nothing reads that file back.
        folder = output_dir if output_dir is not None else str(self.args.output_dir)
        if not self.args.should_save and not self.is_distributed_loading_by_transformers:
            return
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if is_ours(model):
            logger.info("Saving the adapter to %s", folder)
            form = save_adapter(
                model, folder, model.active_adapter, form="native" if self._native else "auto", task=self.task
            )
            if form == "native" and not self._native:
                logger.warning("Plain PEFT cannot hold this adapter, so %s needs spafit_hf to be read.", folder)
        elif isinstance(model, (PreTrainedModel, PeftModel)):
            # A checkpoint keeps the model's own names: under those of the Hub, `train` does not find them again.
            names: dict[str, Any] = (
                {"save_original_format": False} if self._native and isinstance(model, PreTrainedModel) else {}
            )
            model.save_pretrained(folder, state_dict=state_dict, is_main_process=self.args.should_save, **names)
        else:
            os.makedirs(folder, exist_ok=True)
            weights = model.state_dict() if state_dict is None else state_dict
            safetensors.torch.save_file(weights, os.path.join(folder, SAFE_WEIGHTS_NAME), metadata={"format": "pt"})
        processor = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if processor is not None and self.args.should_save:
            processor.save_pretrained(folder)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        known = {id(each): name for name, each in self.model.named_parameters()}  # of tied ones the first name
        computed = self.model._keys_to_ignore_on_save or () if isinstance(self.model, PreTrainedModel) else ()
        absent = {*load_result.missing_keys} - {*computed}
        lost = [name for name in known.values() if name in absent]
        if lost and not isinstance(self.model, PeftModel):
            raise ValueError(
                f"the checkpoint has no {lost[0]} (of {len(lost)} tensors that it lacks), so that the run would go on "
                "from other weights than it had; resume from another checkpoint, or start anew."
            )
        super()._issue_warnings_after_load(load_result)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        check_fits(self.model if model is None else model, resume_from_checkpoint, sharded=self.is_fsdp_enabled)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        asked = settings_of(self.optimizer)
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (KeyError, ValueError) as error:  # torch's: a field that one schedule lacks, other groups
            raise ValueError(
                f"{checkpoint} holds the state of another optimizer or schedule than these arguments make ({error}); "
                f"{ANEW}"
            ) from error
        check_optimizer(self.optimizer, asked, checkpoint)


def _with_strategy(theirs: type[Trainer]) -> Any:
    """`StrataTrainer.__init__` with the signature of a trainer of transformers, and `strategy` at its end."""
    known = inspect.signature(theirs.__init__)

    def __init__(self: StrataTrainer, *given: Any, **named: Any) -> None:
        StrataTrainer.__init__(**known.bind_partial(self, *given).arguments, **named)

    own = inspect.signature(StrataTrainer.__init__).parameters
    last = [own["strategy"], own["architecture"]]
    vars(__init__)["__signature__"] = known.replace(parameters=[*known.parameters.values(), *last])
    return __init__


class SpafitTrainer(HubPushMixin, StrataTrainer):
    """`transformers.Trainer` that trains in strata. In a script that has one, two names change and nothing else.

    A plain model is wrapped with `get_spafit_model`; a `PeftModel` is taken as it is; the strategy "full" leaves the
    model plain, so that every method of the paper runs through the same code.

    Args:
        strategy: name, dict, YAML or JSON file, or `Strategy`. It takes the place of the strategy in `args`. By
            default that of `SpafitTrainingArguments`, and spafit-4-9-II with plain `TrainingArguments`.
        architecture: where the parts of the model are, for models in which they are not found: a mapping, or a YAML or
            JSON file (`register_architecture`). It takes the place of that in `args`.
        others: those of `transformers.Trainer`, in its order: model, args, data_collator, train_dataset, eval_dataset,
            processing_class, model_init, compute_loss_func, compute_metrics, callbacks, optimizers,
            optimizer_cls_and_kwargs, preprocess_logits_for_metrics.

    Raises:
        ValueError: for a strategy that does not fit the model, or an optimizer made before the model was wrapped.
    """

    __init__ = _with_strategy(Trainer)


class SpafitSeq2SeqTrainer(HubPushMixin, StrataTrainer, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` that trains in strata: as `SpafitTrainer`, without optimizer_cls_and_kwargs."""

    __init__ = _with_strategy(Seq2SeqTrainer)


def _as_text(strategy: StrategyLike) -> str:
    """A strategy as the `strategy` field holds it: a name, a path, or JSON."""
    Strategy.coerce(strategy)  # or its error would be Python's
    if isinstance(strategy, Strategy):
        return json.dumps(strategy.to_dict())
    return json.dumps(dict(strategy)) if isinstance(strategy, Mapping) else os.fspath(strategy)


def _check_holds_trainable(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    missing = sum(id(parameter) not in held for parameter in trained)
    if missing:
        raise ValueError(
            f"the optimizer holds {len(trained) - missing} of the {len(trained)} tensors that train in strata: it was "
            "made before the model was wrapped; pass optimizer_cls_and_kwargs, or wrap with get_spafit_model first."
        )


def _spare_frozen_prefix(model: nn.Module) -> None:
    """Keep the backward pass, and activation checkpointing with it, above the layers below which nothing trains.

    Trainer has just switched checkpointing on, and with it gradients of the embeddings' output, which reentrant
    checkpointing needs. Ours is not reentrant.
    """
    base = base_of(model)
    if isinstance(base, PreTrainedModel):
        base.disable_input_require_grads()
    for module in model.modules():  # in the order of the forward pass: embeddings, layers, head
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            return
        if isinstance(module, GradientCheckpointingLayer) and not any(p.requires_grad for p in module.parameters()):
            module.gradient_checkpointing = False

"""The trainer's side: open the cache before the first step, read from it in every pass, close it at the end.

train()       open -> probe -> build (a pass over the examples that are not stored) -> steps, evaluations -> close
evaluate()    open -> pass -> close, where it is not part of a training
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from torch.utils.data import IterableDataset, Subset
from tqdm.auto import tqdm
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, has_length

from spafit_hf.shortcuts.border import NotCacheable
from spafit_hf.shortcuts.cache import CacheSettings, PrefixCache, default_folder
from spafit_hf.shortcuts.probe import ROWS
from spafit_hf.shortcuts.rows import with_padding
from spafit_hf.trainer.arguments import StrataArguments
from spafit_hf.trainer.first_token import FirstTokenTrainer
from spafit_hf.trainer.sampler import example_lengths
from spafit_hf.tuner.plain import base_of

logger = logging.getLogger(__name__)

LOOKED_AT = 64
"""Examples among which the probe looks for short and long ones, where no table knows the lengths of all."""


class PrefixCacheTrainer(FirstTokenTrainer):
    """Trainer that reads the hidden states of frozen leading layers from a cache. Mixed in by `StrataTrainer`."""

    prefix_cache: PrefixCache | None = None
    """The cache of the model that trains; None while there is none."""
    prefix_cache_refused: str = ""
    """Why the model is trained without one, though one was asked for."""
    _prefix_open: ExitStack | None = None
    _refused_for: nn.Module | None = None

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer.train`, with the cache closed afterwards."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._close_prefix_cache()

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        self._close_prefix_cache()  # of an attempt with a larger batch (auto_find_batch_size)
        if self._wants_prefix_cache():
            if self._open_prefix_cache(self.train_dataset):
                self._build_prefix_cache()
            # Whether or not this process has a cache: all have to come here.
            self.accelerator.wait_for_everyone()
            if self.prefix_cache is not None:
                self.prefix_cache.store.refresh()
        return prepared

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """`Trainer.evaluation_loop`; outside of training it opens the cache for itself."""
        if self.is_in_train or not self._wants_prefix_cache():
            return super().evaluation_loop(dataloader, *args, **kwargs)
        self._open_prefix_cache(dataloader.dataset)
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self._close_prefix_cache()

    def _reads_prefix(self) -> bool:
        return self._prefix_open is not None

    def _last_layer_runs(self) -> bool:
        cache = self.prefix_cache if self._prefix_open is not None else None
        return cache is None or cache.border is None or cache.border.last_layer not in cache.border.layers

    # ---- opening and closing ----

    def _wants_prefix_cache(self) -> bool:
        return isinstance(self.args, StrataArguments) and self.args.prefix_cache != "off"

    def _open_prefix_cache(self, dataset: Any) -> bool:
        """Open the cache and attach it to the model, or say why not."""
        assert isinstance(self.args, StrataArguments)
        model = self.accelerator.unwrap_model(self.model)
        base = base_of(model)
        if self._refused_for is base and self.prefix_cache_refused:
            return False
        settings = CacheSettings(
            Path(self.args.prefix_cache).expanduser() if self.args.prefix_cache != "auto" else default_folder(),
            self.args.prefix_cache_max_bytes,
            self.args.prefix_cache_dtype,
            self.args.prefix_cache_drop_weights,
        )
        self._refused_for, self.prefix_cache_refused = base, ""
        try:
            self._check_setup()
            cache = self.prefix_cache
            if cache is None or cache.settings != settings or not cache.is_for(model):
                cache = PrefixCache(model, settings, self.accelerator.mixed_precision, self.label_names or ())
                batch = self._probe_batch(dataset, cache)
                with torch.random.fork_rng(devices=[]), self.accelerator.autocast():
                    cache.prepare(batch)
            else:
                cache.open()
        except NotCacheable as error:
            self.prefix_cache, self.prefix_cache_refused = None, str(error)
            if self.args.should_log:
                logger.warning("No prefix cache, the frozen layers run in each pass: %s", error)
            return False
        self.prefix_cache = cache
        self._prefix_open = ExitStack()
        self._prefix_open.callback(cache.close)
        self._prefix_open.enter_context(cache.attached())
        return True

    def _close_prefix_cache(self) -> None:
        if self._prefix_open is not None:
            self._prefix_open.close()
            self._prefix_open = None

    def _check_setup(self) -> None:
        """Refuse what the cache cannot go together with."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise NotCacheable("the model is sharded by FSDP or DeepSpeed; use DDP (torchrun without them).")
        if self.args.n_gpu > 1:
            raise NotCacheable("DataParallel copies the model in each step; use DDP (torchrun), or one GPU.")
        if self.args.torch_compile:
            raise NotCacheable("a compiled model does not read from a disk; drop --torch_compile.")
        if not self.is_in_train and (self.args.fp16_full_eval or self.args.bf16_full_eval):
            raise NotCacheable("fp16_full_eval and bf16_full_eval change the model's type after the cache was opened.")

    # ---- the probe's batch ----

    def _probe_batch(self, dataset: Any, cache: PrefixCache) -> Mapping[str, Any]:
        """A batch of a few examples, short and long ones, with padding in it where its rows have a mask.

        Raises:
            NotCacheable: when examples cannot be chosen, or the collator changes them from call to call.
        """
        if isinstance(dataset, IterableDataset) or not has_length(dataset):
            self._refused_for = None  # another dataset may do
            raise NotCacheable("a look at a stream of examples would use it up; give a dataset with a length.")
        # The collator may draw random numbers, which must not shift those of the training.
        with torch.random.fork_rng(devices=[]):
            examples = self._probe_examples(dataset)
            batches = [self._collated(examples) for _ in range(2)]
        batch = batches[0]
        if not isinstance(batch, Mapping):
            raise NotCacheable(f"the data collator returns {type(batch).__name__}; it must return a dict of tensors.")
        if cache.keys(batch) != cache.keys(batches[1]):
            raise NotCacheable("the data collator gives other inputs each time, so no state would be read again.")
        rows = cache.rows(batch)
        if rows is None or any(span.stop - span.start < rows.width for span in rows.spans):
            return batch
        if rows.width == 1:
            raise NotCacheable("examples of one token do not show whether states depend on padding.")
        return with_padding(batch, rows, *self._padding()) if rows.width else batch

    def _probe_examples(self, dataset: Any) -> list[Any]:
        """A few examples, from the shortest to the longest."""
        known = None
        if isinstance(dataset, datasets.Dataset):
            known = example_lengths(dataset, self._main_input(), self.args.length_column_name)
        if known is not None:
            lengths = dict(enumerate(known))
        else:
            count = len(dataset)
            looked_at = dict.fromkeys(count * part // LOOKED_AT for part in range(LOOKED_AT if count else 0))
            lengths = {index: self._example_length(dataset[index]) for index in looked_at}
        if not lengths:
            raise NotCacheable("there are no examples to look at.")
        order = sorted(lengths, key=lengths.__getitem__)
        last = len(order) - 1
        return [dataset[order[at]] for at in dict.fromkeys(last * part // (ROWS - 1) for part in range(ROWS))]

    def _collated(self, examples: list[Any]) -> Any:
        collate = self._get_collator_with_removed_columns(self.data_collator)
        # In dicts of their own: a collator may take labels out of them.
        own = [dict(example) if isinstance(example, Mapping) else example for example in examples]
        try:
            return self._prepare_inputs(collate(own))
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise NotCacheable(
                f"the data collator makes no batch of short and long examples: {type(error).__name__}: {error}"
            ) from error

    def _padding(self) -> tuple[str, int]:
        """The side on which rows are padded, and the token. Where nobody knows, the side that fewer models bear."""
        for tokenizer in (getattr(self.data_collator, "tokenizer", None), self.processing_class):
            side = getattr(tokenizer, "padding_side", None)
            if side is not None:
                return str(side), getattr(tokenizer, "pad_token_id", None) or 0
        return "left", 0

    def _example_length(self, example: Any) -> int:
        name = self._main_input()
        value: Any = example.get(name) if isinstance(example, Mapping) else getattr(example, name, None)
        return len(value) if isinstance(value, (list, tuple)) or bool(getattr(value, "ndim", 0)) else 0

    def _main_input(self) -> str:
        names = getattr(self.processing_class, "model_input_names", None) or ["input_ids"]
        return str(names[0])

    # ---- the build ----

    def _build_prefix_cache(self) -> None:
        """Compute and store what the store lacks, where it will be read in this run; then drop weights where asked."""
        cache = self.prefix_cache
        assert cache is not None
        assert cache.border is not None
        assert cache.probed is not None
        shown = self.args.should_log
        if shown:
            logger.info(
                "Prefix cache: %d frozen layers from %s. One batch both ways differs by %.1e, by %.1e as %s.",
                cache.border.length,
                cache.store.folder,
                cache.probed.exact,
                cache.probed.stored,
                cache.settings.dtype,
            )
        drop = cache.settings.drop_weights
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        datasets = [self.train_dataset, *(evaluated.values() if drop else ())]
        if drop or self.state.num_train_epochs > 1:
            # One epoch reads nothing twice: its own first pass fills the cache.
            for dataset in datasets:
                if dataset is not None and has_length(dataset) and not isinstance(dataset, IterableDataset):
                    self._fill_prefix_cache(cache, dataset)
        if drop and cache.store.full:
            logger.warning("Prefix cache: not every example is stored, so the frozen weights stay in memory.")
        elif drop:
            try:
                dropped = cache.drop_weights()
            except OSError as error:
                logger.warning("Prefix cache: the frozen weights stay in memory (%s).", error.strerror or error)
            else:
                logger.info("Prefix cache: %s bytes of frozen weights have left memory.", f"{dropped:,}")
        if shown:
            logger.info("Prefix cache: %d rows, %s bytes.", len(cache.store), f"{_bytes_of(cache):,}")

    def _fill_prefix_cache(self, cache: PrefixCache, dataset: Any) -> None:
        lengths = example_lengths(dataset, self._main_input(), self.args.length_column_name)
        order: Iterable[int] = range(len(dataset))
        if lengths is not None:
            # Longest first: what does not fit in memory shows at once.
            order = sorted(order, key=lengths.__getitem__, reverse=True)
        loader = self._get_dataloader(
            Subset(dataset, list(order)), description="Prefix cache", batch_size=self.args.eval_batch_size
        )
        hidden = self.args.disable_tqdm or not self.is_local_process_zero()
        # A data loader draws a seed for its workers.
        with (
            torch.random.fork_rng(devices=[]),
            self.accelerator.autocast(),
            tqdm(total=len(loader), desc="Prefix cache", unit="batch", disable=hidden, leave=False) as bar,
        ):
            for batch in loader:
                cache.fill(self._prepare_inputs(batch))
                bar.update()
                if cache.store.full:
                    break


def _bytes_of(cache: PrefixCache) -> int:
    try:
        return cache.store.used_bytes(cache.store.folder)
    except OSError:  # the folder could not be made
        return 0

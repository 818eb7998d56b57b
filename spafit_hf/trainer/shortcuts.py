"""The two short cuts of a run: when they open, what they look at first, and that they are closed again.

train()       prefix cache: open -> probe -> build (a pass over the examples that are not stored) ----> close
              first token:  first batch both ways -> narrowed from there on ------------------------> close
evaluate()    the same, open for its own pass where it is not part of a training

Each puts what undoes it on the one `ExitStack` of its trainer, which `train` and `evaluation_loop` close.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from peft import PeftModel
from torch import nn
from torch.utils.data import IterableDataset, Subset
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer_utils import has_length

from spafit_hf.shortcuts.border import NotCacheable
from spafit_hf.shortcuts.cache import CacheSettings, PrefixCache
from spafit_hf.shortcuts.first_token import FirstToken, NotFirstToken, probe, tokens_of
from spafit_hf.shortcuts.probe import ROWS
from spafit_hf.shortcuts.rows import with_padding
from spafit_hf.trainer.arguments import StrataArguments
from spafit_hf.trainer.sampler import example_lengths, main_input
from spafit_hf.tuner.plain import base_of

logger = logging.getLogger(__name__)

LOOKED_AT = 64
"""Examples among which the probe looks for short and long ones."""


def _check_whole(trainer: Trainer, refusal: type[ValueError]) -> None:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise refusal("the model is sharded by FSDP or DeepSpeed; use DDP (torchrun without them).")
    if trainer.args.n_gpu > 1:
        raise refusal("DataParallel copies the model in each step; use DDP (torchrun), or one GPU.")


class PrefixShortCut:
    """The hidden states of frozen leading layers from a cache; what undoes `open` goes on the trainer's stack."""

    cache: PrefixCache | None = None
    refused: str = ""
    is_open = False
    _refused_for: nn.Module | None = None

    def __init__(self, trainer: Trainer, stack: ExitStack) -> None:
        self.trainer = trainer
        self.stack = stack

    @property
    def wanted(self) -> bool:
        """Whether the arguments ask for a cache."""
        args = self.trainer.args
        return isinstance(args, StrataArguments) and args.prefix_cache != "off"

    @property
    def holds_last_layer(self) -> bool:
        """Whether the model's last layer does not run at all, since its states come from the cache."""
        border = self.cache.border if self.is_open and self.cache is not None else None
        return border is not None and border.last_layer in border.layers

    def open_for_training(self) -> None:
        """Open the cache for the training examples and compute what it lacks; every process has to come here."""
        if not self.wanted:
            return
        if self.open(self.trainer.train_dataset):
            self.build()
        self.trainer.accelerator.wait_for_everyone()
        if self.cache is not None:
            self.cache.store.refresh()

    def open(self, dataset: Any) -> bool:
        """Open the cache and attach it to the model until the stack closes, or say why not."""
        trainer, args = self.trainer, self.trainer.args
        assert isinstance(args, StrataArguments)
        model = trainer.accelerator.unwrap_model(trainer.model)
        base = base_of(model)
        if self._refused_for is base and self.refused:
            return False
        # Beside the Hub's cache there is room for large files.
        auto = Path(constants.HF_HOME) / "spafit" / "prefix"
        folder = auto if args.prefix_cache == "auto" else Path(args.prefix_cache).expanduser()
        limits = args.prefix_cache_max_bytes, args.prefix_cache_dtype, args.prefix_cache_drop_weights
        settings = CacheSettings(folder, *limits)
        self._refused_for, self.refused = base, ""
        try:
            self._check_setup()
            cache = self.cache
            if cache is None or cache.settings != settings or not cache.is_for(model):
                cache = PrefixCache(model, settings, trainer.accelerator.mixed_precision, trainer.label_names or ())
                batch = self._probe_batch(dataset, cache)
                with torch.random.fork_rng(devices=[]), trainer.accelerator.autocast():
                    cache.prepare(batch)
            else:
                cache.open()
            if cache.store.full and not len(cache.store):  # what others have stored can be read all the same
                raise NotCacheable(f"{cache.store.full}; give a folder that can be, in prefix_cache.")
        except NotCacheable as error:
            self.cache, self.refused = None, str(error)
            if args.should_log:
                logger.warning("No prefix cache, the frozen layers run in each pass: %s", error)
            return False
        self.cache, self.is_open = cache, True
        self.stack.callback(setattr, self, "is_open", False)
        self.stack.callback(cache.close)
        self.stack.enter_context(cache.attached())
        return True

    def _check_setup(self) -> None:
        """Refuse what the cache cannot go together with."""
        trainer, args = self.trainer, self.trainer.args
        _check_whole(trainer, NotCacheable)
        if args.torch_compile:
            raise NotCacheable("a compiled model does not read from a disk; drop --torch_compile.")
        if trainer.is_in_train and args.neftune_noise_alpha is not None:
            raise NotCacheable("the noise of --neftune_noise_alpha is drawn anew in each step; drop one of the two.")
        if not trainer.is_in_train and (args.fp16_full_eval or args.bf16_full_eval):
            raise NotCacheable("fp16_full_eval and bf16_full_eval change the model's type after the cache was opened.")

    # ---- the probe's batch ----

    def _probe_batch(self, dataset: Any, cache: PrefixCache) -> Mapping[str, Any]:
        """A batch of a few examples, short and long ones, with padding in it where its rows have a mask.

        Raises:
            NotCacheable: when examples cannot be chosen, change from call to call, or depend on those beside them.
        """
        if isinstance(dataset, IterableDataset) or not has_length(dataset):
            self._refused_for = None  # another dataset may do
            raise NotCacheable("a look at a stream of examples would use it up; give a dataset with a length.")
        # The collator may draw random numbers, which must not shift those of the training.
        with torch.random.fork_rng(devices=[]):
            chosen = self._probe_examples(dataset)
            # Read twice, for examples may be drawn anew as well: a crop of an image, say.
            batch, again = (self._collated(dataset, chosen) for _ in range(2))
            alone = self._collated(dataset, chosen[:1])
        if not isinstance(batch, Mapping):
            raise NotCacheable(f"the data collator returns {type(batch).__name__}; it must return a dict of tensors.")
        if cache.keys(batch) != cache.keys(again):
            raise NotCacheable(
                "the dataset or collator gives other inputs each time, so no state would be read again."
            )
        rows = cache.rows(batch)
        if rows is not None and not rows.width and cache.keys(alone) != cache.keys(batch)[:1]:
            raise NotCacheable(
                "examples are padded to those beside them and come without an attention_mask, so no state would be "
                "read again; have the collator give one, or pad to one length."
            )
        if rows is None or not rows.width or rows.padded:
            return batch
        if rows.width == 1:
            raise NotCacheable("examples of one token do not show whether states depend on padding.")
        return with_padding(batch, rows, *self._padding())

    def _probe_examples(self, dataset: Any) -> list[int]:
        """Places of a few examples, from the shortest to the longest."""
        count = len(dataset)
        looked_at = dict.fromkeys(count * part // LOOKED_AT for part in range(LOOKED_AT if count else 0))
        lengths = {index: self._example_length(dataset[index]) for index in looked_at}
        if not lengths:
            raise NotCacheable("there are no examples to look at.")
        order = sorted(lengths, key=lengths.__getitem__)
        last = len(order) - 1
        return [order[at] for at in dict.fromkeys(last * part // (ROWS - 1) for part in range(ROWS))]

    def _collated(self, dataset: Any, places: list[int]) -> Any:
        examples = [dataset[place] for place in places]
        collate = self.trainer._get_collator_with_removed_columns(self.trainer.data_collator)
        # In dicts of their own: a collator may take labels out of them.
        own = [dict(example) if isinstance(example, Mapping) else example for example in examples]
        try:
            return self.trainer._prepare_inputs(collate(own))
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise NotCacheable(
                f"the data collator makes no batch of short and long examples: {type(error).__name__}: {error}"
            ) from error

    def _padding(self) -> tuple[str, int]:
        """The side on which rows are padded, and the token. Where neither knows, the side that fewer models bear."""
        for tokenizer in (getattr(self.trainer.data_collator, "tokenizer", None), self.trainer.processing_class):
            side = getattr(tokenizer, "padding_side", None)
            if side is not None:
                return str(side), getattr(tokenizer, "pad_token_id", None) or 0
        return "left", 0

    def _example_length(self, example: Any) -> int:
        name = main_input(self.trainer.processing_class)
        value: Any = example.get(name) if isinstance(example, Mapping) else getattr(example, name, None)
        return len(value) if isinstance(value, (list, tuple)) or bool(getattr(value, "ndim", 0)) else 0

    # ---- the build ----

    def build(self) -> None:
        """Compute and store what the store lacks, where this run will read it; then drop weights where wanted."""
        cache, trainer = self.cache, self.trainer
        assert cache and cache.border and cache.probed  # noqa: PT018
        shown = trainer.args.should_log
        if shown:
            logger.info(
                "Prefix cache: %d frozen layers from %s. One batch both ways differs by %.1e, by %.1e as %s.",
                *(cache.border.length, cache.store.folder, cache.probed.exact, cache.probed.stored),
                cache.settings.dtype,
            )
        drop = cache.settings.drop_weights
        evaluated = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
        datasets = [trainer.train_dataset, *(evaluated.values() if drop else ())]
        if drop or trainer.state.num_train_epochs > 1:
            # One epoch reads nothing twice: its own first pass fills the cache.
            for dataset in datasets:
                if dataset is not None and has_length(dataset) and not isinstance(dataset, IterableDataset):
                    self._fill(cache, dataset)
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
            taken = cache.store.used_bytes(cache.store.folder) if cache.store.folder.is_dir() else 0
            logger.info("Prefix cache: %d rows, %s bytes.", len(cache.store), f"{taken:,}")

    def _fill(self, cache: PrefixCache, dataset: Any) -> None:
        trainer = self.trainer
        lengths = example_lengths(dataset, trainer.processing_class, trainer.args.length_column_name)
        order: Iterable[int] = range(len(dataset))
        if lengths is not None:
            # Longest first: what does not fit in memory shows at once.
            order = sorted(order, key=lengths.__getitem__, reverse=True)
        loader = trainer._get_dataloader(
            Subset(dataset, list(order)), description="Prefix cache", batch_size=trainer.args.eval_batch_size
        )
        hidden = trainer.args.disable_tqdm or not trainer.is_local_process_zero()
        # A data loader draws a seed for its workers.
        with (
            torch.random.fork_rng(devices=[]),
            trainer.accelerator.autocast(),
            tqdm(total=len(loader), desc="Prefix cache", unit="batch", disable=hidden, leave=False) as bar,
        ):
            for batch in loader:
                cache.fill(trainer._prepare_inputs(batch))
                bar.update()
                if cache.store.full:
                    break


class FirstTokenShortCut:
    """The last layer for the first token alone, where a first batch shows that this changes nothing.

    What undoes it goes on the trainer's stack. `auto` narrows training only beside the other short cut, `prefix`.
    """

    narrowed: FirstToken | None = None
    refused: str = ""
    _waits = False
    _checked: tuple[nn.Module, bool] | None = None
    """The model that the last check was of, and whether it was of gradients too."""

    def __init__(self, trainer: Trainer, stack: ExitStack, prefix: PrefixShortCut) -> None:
        self.trainer = trainer
        self.stack = stack
        self.prefix = prefix

    def open(self) -> None:
        """Have the next batch looked at, where the arguments ask for it."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        # Full fine-tuning is transformers' own, bit for bit.
        self._waits = self._mode == "on" or (self._mode == "auto" and isinstance(model, PeftModel))
        self.stack.callback(setattr, self, "_waits", False)

    @property
    def _mode(self) -> str:
        args = self.trainer.args
        return args.first_token_only if isinstance(args, StrataArguments) else "off"

    def look_at(self, inputs: dict[str, Any], *, training: bool) -> None:
        """Run the first batch both ways, and narrow the layer until the stack closes if they agree."""
        narrows_training = self._mode == "on" or (self._mode == "auto" and self.prefix.is_open)
        if not self._waits or (training and not narrows_training):
            return
        if max(tokens_of(inputs), default=0) == 1:  # which alone says nothing about the others
            return
        self._waits = False
        trainer = self.trainer
        gradients = trainer.is_in_train and narrows_training
        base = base_of(trainer.accelerator.unwrap_model(trainer.model))
        known = self._checked
        if known is None or known[0] is not base or (gradients and not known[1]):
            self.narrowed, self.refused = None, ""
            self._checked = (base, gradients)
            try:
                self._check_setup()
                with torch.random.fork_rng(devices=[]), trainer.compute_loss_context_manager():
                    self.narrowed = probe(base, trainer._prepare_inputs(inputs), gradients=gradients)
            except NotFirstToken as error:
                self.refused = str(error)
                if trainer.args.should_log:
                    logger.info("The last layer is computed for all tokens: %s", error)
        if self.narrowed is not None and not self.prefix.holds_last_layer:
            self.stack.enter_context(self.narrowed.attached(training=gradients))

    def _check_setup(self) -> None:
        _check_whole(self.trainer, NotFirstToken)
        if self.trainer.args.torch_compile:
            raise NotFirstToken("a compiled model keeps the shapes it was compiled with.")
        if self.prefix.holds_last_layer:
            raise NotFirstToken("the states of the last layer come from the prefix cache.")

"""The parts together: states for a batch, from the store where it has them, computed and stored where not."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spafit_hf.shortcuts.border import Border, NotCacheable, find_border
from spafit_hf.shortcuts.entry import Entry, ProbeResult, probe
from spafit_hf.shortcuts.key import facts_of, fingerprint, row_keys, weights_of
from spafit_hf.shortcuts.offload import Offload
from spafit_hf.shortcuts.probe import both_ways
from spafit_hf.shortcuts.rows import Rows, join, select, split
from spafit_hf.shortcuts.stand_in import standing_in
from spafit_hf.shortcuts.store import Store
from spafit_hf.tuner.plain import base_of

logger = logging.getLogger(__name__)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""What states can be stored as."""

#: Inputs that no state depends on.
IGNORED = ("labels", "label", "label_ids", "num_items_in_batch")


@dataclass(frozen=True)
class CacheSettings:
    """What a user chooses; the arguments of the trainer check it."""

    folder: Path
    max_bytes: int = 20_000_000_000
    """Of the whole folder."""
    dtype: str = "float16"
    """Of the stored states: float16 (checked for range), bfloat16, or float32, which is exact."""
    drop_weights: bool = False
    """Take the frozen layers' weights out of memory once every example is stored."""


class PrefixCache:
    """The frozen prefix of one model, from a cache.

    Example:
        cache = PrefixCache(model, CacheSettings(folder))
        cache.prepare(batch)          # finds the border, checks one batch both ways, opens the store
        with cache.attached():
            model(**batch)            # starts at the border

    Args:
        model: the model that trains, on its device.
        settings: the user's choices.
        precision: what autocast does around the model's forward, such as "bf16".
        ignored: inputs that no state depends on, besides `labels`.
    """

    def __init__(
        self, model: nn.Module, settings: CacheSettings, precision: str = "no", ignored: Sequence[str] = ()
    ) -> None:
        self.settings = settings
        self.model = model
        self.base = base_of(model)
        self.precision = precision
        self.ignored = (*IGNORED, *ignored)
        self.use = SimpleNamespace(read=0, computed=0, stored=0)
        """What the cache was good for, in rows."""
        self.probed: ProbeResult | None = None
        self._entry: Entry | None = None
        self._store: Store | None = None
        self._offload: Offload | None = None
        self._live: Any = None
        """The model's own forward while another stands in its place."""
        self._warned: set[str] = set()
        self._names = list(inspect.signature(type(self.base).forward).parameters)[1:]
        self._main = self.base.main_input_name if isinstance(self.base, PreTrainedModel) else "input_ids"
        self._prepared_for: list[tuple[Any, ...]] = []
        self._weights: list[torch.Tensor] = []
        self._opened_with: list[tuple[int, int]] = []

    @property
    def border(self) -> Border | None:
        """Where the frozen prefix ends; None before `prepare`."""
        return None if self._entry is None else self._entry.border

    @property
    def store(self) -> Store:
        """The open store.

        Raises:
            RuntimeError: before `prepare`.
        """
        if self._store is None:
            raise RuntimeError("The prefix cache is not open; call prepare(batch) first.")
        return self._store

    # ---- opening and closing ----

    def prepare(self, inputs: Mapping[str, Any]) -> Border:
        """Find the border, check one batch both ways, open the store.

        The batch has a few rows of different lengths: without padding nothing shows whether states depend on it.

        Raises:
            NotCacheable: when the states cannot come from a cache.
        """
        # With labels, since a loss may read padding (question answering's does); a script's own loss may take others.
        takes = (*self._names, "labels")
        inputs = {name: value for name, value in inputs.items() if name not in self.ignored or name in takes}
        rows = self.rows(inputs)
        if rows is None:
            raise NotCacheable(
                "the batch has no rows of tokens with an attention mask of two dimensions, or inputs that are no "
                "tensors."
            )
        with both_ways(NotCacheable):
            entry = Entry(self.base, find_border(self.model, inputs))
            if entry.watched:
                raise NotCacheable(
                    f"a hook on {entry.watched} sees or changes states that would not be computed; take it off."
                )
            with entry.attached():
                self.probed = probe(entry, inputs, rows, DTYPES[self.settings.dtype])
        self._entry = entry
        self._prepared_for = _kinds(self.model)
        self.open()
        return entry.border

    def is_for(self, model: nn.Module) -> bool:
        """Whether this cache, once prepared, can be opened for a model as it is now: wrapped, cast or frozen alike."""
        return self.border is not None and base_of(model) is self.base and _kinds(model) == self._prepared_for

    def open(self) -> None:
        """Open the store of the base as it is now: other weights, other entries."""
        assert self.border is not None
        device = next(self.base.parameters()).device.type
        dtype = DTYPES[self.settings.dtype]
        facts = facts_of(self.base, self.border, dtype, self.precision, device)
        name = fingerprint(self.base, self.border, facts)
        self._store = Store(self.settings.folder, name, facts, self.border.width, dtype, self.settings.max_bytes)
        self._weights = list(weights_of(self.base, self.border).values())
        self._opened_with = self._versions()

    def _versions(self) -> list[tuple[int, int]]:
        return [(weight.data_ptr(), weight._version) for weight in self._weights]

    def _check_weights(self) -> None:
        """Take another store when the frozen weights are not those any more that this one is named by."""
        if self._versions() != self._opened_with:
            logger.warning("Prefix cache: frozen weights have been changed, so their states are computed anew.")
            self.store.close()
            self.open()

    def close(self) -> None:
        """Bring the weights back and close the store. What it holds stays."""
        if self._offload is not None:
            self._offload.restore()
            self._offload = None
        if self._store is not None:
            self._store.close()
            self._store = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within it the model's forward starts at the border."""
        assert self._entry is not None
        self._live = self.base.forward
        try:
            with self._entry.attached(), standing_in([self.base], self._forward):
                yield
        finally:
            self._live = None

    # ---- weights ----

    def drop_weights(self) -> int:
        """Take the frozen prefix's weights, of so many bytes, out of memory; `close` brings them back.

        Raises:
            OSError: when they cannot be written to the cache's disk.
        """
        assert self.border is not None
        if self._offload is None:
            self._offload = Offload(self.base, self.border, self.store.folder)
            self._opened_with = self._versions()
        return self._offload.bytes

    # ---- one batch ----

    def keys(self, inputs: Mapping[str, Any]) -> list[bytes]:
        """What a batch's rows are filed under."""
        rows = self.rows(inputs)
        return [] if rows is None else row_keys(rows)

    def rows(self, inputs: Mapping[str, Any]) -> Rows | None:
        """A batch as rows; None where it has none."""
        return split(inputs, self._main, self.ignored)

    def fill(self, inputs: Mapping[str, Any]) -> None:
        """Compute and store what the store lacks of a batch."""
        rows = self.rows(inputs)
        if rows is not None:
            self._check_weights()
            keys = row_keys(rows)
            missing = [row for row, key in enumerate(keys) if key not in self.store]
            self._compute(self._live or self.base.forward, dict(inputs), rows, keys, missing)

    def _forward(self, _index: int, original: Any, *args: Any, **kwargs: Any) -> Any:
        assert self._entry is not None
        inputs = dict(zip(self._names, args, strict=False)) | kwargs
        if self.base.training:
            self._entry.no_dropout()
        rows = None
        if not (_asks_for_more(inputs) or self._prefix_trains(inputs) or self._entry.watched):
            self._check_weights()
            rows = self.rows(inputs)
        if rows is None:
            self._need_weights()
            return original(**inputs)
        keys = row_keys(rows)
        found = {row: states for row, key in enumerate(keys) if (states := self.store.get(key)) is not None}
        self.use.read += len(found)
        missing = [row for row in range(rows.count) if row not in found]
        if len(missing) == rows.count and self.store.full:
            self.use.computed += rows.count
            self._need_weights()
            return original(**inputs)
        found |= self._compute(original, inputs, rows, keys, missing)
        device = next(value.device for value in inputs.values() if isinstance(value, torch.Tensor))
        joined = join([found[row] for row in range(rows.count)], rows, self._entry.border.dtype, device)
        return self._entry.run(original, inputs, joined)

    def _compute(
        self, forward: Any, inputs: dict[str, Any], rows: Rows, keys: list[bytes], missing: list[int]
    ) -> dict[int, torch.Tensor]:
        """The states of rows that the store lacks; those that fit are stored."""
        if not missing:
            return {}
        assert self._entry is not None
        self._need_weights()
        computed = self._entry.compute(forward, select(inputs, missing, rows.count)).cpu()
        self.use.computed += len(missing)
        found, entries = {}, []
        for row, states in zip(missing, computed, strict=True):
            states = states[rows.spans[row]]
            # Rounded also where it is not read back: whether a row was in the cache must not show in the loss.
            rounded = states.to(self.store.dtype)
            fits = bool(torch.isfinite(rounded).all())  # or it is out of the type's range, and computed each time
            found[row] = rounded if fits else states
            if fits:
                entries.append((keys[row], rounded))
        self.use.stored += self.store.put(entries)
        if self.store.full:
            self._warn_once(
                "%s. %d rows are stored; the others are computed in each pass.", self.store.full, len(self.store)
            )
        return found

    def _prefix_trains(self, inputs: Mapping[str, Any]) -> bool:
        """Whether gradients have to go through the frozen layers, which states from a disk do not pass on."""
        if not torch.is_grad_enabled():
            return False
        trains = any(weight.requires_grad for weight in self._weights)
        if trains:
            self._warn_once("what was frozen trains now, so the frozen layers run in each pass.")
        return trains or any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs.values())

    def _need_weights(self) -> None:
        if self._offload is not None and self._offload.blocks_compute:
            logger.warning("Prefix cache: a row is not stored, so the weights of the frozen layers come back.")
            self._offload.restore()
            self._opened_with = self._versions()

    def _warn_once(self, message: str, *values: Any) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning("Prefix cache: " + message, *values)


def _kinds(model: nn.Module) -> list[tuple[Any, ...]]:
    """What a cache is prepared for: a model's parameters, their types and places, and which of them train."""
    return [(name, each.requires_grad, each.dtype, each.device) for name, each in model.named_parameters()]


def _asks_for_more(inputs: Mapping[str, Any]) -> bool:
    """Whether a call needs what frozen layers would say or remember: hidden states, attentions, keys and values."""
    wanted = ("output_hidden_states", "output_attentions", "use_cache")
    given = any(inputs.get(name) is not None for name in ("past_key_values", "encoder_outputs"))
    return given or any(bool(inputs.get(name)) for name in wanted)

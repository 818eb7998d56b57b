"""Which short cuts are right for a model: each is tried on the same rows as the long way, before it is used.

    long way        every adapter's rows by themselves, without padding
    padding         texts of different lengths in one batch
    mixing          rows of several adapters in one batch
    border          layers that no adapter of the batch changes run once per text
    narrowing       the last layer runs for the first token alone, where the head reads no other

What gives other answers is left out from then on, and the log says so.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spafit_hf.architecture import Architecture
from spafit_hf.predictor.patch import LoadedAdapter, outputs_of
from spafit_hf.predictor.rows import NotByRow, RowForward, Span
from spafit_hf.predictor.text import Encoded, grouped, pad
from spafit_hf.shortcuts.first_token import FirstToken, NotFirstToken, probe
from spafit_hf.shortcuts.probe import difference, tolerance

logger = logging.getLogger(__name__)

Row = tuple[Encoded, LoadedAdapter]

PROBE_TEXTS = ("A short text.", "Another text, which goes on for a little longer than the first one did.")


class Serving:
    """One plain model with its head's modules, and what was found out about it. Not for two threads at a time."""

    def __init__(self, model: PreTrainedModel, architecture: Architecture, heads: dict[str, nn.Module]) -> None:
        self.model = model
        self.pads = True
        self.mixes = True
        self.narrowed: FirstToken | None = None
        self.borders: dict[int, bool] = {}
        self._forward = RowForward(model, architecture)
        # Encoder-decoder models find a text by its last end token, and ask for as many of them in every row.
        ends = getattr(model.config, "eos_token_id", None) if len(architecture.stacks) > 1 else None
        self._end = ends if isinstance(ends, int) else None
        self._probes = [_probe_adapter(heads, seed, architecture.num_layers) for seed in (0, 1)]
        self._probed = False

    def logits(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """What each row's adapter says to its text: (outputs,) each, on the CPU, in the rows' order."""
        keys = [
            (
                self.mixes or id(adapter),
                self._end is not None and text.ids.count(self._end),
                self.pads or len(text.ids),
            )
            for text, adapter in rows
        ]
        found: dict[int, torch.Tensor] = {}
        for group in grouped(keys):
            together = [rows[index] for index in group]
            lowest = min(adapter.border for _, adapter in together)
            again = len({text.key for text, _ in together}) < len(together)
            border = lowest if again and self.borders.get(lowest) else 0
            try:
                found |= zip(group, self._batch(together, border=border, narrowed=self.narrowed), strict=True)
            except NotByRow as error:
                if len({id(adapter) for _, adapter in together}) == 1:
                    raise
                self._leave("mixes", f"adapters in one batch ({error})")
                found |= zip(group, self.logits(together), strict=True)
        return [found[index] for index in range(len(rows))]

    def admit(self, adapter: LoadedAdapter, texts: Sequence[Encoded]) -> torch.Tensor:
        """Try an adapter on two texts of different lengths; its logits for the first, computed the long way."""
        if not self._probed:
            self._probe(texts)
            self._probed = True
        border = adapter.border
        if border and border not in self.borders:
            self.borders[border] = self._border_is_right(border, texts)
        # A module that sees other rows than the batch's is found here, before a request meets it.
        self.logits([(texts[0], adapter), (texts[0], self._probes[0])])
        return self._batch([(texts[0], adapter)])[0]

    def _batch(
        self, rows: Sequence[Row], *, border: int = 0, narrowed: FirstToken | None = None
    ) -> list[torch.Tensor]:
        """One pass over rows in any order; the long way without `border` and `narrowed`."""
        groups = grouped([id(adapter) for _, adapter in rows])
        order = [index for group in groups for index in group]
        starts = itertools.accumulate(map(len, groups), initial=0)
        spans = [Span(rows[own[0]][1], start, start + len(own)) for own, start in zip(groups, starts, strict=False)]
        texts = list({rows[index][0].key: rows[index][0] for index in order}.values())
        place_of = {text.key: place for place, text in enumerate(texts)}
        text_of_row = torch.tensor([place_of[rows[index][0].key] for index in order], device=self.model.device)
        result = self._forward.logits(self._padded(texts), text_of_row, spans, border=border, narrowed=narrowed).cpu()
        back = {index: result[place, : rows[index][1].outputs] for place, index in enumerate(order)}
        return [back[index] for index in range(len(rows))]

    def _padded(self, texts: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        batch = pad(texts, self.model.config.get_text_config().pad_token_id or 0, self.model.device)
        return {name: tensor for name, tensor in batch.items() if name in self._forward.inputs}

    # ---- finding out ----

    def _probe(self, texts: Sequence[Encoded]) -> None:
        one, other = self._probes
        rows = [(texts[0], one), (texts[1], one), (texts[1], other), (texts[0], other)]
        # Models that stride over their tokens, such as CANINE, see padding beside some lengths and not beside others.
        cut = [(_cut(texts[1], count), one) for count in range(1, min(5, len(texts[1].ids) - 2))]
        alone, alone_cut = ([self._batch([row])[0] for row in some] for some in (rows, cut))
        for name, what, expected, batches in (
            ("mixes", "heads in one batch", [alone[0], alone[3]], [[rows[0], rows[3]]]),
            ("pads", "texts of different lengths in one batch", alone + alone_cut, [rows[:2], rows[2:] + cut]),
        ):
            reason = self._unlike(expected, batches)
            if reason:
                self._leave(name, f"{what} ({reason})")
        try:
            first = probe(self.model, self._padded(texts if self.pads else texts[:1]), gradients=False)
        except NotFirstToken as error:
            logger.info("The last layer runs for all tokens: %s", error)
        else:
            if not self._unlike(alone, [[row] for row in rows], narrowed=first):
                self.narrowed = first

    def _border_is_right(self, border: int, texts: Sequence[Encoded]) -> bool:
        if not self.mixes:
            return False
        chosen = texts if self.pads else texts[:1]
        rows = [(text, adapter) for text in chosen for adapter in self._probes]
        reason = self._unlike(self._batch(rows), [rows], border=border)
        if reason:
            logger.warning(
                "%s does not allow for running its first %d layers once per text (%s); they run once per row.",
                type(self.model).__name__, border, reason,
            )  # fmt: skip
        return not reason

    def _leave(self, name: str, what: str) -> None:
        setattr(self, name, False)
        logger.warning("%s does not allow for %s; they are computed one by one.", type(self.model).__name__, what)

    def _unlike(self, expected: Sequence[torch.Tensor], batches: list[list[Row]], **way: Any) -> str:
        """Why batches that go a way do not give what is expected; "" where they do."""
        try:
            found = [row for rows in batches for row in self._batch(rows, **way)]
        except NotByRow as error:
            return str(error)
        # Beside the largest logit: a single one may be close to zero. A tenth in full precision: there rounding is
        # below 1e-6 of it, and ConvBERT's padding shows from 3e-5 on.
        largest = max(float(one.abs().max()) for one in expected)
        dtype = self.model.dtype
        limit = tolerance(dtype, self.model.device) / (10 if torch.finfo(dtype).bits >= 32 else 1)
        long, short = ({str(row): values for row, values in enumerate(each)} for each in (expected, found))
        return "" if difference(long, short, largest).relative <= limit else "other answers"


def _cut(text: Encoded, count: int) -> Encoded:
    """A text without so many tokens before its last, which may mark its end."""
    types = None if text.types is None else (*text.types[: -1 - count], text.types[-1])
    return replace(text, ids=(*text.ids[: -1 - count], text.ids[-1]), types=types)


def _probe_adapter(heads: dict[str, nn.Module], seed: int, depth: int) -> LoadedAdapter:
    """An adapter of a random head alone. Random, because a base's own head may be zero and see nothing."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name, head in heads.items():
        modules[name] = copy.deepcopy(head).eval()
        for parameter in modules[name].parameters():
            values = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
            parameter.data = values.to(parameter)
    return LoadedAdapter({}, modules, outputs_of(modules), depth)

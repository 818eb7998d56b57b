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
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from spafit_hf.architecture import Architecture
from spafit_hf.predictor.patch import LoadedAdapter
from spafit_hf.predictor.rows import NotByRow, RowForward, Span
from spafit_hf.predictor.text import Encoded, pad
from spafit_hf.shortcuts.first_token import NotFirstToken
from spafit_hf.shortcuts.probe import difference, tolerance

logger = logging.getLogger(__name__)

Row = tuple[Encoded, LoadedAdapter]

PROBE_TEXTS = ("A short text.", "Another text, which goes on for a little longer than the first one did.")


class Serving:
    """One model, and what was found out about it. Not for two threads at a time.

    Args:
        model: for sequence classification, plain, in eval mode.
        architecture: of the model.
        heads: name -> module of the model's head.
    """

    def __init__(self, model: PreTrainedModel, architecture: Architecture, heads: dict[str, nn.Module]) -> None:
        self.model = model
        self.pads = True
        self.mixes = True
        self.narrows = False
        self.borders: dict[int, bool] = {}
        self._forward = RowForward(model, architecture)
        # Encoder-decoder models find a text by its last end token, and ask for as many of them in every row.
        ends = getattr(model.config, "eos_token_id", None) if len(architecture.stacks) > 1 else None
        self._end = ends if isinstance(ends, int) else None
        self._probes = [_probe_adapter(heads, seed, architecture.num_layers) for seed in (0, 1)]
        self._probed = False
        self._dtype = next(each.dtype for each in model.parameters() if each.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return next(self.model.parameters()).device

    def logits(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """What each row's adapter says to its text: (outputs,) each, on the CPU, in the rows' order."""
        groups: list[list[int]] = [list(range(len(rows)))]
        if not self.mixes:
            groups = _grouped(groups, [id(adapter) for _, adapter in rows])
        if self._end is not None:
            groups = _grouped(groups, [text.ids.count(self._end) for text, _ in rows])
        if not self.pads:
            groups = _grouped(groups, [len(text.ids) for text, _ in rows])
        found: dict[int, torch.Tensor] = {}
        for group in groups:
            try:
                found |= zip(group, self._batch([rows[index] for index in group]), strict=True)
            except NotByRow as error:
                if len({id(rows[index][1]) for index in group}) == 1:
                    raise
                self._leave("mixes", f"adapters in one batch ({error})")
                found |= zip(group, self.logits([rows[index] for index in group]), strict=True)
        return [found[index] for index in range(len(rows))]

    def admit(self, adapter: LoadedAdapter, texts: Sequence[Encoded]) -> torch.Tensor:
        """Try an adapter on this model before it serves.

        Args:
            adapter: its tensors.
            texts: two texts of different lengths.

        Returns:
            Its logits for the first text, computed the long way.
        """
        if not self._probed:
            self._probe(texts)
            self._probed = True
        border = adapter.border
        if border and border not in self.borders:
            self.borders[border] = self._border_is_right(border, texts)
        # A module that sees other rows than the batch's is found here, before a request meets it.
        self.logits([(texts[0], adapter), (texts[0], self._probes[0])])
        return self._batch([(texts[0], adapter)], shortcuts=False)[0]

    def _batch(
        self,
        rows: Sequence[Row],
        *,
        shortcuts: bool = True,
        border: int | None = None,
        narrow: bool | None = None,
    ) -> list[torch.Tensor]:
        """One pass over rows in any order. `border` and `narrow` override what was found out."""
        order = sorted(range(len(rows)), key=lambda index: id(rows[index][1]))
        spans: list[Span] = []
        for place, index in enumerate(order):
            adapter = rows[index][1]
            if spans and spans[-1].adapter is adapter:
                spans[-1] = Span(adapter, spans[-1].start, place + 1)
            else:
                spans.append(Span(adapter, place, place + 1))
        texts = list({rows[index][0].key: rows[index][0] for index in order}.values())
        place_of = {text.key: place for place, text in enumerate(texts)}
        if border is None:
            lowest = min(span.adapter.border for span in spans)
            wanted = shortcuts and len(texts) < len(rows) and self.borders.get(lowest, False)
            border = lowest if wanted else 0
        result = self._forward.logits(
            self._padded(texts),
            torch.tensor([place_of[rows[index][0].key] for index in order], device=self.device),
            spans,
            border=border,
            narrow=(shortcuts and self.narrows) if narrow is None else narrow,
        ).cpu()
        back = {index: result[place, : rows[index][1].outputs] for place, index in enumerate(order)}
        return [back[index] for index in range(len(rows))]

    def _padded(self, texts: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        return pad(texts, self.model.config.get_text_config().pad_token_id or 0, self.device)

    # ---- finding out ----

    def _probe(self, texts: Sequence[Encoded]) -> None:
        one, other = self._probes
        rows = [(texts[0], one), (texts[1], one), (texts[1], other), (texts[0], other)]
        # Models that stride over their tokens, such as CANINE, see padding beside some lengths and not beside others.
        cut = [(_cut(texts[1], count), one) for count in range(1, min(5, len(texts[1].ids) - 2))]
        alone, alone_cut = ([self._batch([row], shortcuts=False)[0] for row in some] for some in (rows, cut))
        self._check("mixes", "heads in one batch", [alone[0], alone[3]], [[rows[0], rows[3]]])
        self._check("pads", "texts of different lengths in one batch", alone + alone_cut, [rows[:2], rows[2:] + cut])
        try:
            self._forward.find_first_token(self._padded(texts if self.pads else texts[:1]))
        except NotFirstToken as error:
            logger.info("The last layer runs for all tokens: %s", error)
        else:
            narrowed = [self._batch([row], shortcuts=False, narrow=True)[0] for row in rows]
            self.narrows = self._agree(alone, narrowed)

    def _border_is_right(self, border: int, texts: Sequence[Encoded]) -> bool:
        if not self.mixes:
            return False
        one, other = self._probes
        chosen = texts if self.pads else texts[:1]
        rows = [(text, adapter) for text in chosen for adapter in (one, other)]
        long = self._batch(rows, shortcuts=False)
        try:
            right = self._agree(long, self._batch(rows, shortcuts=False, border=border))
            reason = "other answers"
        except NotByRow as error:
            right, reason = False, str(error)
        if not right:
            logger.warning(
                "%s does not allow for running its first %d layers once per text (%s); they run once per row.",
                type(self.model).__name__, border, reason,
            )  # fmt: skip
        return right

    def _check(self, name: str, what: str, alone: list[torch.Tensor], batches: list[list[Row]]) -> None:
        """Leave a short cut out where batches that take it give other answers than the rows alone."""
        try:
            if not self._agree(alone, [row for rows in batches for row in self._batch(rows, shortcuts=False)]):
                self._leave(name, f"{what} (other answers)")
        except NotByRow as error:
            self._leave(name, f"{what} ({error})")

    def _leave(self, name: str, what: str) -> None:
        setattr(self, name, False)
        logger.warning(
            "%s does not allow for %s; they are computed one after the other.", type(self.model).__name__, what
        )

    def _agree(self, expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> bool:
        """Whether all differences are small beside the largest logit: a single one may be close to zero."""
        largest = max(float(one.abs().max()) for one in expected)
        # A tenth in full precision: there rounding is below 1e-6 of it, and ConvBERT's padding shows from 3e-5 on.
        limit = tolerance(self._dtype, self.device) / (10 if torch.finfo(self._dtype).bits >= 32 else 1)
        long, short = ({str(row): values for row, values in enumerate(way)} for way in (expected, found))
        return difference(long, short, largest).relative <= limit


def _grouped(groups: list[list[int]], keys: list[int]) -> list[list[int]]:
    return [
        [index for index in group if keys[index] == key]
        for group in groups
        for key in dict.fromkeys(keys[index] for index in group)
    ]


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
    outputs = [p.shape[0] for module in modules.values() for p in module.parameters() if p.dim() == 2][-1]
    return LoadedAdapter({}, modules, outputs, depth, 0)

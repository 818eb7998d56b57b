"""A batch as rows without padding, and back.

attention_mask  1 1 1 0 0      span 0..3
                1 1 1 1 1      span 0..5
                0 0 1 1 1      span 2..5 (padded on the left)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

#: Inputs with a value per token, in which padding says nothing. What other inputs hold is part of a row as a whole.
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")


@dataclass(frozen=True)
class Rows:
    """The tensors of a batch that states can depend on, and where each row's tokens lie."""

    tensors: dict[str, torch.Tensor]
    """On the CPU."""
    count: int
    width: int
    """Tokens per row with padding; 0 where rows have no mask and are kept whole."""
    spans: tuple[slice, ...]
    """Where each row's tokens lie: from the first one that is no padding to the last."""

    @property
    def padded(self) -> bool:
        """Whether a mask shows padding in a row."""
        return any(span.stop - span.start < self.width for span in self.spans if self.width)

    def of(self, name: str, row: int) -> torch.Tensor:
        """A row's part of an input, without its padding."""
        value = self.tensors[name]
        if value.dim() == 0 or value.shape[0] != self.count:
            return value  # shared by all rows
        return value[row, self.spans[row]] if name in PER_TOKEN and self.width else value[row]


def split(inputs: Mapping[str, Any], main_name: str, ignored: Sequence[str]) -> Rows | None:
    """The rows of a batch; None where it has none: no main input, a mask of more than two dimensions, or inputs that
    are no tensors (the name of a task, lists of images) and may say what the states are.

    Args:
        inputs: keyword arguments of a forward pass.
        main_name: name of the model's main input, such as "input_ids".
        ignored: names that no state depends on: labels.
    """
    read = {name: value for name, value in sorted(inputs.items()) if name not in ignored and value is not None}
    if any(not isinstance(value, (torch.Tensor, bool)) for value in read.values()):
        return None
    tensors = {
        name: value.detach().cpu()
        for name, value in read.items()
        if isinstance(value, torch.Tensor) and not name.startswith("decoder_")
    }
    main = tensors.get(main_name, tensors.get("inputs_embeds"))
    mask = tensors.get("attention_mask")
    if main is None or main.dim() < 2 or (mask is not None and mask.shape != main.shape[:2]):
        return None
    count = main.shape[0]
    if mask is None:
        return Rows(tensors, count, 0, (slice(None),) * count)
    spans = []
    for row in mask != 0:
        tokens = row.nonzero()
        # A row of nothing but padding stays whole.
        spans.append(slice(int(tokens[0]), int(tokens[-1]) + 1) if len(tokens) else slice(0, mask.shape[1]))
    return Rows(tensors, count, mask.shape[1], tuple(spans))


def select(inputs: Mapping[str, Any], rows: Sequence[int], count: int) -> dict[str, Any]:
    """The batch of some rows, padded as they were."""
    return {
        name: value[list(rows)]
        if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == count
        else value
        for name, value in inputs.items()
    }


def without_padding(inputs: Mapping[str, Any], rows: Rows, row: int) -> dict[str, Any]:
    """The batch of one row, without padding where it can be cut off."""
    single = select(inputs, [row], rows.count)
    for name in PER_TOKEN:
        value = single.get(name)
        if isinstance(value, torch.Tensor) and value.shape[:2] == (1, rows.width):
            single[name] = value[:, rows.spans[row]]
    return single


def with_padding(inputs: Mapping[str, Any], rows: Rows, side: str, pad: int) -> dict[str, Any]:
    """The batch with a quarter of its tokens out of the middle and as much padding at one side, "left" or "right".

    Its width stays, for a model may have no more positions, and so do special tokens at both ends. Its rows are of two
    tokens or more, without padding.
    """
    cut = max(1, rows.width // 4)
    start = (rows.width - cut) // 2
    padded = dict(inputs)
    for name, value in inputs.items():
        if not isinstance(value, torch.Tensor) or value.shape[:2] != (rows.count, rows.width):
            continue
        if name in PER_TOKEN or (name == "labels" and value.dtype == torch.long):  # a label per token
            kept = [value[:, :start], value[:, start + cut :]]
            filling = torch.full_like(value[:, :cut], {"input_ids": pad, "labels": -100}.get(name, 0))
            padded[name] = torch.cat([filling, *kept] if side == "left" else [*kept, filling], dim=1)
    return padded


def join(states: Sequence[torch.Tensor], rows: Rows, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Padded states of shape (rows, tokens, width) in `dtype`; zeros where there is padding."""
    tokens = rows.width or states[0].shape[0]
    joined = torch.zeros(rows.count, tokens, states[0].shape[1], dtype=dtype)
    for row, (state, span) in enumerate(zip(states, rows.spans, strict=True)):
        joined[row, span] = state.to(joined.device)
    return joined.to(device, non_blocking=True)

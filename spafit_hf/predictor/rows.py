"""The forward pass of rows with different adapters: one model, each row with its own patches and head.

    rows ordered by adapter        a module of the base              its output, slice by slice
    | text 0, text 3 | adapter 1   -----------------------> y        y[0:2] patched by adapter 1
    | text 0         | adapter 2    one matmul for all rows          y[2:3] patched by adapter 2
    | text 1         | adapter 3                                     y[3:4] patched by adapter 3

Neighbors with as many rows and patches of one shape, as adapters 2 and 3 here, are patched by one batched matmul.

With a border, the layers before it run once per text and not once per row, in two passes over the same model:

    texts -> embeddings -> [layers before the border] ------> states          layers after it pass their input on
    rows  -> embeddings -> [passed over, last one returns the rows' states] -> layers after the border -> heads

The second pass gets whole rows as inputs, so what a model derives from them (masks, positions, the last token of a
decoder's text) is right without this module knowing of it. Hooks and replaced `forward`s are there for the length of
a pass only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from spafit_hf.architecture import Architecture, biases_with
from spafit_hf.architecture.experts import expert_biases
from spafit_hf.predictor.patch import LoadedAdapter, Patch, PatchStack
from spafit_hf.shortcuts.first_token import FirstToken
from spafit_hf.shortcuts.stand_in import standing_in
from spafit_hf.tuner.mixed import FLATTENING

Forward = Callable[..., Any]


class NotByRow(Exception):
    """A module's rows are not the batch's, or a layer hands on more than its states: this way cannot be gone."""


@dataclass(frozen=True, eq=False)
class Span:
    """Neighboring rows of one adapter."""

    adapter: LoadedAdapter
    start: int
    stop: int


class RowForward:
    """Forward passes of one plain model for sequence classification in eval mode. Not for two threads at a time."""

    def __init__(self, model: PreTrainedModel, architecture: Architecture) -> None:
        self.model = model
        layers = architecture.stacks[0].layers
        self._layers = [model.get_submodule(layer.path) for layer in layers]
        self._entrances = [
            [model.get_submodule(name) for name in layer.names(("query", "key", "value"))] for layer in layers
        ]
        self._flattens = architecture.model_type in FLATTENING
        self.inputs = frozenset(inspect.signature(model.forward).parameters)
        """Names that the model's forward takes."""
        self._extra: dict[str, Any] = {"use_cache": False} if "use_cache" in self.inputs else {}

    @torch.inference_mode()
    def logits(
        self,
        texts: Mapping[str, torch.Tensor],
        text_of_row: torch.Tensor,
        spans: Sequence[Span],
        *,
        border: int = 0,
        narrowed: FirstToken | None = None,
    ) -> torch.Tensor:
        """One pass: (rows, outputs of the largest head); a row's own outputs come first, the rest is filled up.

        Args:
            texts: those inputs of the texts that the model takes, (texts, tokens) each.
            text_of_row: which text a row is of, (rows,) int64 on the same device.
            spans: adapters of the rows, in order, covering all rows.
            border: layers that run once per text; no adapter of the rows may change one of them.
            narrowed: the last layer, to compute it for the first token alone.

        Raises:
            NotByRow: if the model does not allow several adapters at once, or the border.
        """
        self.model.eval()  # it may have been trained since
        rows = {name: tensor.index_select(0, text_of_row) for name, tensor in texts.items()}
        with ExitStack() as stack:
            if border:
                states, returns = self._states(texts, border)
                stack.enter_context(self._entered(states, returns, text_of_row, border))
            stack.enter_context(self._patched(spans, len(text_of_row)))
            if narrowed is not None:
                # After the patches: hooks run in the order in which they came, and the query's output is patched
                # before it is given to every token.
                stack.enter_context(narrowed.attached())
            return self.model(**rows, **self._extra).logits

    # ---- each row its adapter ----

    @contextmanager
    def _patched(self, spans: Sequence[Span], rows: int) -> Iterator[None]:
        read: dict[str, torch.Tensor] = {}  # inputs of modules that parallel bottlenecks further on read
        with ExitStack() as stack:
            for name in {patch.reads for span in spans for patch in span.adapter.patches.values() if patch.reads}:
                keep = partial(_keep_input, read, name)
                stack.enter_context(self.model.get_submodule(name).register_forward_hook(keep))
            for name in dict.fromkeys(name for span in spans for name in span.adapter.patches):
                parts = [(span, span.adapter.patches[name]) for span in spans if name in span.adapter.patches]
                module = self.model.get_submodule(name)
                if expert_biases(module):
                    if len(spans) > 1:
                        raise NotByRow(f"{name} sees tokens and no rows")
                    stack.enter_context(_moved(module, parts[0][1]))
                    continue
                hook = _patches(name, parts, rows if len(spans) > 1 else None, self._flattens, read)
                stack.enter_context(module.register_forward_hook(hook))
            for name in dict.fromkeys(name for span in spans for name in span.adapter.head):
                hook = _heads(name, spans, rows)
                stack.enter_context(self.model.get_submodule(name).register_forward_hook(hook))
            yield

    # ---- once per text ----

    def _states(self, texts: Mapping[str, torch.Tensor], border: int) -> tuple[torch.Tensor, int]:
        """The states that the last layer before the border returns, and in a tuple of how many values (0: in none)."""
        kept: list[torch.Tensor] = []
        returns: list[int] = []

        def keep(index: int, forward: Forward, *args: Any, **kwargs: Any) -> Any:
            if index >= border:
                return _like(_given(args, kwargs), returns[0])
            output = forward(*args, **kwargs)
            several = isinstance(output, (tuple, list))  # OpenAI-GPT's layers return a list
            if several and any(value is not None for value in output[1:]):
                raise NotByRow(f"layer {index} returns more than its states")
            returns.append(len(output) if several else 0)
            if index == border - 1:
                kept.append(output[0] if several else output)
            return output

        with standing_in(self._layers, keep):
            self.model(**texts, **self._extra)
        if len(kept) != 1:
            raise NotByRow(f"layer {border - 1} ran {len(kept)} times")
        return kept[0], returns[0]

    @contextmanager
    def _entered(self, states: torch.Tensor, returns: int, text_of_row: torch.Tensor, border: int) -> Iterator[None]:
        """Within it a pass starts at the border, from the texts' states."""
        text_of_row = text_of_row.to(states.device)
        entering = states.index_select(0, text_of_row)

        def enter(index: int, forward: Forward, *args: Any, **kwargs: Any) -> Any:
            if index >= border:
                return forward(*args, **kwargs)
            return _like(entering if index == border - 1 else _given(args, kwargs), returns)

        def once_per_text(_index: int, forward: Forward, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            # Rows of a text differ from here on, but what a projection of the base makes of equal inputs is equal.
            if x is not entering:
                return forward(x, *args, **kwargs)
            return forward(states, *args, **kwargs).index_select(0, text_of_row)

        entrances = self._entrances[border] if border < len(self._layers) else []
        with standing_in(self._layers, enter), standing_in(entrances, once_per_text):
            yield


@contextmanager
def _moved(experts: nn.Module, patch: Patch) -> Iterator[None]:
    """Within it experts have the biases of an adapter."""
    assert patch.shift is not None  # they take nothing else
    moved, own = biases_with(experts, patch.shift), vars(experts)
    own.update(moved)  # what stands there is found before the parameter of that name, which stays as it is
    try:
        yield
    finally:
        for key in moved:
            del own[key]


def _keep_input(read: dict[str, torch.Tensor], name: str, _module: nn.Module, args: tuple[Any, ...], _: Any) -> None:
    read[name] = args[0]


def _patches(
    name: str, parts: Sequence[tuple[Span, Patch]], rows: int | None, flattens: bool, read: dict[str, torch.Tensor]
) -> Forward:
    """A hook that patches each adapter's rows; with `rows` None the only one's, whatever they stand for."""
    runs = [(run[0][0].start, run[-1][0].stop, PatchStack.of([patch for _, patch in run])) for run in _runs(parts)]
    reads = next((patch.reads for _, patch in parts if patch.reads), "")

    def hook(_module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x = args[0]
        other = read.pop(reads) if reads else x
        if rows is None:
            runs[0][2].apply(x, output, other)
            return output
        each, rest = divmod(x.shape[0], rows)
        if rest or (each != 1 and not flattens) or {output.shape[0], other.shape[0]} != {x.shape[0]}:
            raise NotByRow(f"{name} sees {x.shape[0]} rows of a batch of {rows}")
        for start, stop, stack in runs:
            own = slice(start * each, stop * each)
            stack.apply(x[own], output[own], other[own])
        return output

    return hook


def _runs(parts: Sequence[tuple[Span, Patch]]) -> list[list[tuple[Span, Patch]]]:
    """Neighbors whose patches can be stacked, together."""
    runs: list[list[tuple[Span, Patch]]] = []
    for span, patch in parts:
        if runs:
            last, other = runs[-1][-1]
            as_many = span.stop - span.start == last.stop - last.start
            if last.stop == span.start and as_many and patch.shape == other.shape:
                runs[-1].append((span, patch))
                continue
        runs.append([(span, patch)])
    return runs


def _heads(name: str, spans: Sequence[Span], rows: int) -> Forward:
    """A hook that puts what each adapter's own head says in the place of what the base's says."""

    def own(span: Span, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return span.adapter.head[name](x) if name in span.adapter.head else output

    def hook(_module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x = args[0]
        if len(spans) == 1:
            return own(spans[0], x, output)
        if x.shape[0] != rows or output.shape[0] != rows:
            raise NotByRow(f"{name} sees {x.shape[0]} rows of a batch of {rows}")
        pieces = [own(span, x[span.start : span.stop], output[span.start : span.stop]) for span in spans]
        width = max(piece.shape[-1] for piece in pieces)
        return torch.cat([F.pad(piece, (0, width - piece.shape[-1])) for piece in pieces])

    return hook


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    given = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(given, torch.Tensor):
        raise NotByRow("a layer is called without its states")
    return given


def _like(states: torch.Tensor, returns: int) -> Any:
    return (states, *[None] * (returns - 1)) if returns else states

"""What batches draw at random, masks of a language model or crops of images, and the one that is fetched ahead.

    fetch k + 1 | step k | checkpoint | fetch k + 2 | step k + 1 | ...
    ^ noted here         ^ the random state that Trainer saves

The loader is one batch ahead of the steps. Trainer puts its state back after a resumed run has fetched two batches, so
these, and all that follows, would draw other numbers than in the run that was not stopped. Here the state before the
batch that waits is saved too, and put back before it is fetched again.

Batches of worker processes (`dataloader_num_workers`) draw there, out of reach.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from torch.utils.data import IterableDataset

FILE = "rng_state_ahead_{}.pth"
"""In a checkpoint, by the number of the process; there only where batches draw."""

State = tuple[Any, Any, torch.Tensor]
"""Of the generators of Python, NumPy and torch on the CPU."""


def random_state() -> State:
    """The state of now."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_random_state(state: State) -> None:
    """Put a state back."""
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def _equal(one: State, other: State) -> bool:
    same = torch.equal(one[2], other[2]) and one[0] == other[0]
    return same and all(np.array_equal(mine, theirs) for mine, theirs in zip(one[1], other[1], strict=True))


def _save(state: State, file: Path) -> None:
    """Write a state in types that `torch.load` takes for safe."""
    name, keys, *others = state[1]
    torch.save({"python": state[0], "numpy": [name, keys.tolist(), *others], "torch": state[2]}, file)


def _load(file: Path) -> State:
    found = torch.load(file, weights_only=True)
    name, keys, *others = found["numpy"]
    return found["python"], (name, np.array(keys, dtype=np.uint32), *others), found["torch"]


class FetchedAhead:
    """The random states around the batches of a step."""

    def __init__(self) -> None:
        self._around: list[State] = []
        """At the start of the step's fetches, and after each batch."""
        self._next: list[State] = []
        """Of a run that resumes: what is put back at its first two notes."""
        self._begins = False

    def watch(self, loader: Any) -> None:
        """Note a state after each batch of a loader, in the epoch that begins."""
        self._begins = True
        unreached = not isinstance(loader, DataLoaderShard) or loader.num_workers
        if unreached or isinstance(loader.dataset, IterableDataset) or isinstance(loader.collate_fn, _Noting):
            return
        loader.base_dataloader.collate_fn = _Noting(loader.collate_fn, self.note)

    def begin(self) -> None:
        """Trainer is about to fetch the batches of a step."""
        self._around = []
        self.note()
        if self._begins:  # from here to its first batch an iterator draws a seed for itself
            self._around, self._begins = [], False

    def note(self) -> None:
        """Keep the state of now, or put back that of the run that was stopped."""
        if self._next:
            set_random_state(self._next.pop(0))
        self._around.append(random_state())

    def save(self, folder: str, process: int) -> None:
        """Write the state before the batch that waits, the last fetched, into a checkpoint, if it drew anything."""
        if len(self._around) > 1 and not _equal(*self._around[-2:]):
            _save(self._around[-2], Path(folder) / FILE.format(process))

    @contextmanager
    def resuming(self, folder: str, process: int, loader: Any, load: Callable[[], None]) -> Iterator[bool]:
        """An epoch that goes on in its midst: whether the random state of the checkpoint, which `load` sets, is seen
        to. Where no batch drew it stays Trainer's to load, after a sampler without a seed drew the epoch's order."""
        file = Path(folder) / FILE.format(process)
        if not (file.is_file() and isinstance(getattr(loader, "collate_fn", None), _Noting)):
            yield False
            return
        load()
        self._next = [_load(file), random_state()]
        loader.base_dataloader.generator = torch.Generator()  # or an iterator would draw a seed from the state
        try:
            yield True
        finally:
            self._next, loader.base_dataloader.generator = [], None


class _Noting:
    """A collator that says when it is done."""

    def __init__(self, collate: Callable[[Any], Any], note: Callable[[], None]) -> None:
        self.collate, self.note = collate, note

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        self.note()
        return batch

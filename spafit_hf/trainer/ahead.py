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
    """The random state around each batch of a training."""

    def __init__(self) -> None:
        self._before: State | None = None
        self._around: list[State] | None = None
        self._first: State | None = None
        self._then: State | None = None
        self._begins = False

    def watch(self, loader: Any) -> None:
        """Look at the batches of a loader in the epoch that begins."""
        self._begins = True
        if (
            not isinstance(loader, DataLoaderShard)
            or loader.num_workers
            or isinstance(loader.dataset, IterableDataset)
        ):
            return
        if not isinstance(loader.collate_fn, _Noting):
            loader.base_dataloader.collate_fn = _Noting(loader.collate_fn, self)

    @contextmanager
    def window(self) -> Iterator[None]:
        """Within it Trainer fetches the batches of a step: the state at its start and at the end of each is noted."""
        if self._first is not None:
            set_random_state(self._first)
            self._first = None
        self._around = [random_state()]
        try:
            yield
        finally:
            around, self._around = self._around, None
            if self._begins:  # from its start to the first batch the iterator drew a seed for itself
                around, self._begins = around[1:], False
            drew = len(around) > 1 and not _equal(*around[-2:])
            self._before = around[-2] if drew else None

    def fetched(self) -> None:
        """A batch is there."""
        if self._around is None:  # of an evaluation
            return
        if self._then is not None:
            set_random_state(self._then)
            self._then = None
        self._around.append(random_state())

    def save(self, folder: str, process: int) -> None:
        """Write the state before the batch that waits into a checkpoint, if that batch drew anything."""
        if self._before is not None:
            _save(self._before, Path(folder) / FILE.format(process))

    @contextmanager
    def resuming(self, folder: str, process: int, loader: Any) -> Iterator[bool]:
        """An epoch that goes on in its midst, the random state being that of the checkpoint: whether it is seen to."""
        file = Path(folder) / FILE.format(process)
        if not (file.is_file() and isinstance(getattr(loader, "collate_fn", None), _Noting)):
            yield False
            return
        self._first, self._then = _load(file), random_state()
        loader.base_dataloader.generator = torch.Generator()  # or an iterator would draw a seed from the state
        try:
            yield True
        finally:
            self._first = self._then = loader.base_dataloader.generator = None


class _Noting:
    """A collator that says when it is done."""

    def __init__(self, collate: Callable[[Any], Any], ahead: FetchedAhead) -> None:
        self.collate, self.ahead = collate, ahead

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        self.ahead.fetched()
        return batch

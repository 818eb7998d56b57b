"""Examples of similar length in one batch, in an order that depends on the seed and the epoch alone.

    epoch k:     shuffle with seed + k  ->  runs of 50 batches  ->  each run sorted by length
    evaluation:  all sorted by length, longest first  ->  what comes out is put back into the order of the dataset

Transformers' sampler of the same idea draws from the global random state. A run resumed within an epoch then sees
another order than the run it continues, and the processes of a distributed run drift apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class LengthGroupedSampler(Sampler[int]):
    """Indices grouped by length.

    Args:
        lengths: length of each example, in tokens.
        batch_size: examples per optimizer step, over all processes: the same order on any number of them.
        seed: of the shuffling; epoch k uses seed + k.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, counted from zero."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class LengthSortedSampler(Sampler[int]):
    """Indices from the longest example (of `lengths`, in tokens) to the shortest: too little memory shows at once."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.order = np.argsort(-np.asarray(lengths), kind="stable")

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order.tolist())

    def restore(self, values: Any) -> Any:
        """What came out for the sorted examples, in the order of the dataset.

        Arrays with another number of rows (`preprocess_logits_for_metrics` may make them) stay as they are.
        """
        if isinstance(values, np.ndarray) and len(values) == len(self):
            restored = np.empty_like(values)
            restored[self.order] = values
            return restored
        if isinstance(values, Mapping):
            return type(values)({key: self.restore(value) for key, value in values.items()})  # type: ignore[call-arg]
        if isinstance(values, (tuple, list)):
            return type(values)(self.restore(value) for value in values)
        return values


def main_input(processor: Any) -> str:
    """The name of a model's main input, such as "input_ids", as its tokenizer or processor knows it."""
    return str((getattr(processor, "model_input_names", None) or ["input_ids"])[0])


def example_lengths(dataset: Any, processor: Any, length_column: str) -> list[int] | None:
    """The length of each example, or None where examples have none (pixels, free-form items, an empty dataset).

    That of the model's main input counts ("input_ids"), where a `datasets.Dataset` has no length column.
    """
    if not isinstance(dataset, Sized) or not len(dataset):
        return None
    input_name = main_input(processor)
    if isinstance(dataset, datasets.Dataset):
        if length_column in dataset.column_names:
            return [int(length) for length in dataset[length_column][:]]
        if dataset.format["type"] is None and input_name in dataset.column_names:
            return _arrow_lengths(dataset, input_name)
    if not _is_sequence(dataset[0], input_name):  # type: ignore[index]
        return None
    return [len(dataset[index][input_name]) for index in range(len(dataset))]  # type: ignore[index]


def _arrow_lengths(dataset: datasets.Dataset, name: str) -> list[int] | None:
    """Straight from Arrow: seconds instead of minutes on the large tasks, where each row would become Python lists."""
    lengths: list[int] = []
    for table in dataset.with_format("arrow", columns=[name]).iter(10_000):
        rows = table.column(name)
        if not pa.types.is_list(rows.type) or pa.types.is_nested(rows.type.value_type):
            return None
        lengths.extend(pc.list_value_length(rows).to_pylist())
    return lengths


def _is_sequence(item: Any, name: str) -> bool:
    """Whether `item[name]` is one sequence of tokens, not an image or a matrix of features."""
    if not isinstance(item, Mapping) or name not in item:
        return False
    value = item[name]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.ndim == 1
    return isinstance(value, (list, tuple)) and all(isinstance(token, int) for token in value)

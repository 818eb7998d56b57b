"""Holding validation rows out of a train split, so that no text is on both sides."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from spafit_hf.data.labels import LABEL
from spafit_hf.data.table import DataError

if TYPE_CHECKING:
    from datasets import Dataset


SEED = 42


def _keys(dataset: Dataset, columns: Sequence[str]) -> list[str]:
    """Of each row what makes it the same text as another: the same words, whatever their case and punctuation."""
    # [:] reads a column at once; iterating over it takes thirty times as long.
    rows = zip(*(dataset[column][:] for column in columns), strict=True)
    return ["\x1f".join(" ".join(re.findall(r"\w+", text.lower())) or text.strip() for text in row) for row in rows]


def shared_texts(splits: Mapping[str, Dataset], columns: Sequence[str]) -> dict[str, int]:
    """For each split but train, how many of its rows have the text of a train row (same words)."""
    train = set(_keys(splits["train"], columns))
    return {
        name: sum(key in train for key in _keys(split, columns)) for name, split in splits.items() if name != "train"
    }


def turned_around(splits: Mapping[str, Dataset], columns: Sequence[str]) -> Dataset:
    """Train's rows with the two texts of each swapped; without those that are a row of another split."""
    train, (first, second) = splits["train"], columns
    turned = train.rename_columns({first: second, second: first}).select_columns(train.column_names)
    others = {key for name, split in splits.items() if name != "train" for key in _keys(split, columns)}
    rows = [row for row, key in enumerate(_keys(turned, columns)) if key not in others]
    return turned.select(rows).cast(train.features)


def carve_validation(
    dataset: Dataset, columns: Sequence[str], *, rows: int | None = None, seed: int = SEED
) -> dict[str, Dataset]:
    """Split rows in two without leaking a text: rows with the same words stay on one side.

    Rows are chosen by the SHA-256 of seed and text, so the choice depends on neither the order of the rows nor any
    library's random generator. Each class of a `ClassLabel` column `label` is held out in its own proportion.

    Args:
        dataset: rows with the text `columns`, and `label` where there is one.
        columns: the text columns.
        rows: number of rows to hold out, a tenth of them where it is None; met exactly unless equal texts are in the
            way.
        seed: another seed is another split.

    Returns:
        `{"train": ..., "validation": ...}`, both in the order of `dataset`.

    Raises:
        DataError: too few rows.
    """
    from datasets import ClassLabel

    total = dataset.num_rows
    if rows is None:
        rows = max(1, round(total * 0.1))
    if not 0 < rows < total:
        raise DataError(
            f"Cannot hold {rows} of {total} rows out for validation. Give more rows or a validation split."
        )
    stratified = isinstance(dataset.features.get(LABEL), ClassLabel)
    classes = dataset[LABEL][:] if stratified else [0] * total
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(_keys(dataset, columns)):
        groups.setdefault(key, []).append(row)
    ordered = [groups[key] for key in sorted(groups, key=lambda key: sha256(f"{seed}\x1e{key}".encode()).digest())]
    quota = _apportion(Counter(classes), rows)
    left = Counter(classes[group[0]] for group in ordered)  # groups of a class that are still in train
    held: set[int] = set()
    for group in ordered:
        kind = classes[group[0]]
        if len(group) <= quota[kind] and left[kind] > 1:  # the last group of a class stays in train
            held.update(group)
            quota[kind] -= len(group)
            left[kind] -= 1
    if not held:
        raise DataError(
            f"The {total} rows hold too few different texts per class to carve a validation split from. Give one."
        )
    return {
        "train": dataset.select([row for row in range(total) if row not in held]),
        "validation": dataset.select(sorted(held)),
    }


def _apportion(counts: Counter[Any], rows: int) -> dict[Any, int]:
    """`rows` over classes in proportion to their counts, by largest remainder: the sum is exact."""
    total = sum(counts.values())
    shares = {kind: divmod(rows * count, total) for kind, count in counts.items()}
    quota = {kind: whole for kind, (whole, _) in shares.items()}
    for kind in sorted(shares, key=lambda kind: (-shares[kind][1], str(kind)))[: rows - sum(quota.values())]:
        quota[kind] += 1
    return quota

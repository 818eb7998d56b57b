"""Columns of rows -> which are the text and which the label, and whether their cells can be used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spafit_hf.data.labels import LABEL
from spafit_hf.data.table import DataError, require_columns

if TYPE_CHECKING:
    from datasets import Dataset

TEXT_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
              ("question", "sentence"), ("text1", "text2"), ("text_a", "text_b"))  # fmt: skip
TEXTS = ("text", "sentence", "review", "content", "document", "snippet", "comment")
LABELS = ("label", "labels", "class", "target", "sentiment", "category", "rating", "score", "stars")


def choose_label(
    split: Dataset,
    given: str | None,
    texts: Sequence[str],
    origin: str,
    notes: list[str],
    names: Sequence[str] = LABELS,
) -> str:
    """The label column: the given one, or the one with such a name, or the only one beside the given texts."""
    if given is not None:
        require_columns(split, [given], origin)
        return given
    free = [name for name in split.column_names if name not in texts]
    found = _alike(names, free) or (free if texts and len(free) == 1 else [])
    if not found:
        raise DataError(
            f"{origin} has the columns {', '.join(split.column_names)}, and none is named like a label "
            f"({', '.join(names)}). Name the label column."
        )
    if found[0] != LABEL:
        notes.append(f"Label column: '{found[0]}' (inferred from its name).")
    return found[0]


def choose_texts(
    split: Dataset,
    given: tuple[str, ...],
    label: str,
    origin: str,
    notes: list[str],
    names: Sequence[str] = TEXTS,
    pairs: Sequence[tuple[str, str]] = TEXT_PAIRS,
) -> tuple[str, ...]:
    """The text columns: the given ones, or a pair or column named like texts, or the only column of strings."""
    columns = given
    if not given:
        free = [name for name in split.column_names if name != label]
        strings = [name for name in free if _is_text(split, name)]
        alike = [tuple(_alike(pair, free)) for pair in pairs]
        found = [pair for pair in alike if len(pair) == 2] + [(name,) for name in _alike(names, free)]
        found += [(name,) for name in strings if len(strings) == 1]
        if not found:
            raise DataError(
                f"Which column of {origin} is the text? It has {', '.join(split.column_names)}. Name one, or the two "
                f"of a pair."
            )
        columns = found[0]
        notes.append(f"Text column{'s' * (len(columns) - 1)}: {', '.join(columns)} (inferred from the names).")
    if len(columns) > 2 or len(set(columns)) != len(columns) or label in columns:
        raise DataError(
            f"Text columns must be one, or two different ones, and not the label; got {', '.join(columns)} with the "
            f"label '{label}'."
        )
    if LABEL in columns:
        raise DataError(f"The text column of {origin} is named '{LABEL}', the name of the target. Rename the column.")
    return columns


def _alike(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    """The columns of these names, in the names' order; where there is none, those but for case and blanks."""
    exact = [name for name in names if name in columns]
    return exact or [column for name in names for column in columns if column.strip().lower() == name]


def require_kinds(split: Dataset, columns: Sequence[str], label: str, whose: str) -> None:
    """Raise DataError unless `columns` are there and hold text, and `label` one value per row."""
    from datasets import ClassLabel, Value

    require_columns(split, (*columns, label), whose[0].upper() + whose[1:])
    for name in columns:
        if not _is_text(split, name):
            raise DataError(
                f"Column '{name}' of {whose} holds {split.features[name]}, not text. Name a text column; the columns "
                f"are {', '.join(split.column_names)}."
            )
    if not isinstance(split.features[label], (ClassLabel, Value)):
        raise DataError(
            f"Label column '{label}' of {whose} holds {split.features[label]}; one class or one number per row is "
            f"allowed. Name another column."
        )


def _is_text(split: Dataset, column: str) -> bool:
    from datasets import Value

    feature = split.features[column]
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "string_view")


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def without_hidden_labels(splits: dict[str, Dataset], label: str, notes: list[str]) -> dict[str, Dataset]:
    """GLUE's test splits have -1 in place of every label, others nothing or no such column: they cannot be scored."""
    kept = {}
    for name, split in splits.items():
        hidden = name.startswith("test") and split.num_rows > 0
        if hidden and label in split.column_names:
            hidden = all(value in (-1, "-1") or _is_empty(value) for value in split[label][:])
        if hidden:
            notes.append(f"Split '{name}' ({split.num_rows} rows) has no labels and is not used.")
        else:
            kept[name] = split
    if not kept:
        raise DataError("No split has labels: there is nothing to train on or to score. Give rows with labels.")
    return kept


def refuse_empty(split: Dataset, columns: Sequence[str], label: str, whose: str) -> None:
    """Raise DataError where a row has no text or no label."""
    cells = [(row, name) for name in (*columns, label) for row, cell in enumerate(split[name][:]) if _is_empty(cell)]
    if cells:
        row, name = min(cells, key=lambda cell: cell[0])
        raise DataError(
            f"{len({row for row, _ in cells})} of the {split.num_rows} rows of {whose} have an empty text or label; "
            f"the first is row {row + 1}, column '{name}'. Fill them in, or leave such rows out."
        )

"""Columns of rows -> which are the text and which the label, and whether their cells can be used."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
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
    split: Dataset, given: str | None, texts: str | Sequence[str] | None, origin: str, notes: list[str]
) -> str:
    if given is not None:
        require_columns(split, [given], origin)
        return given
    taken = set(_names(texts))
    found = [name for name in LABELS if name in split.column_names and name not in taken]
    if not found and len(split.column_names) == len(taken) + 1 and taken:
        found = [name for name in split.column_names if name not in taken]
    if not found:
        raise DataError(
            f"{origin} has the columns {', '.join(split.column_names)}, and none is named like a label "
            f"({', '.join(LABELS)}). Name the label column."
        )
    if found[0] != LABEL:
        notes.append(f"Label column: '{found[0]}' (inferred from its name).")
    return found[0]


def _names(texts: str | Sequence[str] | None) -> tuple[str, ...]:
    if texts is None:
        return ()
    return tuple(part.strip() for part in texts.split(",")) if isinstance(texts, str) else tuple(texts)


def choose_texts(
    split: Dataset, given: str | Sequence[str] | None, label: str, origin: str, notes: list[str]
) -> tuple[str, ...]:
    columns = _names(given)
    if not columns:
        pairs = [pair for pair in TEXT_PAIRS if all(name in split.column_names for name in pair)]
        singles = [name for name in TEXTS if name in split.column_names and name != label]
        strings = [name for name in split.column_names if name != label and _is_text(split, name)]
        if pairs and label not in pairs[0]:
            columns = pairs[0]
        elif singles:
            columns = (singles[0],)
        elif len(strings) == 1:
            columns = (strings[0],)
        else:
            raise DataError(
                f"Which column of {origin} is the text? It has {', '.join(split.column_names)}. Name one, or the two "
                f"of a pair."
            )
        notes.append(f"Text column{'s' * (len(columns) - 1)}: {', '.join(columns)} (inferred from the names).")
    if len(columns) > 2 or len(set(columns)) != len(columns) or label in columns:
        raise DataError(
            f"Text columns must be one, or two different ones, and not the label; got {', '.join(columns)} with the "
            f"label '{label}'."
        )
    require_columns(split, columns, origin)
    return columns


def require_text(split: Dataset, columns: Sequence[str], whose: str) -> None:
    for name in columns:
        if not _is_text(split, name):
            raise DataError(
                f"Column '{name}' of {whose} holds {split.features[name]}, not text. Name a text column; the columns "
                f"are {', '.join(split.column_names)}."
            )


def _is_text(split: Dataset, column: str) -> bool:
    from datasets import Value

    feature = split.features[column]
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def require_plain_labels(splits: dict[str, Dataset], label: str, origin: str) -> None:
    from datasets import ClassLabel, Value

    for split in splits.values():
        feature = split.features[label]
        if not isinstance(feature, (ClassLabel, Value)):
            raise DataError(
                f"Label column '{label}' of {origin} holds {feature}; one class or one number per row is allowed. "
                f"Name another column."
            )


def require_finite_labels(splits: dict[str, Dataset], label: str, no_label: Collection[str], origin: str) -> None:
    """Infinity among numbers: nothing to regress on, and as a class it would turn all the numbers into words."""
    from datasets import ClassLabel

    found = ""
    for name, split in splits.items():
        if isinstance(split.features[label], ClassLabel):
            return
        for row, value in enumerate(split[label][:], start=1):
            if _is_empty(value, no_label):
                continue
            try:
                number = float(value)
            except (TypeError, ValueError):
                return  # words: the labels are classes
            if math.isinf(number) and not found:
                found = f"Row {row} of the {name} split of {origin} has the label {value!r} in '{label}'"
    if found:
        raise DataError(
            f"{found}; labels that are numbers must be finite. Correct the row, or say regression=False if these are "
            f"classes."
        )


def empty_words(splits: dict[str, Dataset], label: str, given: Sequence[str] | None) -> set[str]:
    """The words that stand for no label: spellings of NaN where all the others are numbers; else NaN is a word too."""
    labelled = [split for split in splits.values() if label in split.column_names and _is_text(split, label)]
    words = {value.strip() for split in labelled for value in split[label][:] if value is not None}
    try:
        return {word for word in words - {"", *(given or ())} if math.isnan(float(word))}
    except ValueError:
        return set()


def _is_empty(value: Any, words: Collection[str] = ()) -> bool:
    if isinstance(value, str):
        return not value.strip() or value.strip() in words
    return value is None or (isinstance(value, float) and math.isnan(value))


def without_hidden_labels(
    splits: dict[str, Dataset], label: str, no_label: Collection[str], notes: list[str]
) -> dict[str, Dataset]:
    """GLUE's test splits have -1 in place of every label, others nothing or no such column: they cannot be scored."""
    kept = {}
    for name, split in splits.items():
        hidden = name.startswith("test") and split.num_rows > 0
        if hidden and label in split.column_names:
            hidden = all(value in (-1, "-1") or _is_empty(value, no_label) for value in split[label][:])
        if hidden:
            notes.append(f"Split '{name}' ({split.num_rows} rows) has no labels and is not used.")
        else:
            kept[name] = split
    if not kept:
        raise DataError("No split has labels: there is nothing to train on or to score. Give rows with labels.")
    return kept


def without_empty(
    split: Dataset,
    columns: Sequence[str],
    label: str,
    no_label: Collection[str],
    whose: str,
    drop: bool,
    notes: list[str],
) -> Dataset:
    empty: dict[int, str] = {}
    for column in (*columns, label):
        for row, value in enumerate(split[column][:]):
            if _is_empty(value, no_label if column == label else ()):
                empty.setdefault(row, column)
    if not empty:
        return split
    row, column = next(iter(sorted(empty.items())))
    if not drop:
        raise DataError(
            f"{len(empty)} of the {split.num_rows} rows of {whose} have an empty text or label; the first is row "
            f"{row + 1}, column '{column}'. Fill them in, or drop such rows with drop_empty=True."
        )
    if len(empty) == split.num_rows:
        raise DataError(f"Every row of {whose} has an empty text or label. Name other columns.")
    notes.append(f"{len(empty)} of the {split.num_rows} rows of {whose} have an empty text or label and are left out.")
    return split.select([row for row in range(split.num_rows) if row not in empty])

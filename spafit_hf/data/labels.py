"""A column of labels -> class ids with their names, or numbers.

    ClassLabel              its names, in its order
    "yes" "no"              words in alphabetical order
    3 1 2, "3" "1" "2"      whole numbers in order, as words "1" "2" "3"
    0.0 1.0, "0.0" "1.0"    the same, "0" "1": so pandas writes them beside a missing label; -0.0 is 0.0
    true false              "false" "true"
    0.5, "0.5"              regression

Every label is brought to a word first, so that ids and words can never be mixed up between splits.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from spafit_hf.data.table import DataError

if TYPE_CHECKING:
    from datasets import ClassLabel, Dataset

LABEL = "label"
"""Name of the target column in everything this package loads."""

LARGEST = 3.4028235e38
"""Largest number in fp32."""


class Labelled:
    """What follows from the names of the labels, in id order; a number to be predicted has none."""

    labels: tuple[str, ...]

    @property
    def regression(self) -> bool:
        """Whether the label is a number to be predicted, not a class."""
        return not self.labels

    @property
    def num_labels(self) -> int:
        """Outputs of the task head: the number of classes, 1 for regression."""
        return len(self.labels) or 1

    @property
    def problem_type(self) -> str:
        """`PretrainedConfig.problem_type` of the task."""
        return "regression" if self.regression else "single_label_classification"


def encode_labels(
    splits: dict[str, Dataset],
    column: str,
    given: Sequence[str] | None,
    regression: bool | None,
    origin: str,
    notes: list[str],
) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    """Replace the label column of every split by `label`: class ids with names, or float32.

    Args:
        splits: the splits; the names of the classes are those of `train`, or of the first split where there is none.
        column: the label column: plain values, no empty cells.
        given: label names in id order; integer labels 0..n-1 that are not all names are ids. None: inferred.
        regression: whether labels are numbers to predict. None: inferred.
        origin: what the data is called in errors.
        notes: receives a sentence for each thing inferred, and for ids that are given names.

    Returns:
        The splits, and the label names in id order (empty for regression).

    Raises:
        DataError: numbers that are not finite, a class outside those of train, one class only.
    """
    from datasets import ClassLabel, Value

    values = {name: split[column][:] for name, split in splits.items()}
    everything = [value for split in values.values() for value in split]
    class_labels = [kind for split in splits.values() if isinstance(kind := split.features[column], ClassLabel)]
    numbers = None if class_labels else _numbers(everything)
    whole = numbers is not None and all(number.is_integer() for number in numbers)
    if regression is None:
        regression = numbers is not None and given is None and not whole
        if regression:
            notes.append(
                f"Label '{column}' holds numbers with decimals: regression. For classes, say regression=False "
                "(--regression false)."
            )
    feature: ClassLabel | Value
    if regression:
        _require_numbers(numbers, f"Label column '{column}' of {origin}", given)
        targets: dict[str, list[Any]] = {name: [float(value) for value in split] for name, split in values.items()}
        names: tuple[str, ...] = ()
        feature = Value("float32")
    else:
        words = {name: _words(split, column, f"the {name} split of {origin}") for name, split in splits.items()}
        if numbers is not None:
            words = {name: [_bare(word, whole) for word in split] for name, split in words.items()}
        reference = words.get("train", next(iter(words.values())))
        names, how = _label_names(reference, class_labels, given)
        if how:
            notes.append(f"Label '{column}': {len(names)} classes, {_listing(names)} ({how}).")
        ids = {word if numbers is None else _bare(word, whole): index for index, word in enumerate(names)}
        digits = {str(index): index for index in range(len(names))}
        if given and not set(reference) <= set(ids) and set(reference) <= set(digits):
            ids = digits
            notes.append(f"Label '{column}': ids in order, from 0 on, named {_listing(names)} as given.")
        _require_classes(words, names, ids, column, origin, given is not None)
        if how and len(names) > 20 and len(names) == len(reference):
            raise DataError(
                f"Every row of {origin} has a label of its own in '{column}'. Name the column that holds the class."
            )
        targets = {name: [ids[word] for word in split] for name, split in words.items()}
        feature = ClassLabel(names=list(names))
    encoded = {
        name: split.remove_columns(column).add_column(LABEL, targets[name], feature=feature)
        for name, split in splits.items()
    }
    return encoded, names


def _bare(word: str, whole: bool) -> str:
    """A number without the sign of zero, and a whole one without its point."""
    return re.sub(r"^-(?=[0.]+$)|\.0*$" if whole else r"^-(?=[0.]+$)", "", word)


def _require_numbers(numbers: list[float] | None, whose: str, given: Sequence[str] | None) -> None:
    if given:
        raise DataError(f"Regression has no label names, but {', '.join(given)} were given. Leave one of them out.")
    if numbers is None:
        raise DataError(f"{whose} is not made of finite numbers; regression needs them.")
    for number in numbers:
        if not abs(number) <= LARGEST:  # NaN is neither smaller nor larger
            raise DataError(
                f"{whose} holds {number:g}; labels are kept in fp32, which ends at {LARGEST:.3g}. Correct the rows, "
                f"scale the column down, or say regression=False if these are classes."
            )


def _require_classes(
    words: dict[str, list[str]], names: Sequence[str], ids: Collection[str], column: str, origin: str, given: bool
) -> None:
    for name, split in words.items():
        unknown = sorted(set(split) - set(ids))
        if unknown:
            allowed = "given as label names" if given else "in the train split"
            raise DataError(
                f"The {name} split of {origin} has the label{'s' * (len(unknown) > 1)} {_listing(unknown)}, not "
                f"{allowed} ({_listing(names)}). Correct the rows, or name every label."
            )
    if len(names) < 2:
        raise DataError(
            f"Every row of {origin} has the label {_listing(names)}; classification needs two classes or more. "
            f"Check the label column '{column}', or name every class (--labels negative,positive)."
        )


def _label_names(
    words: Sequence[str], class_labels: Sequence[ClassLabel], given: Sequence[str] | None
) -> tuple[tuple[str, ...], str]:
    """The label names in id order, and how they were found when that needs saying."""
    if given is not None:
        if len(set(given)) != len(given) or not all(given):
            raise DataError(f"Label names must be different words; got {', '.join(map(repr, given))}.")
        return tuple(given), ""
    if class_labels:
        return tuple(class_labels[0].names), ""
    found = set(words)
    if all(re.fullmatch(r"[+-]?\d+", word.strip()) for word in found):
        how = "inferred from whole numbers, in order; for regression, say regression=True (--regression true)"
        return tuple(sorted(found, key=lambda word: (int(word), word))), how
    return tuple(sorted(found)), "inferred from the words, in alphabetical order"


def _listing(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _numbers(values: Sequence[Any]) -> list[float] | None:
    """The values as numbers, or None if one is something else (booleans are classes, not numbers)."""
    try:
        return None if any(isinstance(value, bool) for value in values) else [float(value) for value in values]
    except (TypeError, ValueError):
        return None


def _words(split: Dataset, column: str, whose: str) -> list[str]:
    """Labels as their names: what a ClassLabel calls them, whole numbers as digits, strings without outer blanks."""
    from datasets import ClassLabel

    feature, values = split.features[column], split[column][:]
    if not isinstance(feature, ClassLabel):
        return [str(value).lower() if isinstance(value, bool) else str(value).strip() for value in values]
    try:
        return list(feature.int2str(values))
    except ValueError as error:
        raise DataError(
            f"A row of {whose} has a label without a name ({error}); ids go from 0 to {len(feature.names) - 1} "
            f"({', '.join(feature.names)}). Rows without a label (-1) cannot be used."
        ) from error

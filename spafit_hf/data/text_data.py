"""Labelled text from anywhere, brought to one shape before anything is trained on it.

    Hub id ---+
    folder ---+--> splits --> text column(s) --> label: classes or a number --> TextData
    files ----+               given, or inferred and said so in .notes

In a `TextData` every split has one or two string columns and a column `label`: a `ClassLabel` (the words stay with
the ids), or `float32` for regression. What was inferred, carved or left out is a sentence in `notes`, to be shown.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spafit_hf.data.holdout import carve_validation, shared_texts, turned_around
from spafit_hf.data.hub_dataset import load_hub_dataset
from spafit_hf.data.labels import LABEL, encode_labels
from spafit_hf.data.table import SUFFIXES, DataError, read_table, require_columns

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

TEXT_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
              ("question", "sentence"), ("text1", "text2"), ("text_a", "text_b"))  # fmt: skip
TEXTS = ("text", "sentence", "review", "content", "document", "snippet", "comment")
LABELS = ("label", "labels", "class", "target", "sentiment", "category", "rating", "score", "stars")
SPLIT_NAMES = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
               "val": "validation", "dev": "validation", "test": "test"}  # fmt: skip


@dataclass(frozen=True)
class TextData:
    """Splits of labelled text in one shape, with the facts a training run and a card need.

    Attributes:
        splits: each split with exactly `columns` (strings) and `label` (`ClassLabel` or `float32`).
        columns: one text column, or the two of a pair, in reading order.
        labels: label names in id order; empty for regression.
        source: where the rows are from: a Hub id, a folder or files.
        notes: what was inferred, carved or left out, a sentence each.
    """

    splits: DatasetDict
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()

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

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """Names of the validation splits; of the test split where there is no other."""
        names = tuple(str(name) for name in self.splits)
        return tuple(name for name in names if name.startswith("validation")) or tuple(
            name for name in names if name.startswith("test")
        )

    def in_both_orders(self) -> TextData:
        """The same with each training pair a second time, its texts changed about.

        A pair that would become a row of another split is left as it is, and a note says how many.

        Raises:
            DataError: for rows of one text.
        """
        if len(self.columns) != 2:
            raise DataError(f"a row of {self.source} is one text; only pairs have two orders.")
        from datasets import DatasetDict, concatenate_datasets

        train = self.splits["train"]
        turned = turned_around(self.splits, self.columns)
        left = train.num_rows - turned.num_rows
        note = f"Training pairs which another split has the other way round, and which stay as they are: {left}."
        both = concatenate_datasets([train, turned], split=train.split)
        splits = DatasetDict({**self.splits, "train": both})
        return replace(self, splits=splits, notes=(*self.notes, *([note] if left else [])))


def load_text_data(
    source: str | Path | None = None,
    *,
    train_file: str | Path | None = None,
    validation_file: str | Path | None = None,
    test_file: str | Path | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    text_columns: str | Sequence[str] | None = None,
    label_column: str | None = None,
    labels: Sequence[str] | None = None,
    regression: bool | None = None,
    validation_share: float = 0.1,
    seed: int = 42,
    drop_empty: bool = False,
    need_train: bool = True,
    quoting: bool | None = None,
    cache_dir: str | Path | None = None,
) -> TextData:
    """Load labelled text from the Hub, a folder or files.

    Args:
        source: a dataset id on the Hub, one file (its rows are the train split), or a folder with `train.csv`,
            `validation.csv` (`valid`, `val`, `dev`), `test.csv` in any format of `read_table`.
        train_file, validation_file, test_file: single files, instead of `source`.
        config_name, revision, cache_dir: of the Hub dataset.
        text_columns: the text column, or the two of a pair ("a,b" is taken apart). None: inferred from the names.
        label_column: the label. None: inferred from the names.
        labels: label names in id order. For integer labels 0..n-1 these are the words of the ids. None: the names of
            a `ClassLabel`, whole numbers in order, or strings in alphabetical order.
        regression: whether the label is a number. None: true for floats (in CSV: numbers of which one has a point).
        validation_share: share of the train rows held out when there is no validation split, in (0, 1).
        seed: of that choice (see `carve_validation`).
        drop_empty: leave out rows with an empty text or label (NaN is one), with a note, instead of raising.
        need_train: False to load a test or validation split alone, as evaluation does.
        quoting: how quotes are read in CSV and TSV (see `read_table`).

    Returns:
        TextData with a train and a validation split, and a test split where the source has one with labels.

    Raises:
        DataError: with the columns, rows or labels found, and what is allowed.
    """
    splits, origin, notes = _read_splits(
        source,
        {"train": train_file, "validation": validation_file, "test": test_file},
        functools.partial(load_hub_dataset, config_name=config_name, revision=revision, cache_dir=cache_dir),
        quoting,
    )
    if need_train and "train" not in splits:
        raise DataError(f"{origin} has no train split, only {', '.join(splits)}. Name its rows with a train file.")
    first = splits["train"] if "train" in splits else next(iter(splits.values()))
    label = _choose_label(first, label_column, text_columns, origin, notes)
    columns = _choose_texts(first, text_columns, label, origin, notes)
    if LABEL in columns:
        raise DataError(f"The text column of {origin} is named '{LABEL}', the name of the target. Rename the column.")
    no_label = _empty_words(splits, label, labels)
    splits = _without_hidden_labels(splits, label, no_label, notes)
    for name, split in splits.items():
        require_columns(split, (*columns, label), f"The {name} split of {origin}")
        _require_text(split, columns, f"the {name} split of {origin}")
    splits = {name: split.select_columns([*columns, label]) for name, split in splits.items()}
    _require_plain_labels(splits, label, origin)
    if regression is not False and not labels:
        _require_finite_labels(splits, label, no_label, origin)
    splits = {
        name: _without_empty(split, columns, label, no_label, f"the {name} split of {origin}", drop_empty, notes)
        for name, split in splits.items()
    }
    encoded, names = encode_labels(splits, label, labels, regression, origin, notes)
    if need_train and not any(name.startswith("validation") for name in encoded):
        carved = carve_validation(encoded["train"], columns, share=validation_share, seed=seed)
        notes.append(
            f"No validation split: {carved['validation'].num_rows} of {encoded['train'].num_rows} train rows are held "
            f"out as one (share {validation_share:g}, seed {seed}, equal texts kept on one side)."
        )
        encoded = {**encoded, **carved}
    elif "train" in encoded:
        for name, count in shared_texts(encoded, columns).items():
            if count:
                notes.append(f"{count} of the {encoded[name].num_rows} {name} rows have the text of a train row.")
    import datasets

    return TextData(datasets.DatasetDict(encoded), columns, names, origin, tuple(notes))


def _read_splits(
    source: str | Path | None,
    files: Mapping[str, str | Path | None],
    from_hub: Callable[[str], DatasetDict],
    quoting: bool | None,
) -> tuple[dict[str, Dataset], str, list[str]]:
    given = {split: Path(path) for split, path in files.items() if path is not None}
    if (source is None) == (not given):
        raise DataError("Give either a dataset (a Hub id, a folder or one file) or train/validation/test files.")
    notes: list[str] = []
    if source is not None:
        path = Path(source).expanduser()
        if path.is_dir():
            given = _files_of_folder(path)
        elif path.is_file() or path.suffix.lower() in SUFFIXES:
            given = {"train": path}
        else:
            loaded = {str(name): split for name, split in from_hub(str(source)).items()}
            splits: dict[str, Dataset] = {}
            for name, split in loaded.items():
                new = SPLIT_NAMES.get(name, name)
                if new != name and (new in loaded or new in splits):
                    new = name
                if new.split("_")[0] in ("train", "validation", "test"):
                    splits[new] = split
                else:
                    notes.append(f"Split '{name}' ({split.num_rows} rows) of '{source}' is not used.")
            if not splits:
                raise DataError(f"'{source}' has the splits {', '.join(loaded)}; one of them must be called train.")
            return splits, f"'{source}'", notes
    origin = f"'{source}'" if source is not None else ", ".join(f"'{path}'" for path in given.values())
    read = {split: read_table(path, quoting=quoting, notes=notes) for split, path in given.items()}
    return read, origin, notes


def _files_of_folder(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES:
            continue
        head, _, tail = path.stem.partition("_")
        if head not in SPLIT_NAMES:
            continue
        split = SPLIT_NAMES[head] + (f"_{tail}" if tail else "")
        if split in found:
            raise DataError(f"'{folder}' has two files for its {split} split: {found[split].name} and {path.name}.")
        found[split] = path
    if not found:
        raise DataError(
            f"'{folder}' holds no train, validation or test file ({', '.join(SUFFIXES)}). Rename the files to "
            f"train.csv and so on, or name each file."
        )
    return dict(sorted(found.items(), key=lambda item: ("train", "valid", "test").index(item[0].split("_")[0][:5])))


def _choose_label(
    split: Dataset, given: str | None, texts: str | Sequence[str] | None, origin: str, notes: list[str]
) -> str:
    if given is not None:
        require_columns(split, [given], origin)
        return given
    taken = set(_listed(texts))
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


def _listed(texts: str | Sequence[str] | None) -> tuple[str, ...]:
    if texts is None:
        return ()
    return tuple(part.strip() for part in texts.split(",")) if isinstance(texts, str) else tuple(texts)


def _choose_texts(
    split: Dataset, given: str | Sequence[str] | None, label: str, origin: str, notes: list[str]
) -> tuple[str, ...]:
    columns = _listed(given)
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


def _require_text(split: Dataset, columns: Sequence[str], whose: str) -> None:
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


def _require_plain_labels(splits: dict[str, Dataset], label: str, origin: str) -> None:
    from datasets import ClassLabel, Value

    for split in splits.values():
        feature = split.features[label]
        if not isinstance(feature, (ClassLabel, Value)):
            raise DataError(
                f"Label column '{label}' of {origin} holds {feature}; one class or one number per row is allowed. "
                f"Name another column."
            )


def _require_finite_labels(splits: dict[str, Dataset], label: str, no_label: Collection[str], origin: str) -> None:
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


def _empty_words(splits: dict[str, Dataset], label: str, given: Sequence[str] | None) -> set[str]:
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


def _without_hidden_labels(
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


def _without_empty(
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

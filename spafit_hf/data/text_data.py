"""Labelled text from anywhere, brought to one shape before anything is trained on it.

    Hub id ---+
    folder ---+--> splits --> text column(s) --> label: classes or a number --> TextData
    files ----+               given, or inferred and then in .notes

In a `TextData` every split has one or two string columns and a column `label`: a `ClassLabel` (the words stay with
the ids), or `float32` for regression. What was inferred, carved or left out is a sentence in `notes`, to be shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from spafit_hf.data.columns import choose_label, choose_texts, refuse_empty, require_kinds, without_hidden_labels
from spafit_hf.data.holdout import SEED, carve_validation, shared_texts, turned_around
from spafit_hf.data.hub_dataset import load_hub_dataset
from spafit_hf.data.labels import Labelled, encode_labels
from spafit_hf.data.table import SUFFIXES, DataError, read_table

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SPLIT_NAMES = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
               "val": "validation", "dev": "validation", "test": "test"}  # fmt: skip


@dataclass(frozen=True)
class Splits:
    """Splits of text in one shape.

    Attributes:
        splits: each split with the strings of `columns`, and `label` where something is to be told or written of them.
        columns: one text column, or the two of a pair, in reading order.
        source: where the rows are from: a Hub id, a folder or files.
        notes: what was inferred, carved or left out, a sentence each.
    """

    splits: DatasetDict
    columns: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """Names of the validation splits; of the test split where there is no other."""
        names = tuple(str(name) for name in self.splits)
        return tuple(name for name in names if name.startswith("validation")) or tuple(
            name for name in names if name.startswith("test")
        )


@dataclass(frozen=True)
class TextData(Splits, Labelled):
    """Splits of labelled text, their `label` a `ClassLabel` or `float32`.

    Attributes:
        labels: label names in id order; empty for regression.
    """

    labels: tuple[str, ...] = ()

    def in_both_orders(self) -> TextData:
        """The same with each training pair a second time, its texts swapped.

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
    text_columns: str | Sequence[str] | None = None,
    label_column: str | None = None,
    labels: Sequence[str] | None = None,
    regression: bool | None = None,
    need_train: bool = True,
) -> TextData:
    """Load labelled text from the Hub, a folder or files.

    Args:
        source: a dataset id on the Hub, one file (its rows are the train split), or a folder with `train.csv`,
            `validation.csv` (`valid`, `val`, `dev`), `test.csv` in any format of `read_table`.
        train_file, validation_file, test_file: single files, instead of `source`.
        config_name: of the Hub dataset.
        text_columns: the text column, or the two of a pair ("a,b" is taken apart). None: inferred from the names.
        label_column: the label. None: inferred from the names.
        labels: label names in id order. Integer labels 0..n-1 that are not all among them are ids. None: the names of
            a `ClassLabel`, whole numbers in order, or strings in alphabetical order.
        regression: whether the label is a number. None: true for numbers of which one is not whole.
        need_train: False to load a test or validation split alone, as evaluation does.

    Returns:
        TextData with a train and a validation split (a tenth of the train rows where there is none), and a test split
        where the source has one with labels.

    Raises:
        DataError: with the columns, rows or labels found, and what is allowed.
    """
    files = {"train": train_file, "validation": validation_file, "test": test_file}
    splits, origin, notes = read_splits(source, files, config_name, need_train)
    first = splits.get("train", next(iter(splits.values())))
    if isinstance(text_columns, str):
        text_columns = [name.strip() for name in text_columns.split(",")]
    texts = tuple(text_columns or ())
    label = choose_label(first, label_column, texts, origin, notes)
    columns = choose_texts(first, texts, label, origin, notes)
    splits = without_hidden_labels(splits, label, notes)
    for name, split in splits.items():
        whose = f"the {name} split of {origin}"
        require_kinds(split, columns, label, whose)
        splits[name] = split.select_columns([*columns, label])
        refuse_empty(splits[name], columns, label, whose)
    encoded, names = encode_labels(splits, label, labels, regression, origin, notes)
    held = with_validation(encoded, columns, need_train, notes)
    return TextData(held, columns, origin, tuple(notes), names)


def with_validation(
    splits: dict[str, Dataset], columns: Sequence[str], need_train: bool, notes: list[str]
) -> DatasetDict:
    """The splits with one to measure on, held out of train where there is none; see `load_text_data`."""
    if not need_train and set(splits) == {"train"}:
        raise DataError(
            "There are train rows alone, and no validation or test split to measure on. Name the rows to measure on "
            "as a validation file (--validation_file)."
        )
    if need_train and not any(name.startswith("validation") for name in splits):
        carved = carve_validation(splits["train"], columns)
        notes.append(
            f"No validation split: {carved['validation'].num_rows} of {splits['train'].num_rows} train rows are held "
            f"out as one (share 0.1, seed {SEED}, equal texts kept on one side)."
        )
        splits = {**splits, **carved}
    elif "train" in splits:
        for name, count in shared_texts(splits, columns).items():
            if count:
                notes.append(f"{count} of the {splits[name].num_rows} {name} rows have the text of a train row.")
    import datasets

    return datasets.DatasetDict(splits)


def read_splits(
    source: str | Path | None,
    files: Mapping[str, str | Path | None],
    config_name: str | None,
    need_train: bool,
) -> tuple[dict[str, Dataset], str, list[str]]:
    """The splits by their names here, what they are called in errors, and a note for each that is not used."""
    given = {split: Path(path) for split, path in files.items() if path is not None}
    if (source is None) == (not given):
        raise DataError("Give either a dataset (a Hub id, a folder or one file) or train/validation/test files.")
    notes: list[str] = []
    if source is None:
        origin = ", ".join(f"'{path}'" for path in given.values())
        splits = {split: read_table(path) for split, path in given.items()}
    else:
        path, origin = Path(source).expanduser(), f"'{source}'"
        if path.is_dir():
            splits = {split: read_table(file) for split, file in _files_of_folder(path).items()}
        elif path.is_file() or path.suffix.lower() in SUFFIXES:
            splits = {"train": read_table(path)}
        else:
            splits = _splits_on_hub(str(source), config_name, origin, notes)
    if need_train and "train" not in splits:
        raise DataError(f"{origin} has no train split, only {', '.join(splits)}. Name its rows with a train file.")
    return splits, origin, notes


def _splits_on_hub(dataset: str, config_name: str | None, origin: str, notes: list[str]) -> dict[str, Dataset]:
    loaded = load_hub_dataset(dataset, config_name)
    splits: dict[str, Dataset] = {}
    for name, split in loaded.items():
        known = SPLIT_NAMES.get(name, name)
        if known.split("_")[0] in SPLIT_NAMES.values() and known not in splits:
            splits[known] = split
        else:
            notes.append(f"Split '{name}' ({split.num_rows} rows) of {origin} is not used.")
    if not splits:
        raise DataError(f"{origin} has the splits {', '.join(loaded)}; one of them must be called train.")
    return splits


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

"""Text to learn to write, from anywhere: rows of a text and what is to be written of it, or of texts alone.

The rules of files, splits and validation rows are those of `text_data`.
"""

from __future__ import annotations

from pathlib import Path

from spafit_hf.data.columns import choose_label, choose_texts, refuse_empty, require_kinds, without_hidden_labels
from spafit_hf.data.labels import LABEL
from spafit_hf.data.table import DataError
from spafit_hf.data.text_data import Splits, read_splits, with_validation

SOURCES = ("document", "article", "text", "dialogue", "source", "content", "body")
TARGETS = ("summary", "highlights", "target", "abstract", "headline", "title")


def load_generation_data(
    source: str | Path | None = None,
    *,
    with_targets: bool,
    train_file: str | Path | None = None,
    validation_file: str | Path | None = None,
    config_name: str | None = None,
    text_columns: str | None = None,
    label_column: str | None = None,
    need_train: bool = True,
) -> Splits:
    """Load text from the Hub, a folder or files: splits of one column, and `label` for what is to be written of it.

    Args:
        with_targets: whether a row has a text that is to be written of the other.
        text_columns: the text column. None: inferred from the names.
        label_column: the column of what is to be written. None: inferred from the names.
        source, train_file, validation_file, config_name, need_train: as in `load_text_data`.

    Raises:
        DataError: with the columns or rows found, and what is allowed.
    """
    files = {"train": train_file, "validation": validation_file}
    splits, origin, notes = read_splits(source, files, config_name, need_train)
    first = splits.get("train", next(iter(splits.values())))
    texts = tuple(name.strip() for name in text_columns.split(",")) if text_columns else ()
    if len(texts) > 1:
        raise DataError(f"Text is written from one column, and {len(texts)} were named: {', '.join(texts)}.")
    label = choose_label(first, label_column, texts, origin, notes, TARGETS) if with_targets else ""
    columns = choose_texts(first, texts, label, origin, notes, SOURCES, ())
    wanted = (*columns, label) if with_targets else columns
    if with_targets:
        splits = without_hidden_labels(splits, label, notes)
    for name, split in splits.items():
        whose = f"the {name} split of {origin}"
        require_kinds(split, wanted, wanted[-1], whose)
        plain = split.select_columns(list(wanted))
        refuse_empty(plain, wanted[:-1], wanted[-1], whose)
        splits[name] = plain.rename_column(label, LABEL) if label not in ("", LABEL) else plain
    return Splits(with_validation(splits, columns, need_train, notes), columns, origin, tuple(notes))

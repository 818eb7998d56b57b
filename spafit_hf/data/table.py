"""One file of rows -> one `datasets.Dataset`, with every cell as it stands in the file.

    reviews.csv     text,label        .csv  .tsv     every cell is a string: "NA", "null" and "01" stay what they are
    reviews.jsonl   {"text": ...}     .json .jsonl   one object per line, or one list of objects
    reviews.parquet                   .parquet       typed; ClassLabel names written by `datasets` survive

Nothing is guessed and no row is dropped here: a row that does not fit the header is an error that names its line.
A parquet column of a type that `datasets` does not know is left out, and that is said.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
LONGEST_FIELD = 2**31 - 1  # the csv module keeps its limit in a C long, which has 32 bits on Windows
_field_limit_lock = threading.Lock()


class DataError(ValueError):
    """Data that cannot be used as it is: the message says what was found, what is allowed and what to change."""


def read_table(path: str | Path, *, quoting: bool | None = None, notes: list[str] | None = None) -> Dataset:
    """Read one local file of rows.

    Args:
        path: a `.csv`, `.tsv`, `.json`, `.jsonl` or `.parquet` file; text is UTF-8 (a byte order mark is skipped).
        quoting: how `"` is read in CSV and TSV. True: as RFC 4180 quotes. False: as a plain character, one row per
            line (GLUE's own TSV files). None: as quotes, except in a TSV that only makes sense without them.
        notes: receives a sentence for each parquet column of a type that a `Dataset` cannot hold (a map), which is
            left out. None: they go to the log as warnings.

    Returns:
        The rows, in file order. CSV and TSV columns are all strings; columns of JSON and parquet keep their types.

    Raises:
        DataError: no such file, another suffix, another encoding, no rows, or a row that does not fit the others.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"There is no file '{path}'. Give the path of a {', '.join(SUFFIXES)} file.")
    suffix = file.suffix.lower()
    try:
        if suffix == ".csv":
            columns = _delimited(file, ",", True if quoting is None else quoting)
        elif suffix == ".tsv":
            columns = _tabbed(file, quoting)
        elif suffix in (".json", ".jsonl"):
            columns = _json(file)
        elif suffix == ".parquet":
            return _parquet(file, notes)
        else:
            raise DataError(
                f"'{path}' ends in '{file.suffix}'; files of rows end in {', '.join(SUFFIXES)}. Convert or rename it."
            )
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{path}' is not UTF-8 (byte {error.start}: {error.reason}). Save it as UTF-8, for instance with "
            f"`iconv -f latin1 -t utf-8`."
        ) from error
    return _dataset(file, columns)


def require_columns(dataset: Dataset, columns: Iterable[str], whose: str) -> None:
    """Raise DataError, with the columns there are, unless `dataset` has all of `columns`."""
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise DataError(
            f"{whose} has no column {' or '.join(repr(name) for name in missing)}; it has "
            f"{', '.join(dataset.column_names)}. Name the columns to use."
        )


def _dataset(file: Path, columns: dict[str, list[Any]]) -> Dataset:
    import pyarrow
    from datasets import Dataset

    if not columns or not next(iter(columns.values())):
        raise DataError(f"'{file}' holds no rows. Give a file with a header and at least one row.")
    for name, values in columns.items():
        try:
            pyarrow.array([name])
            pyarrow.array(values)
        except (OverflowError, UnicodeEncodeError) as error:
            row = next((number for number, value in enumerate(values, start=1) if not _storable(value)), None)
            where = f"Row {row}, column" if row else "Column"
            raise DataError(
                f"{where} {name!r} of '{file}' cannot be stored ({error}). Integers of 64 bits and text that is valid "
                f"UTF-8 are allowed: write longer numbers as strings, and leave out halves of surrogate pairs."
            ) from error
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise DataError(
                f"Column '{name}' of '{file}' mixes types ({error}). Give all its rows one type."
            ) from error
    return Dataset.from_dict(columns)


def _storable(value: Any) -> bool:
    import pyarrow

    try:
        pyarrow.array([value])
    except (OverflowError, UnicodeEncodeError):
        return False
    return True


def _parquet(file: Path, notes: list[str] | None) -> Dataset:
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset, Features

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"'{file}' is not a readable parquet file ({error}). Fetch or write it again.") from error
    if not table.num_rows:
        raise DataError(f"'{file}' holds no rows. Give a file with at least one row.")
    usable = []
    for index, field in enumerate(table.schema):
        try:
            Features.from_arrow_schema(pyarrow.schema([field]))
            usable.append(index)
        except ValueError:
            note = f"Column '{field.name}' of '{file}' holds {field.type}, which cannot be used, and is left out."
            if notes is None:
                logger.warning(note)
            else:
                notes.append(note)
    if not usable:
        raise DataError(f"'{file}' has no column that can be used. Give columns of text, numbers or lists of them.")
    try:
        return Dataset(table.select(usable))
    except ValueError as error:
        raise DataError(
            f"'{file}' cannot be used as a dataset ({error}). Write it again with plain columns."
        ) from error


def _tabbed(file: Path, quoting: bool | None) -> dict[str, list[Any]]:
    """TSV comes in two dialects; a stray `"` read as a quote would silently swallow lines, so look before choosing."""
    if quoting is not None:
        return _delimited(file, "\t", quoting)
    try:
        quoted = _delimited(file, "\t", True)
    except DataError:
        return _delimited(file, "\t", False)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        line_count = sum(bool(line.strip("\r\n")) for line in lines)
    if line_count - 1 == len(next(iter(quoted.values()), [])):
        return quoted
    try:  # some quoted field spans lines: meant so only if the lines do not fit the header one by one
        return _delimited(file, "\t", False)
    except DataError:
        return quoted


def _delimited(file: Path, delimiter: str, quoting: bool) -> dict[str, list[Any]]:
    dialect: dict[str, Any] = {"delimiter": delimiter, "strict": quoting}
    dialect["quoting"] = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    with file.open(encoding="utf-8-sig", newline="") as lines, _long_fields():
        reader = csv.reader(lines, **dialect)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise DataError(f"The header of '{file}' repeats a column: {', '.join(header)}. Rename one of them.")
            rows = []
            for row in reader:
                if not row:  # a blank line, as at the end of many files
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"Line {reader.line_num} of '{file}' has {len(row)} fields, its header has {len(header)} "
                        f"({', '.join(header)}). Quote fields that hold the separator, or mend the line."
                    )
                rows.append(row)
        except csv.Error as error:
            raise DataError(
                f"'{file}' cannot be read near line {reader.line_num} ({error}). If its quotes are plain characters, "
                f"pass quoting=False; otherwise close the quote."
            ) from error
    return {name: [row[index] for row in rows] for index, name in enumerate(header)}


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Lift the csv module's limit of 131072 characters per field, which holds for the whole process, for a while."""
    with _field_limit_lock:
        before = csv.field_size_limit(LONGEST_FIELD)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _json(file: Path) -> dict[str, list[Any]]:
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:  # not only JSONDecodeError: an integer of thousands of digits too
            raise DataError(f"'{file}' is not valid JSON: {error}.") from error
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise DataError(
                        f"Line {number} of '{file}' is not a JSON object ({getattr(error, 'msg', error)}). Allowed: "
                        f"one object per line, or one list of objects."
                    ) from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"Row {number} of '{file}' is a {type(row).__name__}, not an object with columns. Allowed: one object "
                f"per line, or one list of objects."
            )
    names = dict.fromkeys(name for row in rows for name in row)  # every key of every row, in order of appearance
    return {name: [row.get(name) for row in rows] for name in names}

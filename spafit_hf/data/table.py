"""One file of rows -> one `datasets.Dataset`, with every cell as it stands in the file.

    reviews.csv     text,label        .csv  .tsv     every cell is a string: "NA", "null" and "01" stay what they are
    reviews.jsonl   {"text": ...}     .json .jsonl   one object per line, or one list of objects
    reviews.parquet                   .parquet       typed; ClassLabel names written by `datasets` survive
    essays.txt                        .txt           a text per line, in the column text; blank lines are none

Nothing is guessed and no row is dropped here: a row that does not fit the header is an error that names its line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spafit_hf.strategy.reading import no_duplicates

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
LONGEST_FIELD = 2**31 - 1  # the csv module keeps its limit in a C long, which has 32 bits on Windows


class DataError(ValueError):
    """Data that cannot be used as it is: the message says what was found, what is allowed and what to change."""


def read_table(path: str | Path) -> Dataset:
    """Read one local file of rows.

    Args:
        path: a `.csv`, `.tsv`, `.json`, `.jsonl`, `.parquet` or `.txt` file; text is UTF-8 (a byte order mark is
            skipped). In CSV `"` quotes as in RFC 4180; in a TSV that only makes sense without quotes it is a plain
            character, one row per line (GLUE's own files).

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
            columns = _delimited(file, ",")
        elif suffix == ".tsv":
            columns = _tabbed(file)
        elif suffix in (".json", ".jsonl"):
            columns = _json(file)
        elif suffix == ".parquet":
            return _parquet(file)
        elif suffix == ".txt":
            lines = file.read_text(encoding="utf-8-sig").split("\n")
            columns = {"text": [line for line in lines if line.strip()]}
        else:
            raise DataError(
                f"'{path}' ends in '{file.suffix}'; files of rows end in {', '.join(SUFFIXES)}. Convert or rename it."
            )
    except UnicodeDecodeError as error:
        encoding = "utf-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        raise DataError(
            f"'{path}' is not UTF-8 (byte {error.start}: {error.reason}). Save it as UTF-8, for instance with "
            f"`iconv -f {encoding} -t utf-8`."
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

    if not any(columns.values()):
        raise DataError(f"'{file}' holds no rows. Give a file with a header and at least one row.")
    arrays = {}
    for name, values in columns.items():
        try:
            pyarrow.array([name])
            arrays[name] = pyarrow.array(values)
        except (OverflowError, UnicodeEncodeError, pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise DataError(
                f"Column {name!r} of '{file}' mixes types or cannot be stored ({error}). Give all its rows one type; "
                f"integers of 64 bits and text that is valid UTF-8 are allowed."
            ) from error
    return Dataset(pyarrow.table(arrays))


def _parquet(file: Path) -> Dataset:
    import pyarrow.parquet
    from datasets import Dataset

    try:
        dataset = Dataset(pyarrow.parquet.read_table(file))
    except (OSError, ValueError) as error:
        raise DataError(
            f"'{file}' is not a readable parquet file of plain columns ({error}). Write it again with columns of "
            f"text, numbers or lists of them."
        ) from error
    if not dataset.num_rows:
        raise DataError(f"'{file}' holds no rows. Give a file with at least one row.")
    return dataset


def _tabbed(file: Path) -> dict[str, list[Any]]:
    """TSV comes in two dialects; a stray `"` read as a quote would silently swallow lines, so look before choosing."""
    try:
        plain = _delimited(file, "\t", quoted=False)
    except DataError:
        return _delimited(file, "\t")
    try:
        quoted = _delimited(file, "\t")
    except DataError:
        return plain
    # Some quoted field spans lines where the counts differ; here each of these lines fits the header by itself.
    counts = {len(next(iter(columns.values()), ())) for columns in (plain, quoted)}
    return quoted if len(counts) == 1 else plain


def _delimited(file: Path, delimiter: str, *, quoted: bool = True) -> dict[str, list[Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=quoted, quotechar='"' if quoted else None)
        limit = csv.field_size_limit(LONGEST_FIELD)  # the whole process's: 131072 characters by default
        try:
            rows = [(reader.line_num, row) for row in reader if row]  # no blank lines, as at the end of many files
        except csv.Error as error:
            raise DataError(
                f"'{file}' cannot be read near line {reader.line_num} ({error}). Close the quote, or double each "
                f"quote that is a plain character."
            ) from error
        finally:
            csv.field_size_limit(limit)
    header = rows[0][1] if rows else []
    other = max(SEPARATORS, key=header[0].count) if len(header) == 1 else delimiter
    if other != delimiter and other in header[0]:  # spreadsheets write semicolons where the comma is for decimals
        raise DataError(
            f"The header of '{file}' is {header[0]!r}: its columns are separated by {SEPARATORS[other]}. Save it with "
            f"{SEPARATORS[delimiter]}, quoting fields that hold one."
        )
    if len(set(header)) != len(header):
        raise DataError(f"The header of '{file}' repeats a column: {', '.join(header)}. Rename one of them.")
    for number, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"Line {number} of '{file}' has {len(row)} fields, its header has {len(header)} "
                f"({', '.join(header)}). Quote fields that hold the separator, or mend the line."
            )
    return {name: [row[index] for _, row in rows[1:]] for index, name in enumerate(header)}


def _json(file: Path) -> dict[str, list[Any]]:
    text = file.read_text(encoding="utf-8-sig")
    one_list = text.lstrip().startswith("[")
    allowed = "Allowed: one object per line, or one list of objects."
    rows: list[Any] = []
    for number, part in enumerate([text] if one_list else text.split("\n"), start=1):
        if part.strip():
            try:
                found = json.loads(part, object_pairs_hook=no_duplicates)
            except ValueError as error:  # not only JSONDecodeError: an integer of thousands of digits, a key twice
                where = (
                    f"'{file}' is not valid JSON" if one_list else f"Line {number} of '{file}' is not a JSON object"
                )
                raise DataError(f"{where} ({getattr(error, 'msg', error)}). {allowed}") from error
            rows += found if one_list else [found]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"Row {number} of '{file}' is a {type(row).__name__}, not an object with columns. {allowed}"
            )
    if len(rows) == 1 and rows[0] and all(isinstance(cell, (dict, list)) for cell in rows[0].values()):
        first, more = [*rows[0]][:3], ", ..." if len(rows[0]) > 3 else ""
        raise DataError(
            f"'{file}' holds one object, of {', '.join(first)}{more}, and no object for each row. {allowed} In pandas "
            f'that is to_json(..., orient="records", lines=True).'
        )
    names = dict.fromkeys(name for row in rows for name in row)  # every key of every row, in order of appearance
    return {name: [row.get(name) for row in rows] for name in names}

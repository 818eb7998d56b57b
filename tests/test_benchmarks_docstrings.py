"""Rows from source code: the words of a function, the first line of its docstring, packages apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.docstrings import HELD_OUT, baselines, digest, functions, rows_of

SOURCE = '''
def readFile(self, path, encoding):
    """Read the whole of a file.

    More is said here.
    """
    with open(path, encoding=encoding) as file:
        return file.read()

def short(path):
    """Read the whole of it."""
    return path

def marked(path, encoding, file):
    """Read `path` as a whole file."""
    return open(path, encoding=encoding).read(len(file))
'''


def test_a_function_is_its_words_and_a_line() -> None:
    words = "read file path encoding with open path encoding encoding as file return file read"
    assert list(functions(SOURCE)) == [(words, "Read the whole of a file.")]


def test_no_package_is_on_both_sides_and_no_line_twice(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"p{number}").mkdir()
        own = SOURCE.replace("a file", f"file {number}").replace("readFile", f"read{number}")
        (tmp_path / f"p{number}" / "a.py").write_text(own + own.replace(f"read{number}", "again"))
    found = rows_of([tmp_path])
    held = {number for number in range(40) if int(digest(f"p{number}"), 16) % HELD_OUT == 0}
    lines = {split: {int(row["summary"].split()[-1][:-1]) for row in rows} for split, rows in found.items()}
    assert lines == {"validation": held, "train": set(range(40)) - held}
    assert sum(map(len, found.values())) == 40


def test_what_this_python_cannot_read_is_left_out() -> None:
    assert list(functions("def f[T](a): ...\n!")) == []


def test_what_learns_nothing_is_scored() -> None:
    rows = [{"text": "read file path", "summary": "Read the file."}, {"text": "x", "summary": "Nothing of it."}]
    scores = baselines(rows[:1], rows)
    assert scores["'Read the file.'"]["rougeL"] == pytest.approx(0.5)  # the first row's own, and none of the second's
    assert scores["the first words"]["rougeL"] == pytest.approx((2 * 2 / 6) / 2)

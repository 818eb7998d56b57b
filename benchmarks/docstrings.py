"""Functions that are installed and the first lines of their docstrings: text to learn to summarize.

    python -m benchmarks.docstrings out --train-rows 8000     writes out/train.jsonl and out/validation.jsonl

The packages of constraints.txt and Python's standard library; with `--standard-library` the latter alone. It prints
what two ways score that learn nothing: a copy of the first words, and one line for all.

A row has the words of a function's name, arguments and body in `text`, without its docstring, and in `summary` the
docstring's first line. Whole packages are held out: no package has rows in both files.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from spafit_hf.data.rouge import mean_rouge, rouge

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
WORDS_OF_BODY, WORDS_OF_LINE = range(12, 400), range(4, 15)
WORDS_COPIED, LINES_TRIED = 8, 1000
HELD_OUT = 8
"""One package in so many is for validation."""


def functions(source: str) -> Iterator[tuple[str, str]]:
    """The words of each function with a docstring in a module's source, and the docstring's first line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of others' escapes
        try:
            tree = ast.parse(source)
        except SyntaxError:  # a template, or written for a Python of another version
            return
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or (text := ast.get_docstring(node)) is None:
            continue
        line = text.strip().partition("\n")[0].strip()
        names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "cls")]
        words = WORD.findall(" ".join([node.name, *names, ast.unparse(ast.Module(node.body[1:], []))]))
        plain = re.fullmatch(r"[A-Z][\w ,'-]*\.", line, re.ASCII)
        if plain and len(line.split()) in WORDS_OF_LINE and len(words) in WORDS_OF_BODY:
            yield " ".join(words).lower(), line


def digest(text: str) -> str:
    """A number for a text that depends on nothing else."""
    return hashlib.sha256(text.encode()).hexdigest()


def rows_of(folders: list[Path]) -> dict[str, list[dict[str, str]]]:
    """Rows of each split, in an order that is the same for the same files."""
    found: dict[str, dict[str, dict[str, str]]] = {"train": {}, "validation": {}}
    seen: set[str] = set()
    for folder, path in ((each, path) for each in folders for path in sorted(each.rglob("*.py"))):
        inside = path.relative_to(folder).parts
        package = inside[0]
        if {"site-packages", "test", "tests", "idle_test"} & {*inside}:
            continue
        split = "validation" if int(digest(package), 16) % HELD_OUT == 0 else "train"
        for text, summary in functions(path.read_text(encoding="utf-8")):
            if not {text, summary} & seen:  # a line that many functions share would be learned by heart
                seen |= {text, summary}
                found[split][digest(text)] = {"text": text, "summary": summary}
    return {split: [rows[key] for key in sorted(rows)] for split, rows in found.items()}


def baselines(train: list[dict[str, str]], validation: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """ROUGE of the first `WORDS_COPIED` words, and of the line of `LINES_TRIED` that scores highest on these rows."""
    wanted = [row["summary"] for row in validation]
    copied = mean_rouge([" ".join(row["text"].split()[:WORDS_COPIED]) for row in validation], wanted)
    lines = [row["summary"] for row in train[:LINES_TRIED]]
    best = max(lines, key=lambda line: sum(rouge(line, each)["rougeL"] for each in wanted), default="")
    return {"the first words": copied, repr(best): mean_rouge([best] * len(wanted), wanted)}


def main(argv: list[str] | None = None) -> None:
    """Write the two files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.docstrings", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train-rows", type=int, default=8000)
    parser.add_argument("--validation-rows", type=int, default=200)
    parser.add_argument("--standard-library", action="store_true", help="without what is installed beside it")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    names = ("stdlib",) if args.standard_library else ("stdlib", "purelib")
    rows = rows_of([Path(sysconfig.get_path(name)) for name in names])
    for split, wanted in (("train", args.train_rows), ("validation", args.validation_rows)):
        file = args.folder / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[split][:wanted]), encoding="utf-8")
        print(f"{file}: {min(wanted, len(rows[split])):,} of {len(rows[split]):,} rows")
    for name, scores in baselines(rows["train"], rows["validation"][: args.validation_rows]).items():
        print(f"{name}: " + ", ".join(f"{figure} {score:.3f}" for figure, score in scores.items()))


if __name__ == "__main__":
    main()

"""spafit predict: ask one adapter or several about texts, or let one write."""

from __future__ import annotations

import argparse
import codecs
import json
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spafit_hf.files import check_file
from spafit_hf.words import printable

if TYPE_CHECKING:
    from spafit_hf.predictor import Prediction, SpafitPredictor

EPILOG = """\
Texts come from --text, from a file of JSON lines, or one per line from stdin. A JSON line is {"text": "..."} or, for
pairs, {"text": ["...", "..."]}; "adapter" in it names the adapter to ask, and what else it holds is passed on. Rows
that name no adapter go to all that were trained on such texts. An adapter is called by the last part of its folder,
or as in name=folder. One that was trained to write text is asked alone, and may be the folder of a plain model.

examples:
  spafit predict runs/sst2 --text "A fine film."
  spafit predict runs/mrpc --text "It rains." --text_pair "It is raining."
  spafit predict runs/* --base embedded --file rows.jsonl --output answers.jsonl
  spafit predict user/bert-large-sst2-spafit --json < sentences.txt
  spafit predict runs/news --file articles.jsonl --generation_num_beams 4
"""

TEXT, ADAPTER = "text", "adapter"
ANSWERS = ("label", "scores", "value", "written", "truncated")

#: Rows that are answered at a time, so that a long file's first answers are there early.
ROWS_AT_A_TIME = 512


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `predict`; `run` carries it out."""
    parser = subparsers.add_parser(
        "predict",
        help="ask adapters about texts",
        description="Ask one adapter or several on one base about texts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help="adapter folder or repository, or name=folder")
    parser.add_argument("--base", help="the base, if not the one that the first adapter names; or embedded")
    parser.add_argument("--text", action="append", help="a text; may be given again")
    parser.add_argument("--text_pair", action="append", help="the second text of a pair, for each --text")
    parser.add_argument("--file", help="file of JSON lines; - for JSON lines on stdin")
    parser.add_argument("--output", type=Path, help="write JSON lines to this file")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument("--max_length", type=int, help="tokens per text or pair (default: what the base reads)")
    parser.add_argument("--max_target_length", type=int, help="tokens of what is written (default: 64)")
    parser.add_argument("--generation_num_beams", type=int, help="beams of the search (default: the model's)")
    parser.add_argument("--batch_size", type=int, default=32, help="rows per batch (default: 32)")
    parser.add_argument("--max_adapter_bytes", type=int, help="limit of adapters in memory; others wait on the disk")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Answer and print."""
    sources = named(args.folders)
    if args.output:
        check_file(args.output, args.file)
    rows = list(_read(args))  # wrong rows are found before a model is loaded
    if not rows:
        raise ValueError("there are no texts; give --text, --file, or lines on stdin.")
    answers = _written(args, sources, rows) if _writes(args, sources) else _answers(args, sources, rows)
    answers = chain([next(answers)], answers)  # with the first one all is loaded, and a file may be overwritten
    answered = truncated = 0
    # Halves of surrogate pairs are escaped, as JSON has them: no output takes them as they are.
    writing = {"encoding": "utf-8", "errors": "backslashreplace"}
    unicode = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    with ExitStack() as stack:
        output = stack.enter_context(args.output.open("w", **writing)) if args.output else None
        for answer, shown in answers:
            answered, truncated = answered + 1, truncated + answer["truncated"]
            if output is not None:
                output.write(json.dumps(answer, ensure_ascii=False) + "\n")
            if args.json:
                print(json.dumps(answer, ensure_ascii=not unicode))
            elif output is None:
                print(shown)
    if truncated:
        print(f"Texts that were too long for the base and lost their end: {truncated} of {answered}.", file=sys.stderr)


def _answers(
    args: argparse.Namespace, sources: dict[str, str], rows: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows with what adapters say of them, and the same for the terminal."""
    predictor = _load(args, sources)
    asked = set[str]()
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        some = [(row, name) for row in rows[start : start + ROWS_AT_A_TIME] for name in _adapters(predictor, row)]
        answers = predictor.predict([row[TEXT] for row, _ in some], [name for _, name in some])
        for (row, _), answer in zip(some, answers, strict=True):
            asked.add(answer.adapter)
            yield {**row, **answer.to_dict()}, _shown(row, answer, len(sources) > 1)
    left = [name for name in sources if name not in asked]
    if left and any(ADAPTER not in row for row in rows):
        kind = "pairs" if predictor.facts(left[0]).texts == 2 else "single texts"
        print(f"Adapters that were not asked, since there are no {kind} here: {', '.join(left)}.", file=sys.stderr)


def _writes(args: argparse.Namespace, sources: dict[str, str]) -> bool:
    """Whether the first folder was trained to write text."""
    from spafit_hf.run.base import task_type_in

    name, source = next(iter(sources.items()))
    writes = task_type_in(source) in ("SEQ_2_SEQ_LM", "CAUSAL_LM")
    if writes and len(sources) > 1:
        raise ValueError(f"{name!r} writes text, and is asked alone; give one folder.")
    if not writes and (args.max_target_length or args.generation_num_beams):
        raise ValueError(f"{name!r} writes no text; leave out --max_target_length and --generation_num_beams.")
    return writes


def _written(
    args: argparse.Namespace, sources: dict[str, str], rows: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows with what is written of them, and the same for the terminal."""
    from spafit_hf.predictor.writer import load_writer, write
    from spafit_hf.run.progress import quiet

    if args.batch_size < 1:
        raise ValueError(f"--batch_size is {args.batch_size}; it must be at least 1.")
    ((name, source),) = sources.items()
    for row in rows:
        if not isinstance(row[TEXT], str):
            raise ValueError(f"{row[TEXT]!r:.60} is a pair; {name!r} reads single texts.")
        if row.get(ADAPTER, name) != name:
            raise ValueError(f"a row names the adapter {row[ADAPTER]!r}, and here is {name!r}.")
    with quiet():
        model, tokenizer = load_writer(args.base, source)
    settings = {"max_target_length": args.max_target_length, "max_length": args.max_length}
    for start in range(0, len(rows), args.batch_size):
        some = rows[start : start + args.batch_size]
        texts = [row[TEXT] for row in some]
        found = write(model, tokenizer, texts, num_beams=args.generation_num_beams, **settings)
        for row, answer in zip(some, found, strict=True):
            cut = " (its end was cut off)" if answer.truncated else ""
            shown = f"{printable(answer.text)}\t{row[TEXT]}{cut}"
            yield {**row, "written": answer.text, "truncated": answer.truncated}, shown


def named(folders: list[str]) -> dict[str, str]:
    """Name -> folder or repository, of arguments that are `FOLDER` or `name=FOLDER`."""
    named: dict[str, str] = {}
    for folder in folders:
        name, _, source = folder.partition("=")
        if not source or Path(folder).exists():
            source = folder
            name = Path(folder).resolve().name if Path(folder).is_dir() else folder.split("/")[-1]
        if name in named:
            raise ValueError(f"two adapters would be called {name!r}; name them: first=FOLDER second=FOLDER.")
        named[name] = source
    return named


def _load(args: argparse.Namespace, sources: dict[str, str]) -> SpafitPredictor:
    # Imported here so that `spafit --help` does not wait for torch.
    from spafit_hf.adapter import verify_adapter
    from spafit_hf.adapter.load import local_folder
    from spafit_hf.names import is_hub_id
    from spafit_hf.predictor import SpafitPredictor
    from spafit_hf.predictor.memory import keep_freed_memory

    keep_freed_memory()
    base, revision = args.base, None
    if base is None:
        source = next(iter(sources.values()))
        facts = verify_adapter(local_folder(source)).base
        base, revision = facts.name_or_path, facts.revision
        if base is None:
            raise ValueError(f"{source} does not name its base; give it: --base FOLDER.")
        if not is_hub_id(base) and not Path(base).is_dir():
            raise ValueError(f"{source} was trained on the base in {base}, which is not here; give it: --base FOLDER.")
        revision = None if Path(base).is_dir() else revision
    predictor = SpafitPredictor(
        base,
        revision=revision,
        max_length=args.max_length,
        batch_size=args.batch_size,
        max_adapter_bytes=args.max_adapter_bytes,
    )
    for name, source in sources.items():
        predictor.add(source, name)
    return predictor


def _read(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if args.text_pair and len(args.text_pair) != len(args.text or []):
        raise ValueError(f"there are {len(args.text or [])} --text and {len(args.text_pair)} --text_pair; pair them.")
    if args.text and args.file:
        raise ValueError("--text and --file were both given; give one of them.")
    if args.text:
        texts = zip(args.text, args.text_pair, strict=True) if args.text_pair else args.text
        yield from ({TEXT: text} for text in texts)
        return
    if args.file is None and sys.stdin.isatty():
        raise ValueError("there are no texts; give --text, --file, or lines on stdin.")
    piped = args.file in (None, "-")
    # As bytes: what sys.stdin makes of bytes that are no text depends on the locale.
    stdin: Any = nullcontext(getattr(sys.stdin, "buffer", sys.stdin))
    with stdin if piped else Path(args.file).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"line {number} of {'stdin' if piped else args.file}"
            try:
                text = line if isinstance(line, str) else line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where} is not UTF-8; save the text as UTF-8.") from error
            if number == 1:
                text = text.removeprefix("\ufeff")  # a mark that some editors begin a file with
            if args.file:
                yield _row(text, where)
            elif text.strip():
                yield {TEXT: text.rstrip("\r\n")}
            else:
                raise ValueError(f"{where} is empty; each line must hold a text.")


def _row(line: str, where: str) -> dict[str, Any]:
    """What a JSON line holds, its text or pair checked."""
    try:
        row = json.loads(line, parse_constant=_no_number, parse_float=_finite)
    except ValueError as error:  # also of an integer of thousands of digits, which has no msg
        reason = getattr(error, "msg", error)
        raise ValueError(f'{where} is not JSON ({reason}); expected is {{"text": "..."}}.') from error
    except RecursionError as error:
        raise ValueError(f'{where} is nested too deeply; expected is {{"text": "..."}}.') from error
    if not isinstance(row, dict) or TEXT not in row:
        raise ValueError(f'{where} has no "text"; expected is {{"text": "..."}} or {{"text": ["...", "..."]}}.')
    pair = not isinstance(row[TEXT], str)
    texts = row[TEXT] if pair else [row[TEXT]]
    if not isinstance(texts, list) or (pair and len(texts) != 2) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f'{where}: "text" must be a string or a list of two strings.')
    if not all(text.strip() for text in texts):
        raise ValueError(f"{where} has an empty text; give it at least one word.")
    if not isinstance(row.get(ADAPTER, ""), str):
        raise ValueError(f'{where}: "adapter" must be the name of an adapter.')
    taken = [key for key in ANSWERS if key in row]
    if taken:
        raise ValueError(f"{where} has {taken[0]!r}, which the answer would overwrite; rename it.")
    return {**row, TEXT: tuple(texts) if pair else row[TEXT]}


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _finite(word: str) -> float:
    number = float(word)
    return number if math.isfinite(number) else _no_number(word)


def _adapters(predictor: SpafitPredictor, row: dict[str, Any]) -> tuple[str, ...]:
    """Names of the adapters that a row goes to."""
    fitting = predictor.fitting(row[TEXT])
    kind = "a single text" if isinstance(row[TEXT], str) else "a pair"
    if ADAPTER not in row:
        if not fitting:
            raise ValueError(f"{row[TEXT]!r:.60} is {kind}, and no adapter here was trained on such texts.")
        return fitting
    name = predictor.facts(row[ADAPTER]).name
    if name not in fitting:
        wanted = "single texts" if kind == "a pair" else "pairs"
        raise ValueError(f"{row[TEXT]!r:.60} is {kind}; {name!r} was trained on {wanted}.")
    return (name,)


def _shown(row: dict[str, Any], answer: Prediction, several: bool) -> str:
    text = row[TEXT] if isinstance(row[TEXT], str) else " | ".join(row[TEXT])
    best = "" if answer.scores is None else f"{printable(str(answer.label))} {max(answer.scores.values()):.3f}"
    verdict = best or f"{answer.value:.3f}"
    name = f"{answer.adapter}\t" if several else ""
    return f"{name}{verdict}\t{text}{' (its end was cut off)' if answer.truncated else ''}"

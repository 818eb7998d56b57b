"""Numbers and names as a reader sees them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

ROLE_WORDS = {
    "query": "query", "key": "key", "value": "value",
    "attention_output": "attention output", "attention_norm": "attention norm",
    "intermediate": "feed-forward in", "output": "feed-forward out", "output_norm": "feed-forward norm",
    "cross_query": "cross query", "cross_key": "cross key", "cross_value": "cross value",
    "cross_attention_output": "cross attention output", "cross_attention_norm": "cross attention norm",
    "mixer_in": "mixer in", "mixer_out": "mixer out", "experts": "experts",
}  # fmt: skip

FIGURE_WORDS = {
    "accuracy": "Accuracy", "f1": "F1", "matthews_correlation": "Matthews correlation", "pearson": "Pearson",
    "pearsonr": "Pearson", "spearmanr": "Spearman", "mse": "Mean squared error", "mae": "Mean absolute error",
    "rmse": "Root mean squared error", "perplexity": "Perplexity", "loss": "Loss", "eval_loss": "Loss",
    "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L",
}  # fmt: skip

#: Our name of a figure -> the Hub's id of the metric, where they differ.
METRIC_IDS = {"pearson": "pearsonr", "spearman": "spearmanr", "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge"}

#: Endings of the names of what is no figure, but says how sure one is: the ends of a 95 % interval, a standard error.
SPREADS = {"_ci_low": ", 95 % from", "_ci_high": ", 95 % to", "_se": ", standard error"}


def method_title(method: str) -> str:
    """A strategy's name as the paper prints it: SPAFIT-4-9-II, Full BitFit, Full LoRA-I."""
    if method.lower().startswith("spafit-"):
        return "SPAFIT-" + method[len("spafit-") :]
    return {
        "full": "full fine-tuning",
        "bitfit": "BitFit",
        "lora-I": "LoRA-I",
        "lora-II": "LoRA-II",
        "linear-probe": "linear probing",
        "series-adapter": "series adapters",
        "parallel-adapter": "parallel adapters",
        "custom": "strata of its own",
    }.get(method, method)


def share(part: int, whole: int) -> str:
    """A percentage with three figures: 2.24 %, 0.0831 %, 100 %."""
    percent = 100 * part / whole
    if percent >= 99.95:
        return f"{percent:.0f} %"
    digits = 2 if percent >= 1 else 3
    return f"{percent:.{digits}f} %" if percent >= 0.01 else f"{percent:.1g} %"


def size(value: int) -> str:
    """Bytes in decimal units, as the Hub shows them."""
    amount, units = float(value), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 999.5 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{amount:.0f} {units[0]}" if units[0] == "B" or amount >= 100 else f"{amount:.3g} {units[0]}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def figure(value: float) -> str:
    """A figure with four decimals; a large or tiny one with four significant digits."""
    return f"{value:.4f}" if 0.0005 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"


def figure_name(name: str) -> str:
    ending = next((ending for ending in SPREADS if name.endswith(ending)), "")
    name = name.removesuffix(ending)
    return FIGURE_WORDS.get(name, name.replace("_", " ")) + SPREADS.get(ending, "")


def is_spread(name: str) -> bool:
    """Whether a name is of how sure a figure is."""
    return name.endswith(tuple(SPREADS))


def listing(words: Sequence[str], last: str = "and") -> str:
    """a; a and b; a, b and c."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def listed(words: Iterable[str]) -> str:
    """a, b, c."""
    return ", ".join(words)


def spans(numbers: Iterable[int]) -> str:
    """Layer numbers, runs drawn together: 0 to 4, 7."""
    return listing([f"{first} to {last}" if first < last else str(first) for first, last in runs(numbers)])


def layers_text(layers: Iterable[int]) -> str:
    """Layer numbers in short: (3, 4, 5) is "3-5", (3,) is "3", (0, 1, 5) is "0-1,5", () is "none"."""
    return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in runs(layers)) or "none"


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """First and last number of each run: (0, 1, 5) is [(0, 1), (5, 5)]."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        first = found.pop()[0] if found and number == found[-1][1] + 1 else number
        found.append((first, number))
    return found


_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")


def one_line(text: object) -> str:
    """A stranger's words on one line, without control characters and marks that show letters in another order."""
    return _BLANKS.sub(" ", str(text)).strip()


_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]|~"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def plain(text: object) -> str:
    """A stranger's words, such as a label, as text that is neither Markdown nor HTML, on one line."""
    return one_line(text).translate(_MARKS)


def code(text: object) -> str:
    """The same as a code span that also fits into a cell of a table."""
    words = one_line(text).replace("|", "\\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall(r"`+", words)), default=0))
    pad = " " if "`" in words else ""
    return f"{ticks}{pad}{words}{pad}{ticks}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """A Markdown table; `align` has one of l, r, c per column."""
    marks = {"l": ":--", "r": "--:", "c": ":-:"}
    rule = [marks[letter] for letter in align or "l" * len(header)]
    lines = [header, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def printable(text: str) -> str:
    """Without what a terminal obeys or cannot show: control characters and halves of pairs, as Python escapes them."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def sentence(text: object, most: int = 1000) -> str:
    """A message for a terminal: one printable line, its middle left out where it is long."""
    words = str(text)
    if len(words) > most:
        words = f"{words[: most - 300]} ... {words[-300:]}"
    return printable(" ".join(words.split()))


class SpafitError(ValueError):
    """Something given that cannot be used: what was found, what is allowed, what to do, in one `sentence`."""

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


def first_line(error: BaseException) -> str:
    """What went wrong, as the start of the error says it; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """What a server or library says for itself: the last line holds the reason, those before it where it happened."""
    return next(iter(str(error).strip().splitlines()[::-1]), type(error).__name__).strip()

"""`python trial.py tokenizer.json`: a tokenizer on long texts, in a process that is ended where it takes too much.

It imports nothing of the package, so that its memory is the tokenizer's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

SECONDS = 5
"""Of computing."""
BYTES = 2 * 2**30
CHARACTERS = 20_000
"""Of a text."""


def limit() -> None:
    """Have the system end this process beyond the limits."""
    try:
        import resource
    except ImportError:  # Windows has none; there the caller's clock is the limit
        return
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def texts(words: list[str]) -> Iterator[str]:
    """Long texts: one word without end, many short ones, blanks, letters of all scripts, words of the vocabulary."""
    longest = [word for word in sorted(words, key=len, reverse=True)[:3] if word]
    scripts = "".join(map(chr, range(0x21, 0x2000)))
    for part in ("a", "a ", " ", "aB1. ", "\u00e9\u0301 ", "中文字", scripts, *longest):
        yield (part * (CHARACTERS // len(part) + 1))[:CHARACTERS]


def main(file: str) -> None:
    """Read the file, tokenize, and write it out again, which goes through every number up to a vocabulary's last."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    limit()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for text in texts(list(tokenizer.get_vocab())):
        json.dumps(tokenizer.encode(text).ids)
    tokenizer.encode("a text", "and another")
    tokenizer.to_str()


if __name__ == "__main__":
    main(sys.argv[1])

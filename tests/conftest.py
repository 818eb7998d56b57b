"""What every test shares: no network, one thread, a fixed seed, and where real data lies if it is there."""

from __future__ import annotations

import gc
import itertools
import os
from pathlib import Path

# Before anything imports huggingface_hub, which reads these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hub.fixtures import busy_hub, client, clients, ours, quiet, stock

__all__ = ["busy_hub", "client", "clients", "ours", "quiet", "stock"]

torch.set_num_threads(1)

GLUE_DIR = Path(os.environ.get("SPAFIT_GLUE_DIR", Path(__file__).parents[2] / "shared" / "glue"))
_tests = itertools.count()


def pytest_runtest_logstart() -> None:
    # What imports, caches and fixtures of a session left is here to stay. Looking through it took a run a seventh of
    # its time: accelerate collects garbage before each training.
    if next(_tests) % 10 == 0:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    # Not torch.manual_seed, which prints a stack for each kind of device that is not there.
    torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """The folder of real GLUE rows; tests that need it are skipped where it is absent."""
    if not GLUE_DIR.is_dir():
        pytest.skip(f"no GLUE rows at {GLUE_DIR} (set SPAFIT_GLUE_DIR to a folder of <task>/train.parquet)")
    return GLUE_DIR


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a tokenizer of a few words."""
    from reviews_run import write_base

    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences for it, with labels, as a CSV file."""
    from reviews_run import write_reviews

    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv")


@pytest.fixture(scope="session")
def trained(base_folder: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that `spafit train` has trained on them."""
    from reviews_run import train_flags

    from spafit_hf.cli import main

    output = tmp_path_factory.mktemp("runs") / "reviews"
    assert main(train_flags(base_folder, reviews, output)) == 0
    return output


@pytest.fixture(scope="session")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small GLUE tasks for it."""
    from reproduce_run import write_glue

    return write_glue(tmp_path_factory.mktemp("glue"))

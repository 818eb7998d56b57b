"""A launched Space on stand-in adapters, for every test here."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import stand_ins
from app import launch_options, queue_options
from spafit_space import service as service_module
from spafit_space.config import Config
from spafit_space.page import build
from spafit_space.service import Service
from stand_ins import Launched

from spafit_hf.adapter import AdapterError
from spafit_hf.hub import Pulled


@pytest.fixture(autouse=True)
def _no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of plain HTTP read none, for 25 ms each, where the environment names a file of them."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", os.path.dirname(__file__))


@pytest.fixture(scope="session")
def stand_in_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny base, and the folder of adapters for it."""
    return stand_ins.write_all(tmp_path_factory.mktemp("space"))


@pytest.fixture(scope="session")
def service(stand_in_folders: tuple[Path, Path]) -> Service:
    """The service on the stand-ins."""
    base, adapters = stand_in_folders
    return Service.start(Config(base=str(base), folder=adapters))


@pytest.fixture(scope="session")
def launched(service: Service) -> Iterator[Launched]:
    """The same, as a page on a free port of this machine."""
    with launch(service) as found:
        yield found


@pytest.fixture
def open_service(stand_in_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service that lets visitors add, with a Hub that is a folder."""
    base, adapters = stand_in_folders

    def fetch(repo_id: str, *, revision: str | None, token: bool, max_bytes: int) -> Pulled:
        assert token is False, "a visitor must not use the Space's token"
        assert max_bytes == 512 * 10**6
        folder = adapters / repo_id.split("/")[1]
        if not folder.is_dir():
            raise AdapterError(f"{repo_id} is no repository on the Hub.")
        return Pulled(folder, repo_id, "main", "0" * 40, ())

    monkeypatch.setattr(service_module, "fetch_adapter", fetch)
    return Service.start(Config(base=str(base), folder=None, allow_adding=True, max_added=2))


@pytest.fixture
def launched_open(open_service: Service) -> Iterator[Launched]:
    """A page without adapters, to which visitors may add some."""
    with launch(open_service) as found:
        yield found


@contextmanager
def launch(service: Service) -> Iterator[Launched]:
    """A page that listens on a free port, until the block ends."""
    page = build(service)
    page.queue(**queue_options(service))
    own = {"server_name": "127.0.0.1", "server_port": free_port(), "prevent_thread_lock": True, "quiet": True}
    _, url, _ = page.launch(**launch_options(service), **own)
    try:
        yield Launched(url, service)
    finally:
        page.close(verbose=False)


def free_port() -> int:
    """A port that nobody listens on: Gradio's own choice is the same for tests that run side by side."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])

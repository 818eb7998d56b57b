"""Fixtures for tests that talk to the loopback Hub; conftest.py has them for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hub.client import HubClient
from hub.server import HubServer


@pytest.fixture(scope="session")
def busy_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub that all tests share, each with repos of its own; `quiet` clears its record between them."""
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def quiet(busy_hub: HubServer) -> HubServer:
    busy_hub.forget()
    return busy_hub


@pytest.fixture(scope="session")
def client(busy_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    """A client that is nobody (calls pass their token) and has no xet."""
    made = HubClient(busy_hub.endpoint, tmp_path_factory.mktemp("home"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def ours(client: HubClient, busy_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> HubClient:
    """The same client, and tiny bases on the Hub for it: tiny/bert and language models."""
    folder = tmp_path_factory.mktemp("bases")
    client("from hub.runs import *; tiny_base(f'{folder}/bert'); tiny_language_models(folder)", folder=folder)
    for place in folder.iterdir():
        busy_hub.store.add_files(f"tiny/{place.name}", {path.name: path.read_bytes() for path in place.iterdir()})
    return client


@pytest.fixture(scope="session")
def stock(busy_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    """A client that never imports this package."""
    made = HubClient(busy_hub.endpoint, tmp_path_factory.mktemp("stock"), PYTHONPATH=None)
    yield made
    made.close()


@pytest.fixture
def clients(tmp_path: Path) -> Iterator[Callable[..., HubClient]]:
    """Makes clients with an environment of their own, closed after the test."""
    made: list[HubClient] = []

    def make(endpoint: str, **how: object) -> HubClient:
        made.append(HubClient(endpoint, tmp_path / f"home{len(made)}", **how))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()

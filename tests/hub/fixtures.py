"""Fixtures for tests that talk to the loopback Hub; import them by name: `from hub.fixtures import quiet, client`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hub.client import HubClient
from hub.server import HubServer


@pytest.fixture(scope="module")
def busy_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub that the tests of a module share, each with repos of its own; `quiet` clears its record between them."""
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def quiet(busy_hub: HubServer) -> HubServer:
    busy_hub.forget()
    return busy_hub


@pytest.fixture(scope="module")
def client(busy_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    """A client that is nobody (calls pass their token) and has no xet."""
    made = HubClient(busy_hub.endpoint, tmp_path_factory.mktemp("home"))
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

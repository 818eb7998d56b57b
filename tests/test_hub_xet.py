"""Pushing and pulling with hf_xet, which sends large files as chunks and never asks whether the Hub knows of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import HubClient, HubServer
from hub.folders import PUSHED, adapter_folder, safetensors_bytes
from hub.xet import lz4_frame, ungroup

pytest.importorskip("hf_xet", reason="hf_xet is not installed")

PUSH = """
from spafit_hf.hub import Patience, push_adapter
done = push_adapter(folder, repo, token=token, patience=Patience(first=0.01), **options)
result = dict(commit=done.commit, changed=done.changed, revision=done.revision)
"""


@pytest.fixture(scope="module")
def client(busy_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    made = HubClient(busy_hub.endpoint, tmp_path_factory.mktemp("home"), xet=True)
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of a megabyte: several chunks, some of which compress and some not."""
    place = adapter_folder(tmp_path / "run")
    noise = random.Random(tmp_path.name).randbytes(600_000)
    (place / "adapter_model.safetensors").write_bytes(
        safetensors_bytes({"a": ([250_000], noise + bytes(200_000) + noise[:200_000])})
    )
    return place


def push(client: HubClient, folder: Path, repo: str, token: str, **options: object) -> dict:
    return client(PUSH, folder=folder, repo=repo, token=token, options=options)


def test_up_and_down(quiet: HubServer, client: HubClient, folder: Path, tmp_path: Path) -> None:
    token = quiet.token("ann")
    done = push(client, folder, "ann/xet", token)
    assert quiet.requests("POST", "^/v1/xorbs/")
    assert quiet.requests("POST", "^/v1/shards")
    assert quiet.requests("PUT", "^/put/") == []
    files = quiet.store.files("ann/xet")
    assert {name: files[name] for name in PUSHED} == {name: (folder / name).read_bytes() for name in PUSHED}
    assert len(quiet.commits("ann/xet")) == 1
    got = {}
    for xet in (True, False):
        quiet.seen.clear()
        other = HubClient(quiet.endpoint, tmp_path / f"home-{xet}", xet=xet)
        pulled = other(
            "from spafit_hf.hub import pull_adapter; p = pull_adapter('ann/xet'); result = [str(p.folder), p.commit]"
        )
        other.close()
        assert pulled[1] == done["commit"]
        got[xet] = (Path(pulled[0]) / "adapter_model.safetensors").read_bytes()
        assert bool(quiet.requests("GET", "/reconstructions/")) is xet
        assert bool(quiet.requests("GET", "^/lfs/")) is not xet
    assert got[True] == got[False] == (folder / "adapter_model.safetensors").read_bytes()
    assert quiet.leaks == []
    assert not any(token.encode() in body for body in quiet.uploaded())


def test_again_sends_nothing_and_commits_nothing(quiet: HubServer, client: HubClient, folder: Path) -> None:
    token = quiet.token("ann")
    first = push(client, folder, "ann/xet-again", token)
    quiet.seen.clear()
    second = push(client, folder, "ann/xet-again", token)
    assert second["commit"] == first["commit"]
    assert not second["changed"]
    assert quiet.requests("POST", "/xorbs/") == []


def test_a_lost_answer_makes_no_second_commit(quiet: HubServer, client: HubClient, folder: Path) -> None:
    quiet.fail("lose", "POST", "/commit/")
    done = push(client, folder, "ann/xet-lost", quiet.token("ann"))
    assert [commit.oid for commit in quiet.commits("ann/xet-lost")] == [done["commit"]]


def test_a_push_whose_commit_failed_goes_on_without_sending_again(
    quiet: HubServer, client: HubClient, folder: Path
) -> None:
    quiet.fail("refuse", "POST", "/commit/", times=2)
    push(client, folder, "ann/xet-busy", quiet.token("ann"))
    assert len(quiet.requests("POST", "/v1/xorbs/")) == 1
    assert len(quiet.commits("ann/xet-busy")) == 1


def test_a_busy_storage(quiet: HubServer, client: HubClient, folder: Path) -> None:
    quiet.fail("refuse", "POST", "/v1/xorbs/", status=503)
    push(client, folder, "ann/xet-503", quiet.token("ann"))
    assert (
        quiet.store.files("ann/xet-503")["adapter_model.safetensors"]
        == (folder / "adapter_model.safetensors").read_bytes()
    )


def test_a_branch_and_a_pull_request(quiet: HubServer, client: HubClient, folder: Path) -> None:
    push(client, folder, "ann/xet-pr", quiet.token("ann"), revision="side")
    done = push(client, folder, "ann/xet-pr", quiet.token("ann"), create_pr=True)
    assert done["revision"] == "refs/pr/1"
    assert "adapter_model.safetensors" in quiet.store.files("ann/xet-pr", "refs/pr/1")


def test_unpacking() -> None:
    # "abcabcabcabcabcx" by hand: literals abc, a match of 12 three bytes back, the literal x.
    block = bytes([0x38]) + b"abc" + bytes([3, 0]) + bytes([0x10]) + b"x"
    frame = bytes.fromhex("04224d18 6040 82") + len(block).to_bytes(4, "little") + block + bytes(4)
    assert lz4_frame(frame) == b"abcabcabcabcabcx"
    assert ungroup(b"aebfcd") == b"abcdef"

"""What can go wrong during a push: nothing is lost, one commit, and one sentence that says what to do."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hub import ClientFailure, HubClient, HubServer
from hub.folders import PUSHED, adapter_folder, safetensors_bytes

SEEDS = itertools.count(100)

# huggingface_hub sleeps between its own tries; here nobody has to wait for that.
PUSH = """
import time
from unittest import mock
from spafit_hf.hub import Patience, push_adapter
slept = []
with mock.patch("time.sleep", slept.append):
    done = push_adapter(folder, repo, token=token, patience=Patience(tries=4, first=0.25), **options)
result = dict(commit=done.commit, changed=done.changed, revision=done.revision, slept=slept)
"""


def push(client: HubClient, folder: Path, repo: str, token: str | bool | None, **options: object) -> dict:
    return client(PUSH, folder=folder, repo=repo, token=token, options=options)


def failing(client: HubClient, folder: Path, repo: str, token: str | None, **options: object) -> str:
    """The sentence that a push fails with."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ClientFailure) as caught:
        push(client, folder, repo, token, **options)
    assert caught.value.kind[0] == "HubError", caught.value.trace
    said = caught.value.chain[0]
    assert "\n" not in said
    assert f"the adapter is in {folder}; push it later with `spafit push {folder}" in said
    assert token is None or token not in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return said


def failing_pull(client: HubClient, repo: str, **options: object) -> str:
    """The sentence that a pull fails with."""
    with pytest.raises(ClientFailure) as caught:
        client("from spafit_hf.hub import pull_adapter; pull_adapter(repo, **options)", repo=repo, options=options)
    assert caught.value.kind[0] == "HubError", caught.value.trace
    return caught.value.chain[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # Weights of its own in every test: what the Hub has already is not uploaded again.
    return adapter_folder(tmp_path / "run", seed=next(SEEDS))


@pytest.fixture
def repo(tmp_path: Path) -> str:
    return f"ann/{tmp_path.name.replace('_', '-')}"[:80].rstrip("-")


def arrived(hub: HubServer, repo: str, folder: Path, revision: str = "main") -> None:
    """Exactly one commit, and every byte is there."""
    assert len(hub.commits(repo, revision)) == 1
    files = hub.store.files(repo, revision)
    assert {name: files[name] for name in PUSHED} == {name: (folder / name).read_bytes() for name in PUSHED}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/repos/create"),
        ("POST", "/branch/"),
        ("GET", "/api/models/"),
        ("POST", "/api/validate-yaml"),
        ("POST", "/preupload/"),
        ("POST", "/info/lfs/objects/batch"),
        ("PUT", "/put/"),
        ("POST", "/info/lfs/verify"),
        ("POST", "/commit/"),
    ],
)
@pytest.mark.parametrize("kind", ["refuse", "drop"])
def test_twice_out_of_order(
    quiet: HubServer, client: HubClient, folder: Path, repo: str, method: str, path: str, kind: str
) -> None:
    quiet.fail(kind, method, path, times=2)
    push(client, folder, repo, quiet.token("ann"), revision="side")
    arrived(quiet, repo, folder, "side")
    assert len(quiet.requests(method, path)) >= 3


def test_slow_down_waits_as_long_as_asked(quiet: HubServer, client: HubClient, folder: Path, repo: str) -> None:
    quiet.fail("refuse", "POST", "/commit/", status=429, headers={"Retry-After": "7"})
    done = push(client, folder, repo, quiet.token("ann"))
    arrived(quiet, repo, folder)
    assert done["slept"] == [7]


def test_cut_during_the_upload(quiet: HubServer, client: HubClient, folder: Path, repo: str) -> None:
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes({"a": ([250_000], bytes(1_000_000))}))
    quiet.fail("drop", "PUT", "/put/", after=300_000)
    push(client, folder, repo, quiet.token("ann"))
    arrived(quiet, repo, folder)


@pytest.mark.parametrize("how", [{}, {"revision": "side"}])
def test_a_lost_answer_makes_no_second_commit(
    quiet: HubServer, client: HubClient, folder: Path, repo: str, how: dict[str, str]
) -> None:
    quiet.fail("lose", "POST", "/commit/")
    done = push(client, folder, repo, quiet.token("ann"), **how)
    branch = how.get("revision", "main")
    arrived(quiet, repo, folder, branch)
    assert done["commit"] == quiet.commits(repo, branch)[0].oid
    assert done["changed"]
    assert len(quiet.requests("POST", "/commit/")) == 1


@pytest.mark.parametrize("create_pr", [False, True])
def test_a_lost_answer_is_found_where_other_bytes_are_sent_than_lie_here(
    quiet: HubServer, client: HubClient, folder: Path, repo: str, create_pr: bool
) -> None:
    quiet.store.add_files(repo, {"README.md": b"# x\n"})
    config = {"peft_type": "LORA", "base_model_name_or_path": "/home/me/secret_project/bert"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    quiet.fail("drop", "POST", "/preupload/")
    quiet.fail("lose", "POST", "/commit/")
    done = push(client, folder, repo, quiet.token("ann"), create_pr=create_pr)
    assert len(quiet.requests("POST", "/commit/")) == 1
    pushed = quiet.store.files(repo, done["revision"])["adapter_config.json"]
    assert json.loads(pushed) == {**config, "base_model_name_or_path": "bert/"}


def test_a_lost_answer_opens_no_second_pull_request(
    quiet: HubServer, client: HubClient, folder: Path, repo: str
) -> None:
    quiet.store.add_files(repo, {"README.md": b"# x\n"})
    quiet.fail("lose", "POST", "/commit/")
    done = push(client, folder, repo, quiet.token("ann"), create_pr=True)
    assert list(quiet.store.repos["model", repo].pulls) == [1]
    assert done["revision"] == "refs/pr/1"
    assert done["commit"] == quiet.store.repos["model", repo].refs["refs/pr/1"]
    quiet.fail("drop", "POST", "/commit/")
    push(client, adapter_folder(folder, seed=1), repo, quiet.token("ann"), create_pr=True)
    assert list(quiet.store.repos["model", repo].pulls) == [1, 2]


def test_a_repo_whose_creation_got_no_answer(quiet: HubServer, client: HubClient, folder: Path, repo: str) -> None:
    quiet.fail("lose", "POST", "/api/repos/create")
    push(client, folder, repo, quiet.token("ann"))
    arrived(quiet, repo, folder)


def test_somebody_commits_in_between(quiet: HubServer, client: HubClient, folder: Path, repo: str) -> None:
    quiet.store.add_files(repo, {"theirs.txt": b"theirs"})
    quiet.fail("refuse", "POST", "/commit/", status=412)
    push(client, folder, repo, quiet.token("ann"))
    assert [commit.author for commit in quiet.commits(repo)] == ["ann", "ann"]
    assert quiet.store.files(repo)["theirs.txt"] == b"theirs"


def test_a_push_that_was_cut_goes_on_where_it_stopped(
    quiet: HubServer, client: HubClient, folder: Path, repo: str
) -> None:
    (folder / "training_curve.png").write_bytes(b"\x89PNG\0" + bytes(500) + repo.encode())
    quiet.fail("drop", "POST", "/commit/", times=-1)
    said = failing(client, folder, repo, quiet.token("ann"))
    assert "cannot be reached" in said
    assert quiet.commits(repo) == []
    first = {seen.path for seen in quiet.requests("PUT") if seen.status == 200}
    assert len(first) == 2
    quiet.forget()
    push(client, folder, repo, quiet.token("ann"))
    arrived(quiet, repo, folder)
    assert quiet.requests("PUT") == []


def test_an_upload_that_fails_for_good(quiet: HubServer, client: HubClient, folder: Path, repo: str) -> None:
    quiet.fail("drop", "PUT", "/put/", times=-1)
    assert "cannot be reached" in failing(client, folder, repo, quiet.token("ann"))
    assert quiet.commits(repo) == []


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_is_down_for_good(
    quiet: HubServer, client: HubClient, folder: Path, repo: str, status: int
) -> None:
    quiet.fail("refuse", "POST", "/api/repos/create", status=status, times=-1)
    said = failing(client, folder, repo, quiet.token("ann"))
    assert f"the Hub keeps answering {status}" in said
    assert len(quiet.requests("POST", "/api/repos/create")) == 4


def test_too_many_requests_for_good(quiet: HubServer, client: HubClient, folder: Path, repo: str) -> None:
    quiet.fail("refuse", "POST", "/commit/", status=429, times=-1)
    assert "asks to slow down" in failing(client, folder, repo, quiet.token("ann"))


def test_a_wrong_token(quiet: HubServer, client: HubClient, folder: Path, repo: str) -> None:
    said = failing(client, folder, repo, "hf_nobodyknowsthistoken")
    assert "does not accept this token" in said
    assert "hf auth login" in said
    assert len(quiet.requests("POST")) == 1  # not tried again


def test_no_token(quiet: HubServer, client: HubClient, folder: Path, repo: str) -> None:
    said = failing(client, folder, repo, None)
    assert "no user is logged in" in said


@pytest.mark.parametrize("exists", [True, False])
def test_a_token_that_may_only_read(
    quiet: HubServer, client: HubClient, folder: Path, repo: str, exists: bool
) -> None:
    if exists:
        quiet.store.create("model", repo)
    said = failing(client, folder, repo, quiet.token("ann", "read"))
    assert f"this token may not write to {repo}" in said
    assert not exists or quiet.commits(repo) == []


def test_somebody_elses_repo(quiet: HubServer, client: HubClient, folder: Path) -> None:
    assert "may not write to bob/his" in failing(client, folder, "bob/his", quiet.token("ann"))


def test_a_pull_request_to_what_is_not_there(quiet: HubServer, client: HubClient, folder: Path) -> None:
    said = failing(client, folder, "ann/not-there", quiet.token("ann"), create_pr=True)
    assert "there is no repository ann/not-there" in said


def test_offline(quiet: HubServer, folder: Path, tmp_path: Path) -> None:
    other = HubClient(quiet.endpoint, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in failing(other, folder, "ann/x", quiet.token("ann"))
    other.close()


def test_cut_during_a_download(quiet: HubServer, client: HubClient, folder: Path, repo: str, tmp_path: Path) -> None:
    push(client, folder, repo, quiet.token("ann"))
    quiet.fail("cut", "GET", "/lfs/", times=2)
    quiet.fail("refuse", "GET", "/lfs/", status=429)
    client(
        """
        from unittest import mock
        from spafit_hf.hub import pull_adapter
        with mock.patch("time.sleep"):
            pull_adapter(repo, folder=target)
        """,
        repo=repo,
        target=tmp_path / "pulled",
    )
    assert (tmp_path / "pulled" / "adapter_model.safetensors").read_bytes() == (
        folder / "adapter_model.safetensors"
    ).read_bytes()


def test_more_bytes_than_were_declared(
    quiet: HubServer, client: HubClient, folder: Path, repo: str, tmp_path: Path
) -> None:
    push(client, folder, repo, quiet.token("ann"))
    quiet.fail("endless", "GET", "/lfs/")
    why = failing_pull(client, repo, cache_dir=tmp_path / "cache", max_bytes=2**22)
    assert "more bytes than it declares" in why
    assert not quiet.sent_to_the_end
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*")) < 2**22


@pytest.mark.parametrize("path", ["^/api/models/[^/]+/[^/]+$", "/revision/", "/tree/"])
@pytest.mark.parametrize("body", [b"5", b'[{"rfilename": 1}]', b'{"id": "eve/a", "sha": 1, "siblings": [{}]}'])
def test_answers_of_another_shape(
    quiet: HubServer, client: HubClient, folder: Path, repo: str, tmp_path: Path, path: str, body: bytes
) -> None:
    push(client, folder, repo, quiet.token("ann"))
    quiet.fail("refuse", "GET", path, status=200, body=body, times=-1)
    assert "does not answer as the Hub does" in failing_pull(client, repo, cache_dir=tmp_path / "cache")


def test_a_user_of_another_shape(quiet: HubServer, client: HubClient, folder: Path) -> None:
    quiet.fail("refuse", "GET", "whoami", status=200, body=b"[]", times=-1)
    assert "check that HF_ENDPOINT names a Hub" in failing(client, folder, "bare", quiet.token("odd"))

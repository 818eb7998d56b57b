"""Pushing and pulling through the loopback Hub, without faults (those are in test_hub_faults)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hub import ClientFailure, HubClient, HubServer
from hub.fixtures import busy_hub, client, clients, quiet
from hub.folders import PUSHED, adapter_folder

__all__ = ["busy_hub", "client", "clients", "quiet"]

PUSH = """
from spafit_hf.hub import Patience, push_adapter
done = push_adapter(folder, repo, token=token, patience=Patience(first=0.01), **options)
result = dict(repo=done.repo_id, commit=done.commit, url=done.url, files=done.files, changed=done.changed,
              revision=done.revision, pr=done.pr_url)
"""
PULL = """
from spafit_hf.hub import pull_adapter
done = pull_adapter(repo, token=token, **options)
result = dict(folder=str(done.folder), commit=done.commit, files=done.files, revision=done.revision)
"""


def push(client: HubClient, folder: Path, repo: str, token: str | None, **options: object) -> dict:
    return client(PUSH, folder=folder, repo=repo, token=token, options=options)


def pull(client: HubClient, repo: str, token: str | bool | None = False, **options: object) -> dict:
    return client(PULL, repo=repo, token=token, options=options)


def refused(client: HubClient, source: str, **arguments: object) -> str:
    with pytest.raises(ClientFailure) as caught:
        client(source, **arguments)
    assert caught.value.kind[0] == "HubError", caught.value.trace
    return caught.value.chain[0]


# -- pushing ----------------------------------------------------------------------------------------------------------


def test_only_named_files_leave_in_one_commit(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    token = quiet.token("ann")
    done = push(client, adapter_folder(tmp_path / "run", token=token), "ann/compact", token)
    files = quiet.store.files("ann/compact")
    assert set(files) - {".gitattributes"} == PUSHED == set(done["files"])
    assert [commit.oid for commit in quiet.commits("ann/compact")] == [done["commit"]]
    assert done["changed"]
    assert done["url"] == f"{quiet.endpoint}/ann/compact"
    assert files["adapter_model.safetensors"] == (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    assert not any(token.encode() in body for body in quiet.uploaded())
    assert quiet.leaks == []


def test_the_same_again_makes_no_commit_and_sends_no_weights(
    quiet: HubServer, client: HubClient, tmp_path: Path
) -> None:
    folder, token = adapter_folder(tmp_path / "run"), quiet.token("ann")
    first = push(client, folder, "ann/again", token)
    quiet.forget()
    second = push(client, folder, "ann/again", token)
    assert second["commit"] == first["commit"]
    assert not second["changed"]
    assert quiet.requests("PUT") == []
    assert len(quiet.commits("ann/again")) == 1


def test_a_bare_name_goes_to_the_users_namespace(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    done = push(client, adapter_folder(tmp_path / "run"), "bare", quiet.token("ann"))
    assert done["repo"] == "ann/bare"


def test_private(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    push(client, adapter_folder(tmp_path / "run"), "ann/hidden", quiet.token("ann"), private=True)
    assert quiet.store.repos["model", "ann/hidden"].private
    assert "no repository ann/hidden" in refused(client, PULL, repo="ann/hidden", token=False, options={})
    assert pull(client, "ann/hidden", quiet.token("ann", "read"))["files"]


def test_a_branch_is_made(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    token = quiet.token("ann")
    for seed in (0, 1):
        done = push(client, adapter_folder(tmp_path / "run", seed=seed), "ann/branch", token, revision="run/2")
        assert done["revision"] == "run/2"
    assert len(quiet.commits("ann/branch", "run/2")) == 2
    assert quiet.commits("ann/branch") == []
    assert pull(client, "ann/branch", revision="run/2")["commit"] == done["commit"]


def test_a_pull_request(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    push(client, adapter_folder(tmp_path / "run"), "ann/pr", quiet.token("ann"))
    done = push(client, adapter_folder(tmp_path / "run", seed=1), "ann/pr", quiet.token("ann"), create_pr=True)
    assert done["pr"] == f"{quiet.endpoint}/ann/pr/discussions/1"
    assert done["revision"] == "refs/pr/1"
    assert len(quiet.commits("ann/pr")) == 1
    assert pull(client, "ann/pr", revision="refs/pr/1")["commit"] == done["commit"]
    # From somebody who may only propose.
    theirs = push(client, adapter_folder(tmp_path / "run", seed=2), "ann/pr", quiet.token("bob"), create_pr=True)
    assert theirs["revision"] == "refs/pr/2"


def test_a_folder_in_the_repo_and_further_files(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "run")
    (folder / "LICENSE").write_text("text")
    push(client, folder, "ann/sub", quiet.token("ann"), path_in_repo="last-checkpoint", also=["LICENSE"])
    files = set(quiet.store.files("ann/sub")) - {".gitattributes"}
    assert files == {f"last-checkpoint/{name}" for name in PUSHED | {"LICENSE"}}


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "../secret.txt", "checkpoint-5", "gone.txt"])
def test_unsafe_further_files_are_refused(quiet: HubServer, client: HubClient, tmp_path: Path, name: str) -> None:
    folder = adapter_folder(tmp_path / "run")
    why = refused(client, PUSH, folder=folder, repo="ann/no", token=quiet.token("ann"), options={"also": [name]})
    assert name in why
    assert quiet.seen == []


def test_a_token_in_a_file_stops_the_push(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    token = quiet.token("ann")
    folder = adapter_folder(tmp_path / "run")
    card = (folder / "README.md").read_text()
    for secret in (token, "hf_" + "Ab1" * 12):
        (folder / "README.md").write_text(card + secret)
        assert "README.md holds a token" in refused(
            client, PUSH, folder=folder, repo="ann/no", token=token, options={}
        )
    assert quiet.seen == []


def test_what_is_no_adapter_is_refused(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "run")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    why = refused(client, PUSH, folder=folder, repo="ann/no", token=quiet.token("ann"), options={})
    assert "adapter_model.bin is a pickle" in why
    assert "no folder of an adapter" in refused(
        client, PUSH, folder=tmp_path / "none", repo="ann/no", token=None, options={}
    )


def test_an_adapter_does_not_go_over_a_model(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    quiet.store.add_files("ann/model", {"config.json": b"{}", "model.safetensors": b"x"})
    why = refused(
        client, PUSH, folder=adapter_folder(tmp_path / "run"), repo="ann/model", token=quiet.token("ann"), options={}
    )
    assert "a repository of its own" in why
    assert len(quiet.commits("ann/model")) == 1


def test_a_full_model_is_pushed_too(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name in ["config.json", *shards, "model.safetensors.index.json", "training_args.bin"]:
        (folder / name).write_text("{}")
    push(client, folder, "ann/full", quiet.token("ann"))
    pushed = set(quiet.store.files("ann/full")) - {".gitattributes"}
    assert pushed == {"config.json", "model.safetensors.index.json", *shards}


def test_invalid_card_metadata_is_said_before_anything_is_uploaded(
    quiet: HubServer, client: HubClient, tmp_path: Path
) -> None:
    folder = adapter_folder(tmp_path / "run", seed=55)
    (folder / "README.md").write_text("---\nbase_model: /home/ann/bert\n---\n# x\n")
    why = refused(client, PUSH, folder=folder, repo="ann/meta", token=quiet.token("ann"), options={})
    assert "/home/ann/bert" in why
    assert "push it later with `spafit push" in why
    assert quiet.requests("PUT") == []


# -- pulling ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pushed(quiet: HubServer, client: HubClient, tmp_path: Path) -> str:
    """A repo with an adapter, and with files beside it that nobody asked for."""
    repo = f"ann/{tmp_path.name.replace('_', '-')}"[:60].rstrip("-")
    push(client, adapter_folder(tmp_path / "run"), repo, quiet.token("ann"))
    quiet.store.add_files(repo, {"evil.bin": b"pickle", "setup.py": b"import os", "sub/adapter_config.json": b"{}"})
    quiet.forget()
    return repo


def test_only_named_files_are_pulled(quiet: HubServer, client: HubClient, pushed: str, tmp_path: Path) -> None:
    done = pull(client, pushed)
    assert set(done["files"]) == PUSHED
    assert {path.name for path in Path(done["folder"]).iterdir()} == PUSHED
    assert done["commit"] == quiet.commits(pushed)[0].oid
    assert done["revision"] == "main"
    assert quiet.leaks == []


def test_into_a_folder(quiet: HubServer, client: HubClient, pushed: str, tmp_path: Path) -> None:
    pull(client, pushed, folder=tmp_path / "here")
    got = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert set(got) == PUSHED
    assert not any((tmp_path / "here" / name).is_symlink() for name in got)
    why = refused(client, PULL, repo=pushed, token=False, options={"folder": tmp_path / "here"})
    assert "not an empty folder" in why


def test_a_revision_is_a_commit_afterwards(quiet: HubServer, client: HubClient, pushed: str, tmp_path: Path) -> None:
    old = quiet.commits(pushed)[0].oid
    quiet.store.repos["model", pushed].refs["refs/tags/v1"] = old
    quiet.store.add_files(pushed, {"README.md": b"# newer\n"})
    assert pull(client, pushed, revision="v1")["commit"] == old
    newer = pull(client, pushed)
    assert newer["commit"] != old
    assert (Path(newer["folder"]) / "README.md").read_text() == "# newer\n"
    assert "no revision 'v9'" in refused(client, PULL, repo=pushed, token=False, options={"revision": "v9"})


def test_nothing_is_downloaded_twice(quiet: HubServer, client: HubClient, pushed: str) -> None:
    pull(client, pushed)
    quiet.forget()
    pull(client, pushed)
    assert quiet.requests("GET", "/resolve/") == []


def test_too_large_is_refused_before_a_byte(quiet: HubServer, client: HubClient, pushed: str) -> None:
    why = refused(client, PULL, repo=pushed, token=False, options={"max_bytes": 100})
    assert "more than 100" in why
    assert quiet.requests("GET", "/resolve/") == []


def test_a_pickle_is_no_adapter(quiet: HubServer, client: HubClient) -> None:
    quiet.store.add_files("eve/pickle", {"adapter_config.json": b"{}", "adapter_model.bin": b"\x80\x04."})
    why = refused(client, PULL, repo="eve/pickle", token=False, options={})
    assert "adapter_model.bin is a pickle" in why
    assert quiet.requests("GET", "/resolve/") == []


def test_offline_and_hub_down_use_the_cache(
    quiet: HubServer, clients: Callable[..., HubClient], pushed: str, tmp_path: Path
) -> None:
    home = tmp_path / "shared-home"
    online = HubClient(quiet.endpoint, home)
    done = pull(online, pushed)
    online.close()
    quiet.forget()
    for other in (
        HubClient(quiet.endpoint, home, HF_HUB_OFFLINE="1"),
        HubClient("http://127.0.0.1:9", home),  # nobody listens there
    ):
        assert pull(other, pushed) == done
        why = refused(other, PULL, repo="ann/other", token=False, options={})
        assert "ann/other is not in the cache" in why
        other.close()
    assert quiet.seen == []


def test_gated(quiet: HubServer, client: HubClient, pushed: str) -> None:
    quiet.store.repos["model", pushed].gated = "manual"
    why = refused(client, PULL, repo=pushed, token=quiet.token("eve", "read"), options={})
    assert "is gated" in why
    assert "ask for access" in why


@pytest.mark.parametrize("name", ["no/such/repo", "two words", "../up"])
def test_names_that_cannot_be(quiet: HubServer, client: HubClient, name: str) -> None:
    assert "cannot name a repository" in refused(client, PULL, repo=name, token=False, options={})


# -- collections and bases --------------------------------------------------------------------------------------------


def test_collections_gather_and_are_found_again(quiet: HubServer, client: HubClient) -> None:
    for name in ("one", "two"):
        quiet.store.add_files(f"cat/{name}", {"a.txt": b"a"})
    source = """
    from spafit_hf.hub import collect_adapters
    kept = collect_adapters("SPAFIT on GLUE", repos, token=token)
    result = dict(slug=kept.slug, items=kept.items, url=kept.url)
    """
    first = client(source, repos={"cat/one": "CoLA"}, token=quiet.token("cat"))
    second = client(source, repos=["cat/one", "cat/two"], token=quiet.token("cat"))
    assert first["slug"] == second["slug"]
    assert second["items"] == ["cat/one", "cat/two"]
    assert quiet.collections[first["slug"]]["items"][0]["note"]["text"] == "CoLA"
    assert "no repository" in refused(client, source, repos=["cat/none"], token=quiet.token("cat"))
    assert "may not write" in refused(client, source, repos=["cat/one"], token=quiet.token("cat", "read"))


def test_version_and_license_of_a_base(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    source = """
    from huggingface_hub import hf_hub_download
    from spafit_hf.hub import base_version
    if download: hf_hub_download(name, "config.json")
    found = base_version(name)
    result = found and [found.id, found.revision, found.license]
    """
    first = quiet.store.add_files("tiny/base", {"config.json": b"{}", "README.md": b"---\nlicense: mit\n---\n"})
    assert client(source, name="tiny/base", download=True) == ["tiny/base", first, "mit"]
    # The repo moves on; what was loaded here did not.
    quiet.store.add_files("tiny/base", {"config.json": b"{ }"})
    assert client(source, name="tiny/base", download=False) == ["tiny/base", first, "mit"]
    assert client(source, name=str(tmp_path), download=False) is None
    assert client(source, name="ann/nowhere", download=False) == ["ann/nowhere", None, None]


# -- the commands -----------------------------------------------------------------------------------------------------

COMMAND = """
import argparse, contextlib, importlib, io
parser = argparse.ArgumentParser()
subparsers = parser.add_subparsers()
for name in ("push", "pull", "card"):
    importlib.import_module(f"spafit_hf.cli.{name}").add_parser(subparsers)
args = parser.parse_args([str(word) for word in words])
said = io.StringIO()
with contextlib.redirect_stdout(said):
    status = args.run(args)
result = [status, said.getvalue()]
"""


def test_the_commands(quiet: HubServer, clients: Callable[..., HubClient], tmp_path: Path) -> None:
    ann = clients(quiet.endpoint, token=quiet.token("ann"))  # logged in
    folder = adapter_folder(tmp_path / "run")
    (folder / "README.md").unlink()
    flags = ["--private", "--message", "first", "--collection", "Mine"]
    status, said = ann(COMMAND, words=["push", folder, "ann/by-command", *flags])
    commit = quiet.commits("ann/by-command")[0]
    assert status == 0
    assert (commit.title, commit.oid in said) == ("first", True)
    assert quiet.store.repos["model", "ann/by-command"].private
    assert [kept["items"][0]["id"] for kept in quiet.collections.values() if kept["title"] == "Mine"] == [
        "ann/by-command"
    ]
    # The card was written for the repo it is in.
    assert "ann/by-command" in quiet.store.files("ann/by-command")["README.md"].decode()

    status, said = ann(COMMAND, words=["push", folder, "ann/by-command"])
    assert "nothing new" in said
    status, said = ann(COMMAND, words=["pull", "ann/by-command", tmp_path / "pulled", "--unchecked"])
    assert status == 0
    assert commit.oid in said
    assert (tmp_path / "pulled" / "adapter_model.safetensors").is_file()
    with pytest.raises(ClientFailure, match="more than 10 are not pulled"):
        ann(COMMAND, words=["pull", "ann/by-command", "--max-bytes", 10])

    (folder / "README.md").write_text("# by hand\n")
    status, said = ann(COMMAND, words=["push", folder, "ann/by-command", "--revision", "other"])
    assert "note: the card stays as it is" in said
    assert quiet.store.files("ann/by-command", "other")["README.md"] == b"# by hand\n"
    status, said = ann(COMMAND, words=["push", folder, "ann/by-command", "--pull-request", "--keep-card"])
    assert "/discussions/1" in said

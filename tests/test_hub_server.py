"""The loopback Hub speaks with stock huggingface_hub as the real one does (without xet; with it in test_hub_xet)."""

from __future__ import annotations

import pytest
from hub import ClientFailure, HubClient, HubServer

UPLOAD = """
from huggingface_hub import upload_file
upload_file(path_or_fileobj=data.encode(), path_in_repo=name, repo_id=repo, token=token, **options)
"""


def failing(client: HubClient, source: str, **arguments: object) -> ClientFailure:
    with pytest.raises(ClientFailure) as caught:
        client(source, **arguments)
    return caught.value


def test_whoami(quiet: HubServer, client: HubClient) -> None:
    source = """
    from huggingface_hub import whoami
    me = whoami(token)
    result = [me["name"], me["auth"]["accessToken"]["role"]]
    """
    assert client(source, token=quiet.token("ann", "read")) == ["ann", "read"]
    assert "HfHubHTTPError" in failing(client, source, token="hf_unknown").kind


def test_folder_goes_up_in_one_commit_and_comes_back(quiet: HubServer, client: HubClient, tmp_path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# hello\n")
    (folder / "weights.safetensors").write_bytes(bytes(range(256)) * 40)
    source = """
    from huggingface_hub import HfApi, snapshot_download
    from pathlib import Path
    api = HfApi(token=token)
    api.create_repo("bob/up", private=False)
    done = api.upload_folder(repo_id="bob/up", folder_path=folder)
    again = api.upload_folder(repo_id="bob/up", folder_path=folder)
    got = Path(snapshot_download("bob/up"))
    files = {path.name: path.read_bytes().hex() for path in got.iterdir()}
    result = dict(first=done.oid, again=again.oid, name=got.name, files=files)
    """
    result = client(source, token=quiet.token("bob"), folder=folder)
    assert result["first"] == result["again"] == result["name"]
    assert {name: bytes.fromhex(data) for name, data in result["files"].items() if name != ".gitattributes"} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert len(quiet.commits("bob/up")) == 1
    assert quiet.requests("PUT", "^/put/")[0].origin == "storage"
    assert quiet.leaks == []


def test_large_files_go_up_in_parts(quiet: HubServer, client: HubClient, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(quiet, "part_bytes", 1000)
    (tmp_path / "a.safetensors").write_bytes(bytes(range(250)) * 10)
    client(
        "from huggingface_hub import HfApi; api = HfApi(token=token); api.create_repo('bob/parts')\n"
        "api.upload_file(repo_id='bob/parts', path_or_fileobj=path, path_in_repo='a.safetensors')",
        token=quiet.token("bob"),
        path=tmp_path / "a.safetensors",
    )
    assert len(quiet.requests("PUT", "^/part/")) == 3
    assert quiet.store.files("bob/parts")["a.safetensors"] == bytes(range(250)) * 10


def test_create_repo_twice(quiet: HubServer, client: HubClient) -> None:
    source = (
        "from huggingface_hub import create_repo; result = create_repo('bob/twice', token=token, exist_ok=ok).repo_id"
    )
    token = quiet.token("bob")
    assert client(source, token=token, ok=False) == "bob/twice"
    assert client(source, token=token, ok=True) == "bob/twice"
    assert "409" in failing(client, source, token=token, ok=False).chain[0]


@pytest.mark.parametrize(
    ("who", "role", "kind", "text"),
    [
        (None, "", "HfHubHTTPError", "401"),
        ("eve", "write", "HfHubHTTPError", "403"),
        ("bob", "read", "HfHubHTTPError", "write permission"),
        ("?", "", "HfHubHTTPError", "Invalid credentials"),
    ],
)
def test_who_may_write(quiet: HubServer, client: HubClient, who: str | None, role: str, kind: str, text: str) -> None:
    repo_id = f"bob/mine-{text.split()[0]}"
    quiet.store.create("model", repo_id)
    token = False if who is None else "hf_wrong" if who == "?" else quiet.token(who, role)
    failed = failing(client, UPLOAD, repo=repo_id, token=token, data="x", name="x", options={})
    assert kind in failed.kind
    assert text in failed.chain[0]


def test_private_and_gated(quiet: HubServer, client: HubClient) -> None:
    quiet.store.add_files("bob/secret", {"a.txt": b"a"})
    quiet.store.add_files("bob/gate", {"a.txt": b"a"})
    quiet.store.repos["model", "bob/secret"].private = True
    quiet.store.repos["model", "bob/gate"].gated = "manual"
    source = (
        "from huggingface_hub import hf_hub_download; result = open(hf_hub_download(id, 'a.txt', token=token)).read()"
    )
    for token in (False, quiet.token("eve")):
        assert "RepositoryNotFoundError" in failing(client, source, id="bob/secret", token=token).kind
        assert failing(client, source, id="bob/gate", token=token).kind[0] == "GatedRepoError"
    assert client(source, id="bob/secret", token=quiet.token("bob", "read")) == "a"
    quiet.store.repos["model", "bob/gate"].granted.add("eve")
    assert client(source, id="bob/gate", token=quiet.token("eve", "read")) == "a"


def test_what_is_missing(quiet: HubServer, client: HubClient) -> None:
    quiet.store.add_files("bob/some", {"a.txt": b"a"})
    source = "from huggingface_hub import hf_hub_download; hf_hub_download(id, name, revision=rev)"
    assert failing(client, source, id="bob/none", name="a.txt", rev="main").kind[0] == "RepositoryNotFoundError"
    assert failing(client, source, id="bob/some", name="b.txt", rev="main").kind[0] == "RemoteEntryNotFoundError"
    assert failing(client, source, id="bob/some", name="a.txt", rev="v9").kind[0] == "RevisionNotFoundError"


def test_branches_tags_and_history(quiet: HubServer, client: HubClient) -> None:
    first = quiet.store.add_files("bob/refs", {"a.txt": b"1"})
    quiet.store.add_files("bob/refs", {"a.txt": b"2"})
    result = client(
        """
        from huggingface_hub import HfApi
        api = HfApi(token=token)
        api.create_branch("bob/refs", branch="side/way", revision=first)
        api.create_branch("bob/refs", branch="side/way", exist_ok=True)
        api.create_tag("bob/refs", tag="v1", revision=first)
        api.upload_file(path_or_fileobj=b"3", path_in_repo="a.txt", repo_id="bob/refs", revision="side/way")
        refs = api.list_repo_refs("bob/refs")
        read = lambda rev: open(api.hf_hub_download("bob/refs", "a.txt", revision=rev)).read()
        result = dict(branches=[b.name for b in refs.branches], tags=[t.name for t in refs.tags],
                      read=[read(rev) for rev in ("v1", "main", "side/way", first)],
                      titles=[c.title for c in api.list_repo_commits("bob/refs", revision="side/way")])
        api.delete_tag("bob/refs", tag="v1"); api.delete_branch("bob/refs", branch="side/way")
        """,
        token=quiet.token("bob"),
        first=first,
    )
    assert result["branches"] == ["main", "side/way"]
    assert result["tags"] == ["v1"]
    assert result["read"] == ["1", "2", "3", "1"]
    assert len(result["titles"]) == 3
    assert list(quiet.store.repos["model", "bob/refs"].refs) == ["main"]


def test_pull_requests(quiet: HubServer, client: HubClient) -> None:
    quiet.store.add_files("bob/prs", {"a.txt": b"1"})
    result = client(
        """
        from huggingface_hub import HfApi
        api = HfApi(token=token)
        one = api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="bob/prs", create_pr=True)
        two = api.create_pull_request("bob/prs", title="another")
        api.upload_file(path_or_fileobj=b"3", path_in_repo="a.txt", repo_id="bob/prs", revision=two.git_reference)
        before = open(api.hf_hub_download("bob/prs", "a.txt")).read()
        api.merge_pull_request("bob/prs", one.pr_num)
        result = dict(ref=one.pr_revision, two=two.git_reference, before=before,
                      after=open(api.hf_hub_download("bob/prs", "a.txt")).read(),
                      status=api.get_discussion_details("bob/prs", one.pr_num).status,
                      prs=[p.ref for p in api.list_repo_refs("bob/prs", include_pull_requests=True).pull_requests])
        """,
        token=quiet.token("bob"),
    )
    assert result == {
        "ref": "refs/pr/1",
        "two": "refs/pr/2",
        "before": "1",
        "after": "2",
        "status": "merged",
        "prs": ["refs/pr/1", "refs/pr/2"],
    }


def test_stale_parent_and_deletions(quiet: HubServer, client: HubClient) -> None:
    first = quiet.store.add_files("bob/par", {"a.txt": b"1", "d/b.txt": b"2"})
    quiet.store.add_files("bob/par", {"c.txt": b"3"})
    stale = {"repo": "bob/par", "data": "x", "name": "x", "options": {"parent_commit": first}}
    assert "412" in failing(client, UPLOAD, token=quiet.token("bob"), **stale).chain[0]
    client(
        "from huggingface_hub import HfApi; HfApi(token=token).delete_folder('d', 'bob/par')", token=quiet.token("bob")
    )
    assert sorted(quiet.store.files("bob/par")) == [".gitattributes", "a.txt", "c.txt"]


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        ("base_model: /tmp/x", "repo id"),
        ("license: nonsense", "license"),
        ("datasets:\n- null", "datasets"),
        (
            "model-index:\n- name: a\n  results:\n  - task: {type: x}\n    dataset: {type: t, name: n, config: 3}\n"
            "    metrics: [{type: accuracy, value: 1}]",
            "config",
        ),
    ],
)
def test_bad_metadata_is_refused(quiet: HubServer, client: HubClient, yaml: str, text: str) -> None:
    failed = failing(
        client, "from huggingface_hub import ModelCard; ModelCard(text).validate()", text=f"---\n{yaml}\n---\n# x\n"
    )
    assert text in failed.chain[0]


def test_pages_of_a_tree(quiet: HubServer, client: HubClient, monkeypatch) -> None:
    monkeypatch.setattr(quiet, "page_size", 3)
    quiet.store.add_files("bob/many", {f"d/{n}.txt": b"x" for n in range(7)})
    listed = client(
        "from huggingface_hub import list_repo_tree as ls; result = [e.path for e in ls('bob/many', recursive=True)]"
    )
    assert len(listed) == 9  # .gitattributes, d, and the seven


def test_faults(quiet: HubServer, client: HubClient) -> None:
    quiet.store.add_files("bob/faulty", {"a.txt": b"a" * 1000})
    info = "from huggingface_hub import HfApi; result = HfApi().model_info('bob/faulty').sha"
    quiet.fail("refuse", "GET", "/api/models/bob/faulty", status=503)
    assert "503" in failing(client, info).chain[0]
    quiet.fail("drop", "GET", "/api/models/bob/faulty")
    assert "RemoteProtocolError" in failing(client, info).kind
    quiet.fail("lose", "POST", "/commit/")
    failing(client, UPLOAD, token=quiet.token("bob"), repo="bob/faulty", data="b", name="b", options={})
    assert quiet.store.files("bob/faulty")["b"] == b"b"
    quiet.fail("cut", "GET", "/resolve/")
    got = "from huggingface_hub import hf_hub_download; result = open(hf_hub_download('bob/faulty', 'a.txt')).read()"
    assert client(got) == "a" * 1000  # resumed by the client
    assert len(quiet.requests("GET", "/resolve/")) == 2


def test_datasets_are_repos_too(quiet: HubServer, client: HubClient) -> None:
    quiet.store.add_files("bob/rows", {"a.txt": b"a"}, kind="dataset")
    source = """
    from huggingface_hub import hf_hub_download
    result = open(hf_hub_download("bob/rows", "a.txt", repo_type="dataset")).read()
    """
    assert client(source) == "a"


def test_every_byte_sent_is_kept(quiet: HubServer, client: HubClient) -> None:
    quiet.store.create("model", "bob/grep")
    for data, name in (("needle in text", "a.txt"), ("needle in weights", "a.safetensors")):
        client(UPLOAD, token=quiet.token("bob"), repo="bob/grep", data=data, name=name, options={})
    found = list(quiet.uploaded())
    assert any(b"needle in text" in body for body in found)
    assert any(b"needle in weights" in body for body in found)
    assert not any(quiet.token("bob").encode() in body for body in found)

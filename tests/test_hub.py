"""Pushing and pulling through the loopback Hub, without faults (those are in test_hub_faults)."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub import ClientFailure, Fault, HubClient, HubServer
from hub.folders import PUSHED, adapter_folder
from safetensors.torch import load_file, save_file

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


FULL = """
import errno
from unittest import mock
full = OSError(errno.ENOSPC, "No space left on device")
with mock.patch("shutil.copyfile", side_effect=[None, full]):"""


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
    # From a user who may only propose.
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
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in "hf_" + "Ab1" * 12)
    for secret in (token, "hf_" + "Ab1" * 12, escaped, escaped.replace("u00", "x")):
        (folder / "README.md").write_text(card + secret)
        assert "README.md holds a token" in refused(
            client, PUSH, folder=folder, repo="ann/no", token=token, options={}
        )
    (folder / "README.md").write_text(card)
    weights = folder / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "by": "hf_" + "Ab1" * 12})
    why = refused(client, PUSH, folder=folder, repo="ann/no", token=token, options={})
    assert "adapter_model.safetensors holds a token" in why
    assert quiet.seen == []


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_what_is_no_file_of_the_folder_is_not_pushed(
    kind: str, quiet: HubServer, client: HubClient, tmp_path: Path
) -> None:
    folder = adapter_folder(tmp_path / "run")
    if kind == "pipe":
        os.mkfifo(folder / "vocab.txt")
    else:
        (folder / "vocab.txt").symlink_to("/etc/passwd")
    why = refused(client, PUSH, folder=folder, repo="ann/no", token=quiet.token("ann"), options={})
    assert "no regular file" in why if kind == "pipe" else "link to a file elsewhere" in why
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


@pytest.mark.parametrize("place", ["", "deep"])
def test_label_names_of_another_adapter_do_not_stay_beside_it(
    quiet: HubServer, client: HubClient, tmp_path: Path, place: str
) -> None:
    folder, repo = adapter_folder(tmp_path / "run", seed=77), f"ann/over{place}"
    (folder / "spafit_config.json").write_text("{}")
    token, options = quiet.token("ann"), {"path_in_repo": place}
    push(client, folder, repo, token, **options)
    push(client, folder, repo, token, **options)
    (folder / "spafit_config.json").unlink()  # as plain PEFT saves
    why = refused(client, PUSH, folder=folder, repo=repo, token=token, options=options)
    assert "spafit_config.json of something else, which would be read with what is pushed" in why
    assert len(quiet.commits(repo)) == 1


def test_shards_do_not_go_beside_weights_in_one_file(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    for name in ["config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"]:
        (tmp_path / name).write_text("{}")
    quiet.store.add_files("ann/shards", {"config.json": b"{}", "model.safetensors": b"x"})
    why = refused(client, PUSH, folder=tmp_path, repo="ann/shards", token=quiet.token("ann"), options={})
    assert "holds model.safetensors of something else" in why


def test_a_full_model_is_pushed_too(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name in ["config.json", *shards, "model.safetensors.index.json", "training_args.bin"]:
        (folder / name).write_text("{}")
    push(client, folder, "ann/whole", quiet.token("ann"))
    pushed = set(quiet.store.files("ann/whole")) - {".gitattributes"}
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


def test_a_pull_request_finds_a_bare_name_too(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    push(client, adapter_folder(tmp_path / "run"), "proposed", quiet.token("ann"))
    done = push(client, adapter_folder(tmp_path / "run", seed=1), "proposed", quiet.token("ann"), create_pr=True)
    assert (done["repo"], done["revision"]) == ("ann/proposed", "refs/pr/1")


def local_base(folder: Path, base: str) -> dict[str, bytes]:
    """Let an adapter folder name a base in all places that there are; returns what is in it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    facts = {"name_or_path": base, "vectors": {"float32": "a" * 64}}
    (folder / "spafit_config.json").write_text(json.dumps({"base": facts, "form": "absolute"}))
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "base", ["/home/me/secret_project/bert", "../secret_project/bert", "C:\\secret_project\\bert"]
)
def test_the_path_of_the_base_stays(quiet: HubServer, client: HubClient, tmp_path: Path, base: str) -> None:
    token, folder = quiet.token("ann"), adapter_folder(tmp_path / "run")
    before = local_base(folder, base)
    repo = f"ann/local-{len(base)}"
    first = push(client, folder, repo, token)
    files = quiet.store.files(repo)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "bert/"
    assert json.loads(files["spafit_config.json"])["base"] == {
        "name_or_path": "bert/",
        "vectors": {"float32": "a" * 64},
    }
    assert not any(b"secret_project" in body for body in quiet.uploaded())
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    # What is sent is compared, and not what lies here.
    again = push(client, folder, repo, token)
    assert (again["commit"], again["changed"]) == (first["commit"], False)


def test_a_local_folder_is_none_of_the_hubs(
    quiet: HubServer, clients: Callable[..., HubClient], tmp_path: Path
) -> None:
    source = """
    import logging, os
    from unittest import mock
    from spafit_hf.hub import files, parcel
    os.chdir(there)
    with mock.patch.object(files.logger, "warning") as said:
        sent = files.sent(parcel(folder))
    result = [sorted(name for name, content in sent.items() if isinstance(content, bytes)),
              [call.args[0] % call.args[1:] for call in said.call_args_list]]
    """
    folder, ann = adapter_folder(tmp_path / "run"), clients(quiet.endpoint)
    local_base(folder, "tiny/bert")
    assert ann(source, folder=folder, there=tmp_path) == [[], []]
    (tmp_path / "tiny" / "bert").mkdir(parents=True)
    changed, said = ann(source, folder=folder, there=tmp_path)
    assert changed == ["adapter_config.json", "spafit_config.json"]
    assert len(said) == 1
    assert "tiny/bert is a local folder, which others will not find: it is pushed as 'bert/'" in said[0]
    # Nothing left to take away from what was pulled.
    local_base(folder, "bert/")
    assert ann(source, folder=folder, there=tmp_path) == [[], []]


def test_a_full_model_hides_the_path_too(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "_name_or_path": "/home/me/bert"}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    push(client, tmp_path, "ann/full-local", quiet.token("ann"))
    pushed = json.loads(quiet.store.files("ann/full-local")["config.json"])
    assert pushed == {"model_type": "bert", "_name_or_path": "bert/"}


def test_a_configuration_that_cannot_be_read_stays(quiet: HubServer, client: HubClient, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "run")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/me/bert"')
    why = refused(client, PUSH, folder=folder, repo="ann/no", token=quiet.token("ann"), options={})
    assert "adapter_config.json is not valid JSON" in why
    assert quiet.seen == []


TRAINED_ON_A_FOLDER = """
from pathlib import Path
from hub.runs import *
from transformers import AutoModelForSequenceClassification
from spafit_hf import load_adapter
from spafit_hf.hub import pull_adapter
base = tiny_base(Path(folder) / "secret_project" / "bert")
make = lambda: AutoModelForSequenceClassification.from_pretrained(base)
adapted = get_spafit_model(make(), Strategy.from_name("bitfit"))
for parameter in adapted.parameters():
    if parameter.requires_grad:
        torch.nn.init.normal_(parameter, std=0.1)
save_adapter(adapted, Path(folder) / "run")
(Path(folder) / "run" / "spafit_config.json").unlink() if plain else None
push_adapter(Path(folder) / "run", repo, token=token)
place = pull_adapter(repo, folder=Path(folder) / "pulled").folder
inputs = torch.tensor([[2, 5, 6, 3]])
# A base by another name: what is pushed must not be taken for the name of another repository.
given = make()
given.config._name_or_path = given.name_or_path = "tiny/bert"
# The head is drawn anew in each base, and comes with the adapter.
with torch.no_grad():
    mine, theirs = (model.eval()(inputs).logits for model in (adapted, load_adapter(given, place)))
result = [torch.allclose(mine, theirs, atol=1e-5), place.joinpath("adapter_config.json").read_text()]
"""


@pytest.mark.parametrize("plain", [False, True])
def test_an_adapter_of_a_local_base_loads_on_a_given_one(
    quiet: HubServer, client: HubClient, tmp_path: Path, plain: bool
) -> None:
    repo = f"ann/on-a-folder-{plain}"
    same, config = client(TRAINED_ON_A_FOLDER, folder=tmp_path, repo=repo, token=quiet.token("ann"), plain=plain)
    assert same
    assert json.loads(config)["base_model_name_or_path"] == "bert/"
    assert not any(b"secret_project" in body for body in quiet.uploaded())


# -- pulling ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pushed(quiet: HubServer, client: HubClient, tmp_path: Path) -> str:
    """A repo with an adapter, and with files beside it that were not asked for."""
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
    for folder in (tmp_path / "link", tmp_path / "there" / "." / ""):
        (tmp_path / "there").mkdir(exist_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / "there")
        pull(client, pushed, folder=folder)
        assert {path.name for path in (tmp_path / "there").iterdir()} == PUSHED
        shutil.rmtree(tmp_path / "there")
        (tmp_path / "link").unlink()
    client("import os; before = os.getcwd(); os.mkdir(folder); os.chdir(folder)", folder=tmp_path / "empty")
    pull(client, pushed, folder=".")
    client("os.chdir(before)")
    assert {path.name for path in (tmp_path / "empty").iterdir()} == PUSHED


def test_a_full_disk_leaves_nothing_that_blocks_the_next_try(client: HubClient, pushed: str, tmp_path: Path) -> None:
    source = FULL + textwrap.indent(PULL, "    ")
    for folder in ("here", "there"):
        (tmp_path / "there").mkdir(exist_ok=True)
        options = {"folder": tmp_path / folder}
        why = refused(client, source, repo=pushed, token=False, options=options)
        assert f"{folder} cannot be written: No space left on device" in why
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".pulling")]
        pull(client, pushed, **options)


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
        HubClient("http://127.0.0.1:9", home),  # nothing listens there
    ):
        assert pull(other, pushed) == done
        why = refused(other, PULL, repo="ann/other", token=False, options={})
        assert "ann/other is not in the cache" in why
        other.close()
    assert quiet.seen == []


@pytest.mark.parametrize("base", [False, True])
def test_a_name_is_given_up_soon_where_nothing_answers(
    base: bool, clients: Callable[..., HubClient], tmp_path: Path
) -> None:
    source = """
    import time
    from spafit_hf.predictor import SpafitPredictor
    from spafit_hf.hub import pull_adapter
    start = time.monotonic()
    try:
        SpafitPredictor("ann/base") if base else pull_adapter("ann/adapter", token=False)
    except ValueError as error:
        result = [str(error), time.monotonic() - start]
    """
    why, seconds = clients("http://127.0.0.1:9")(source, base=base)
    assert "ann/base' cannot be loaded" in why if base else "cannot be reached" in why
    assert seconds < 5


def test_a_hub_that_is_busy_is_reported_as_that(quiet: HubServer, client: HubClient) -> None:
    quiet.faults.add(Fault("refuse", path="ann/busy", times=-1))
    assert "the Hub keeps answering 503" in refused(client, PULL, repo="ann/busy", token=False, options={})


def test_gated(quiet: HubServer, client: HubClient, pushed: str) -> None:
    quiet.store.repos["model", pushed].gated = "manual"
    why = refused(client, PULL, repo=pushed, token=quiet.token("eve", "read"), options={})
    assert "is gated" in why
    assert "ask for access" in why


@pytest.mark.parametrize("name", ["no/such/repo", "two words", "../up"])
def test_names_that_cannot_be(quiet: HubServer, client: HubClient, name: str) -> None:
    assert "cannot name a repository" in refused(client, PULL, repo=name, token=False, options={})


# -- bases ------------------------------------------------------------------------------------------------------------


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
    args.run(args)
result = said.getvalue()
"""


@pytest.fixture(scope="module")
def ann(busy_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    """A client that is logged in."""
    made = HubClient(busy_hub.endpoint, tmp_path_factory.mktemp("ann"), token=busy_hub.token("ann"))
    yield made
    made.close()


def test_the_commands(quiet: HubServer, ann: HubClient, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "run")
    (folder / "README.md").unlink()
    flags = ["--private", "--message", "first"]
    said = ann(COMMAND, words=["push", folder, "ann/by-command", *flags])
    commit = quiet.commits("ann/by-command")[0]
    assert (commit.title, commit.oid in said) == ("first", True)
    assert quiet.store.repos["model", "ann/by-command"].private
    # The card was written for the repo it is in.
    assert "ann/by-command" in quiet.store.files("ann/by-command")["README.md"].decode()

    said = ann(COMMAND, words=["push", folder, "ann/by-command"])
    assert "nothing new" in said
    said = ann(COMMAND, words=["pull", "ann/by-command", tmp_path / "pulled", "--unchecked"])
    assert commit.oid in said
    assert (tmp_path / "pulled" / "adapter_model.safetensors").is_file()
    with pytest.raises(ClientFailure, match="more than 10 are not pulled"):
        ann(COMMAND, words=["pull", "ann/by-command", "--max-bytes", 10])

    (folder / "README.md").write_text("# by hand\n")
    said = ann(COMMAND, words=["push", folder, "ann/by-command", "--revision", "other"])
    assert "note: the card stays as it is" in said
    assert quiet.store.files("ann/by-command", "other")["README.md"] == b"# by hand\n"
    said = ann(COMMAND, words=["push", folder, "ann/by-command", "--pull-request", "--keep-card"])
    assert "/discussions/1" in said


def test_the_card_names_the_repo_that_it_is_in(quiet: HubServer, ann: HubClient, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "run")
    (folder / "README.md").unlink()
    for given, full in (("mine", "ann/mine"), ("ann/one", "ann/one"), ("two", "ann/two")):
        said = ann(COMMAND, words=["push", folder, given])
        assert f"{quiet.endpoint}/{full}\n" in said
        card = quiet.store.files(full)["README.md"].decode()
        assert f"# {full.removeprefix('ann/')}\n" in card
        assert f'PeftModel.from_pretrained(base, "{full}")' in card
    assert ann(COMMAND, words=["push", folder, "two"]).count("nothing new") == 1
    said = ann(COMMAND, words=["push", folder, "kept", "--keep-card"])
    assert f"{quiet.endpoint}/ann/kept" in said


def test_the_card_names_no_branch_that_it_does_not_stay_on(quiet: HubServer, ann: HubClient, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "run")
    (folder / "README.md").unlink()
    ann(COMMAND, words=["push", folder, "ann/kept-on", "--revision", "main"])
    (folder / "spafit_results.json").write_text('{"format": 1, "method": "bitfit", "license": "mit"}')
    ann(COMMAND, words=["push", folder, "ann/kept-on", "--pull-request"])
    (folder / "spafit_results.json").write_text('{"format": 1, "method": "bitfit", "license": "apache-2.0"}')
    ann(COMMAND, words=["push", folder, "ann/kept-on", "--revision", "refs/pr/1"])
    ann(COMMAND, words=["push", folder, "ann/kept-on", "--revision", "side"])
    for branch, named in (("main", False), ("refs/pr/1", False), ("side", True)):
        card = quiet.store.files("ann/kept-on", branch)["README.md"].decode()
        assert ("## With a pipeline" not in card.replace("### ", "## ")) is named, branch
        assert ("revision=" in card) is named, branch
    assert "apache-2.0" in quiet.store.files("ann/kept-on", "refs/pr/1")["README.md"].decode()


@pytest.mark.parametrize(
    ("login", "why"),
    [
        (None, "no user is logged in; make a token with write permission"),
        ("hf_nobodyknowsthistoken", "does not accept this token"),
        ("down", "cannot be reached"),
    ],
)
def test_whose_a_bare_name_is_cannot_be_known(
    quiet: HubServer, clients: Callable[..., HubClient], tmp_path: Path, login: str | None, why: str
) -> None:
    folder = adapter_folder(tmp_path / "run")
    (folder / "README.md").unlink()
    down = login == "down"
    ann = clients("http://127.0.0.1:9" if down else quiet.endpoint, token=quiet.token("ann") if down else login)
    quick = "import time; time.sleep = lambda seconds: None\n"
    said = refused(ann, quick + COMMAND, words=["push", folder, "bare"])
    assert "Pushing to bare failed" in said
    assert why in said
    assert "\n" not in said
    assert not (folder / "README.md").exists()
    # The push alone says the same, and what it always says.
    said = refused(ann, quick + PUSH, folder=folder, repo="bare", token=None, options={})
    assert why in said
    assert f"push it later with `spafit push {folder} bare`" in said


def test_a_hub_that_is_busy_is_asked_again_whose_a_bare_name_is(
    quiet: HubServer, clients: Callable[..., HubClient], tmp_path: Path
) -> None:
    ann = clients(quiet.endpoint, token=quiet.token("ann"))
    quiet.fail("refuse", "GET", "/whoami-v2", status=503, times=2)
    quick = "import time; time.sleep = lambda seconds: None\n"
    ann(quick + COMMAND, words=["push", adapter_folder(tmp_path / "run"), "busy"])
    assert [seen.status for seen in quiet.requests("GET", "/whoami-v2")] == [503, 503, 200]

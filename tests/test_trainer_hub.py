"""From a training run to a repo and back, with the real clients: what is pushed, when, and what failures do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub import ClientFailure, HubClient, HubServer

REPO_FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "spafit_config.json",
    "spafit_results.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_curve.png",
}


RUN = """
from hub.runs import tiny_trainer
hub = dict(push_to_hub=True, hub_model_id=repo, hub_token=token)
trainer = tiny_trainer("tiny/bert", out, **{**hub, "num_train_epochs": 1, **options})
trainer.train()
"""


def files(hub: HubServer, repo: str) -> dict[str, bytes]:
    return {name: data for name, data in hub.store.files(repo).items() if name != ".gitattributes"}


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_every_hub_strategy(quiet: HubServer, ours: HubClient, tmp_path: Path, strategy: str) -> None:
    repo, token = f"ann/run-{strategy.replace('_', '-')}", quiet.token("ann")
    options = {"hub_strategy": strategy, "hub_always_push": True, "num_train_epochs": 2}
    ours(RUN, out=tmp_path / "out", repo=repo, token=token, options=options)
    found = set(files(quiet, repo))
    places = {
        "end": [],
        "every_save": [""],
        "checkpoint": ["", "last-checkpoint/"],
        "all_checkpoints": ["", *(f"checkpoint-{step}/" for step in (3, 6))],
    }[strategy]
    assert found == {place + name for place in places for name in REPO_FILES}
    ours("trainer.push_to_hub()")
    assert set(files(quiet, repo)) >= REPO_FILES
    assert not any(token.encode() in body for body in quiet.uploaded())
    assert not any("training_args" in name or name.endswith((".pt", ".pth", ".bin")) for name in files(quiet, repo))
    assert files(quiet, repo)["adapter_model.safetensors"] == (tmp_path / "out/adapter_model.safetensors").read_bytes()


def test_round_trip_to_plain_peft(quiet: HubServer, ours: HubClient, stock: HubClient, tmp_path: Path) -> None:
    """Trained and pushed here, loaded by a process that has only peft and transformers, on the base as it was then."""
    token = quiet.token("ann")
    said = ours(
        RUN
        + """
from hub.runs import logits
from huggingface_hub import ModelCard
info = trainer.push_to_hub(language="en", license="mit", tags=["tiny"])
result = dict(logits=logits(trainer.model, out), oid=info.oid)
""",
        out=tmp_path / "out",
        repo="ann/round-trip",
        token=token,
        options={"hub_strategy": "end", "hub_private_repo": True},
    )
    assert quiet.commits("ann/round-trip")[0].oid == said["oid"]
    assert len(quiet.commits("ann/round-trip")) == 1
    assert quiet.store.repos["model", "ann/round-trip"].private
    base = quiet.commits("tiny/bert")[0].oid
    # The base moves on: an adapter that does not say which commit it was trained on would be wrong now.
    moved = quiet.store.files("tiny/bert")["model.safetensors"]
    quiet.store.add_files("tiny/bert", {"model.safetensors": moved[:-4000] + bytes(4000)})
    try:
        got = stock(
            """
            import sys, torch
            from huggingface_hub import HfApi, ModelCard
            from peft import PeftConfig, AutoPeftModelForSequenceClassification
            from transformers import AutoTokenizer
            config = PeftConfig.from_pretrained("ann/round-trip", token=token)
            model = AutoPeftModelForSequenceClassification.from_pretrained("ann/round-trip", token=token).eval()
            tokenizer = AutoTokenizer.from_pretrained("ann/round-trip", token=token)
            inputs = tokenizer(texts, padding=True, return_tensors="pt")
            with torch.no_grad():
                logits = model(**inputs).logits.tolist()
            card = ModelCard.load("ann/round-trip", token=token)
            card.validate()
            result = dict(logits=logits, base=config.base_model_name_or_path, revision=config.revision,
                          ours="spafit_hf" in sys.modules, card=card.data.to_dict(), text=card.text)
            """,
            token=token,
            texts=ours("from hub.runs import tiny_rows; result = list(tiny_rows(2, 4)['text'])"),
        )
    finally:
        quiet.store.add_files("tiny/bert", {"model.safetensors": moved})
    assert not got["ours"]
    assert got["logits"] == said["logits"]
    assert (got["base"], got["revision"]) == ("tiny/bert", base)
    card = got["card"]
    assert card["base_model"] == "tiny/bert"
    assert card["base_model_relation"] == "adapter"
    assert card["license"] == "mit"
    assert card["language"] == "en"
    assert "tiny" in card["tags"]
    assert "None" not in got["text"]


def test_a_failure_in_the_background_is_raised_at_the_end(quiet: HubServer, ours: HubClient, tmp_path: Path) -> None:
    quiet.fail("refuse", "POST", "/commit/", status=403, times=-1)
    with pytest.raises(ClientFailure) as caught:
        ours(RUN, out=tmp_path / "out", repo="ann/refused", token=quiet.token("ann"), options={})
    assert caught.value.kind[0] == "HubError"
    said = caught.value.chain[0]
    assert "may not write to ann/refused" in said
    assert f"spafit push {tmp_path / 'out'} ann/refused" in said
    # The epoch was trained, and what came of them is on disk and can be pushed.
    quiet.forget()
    done = ours(
        """
        from spafit_hf.hub import push_adapter
        result = [trainer.state.global_step, push_adapter(out, "ann/refused", token=token).files]
        """,
        out=tmp_path / "out",
        token=quiet.token("ann"),
    )
    assert done[0] == 3
    assert set(files(quiet, "ann/refused")) == REPO_FILES


def test_a_failure_that_a_later_push_made_good_is_none(quiet: HubServer, ours: HubClient, tmp_path: Path) -> None:
    quiet.fail("refuse", "POST", "/commit/", status=500, times=3)
    options = {"hub_always_push": True, "num_train_epochs": 3}
    ours(RUN, out=tmp_path / "out", repo="ann/mended", token=quiet.token("ann"), options=options)
    assert len(quiet.commits("ann/mended")) == 2
    assert (
        files(quiet, "ann/mended")["adapter_model.safetensors"]
        == (tmp_path / "out/adapter_model.safetensors").read_bytes()
    )


@pytest.mark.parametrize("times", [2, -1])
def test_a_busy_hub_does_not_end_the_run_before_it_began(
    quiet: HubServer, ours: HubClient, tmp_path: Path, times: int
) -> None:
    quiet.fail("refuse", "POST", "/api/repos/create", status=503, times=times)
    arguments = {"out": tmp_path / "out", "repo": f"ann/busy{times}", "token": quiet.token("ann")}
    assert ours(RUN + "result = trainer.state.global_step", **arguments, options={"hub_strategy": "end"}) == 3
    quiet.forget()
    ours("trainer.push_to_hub()")
    assert set(files(quiet, f"ann/busy{times}")) == REPO_FILES


def test_a_card_names_a_repo_that_could_not_be_made_at_first(
    quiet: HubServer, ours: HubClient, tmp_path: Path
) -> None:
    quiet.fail("refuse", "POST", "/api/repos/create", status=503, times=-1)
    ours(RUN, out=tmp_path / "out", repo="late", token=quiet.token("ann"), options={"hub_strategy": "end"})
    quiet.forget()
    ours("trainer.push_to_hub()")
    assert 'PeftModel.from_pretrained(base, "ann/late")' in files(quiet, "ann/late")["README.md"].decode()
    ours('trainer.push_to_hub(revision="try-2")')
    card = quiet.store.files("ann/late", "try-2")["README.md"].decode()
    assert 'PeftModel.from_pretrained(base, "ann/late", revision="try-2")' in card
    assert json.loads(files(quiet, "ann/late")["spafit_results.json"])["form"] == "absolute"


@pytest.mark.parametrize(("role", "text"), [("read", "may not write"), ("", "does not accept this token")])
def test_a_token_that_will_not_do_is_said_at_once(
    quiet: HubServer, ours: HubClient, tmp_path: Path, role: str, text: str
) -> None:
    token = quiet.token("ann", "read") if role else "hf_wrong"
    with pytest.raises(ClientFailure) as caught:
        ours(RUN, out=tmp_path / "out", repo=f"ann/no-{role or 'body'}", token=token, options={})
    assert text in caught.value.chain[0]
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_branch_and_a_pull_request(quiet: HubServer, ours: HubClient, tmp_path: Path) -> None:
    options = {"hub_revision": "try-1", "hub_strategy": "end"}
    ours(RUN, out=tmp_path / "out", repo="ann/branches", token=quiet.token("ann"), options=options)
    ours("trainer.push_to_hub()")
    assert set(quiet.store.files("ann/branches", "try-1")) - {".gitattributes"} == REPO_FILES
    assert files(quiet, "ann/branches") == {}
    result = ours("info = trainer.push_to_hub(create_pr=True)\nresult = [info.pr_num, info.pr_revision]")
    assert result == [1, "refs/pr/1"]
    future = ours("job = trainer.push_to_hub(blocking=False)\nresult = job.result().oid")
    assert future == quiet.store.repos["model", "ann/branches"].refs["try-1"]


def test_full_fine_tuning_pushes_a_model(quiet: HubServer, ours: HubClient, tmp_path: Path) -> None:
    options = {"strategy": "full"}
    ours(RUN, out=tmp_path / "out", repo="ann/full", token=quiet.token("ann"), options=options)
    ours("trainer.push_to_hub()")
    found = files(quiet, "ann/full")
    assert {"config.json", "model.safetensors", "README.md", "spafit_results.json"} <= set(found)
    assert not any(name.startswith("adapter") or name.endswith(".bin") for name in found)
    card = ours("from huggingface_hub import ModelCard\nresult = ModelCard.load('ann/full').data.to_dict()")
    assert card["library_name"] == "transformers"
    assert card["base_model_relation"] == "finetune"


def test_a_plain_trainer_with_plain_lora(quiet: HubServer, ours: HubClient, tmp_path: Path) -> None:
    options = {"plain": True, "hub_always_push": True}
    ours(RUN, out=tmp_path / "out", repo="ann/plain", token=quiet.token("ann"), options=options)
    ours("trainer.push_to_hub()")
    assert (tmp_path / "out/training_args.bin").is_file()  # Trainer wrote it, and it stayed here
    assert set(files(quiet, "ann/plain")) == REPO_FILES - {"spafit_config.json"}
    assert not any(quiet.token("ann").encode() in body for body in quiet.uploaded())


def test_a_local_base_is_nobodys_business(quiet: HubServer, ours: HubClient, tmp_path: Path) -> None:
    """Its path is no base_model, which the Hub would refuse, and the card gives its name alone."""
    ours(
        """
        from hub.runs import tiny_base, tiny_trainer
        base = tiny_base(folder)
        hub = dict(push_to_hub=True, hub_model_id="ann/local", hub_token=token, hub_strategy="end")
        trainer = tiny_trainer(str(base), out, num_train_epochs=1, **hub)
        trainer.train()
        trainer.push_to_hub()
        """,
        folder=tmp_path / "private" / "my-base",
        out=tmp_path / "out",
        token=quiet.token("ann"),
    )
    card = files(quiet, "ann/local")["README.md"].decode()
    assert "base_model:" not in card
    assert str(tmp_path) not in card
    assert "my-base" in card


def test_facts_of_the_card(quiet: HubServer, ours: HubClient, tmp_path: Path) -> None:
    facts = ours(
        RUN
        + """
import json
trainer.describe(language=("en",), examples=(("the film was good",),), data={"name": "films"})
trainer.push_to_hub()
result = json.load(open(f"{out}/spafit_results.json"))
""",
        out=tmp_path / "out",
        repo="ann/facts",
        token=quiet.token("ann"),
        options={
            "hub_strategy": "end",
            "num_train_epochs": 3,
            "load_best_model_at_end": True,
            "metric_for_best_model": "accuracy",
            "prefix_cache": str(tmp_path / "states"),
        },
    )
    assert facts["method"] == "spafit-4-9-II"
    assert facts["base"]["id"] == "tiny/bert"
    assert facts["base"]["license"] == "mit"
    assert facts["base"]["revision"] == quiet.commits("tiny/bert")[0].oid or len(facts["base"]["revision"]) == 40
    assert facts["labels"] == ["bad", "good"]
    assert facts["data"] == {"name": "films", "train_rows": 24}
    assert [band["layers"] for band in facts["layers"]] == [[0], [1], [2, 3]]
    assert facts["layers"][2]["lora"] == ["query", "key", "value", "attention_output"]
    assert facts["scores"][0]["figures"]["accuracy"] == max(
        step["figures"]["accuracy"] for step in facts["steps"] if "figures" in step
    )
    assert facts["hyperparameters"]["learning_rate"] == 0.01
    assert facts["hyperparameters"]["lora_r"] == 4
    assert facts["hyperparameters"]["prefix_cache"] == "auto"  # and no folder of this machine
    assert "output_dir" not in str(facts)
    assert str(tmp_path) not in str(facts)
    assert facts["cost"]["seconds"] > 0
    assert facts["file_bytes"] == (tmp_path / "out/adapter_model.safetensors").stat().st_size
    with pytest.raises(ClientFailure, match="no fact 'colour'"):
        ours("trainer.describe(colour='red')")


# -- loading what was pushed ------------------------------------------------------------------------------------------


def test_load_adapter_by_name(quiet: HubServer, ours: HubClient, tmp_path: Path) -> None:
    """By repo and revision; label names restored; private; from the cache when there is no Hub."""
    token = quiet.token("ann")
    options = {"hub_strategy": "end", "hub_private_repo": True}
    ours(RUN, out=tmp_path / "out", repo="ann/by-name", token=token, options=options)
    ours("trainer.push_to_hub()")
    first = quiet.commits("ann/by-name")[0].oid
    quiet.store.add_files("ann/by-name", {"adapter_model.safetensors": b"broken later on"})
    source = """
    from hub.runs import logits
    from spafit_hf import load_adapter
    model = load_adapter(base, "ann/by-name", revision=revision, token=token)
    result = dict(logits=logits(model, "tiny/bert"), labels=model.config.id2label)
    """
    expected = ours("from hub.runs import logits; result = logits(trainer.model, 'tiny/bert')")
    for base in ("tiny/bert", None):
        got = ours(source, base=base, revision=first, token=token)
        assert got["logits"] == expected
        assert list(got["labels"].values()) == ["bad", "good"]
    for revision, who, word in (
        ("main", token, "truncated"),
        ("v9", token, "no revision"),
        (first, quiet.token("eve"), "repository"),
    ):
        with pytest.raises(ClientFailure) as caught:
            ours(source, base="tiny/bert", revision=revision, token=who)
        assert caught.value.kind[0] == "AdapterError"
        assert word in caught.value.chain[0]


def test_load_adapter_offline(quiet: HubServer, ours: HubClient, tmp_path: Path) -> None:
    ours(RUN, out=tmp_path / "out", repo="ann/cached", token=quiet.token("ann"), options={"hub_strategy": "end"})
    ours("trainer.push_to_hub()")
    source = """
    from hub.runs import logits
    from spafit_hf import load_adapter
    result = logits(load_adapter(None, "ann/cached", revision=revision), "tiny/bert")
    """
    expected = ours(source, revision=None)
    quiet.forget()
    offline = HubClient(quiet.endpoint, Path(ours.env["HF_HOME"]), HF_HUB_OFFLINE="1")  # with the same cache
    try:
        for revision in (None, quiet.commits("ann/cached")[0].oid):
            assert offline(source, revision=revision) == expected
    finally:
        offline.close()
    assert quiet.seen == []

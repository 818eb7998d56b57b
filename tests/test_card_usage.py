"""The code on a card runs as it is printed, by a process that has nothing but what the code imports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hub import HubClient, HubServer

from spafit_hf.data.glue import TASKS

RUN_BLOCKS = """
import contextlib, io, sys
import transformers
transformers.logging.set_verbosity_error()
result = []
for block in blocks:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(block, "<card>", "exec"), {"__name__": "card"})
    result.append(said.getvalue())
imported = "spafit_hf" in sys.modules
"""


def blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)\n```", card, re.S)


def run(ours: HubClient, stock: HubClient, card: str) -> list[str]:
    """What each block of a card prints."""
    code = blocks(card)
    theirs = [block for block in code if "spafit_hf" not in block]
    said = stock(RUN_BLOCKS, blocks=theirs)
    assert stock("result = imported") is False
    return said + ours(RUN_BLOCKS, blocks=[block for block in code if "spafit_hf" in block])


def publish(ours: HubClient, folder: Path, repo: str, token: str, **facts: object) -> str:
    source = "from hub.runs import publish; result = publish(folder, repo, token, **facts)"
    return ours(source, folder=folder, repo=repo, token=token, facts=facts)


@pytest.mark.parametrize("task", ["sst2", "mrpc", "mnli", "stsb"])
def test_a_task_of_each_kind(quiet: HubServer, ours: HubClient, stock: HubClient, tmp_path: Path, task: str) -> None:
    # One text or two, of two labels or three, or a number; test_model_cards.py does the same for all nine tasks.
    found = TASKS[task]
    card = publish(
        ours,
        tmp_path / "a",
        f"ann/{task}",
        quiet.token("ann"),
        glue=task,
        labels=found.labels,
        problem_type=found.problem_type,
    )
    peft, pipeline, package = run(ours, stock, card)
    if found.regression:
        assert float(peft) == pytest.approx(float(package), abs=1e-6)
        assert peft.strip()[:6] in pipeline
        return
    assert eval(peft) == pytest.approx(eval(package), abs=1e-4)
    assert {item["label"]: round(item["score"], 4) for item in eval(pipeline)} == pytest.approx(eval(peft), abs=2e-4)
    assert set(eval(peft)) == set(found.labels)


@pytest.mark.parametrize("method", ["bitfit", "lora-I", "linear-probe", "full"])
def test_other_methods(quiet: HubServer, ours: HubClient, stock: HubClient, tmp_path: Path, method: str) -> None:
    facts = {"labels": ["bad", "good", "so-so"], "problem_type": "single_label_classification"}
    card = publish(ours, tmp_path / "a", f"ann/{method.lower()}", quiet.token("ann"), method=method, **facts)
    said = run(ours, stock, card)
    assert len(said) == (2 if method == "full" else 3)
    assert all("so-so" in text for text in said)


def test_multi_label(quiet: HubServer, ours: HubClient, stock: HubClient, tmp_path: Path) -> None:
    facts = {"labels": ["joy", "anger", "fear"], "problem_type": "multi_label_classification"}
    card = publish(ours, tmp_path / "a", "ann/multi", quiet.token("ann"), **facts)
    peft, pipeline, package = run(ours, stock, card)
    assert eval(peft) == pytest.approx(eval(package), abs=1e-4)
    assert {item["label"]: round(item["score"], 4) for item in eval(pipeline)} == pytest.approx(eval(peft), abs=2e-4)


def test_many_labels(quiet: HubServer, ours: HubClient, stock: HubClient, tmp_path: Path) -> None:
    names = [f"intent {number}" for number in range(40)]
    facts = {"labels": names, "problem_type": "single_label_classification"}
    card = publish(ours, tmp_path / "a", "ann/many", quiet.token("ann"), **facts)
    peft, _, package = run(ours, stock, card)
    assert set(eval(peft)) == set(eval(package)) == set(names)


@pytest.mark.parametrize("kind", ["writer", "rewriter"])
def test_language_models(quiet: HubServer, ours: HubClient, stock: HubClient, tmp_path: Path, kind: str) -> None:
    card = publish(ours, tmp_path / "a", f"ann/{kind}", quiet.token("ann"), kind=kind)
    said = run(ours, stock, card)
    assert all(text.strip() for text in said)
    assert len({said[0], said[-1]}) == 1  # plain PEFT and this package write the same

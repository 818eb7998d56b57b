"""The cards of the nine tasks are those of the adapters that are shipped, and what they print runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from hub import HubClient, HubServer
from hub.metadata import validate
from huggingface_hub import ModelCard
from test_card_usage import blocks, run

from spafit_hf.data.glue import TASKS
from spafit_hf.names import BASE_FILES, BASE_ID, embedded_base

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "model_cards"
ADAPTERS = ROOT / "space" / "adapters"

sys.path.insert(0, str(CARDS))
from write import card_of  # noqa: E402

PUSH = """
from spafit_hf.card import facts_of_folder, render_card
from spafit_hf.hub import push_adapter
from dataclasses import replace
push_adapter(folder, repo, token=token)
result = render_card(replace(facts_of_folder(folder), repo_id=repo))
"""


def test_every_task_has_an_adapter_and_a_card() -> None:
    assert {path.parent.name for path in ADAPTERS.glob("*/adapter_config.json")} >= set(TASKS)
    assert {path.stem for path in CARDS.glob("*.md")} == {"template", *TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_the_card_is_written_from_the_adapters_facts(task: str) -> None:
    text = (CARDS / f"{task}.md").read_text(encoding="utf-8")
    assert text == card_of(ADAPTERS / task), "run python model_cards/write.py"
    card = ModelCard(text)
    assert card.data.base_model == BASE_ID
    assert card.data.base_model_relation == "adapter"
    score = card.data.eval_results[0]
    assert (score.dataset_type, score.dataset_config) == ("nyu-mll/glue", task)
    results = json.loads((ADAPTERS / task / "results.json").read_text(encoding="utf-8"))
    measured = results["metrics"][score.dataset_split][results["main_figure"]]
    assert score.metric_value == pytest.approx(measured, abs=1e-6)
    assert not {"None", "[More Information Needed]"} & set(text.split())


def test_the_page_of_scores_is_that_of_the_adapters() -> None:
    page = (ROOT / "docs" / "glue.md").read_text(encoding="utf-8")
    for folder in ADAPTERS.iterdir():
        facts = json.loads((folder / "spafit_results.json").read_text(encoding="utf-8"))
        score = f"{facts['scores'][0]['figures'][facts['main_figure']]:.3f}".lstrip("0")
        task, _, method = folder.name.partition("-")
        row = rf"\| {TASKS[task].title}[^|]*{method}[^|]*\| \w+ \| {re.escape(score)} \|"
        assert re.search(row, page), folder.name


def test_a_folder_stays_small_and_holds_no_pickle() -> None:
    for folder in ADAPTERS.iterdir():
        files = list(folder.iterdir())
        assert sum(file.stat().st_size for file in files) < 700_000, folder.name
        assert not [file.name for file in files if file.suffix in (".bin", ".pt", ".pkl", ".pth")]


@pytest.fixture(scope="session")
def hub_with_base(busy_hub: HubServer) -> HubServer:
    base = embedded_base()
    busy_hub.store.add_files(BASE_ID, {name: (base / name).read_bytes() for name in BASE_FILES})
    return busy_hub


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_code_of_a_pushed_card_runs(
    hub_with_base: HubServer, ours: HubClient, stock: HubClient, task: str
) -> None:
    token = hub_with_base.token("ann")
    card = ours(PUSH, folder=ADAPTERS / task, repo=f"ann/shipped-{task}", token=token)
    assert validate(card) == ([], [])
    assert len(blocks(card)) == 3
    peft, pipeline, package = run(ours, stock, card)
    if TASKS[task].regression:
        assert float(peft) == pytest.approx(float(package), abs=1e-5)
        return
    assert eval(peft) == pytest.approx(eval(package), abs=1e-4)
    assert {item["label"]: round(item["score"], 4) for item in eval(pipeline)} == pytest.approx(eval(peft), abs=2e-4)

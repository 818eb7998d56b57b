"""The shipped adapters on sentences of our own, where they are there."""

from __future__ import annotations

import pytest
from spafit_space.config import SPACE, load_config
from spafit_space.service import Service

ADAPTERS = SPACE / "adapters"
PRAISE = [
    "An absolute delight from the first scene to the last.",
    "The acting is superb and the story stayed with me for days.",
    "I laughed, I cried, and I would gladly see it again.",
    "A beautiful, gripping and clever film.",
]
COMPLAINT = [
    "A dull, lifeless mess that wastes its whole cast.",
    "The worst two hours I have spent in a cinema.",
    "It is boring, badly written and far too long.",
    "Nothing about this terrible film works.",
]
ALIKE = [
    ("A man is playing a guitar on the stairs.", "On the stairs, a man plays the guitar."),
    ("The cat sleeps on the sofa.", "A cat is asleep on the couch."),
]
UNLIKE = [
    ("A man is playing a guitar on the stairs.", "Parliament voted on the new budget."),
    ("The cat sleeps on the sofa.", "The rocket was launched this morning."),
]


@pytest.fixture(scope="module")
def trained() -> Service:
    if not any(ADAPTERS.glob("*/adapter_config.json")):
        pytest.skip("no trained adapters in space/adapters")
    return Service.start(load_config(environment={}))


def _need(trained: Service, task: str) -> None:
    if task not in trained.tasks:
        pytest.skip(f"no trained adapter for {task} in space/adapters")


def test_all_that_is_shipped_is_served(trained: Service) -> None:
    assert trained.problems == ()
    for member in trained.members:
        assert member.task is not None
        assert member.result is not None, f"{member.name} has no result file"
        assert member.result.score is not None
        assert member.file_bytes < 700_000


def test_sentiment_is_told(trained: Service) -> None:
    _need(trained, "sst2")
    found = [trained.answer("sst2", text).prediction.label for text in PRAISE + COMPLAINT]
    expected = ["positive"] * len(PRAISE) + ["negative"] * len(COMPLAINT)
    right = sum(label == wanted for label, wanted in zip(found, expected, strict=True))
    assert right >= len(expected) - 1, found


def test_similarity_is_ordered(trained: Service) -> None:
    _need(trained, "stsb")
    alike = [trained.answer("stsb", pair).prediction.value for pair in ALIKE]
    unlike = [trained.answer("stsb", pair).prediction.value for pair in UNLIKE]
    assert min(value or 0.0 for value in alike) > max(value or 0.0 for value in unlike) + 1

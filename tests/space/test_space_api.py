"""The launched Space as a program sees it: every endpoint, mistakes, MCP, and many requests at once."""

from __future__ import annotations

import gc
import json
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gradio as gr
import httpx
import psutil
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from spafit_space.api import in_a_sentence
from stand_ins import Launched

from spafit_hf.data.glue import TASKS

FILM = "A warm, funny film."
PAIR = ("A dog runs.", "A dog is running.")
SECRET = "zanzibarquux"
"""A word that nothing but these tests says."""


@pytest.fixture(scope="module")
def client(launched: Launched) -> Client:
    return Client(launched.url, verbose=False)


def _texts(task: str) -> tuple[str, ...]:
    return PAIR if len(TASKS[task].columns) == 2 else (FILM,)


def test_the_endpoints_are_these_with_types_and_descriptions(client: Client, launched: Launched) -> None:
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert sorted(named) == ["/compare", "/list_tasks", "/predict", "/predict_all", "/results"]
    info = httpx.get(f"{launched.url}gradio_api/info").json()["named_endpoints"]
    for name, endpoint in info.items():
        assert len(endpoint["description"]) > 40, name
        for parameter in endpoint["parameters"]:
            assert parameter["type"] == {"type": "string"}, (name, parameter)
    predict = {parameter["parameter_name"]: parameter for parameter in info["/predict"]["parameters"]}
    assert list(predict) == ["task", "text", "text_pair"]
    assert predict["text_pair"]["parameter_has_default"]


def test_list_tasks_and_results(client: Client) -> None:
    tasks = client.predict(api_name="/list_tasks")
    assert {entry["task"] for entry in tasks} == set(TASKS)
    stsb = next(entry for entry in tasks if entry["task"] == "stsb")
    assert (stsb["texts"], stsb["labels"], stsb["layers"]) == (2, [], 6)
    results = client.predict(api_name="/results")
    sst2 = next(entry for entry in results if entry["adapter"] == "sst2")
    assert (sst2["score"], sst2["paper_score"], sst2["paper_trained_millions"]) == (pytest.approx(0.83), 0.93, 7.49)


@pytest.mark.parametrize("task", list(TASKS))
def test_predict_answers_every_task(client: Client, launched: Launched, task: str) -> None:
    answer = client.predict(task, *_texts(task), api_name="/predict")
    assert answer["task"] == task
    if task == "stsb":
        assert answer["scores"] is None
        assert isinstance(answer["value"], float)
    else:
        assert set(answer["scores"]) == set(TASKS[task].labels)
        assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["label"] == max(answer["scores"], key=answer["scores"].__getitem__)
    text = PAIR if len(_texts(task)) == 2 else FILM
    expected = launched.service.answer(task, text).prediction
    assert answer["scores"] == pytest.approx(expected.scores, abs=1e-6)


def test_predict_all_and_compare(client: Client) -> None:
    pairs = client.predict(*PAIR, api_name="/predict_all")
    assert set(pairs["answers"]) == {"mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"}
    assert pairs["milliseconds"] > 0
    single = client.predict(FILM, api_name="/predict_all")
    assert set(single["answers"]) == {"cola", "sst2", "sst2-lora"}
    two = client.predict("sst2", "sst2-full", FILM, api_name="/compare")
    assert (two["first"]["adapter"], two["second"]["adapter"]) == ("sst2", "sst2-full")
    assert two["first"]["scores"] == pytest.approx(single["answers"]["sst2"]["scores"], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "endpoint", "words"),
    [
        (("sst2", ""), "/predict", "no text yet"),
        (("mrpc", "alone"), "/predict", "takes two texts"),
        (("sst2", "one", "two"), "/predict", "takes one text"),
        (("nothing", "x"), "/predict", "no task or adapter"),
        (("sst2", "x" * 5000), "/predict", "at most 2,000"),
        (("sst2", 5), "/predict", "must be a string"),
        (("sst2", None), "/predict", "must be a string"),
        ((["sst2"], "x"), "/predict", "no task or adapter"),
        (("",), "/predict_all", "no text yet"),
        (("sst2", "sst2", "x"), "/compare", "two different"),
        (("sst2", "mrpc", "x"), "/compare", "takes two texts"),
    ],
)
def test_a_mistake_is_a_sentence(
    client: Client, capfd: pytest.CaptureFixture[str], arguments: tuple[Any, ...], endpoint: str, words: str
) -> None:
    with pytest.raises(AppError, match=words) as caught:
        client.predict(*arguments, api_name=endpoint)
    message = str(caught.value)
    assert "Traceback" not in message
    assert message[0].isupper()
    assert "Traceback" not in capfd.readouterr().err


def test_adding_is_not_offered_where_it_is_off(client: Client) -> None:
    with pytest.raises(ValueError, match="add_adapter"):
        client.predict("user/name", api_name="/add_adapter")


def test_an_empty_page_says_so_and_an_adapter_can_be_added_where_that_is_on(launched_open: Launched) -> None:
    client = Client(launched_open.url, verbose=False)
    assert client.predict(api_name="/list_tasks") == []
    with pytest.raises(AppError, match="no adapters are here"):
        client.predict("sst2", FILM, api_name="/predict")
    with pytest.raises(AppError, match="no id of a repository"):
        client.predict("/etc", api_name="/add_adapter")
    with pytest.raises(AppError, match="no repository on the Hub"):
        client.predict("user/absent", api_name="/add_adapter")
    assert client.predict("user/sst2", api_name="/add_adapter")["task"] == "sst2"
    assert client.predict("sst2", FILM, api_name="/predict")["adapter"] == "user/sst2"


def _call(launched: Launched, endpoint: str, data: list[Any]) -> tuple[str, Any]:
    """What plain HTTP says to a call: complete or error, and the data."""
    url = f"{launched.url}gradio_api/call/{endpoint}"
    event = httpx.post(url, json={"data": data}).json()["event_id"]
    kind, data_line = httpx.get(f"{url}/{event}").text.strip().splitlines()
    return kind.removeprefix("event: "), json.loads(data_line.removeprefix("data: "))


@pytest.mark.parametrize(
    ("endpoint", "data"),
    [("predict", ["sst2", FILM]), ("predict_all", [FILM]), ("compare", ["sst2", "sst2-lora", FILM])],
)
def test_what_has_a_default_may_be_left_out(launched: Launched, endpoint: str, data: list[Any]) -> None:
    kind, found = _call(launched, endpoint, data)
    _, expected = _call(launched, endpoint, [*data, ""])
    assert kind == "complete"
    assert found[0].keys() == expected[0].keys()


@pytest.mark.parametrize(
    ("endpoint", "data", "words"),
    [
        ("predict", [SECRET], "Too few values came (1); predict needs one for each of task, text."),
        ("predict_all", [], "predict_all needs one for each of text."),
        ("compare", ["sst2", SECRET], "compare needs one for each of first, second, text."),
        ("predict", ["sst2", {"path": SECRET, "meta": {"_type": "gradio.FileData"}}], "does not fit its field"),
    ],
)
def test_values_that_do_not_do_are_answered_with_a_sentence(
    launched: Launched, capfd: pytest.CaptureFixture[str], endpoint: str, data: list[Any], words: str
) -> None:
    kind, found = _call(launched, endpoint, data)
    assert kind == "error"
    assert words in found["error"]
    assert SECRET not in found["error"]
    assert capfd.readouterr().err == ""


def test_values_that_the_page_never_sends_are_not_printed(
    launched: Launched, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    dependencies = httpx.get(f"{launched.url}config").json()["dependencies"]
    # One of each kind: ask and ask_1 are the same for other buttons.
    functions = {str(each["api_name"]).rstrip("_0123456789"): each for each in dependencies}.values()
    assert len(functions) > 10
    with caplog.at_level(logging.INFO):
        for function in functions:
            for data in ([SECRET] * len(function["inputs"]), [SECRET] * (len(function["inputs"]) - 1)):
                body = {"data": data, "fn_index": function["id"], "session_hash": "here"}
                httpx.post(f"{launched.url}gradio_api/queue/join", json=body).raise_for_status()
        answers = httpx.get(f"{launched.url}gradio_api/queue/data?session_hash=here", timeout=30).text.split("\n\n")
        messages = [json.loads(answer.removeprefix("data: ")) for answer in answers if answer]
        done = [each for each in messages if each["msg"] == "process_completed"]
        assert len(done) == 2 * len(functions)
        assert all(each["success"] or each["output"]["error"] for each in done), "an error is a sentence"
    out = capfd.readouterr()
    assert SECRET not in out.out + out.err + caplog.text
    assert "Traceback" not in out.err


def test_nothing_that_is_typed_is_logged(
    client: Client, launched: Launched, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        client.predict("sst2", SECRET, api_name="/predict")
        for arguments in ((SECRET, SECRET), ("sst2", f"{SECRET} " * 500), ("mrpc", SECRET), ("sst2", SECRET, SECRET)):
            with pytest.raises(AppError):
                client.predict(*arguments, api_name="/predict")
        for endpoint, data in (("predict", ["sst2", SECRET]), ("predict", [SECRET]), ("compare", ["sst2", SECRET])):
            _call(launched, endpoint, data)
    out = capfd.readouterr()
    assert SECRET not in out.out + out.err + caplog.text


def test_the_page_asks_for_no_analytics_and_keeps_no_history(launched: Launched) -> None:
    config = httpx.get(f"{launched.url}config").json()
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False
    assert config["show_error"] is False


def test_the_endpoints_are_tools_over_mcp(launched: Launched) -> None:
    pytest.importorskip("mcp", reason="the tools need gradio[mcp]")
    schema = httpx.get(f"{launched.url}gradio_api/mcp/schema").json()
    tools = {tool["name"]: tool for tool in schema}
    assert {"predict", "predict_all", "compare", "list_tasks", "results"} <= {name.split("/")[-1] for name in tools}
    predict = next(tool for name, tool in tools.items() if name == "predict")
    assert set(predict["inputSchema"]["properties"]) == {"task", "text", "text_pair"}
    assert "sentiment" in predict["description"]


@pytest.mark.slow
def test_fifty_requests_at_once_are_answered_as_alone(client: Client, launched: Launched) -> None:
    random_ = random.Random(0)
    subjects, verbs = ["The film", "A nurse", "Our bus", "The choir"], ["sings", "is late", "was dull", "came home"]
    asked: list[tuple[str, tuple[str, ...]]] = []
    for index in range(50):
        task = list(TASKS)[index % len(TASKS)]
        count = len(TASKS[task].columns)
        words = [f"{random_.choice(subjects)} {random_.choice(verbs)} " * random_.randint(1, 8) for _ in range(count)]
        asked.append((task, tuple(f"{text}{index}" for text in words)))
    alone = [launched.service.answer(task, texts if len(texts) == 2 else texts[0]).prediction for task, texts in asked]
    process = psutil.Process()

    def ask(row: tuple[str, tuple[str, ...]]) -> dict[str, Any]:
        return client.predict(row[0], *row[1], api_name="/predict")

    before = 0
    for turn in range(2):
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(ask, asked))
        for (task, _), answer, expected in zip(asked, answers, alone, strict=True):
            assert answer["task"] == task
            assert answer["label"] == expected.label
            assert answer["scores"] == pytest.approx(expected.scores, abs=1e-5)
            assert answer["value"] == pytest.approx(expected.value, abs=1e-5)
        gc.collect()
        if turn == 0:
            before = process.memory_info().rss
    assert process.memory_info().rss - before < 100 * 2**20, "memory grows with the number of requests"
    json.dumps(answers)


def test_an_error_that_nobody_foresaw_is_a_sentence_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError(f"no such word: {SECRET}")

    with pytest.raises(gr.Error, match="Something went wrong here") as caught:
        in_a_sentence(fail)
    assert not caught.value.print_exception
    assert "RuntimeError in " in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("call/nothing", {"data": []}),
        ("call/add_adapter", {"data": ["user/name"]}),
        ("api/nothing", {"data": []}),
        ("queue/join", {"data": [], "fn_index": 999, "session_hash": "x"}),
    ],
)
def test_a_function_that_is_not_here(
    launched: Launched, capfd: pytest.CaptureFixture[str], path: str, body: dict[str, Any]
) -> None:
    answer = httpx.post(f"{launched.url}gradio_api/{path}", json=body)
    assert (answer.status_code, answer.json()["detail"][:26]) == (404, "There is no such function ")
    assert "Traceback" not in capfd.readouterr().err


def test_nothing_goes_past_the_queue(launched: Launched) -> None:
    answer = httpx.post(f"{launched.url}gradio_api/run/predict", json={"data": ["sst2", FILM]})
    assert answer.status_code == 404
    assert "join the queue" in answer.json()["detail"]


def test_large_bodies_are_refused_as_they_come(launched: Launched, capfd: pytest.CaptureFixture[str]) -> None:
    url = f"{launched.url}gradio_api/call/predict"
    body = json.dumps({"data": ["sst2", "a" * 300_000, ""]}).encode()
    parts = [body[at : at + 2**16] for at in range(0, len(body), 2**16)]
    assert httpx.post(url, content=body).status_code == 413
    assert httpx.post(url, content=iter(parts)).status_code == 413  # which says no length
    assert "Traceback" not in capfd.readouterr().err


def test_no_file_is_taken(launched: Launched) -> None:
    assert httpx.post(f"{launched.url}gradio_api/upload", files={"files": ("a.txt", b"xx")}).status_code == 413

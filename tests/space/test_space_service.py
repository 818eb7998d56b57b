"""What stands behind the page: who answers, what they say, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import stand_ins
import torch
from huggingface_hub import scan_cache_dir
from models import tiny
from spafit_space import draw
from spafit_space import service as service_module
from spafit_space.api import _answer
from spafit_space.config import Config, Source
from spafit_space.results import PAPER_PARAMETERS, Result, read_result
from spafit_space.service import Service
from spafit_space.strata import strata_of
from spafit_space.tasks import TASK_WORDS, label_words, words_of
from spafit_space.tries import Tries

from spafit_hf import get_spafit_model, save_adapter
from spafit_hf.adapter import AdapterError, verify_adapter
from spafit_hf.architecture import find_architecture
from spafit_hf.data.glue import PAPER_SCORES, TASKS
from spafit_hf.hub import Pulled
from spafit_hf.predictor import NoAnswer
from spafit_hf.predictor.facts import overflow
from spafit_hf.strategy.drawing import MEANINGS

FILM = "A warm, funny film."
PAIR = ("A dog runs.", "A dog is running.")


# -- who is there -----------------------------------------------------------------------------------------------------


def test_every_task_is_served_once_and_sentiment_three_times(service: Service) -> None:
    assert service.problems == ()
    assert service.tasks == tuple(TASK_WORDS)
    assert [member.name for member in service.of_task("sst2")] == ["sst2", "sst2-lora", "sst2-full"]
    assert [member.full for member in service.of_task("sst2")] == [False, False, True]
    for member in service.members:
        assert member.task is not None
        assert member.texts == len(TASKS[member.task].columns)


def test_any_subset_of_tasks_will_do(stand_in_folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapters = stand_in_folders
    shutil.copytree(adapters / "stsb", tmp_path / "stsb")
    alone = Service.start(Config(base=str(base), folder=tmp_path))
    assert alone.tasks == ("stsb",)
    assert alone.answer("stsb", PAIR).prediction.value is not None
    with pytest.raises(ValueError, match="No adapter here takes a single text; add a second"):
        alone.answer_all(FILM)


def test_no_adapters_are_said_plainly(stand_in_folders: tuple[Path, Path], tmp_path: Path) -> None:
    empty = Service.start(Config(base=str(stand_in_folders[0]), folder=tmp_path / "none"))
    assert empty.members == ()
    assert "No adapters are here" in draw.notices(empty)
    assert "SPAFIT-4-9-II" in draw.results(empty)
    with pytest.raises(ValueError, match="none, since no adapters are here"):
        empty.answer("sst2", FILM)


def test_what_cannot_be_served_is_named_and_the_rest_is_served(
    stand_in_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapters = stand_in_folders
    for name in ("cola", "rte", "mrpc"):
        shutil.copytree(adapters / name, tmp_path / name)
    (tmp_path / "rte" / "adapter_model.safetensors").write_bytes(b"not safetensors")
    (tmp_path / "mrpc" / "results.json").write_text("{", encoding="utf-8")
    (tmp_path / "notes").mkdir()
    found = Service.start(Config(base=str(base), folder=tmp_path))
    assert [member.name for member in found.members] == ["cola"]
    assert len(found.problems) == 3
    assert "rte is not served" in draw.notices(found)
    assert str(tmp_path) not in draw.notices(found)


def test_files_of_a_kind_that_nobody_foresaw_keep_nothing_else_from_being_served(
    stand_in_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapters = stand_in_folders
    for name in ("cola", "mrpc", "qnli", "rte", "sst2-full", "wnli"):
        shutil.copytree(adapters / name, tmp_path / name)
    (tmp_path / "mrpc" / "tokenizer_config.json").write_text("[]", encoding="utf-8")
    (tmp_path / "sst2-full" / "tokenizer_config.json").write_text("[]", encoding="utf-8")
    results = json.loads((tmp_path / "wnli" / "results.json").read_text(encoding="utf-8"))
    (tmp_path / "wnli" / "results.json").write_text(json.dumps({**results, "task": []}), encoding="utf-8")

    def read(folder: Path) -> Result | None:
        if folder.name == "qnli":
            raise PermissionError(13, "Permission denied", str(folder / "results.json"))
        if folder.name == "rte":
            raise RuntimeError(f"{folder} is odd")
        return read_result(folder)

    monkeypatch.setattr(service_module, "read_result", read)
    found = Service.start(Config(base=str(base), folder=tmp_path))
    assert {member.name for member in found.members} == {"cola", "wnli"}
    assert found._predictor.names == ("cola", "wnli"), "nothing stays that nobody can ask"
    reasons = dict(problem.split(" is not served: ") for problem in found.problems)
    assert reasons["mrpc"].startswith("the tokenizer in mrpc cannot be read")
    assert reasons["sst2-full"].startswith("the model sst2-full cannot be loaded")
    assert reasons["qnli"] == "its files cannot be read: Permission denied."
    assert reasons["rte"] == "its files cannot be read (RuntimeError)."
    assert str(tmp_path) not in " ".join(found.problems)


@pytest.mark.parametrize("spoiled", [{"task": []}, {"main_figure": []}])
def test_a_result_file_may_hold_anything(
    stand_in_folders: tuple[Path, Path], tmp_path: Path, spoiled: dict[str, object]
) -> None:
    facts = json.loads((stand_in_folders[1] / "rte" / "results.json").read_text(encoding="utf-8"))
    (tmp_path / "results.json").write_text(json.dumps({**facts, **spoiled}), encoding="utf-8")
    found = read_result(tmp_path)
    assert found is not None
    assert (found.task is None, found.figure is None) == ("task" in spoiled, "main_figure" in spoiled)


def test_an_adapter_without_label_names_gets_those_of_its_task(
    stand_in_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapters = stand_in_folders
    folder = shutil.copytree(adapters / "mnli", tmp_path / "plain")
    (folder / "spafit_config.json").unlink()
    (folder / "results.json").unlink()
    config = Config(base=str(base), folder=None, adapters={"plain": Source(str(folder), task="mnli")})
    member = Service.start(config).member("plain")
    assert member.labels == ("entailment", "neutral", "contradiction")
    unknown = Service.start(replace(config, adapters={"plain": Source(str(folder))}))
    assert unknown.member("plain").task is None
    assert set(unknown.answer("plain", FILM).prediction.scores or {}) == {"LABEL_0", "LABEL_1", "LABEL_2"}


# -- answers ----------------------------------------------------------------------------------------------------------


def test_one_and_all_and_two_say_the_same(service: Service) -> None:
    alone = {member.name: service.answer(member.name, PAIR) for member in service.members if member.texts == 2}
    together = service.answer_all(PAIR)
    assert [answer.member.name for answer in together] == list(alone)
    for answer in together:
        expected = alone[answer.member.name].prediction
        assert answer.prediction.label == expected.label
        assert answer.prediction.value == pytest.approx(expected.value, abs=1e-5)
        assert answer.prediction.scores == pytest.approx(expected.scores, abs=1e-5)
    one, two = service.compare("rte", "mnli", PAIR)
    assert one.prediction.scores == pytest.approx(alone["rte"].prediction.scores, abs=1e-5)
    assert two.prediction.scores == pytest.approx(alone["mnli"].prediction.scores, abs=1e-5)


def test_a_member_that_overflows_leaves_others_theirs(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    before = service.answer_all(FILM)
    (kept,) = [answer.prediction for answer in before if answer.member.name == "cola"]

    def fail(_: object, names: list[str]) -> None:
        problems = {name: overflow(name, FILM) for name in names if name != "cola"}
        raise NoAnswer(problems, [kept] if "cola" in names else [])

    monkeypatch.setattr(service._predictor, "predict_all", fail)
    found = service.answer_all(FILM)
    assert [answer.member.name for answer in found] == [answer.member.name for answer in before]
    assert [answer.prediction for answer in found if not answer.problem] == [kept]
    assert ["problem" in _answer(answer) for answer in found] == [bool(answer.problem) for answer in found]
    page = draw.answers(found)
    assert "<b>1 answer</b>" in page
    assert page.count("weights are so large that they overflow") == len(found) - 1
    monkeypatch.setattr(service, "_members", {name: service.member(name) for name in ("sst2", "sst2-lora")})
    with pytest.raises(ValueError, match="can give no finite number"):
        service.answer_all(FILM)


def test_a_full_model_that_overflows_says_so(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    head = service._full["sst2-full"].model.get_submodule("classifier")
    monkeypatch.setattr(head, "forward", lambda x: torch.full((len(x), 2), float("nan")))
    with pytest.raises(NoAnswer, match="'sst2-full' can give no finite number"):
        service.answer("sst2-full", FILM)


def test_a_full_model_is_compared_and_stays_out_of_the_pass(service: Service) -> None:
    one, two = service.compare("sst2", "sst2-full", FILM)
    assert (one.member.full, two.member.full) == (False, True)
    assert sum((two.prediction.scores or {}).values()) == pytest.approx(1)
    assert "sst2-full" not in [answer.member.name for answer in service.answer_all(FILM)]
    assert "every weight" in draw.comparison(one, two)


def test_a_long_text_is_cut_with_a_notice(service: Service) -> None:
    answer = service.answer("sst2", "very " * 200 + "good")
    assert answer.prediction.truncated
    assert "its end was not read" in draw.answer(answer)


@pytest.mark.parametrize(
    ("name", "text", "pair", "words"),
    [
        ("sst2", "", "", "no text yet"),
        ("sst2", "   ", "", "no text yet"),
        ("sst2", "x" * 2001, "", "2,001 characters; at most 2,000"),
        ("sst2", "one", "two", "SST-2 takes one text; leave the second empty"),
        ("mrpc", "one", "", "MRPC takes two texts, and the second is empty"),
        ("mrcp", "one", "two", "no task or adapter 'mrcp'; there are"),
        ("sst2", 3, "", "is a int; it must be a string"),
        ("sst2", "\ud83d", "", "no valid Unicode"),
    ],
)
def test_mistakes_are_sentences(service: Service, name: str, text: str, pair: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        service.answer(name, service.text(text, pair))


def test_a_task_may_be_named_as_people_write_it(service: Service) -> None:
    assert service.member("SST-2").name == "sst2"


def test_the_same_twice_is_no_comparison(service: Service) -> None:
    with pytest.raises(ValueError, match="choose two different"):
        service.compare("sst2", "sst2", FILM)


# -- strata, results, words -------------------------------------------------------------------------------------------


def test_strata_are_those_of_the_strategy(service: Service) -> None:
    strata = service.member("sst2").strata
    assert [(band.first, band.last, band.what) for band in strata.bands] == [
        (0, 0, "frozen"),
        (1, 2, "every bias"),
        (3, 5, "LoRA (rank 4) on attention and biases of feed-forward"),
    ]
    assert strata.frozen == 1
    assert strata.head
    assert service.member("sst2-lora").strata.frozen == 0
    drawn = draw.strata(service.member("sst2"))
    assert drawn.count("class='sf-cell sf-lora'") == 3 * 4 + 1
    assert drawn.count("class='sf-cell sf-bias'") == 2 * 8 + 3 * 3 + 1


def test_strata_with_bottlenecks(tmp_path: Path) -> None:
    own = {"layers": [3, 3], "biases": ["output"], "bottleneck": {"kind": "parallel"}}
    strategy = {"strata": [{"layers": [1, 2], "bottleneck": {"kind": "series"}}, own]}
    save_adapter(get_spafit_model(tiny("bert"), strategy), tmp_path)
    base = tiny("bert")
    found = strata_of(verify_adapter(tmp_path, base), find_architecture(base))
    assert [(band.marks, band.what) for band in found.bands] == [
        ("........", "frozen"),
        ("...A..A.", "bottleneck adapters in attention and feed-forward"),
        ("......*.", "bottleneck adapters with LoRA or biases in feed-forward"),
    ]
    assert set(draw._CLASSES) == set(MEANINGS)


def test_results_are_those_of_the_file_and_the_paper(service: Service) -> None:
    html = draw.results(service)
    assert ".83 (paper .93)" in html
    assert "7.49 M" in html
    assert set(PAPER_PARAMETERS) == set(PAPER_SCORES["sst2"])


def test_both_kinds_of_result_files_are_read(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    facts = {
        "format": 1,
        "method": "lora-I",
        "data": {"glue": "cola", "train_rows": 10},
        "scores": [{"split": "validation", "figures": {"matthews_correlation": 0.5}, "rows": 7}],
        "trained_parameters": 5,
    }
    (tmp_path / "spafit_results.json").write_text(json.dumps(facts), encoding="utf-8")
    result = read_result(tmp_path)
    assert result is not None
    assert (result.task, result.score, result.rows, result.trained_parameters) == ("cola", 0.5, 7, 5)
    stand_ins.write_result(tmp_path, "rte", "lora-II", 9, 0.6)
    result = read_result(tmp_path)
    assert result is not None
    assert (result.task, result.method, result.score, result.rows) == ("rte", "lora-II", 0.6, 277)
    (tmp_path / "results.json").write_text("[]", encoding="utf-8")
    with pytest.raises(AdapterError, match="holds a list"):
        read_result(tmp_path)


@pytest.mark.parametrize("task", list(TASK_WORDS))
def test_every_task_has_words_and_examples_of_its_own(task: str) -> None:
    words, known = TASK_WORDS[task], TASKS[task]
    assert set(words.labels) == set(known.labels)
    assert len(words.boxes) == len(known.columns)
    assert len(words.examples) == 3
    assert all(len(example) == len(known.columns) for example in words.examples)
    assert words.does.endswith(".")
    assert words.does_not.endswith(".")


def test_all_tasks_have_words() -> None:
    assert set(TASK_WORDS) == set(TASKS)
    assert label_words("mnli", "neutral") == "may or may not be"
    assert label_words(None, "off_topic") == "off topic"
    assert words_of("other").title == "Other"


def test_no_example_is_a_row_of_the_data(glue_dir: Path) -> None:
    import pyarrow.parquet as parquet

    for task, words in TASK_WORDS.items():
        texts = {text.strip() for example in words.examples for text in example}
        for file in (glue_dir / task).glob("*.parquet"):
            table = parquet.read_table(file, columns=list(TASKS[task].columns))
            for column in table.columns:
                assert not texts & {str(text).strip() for text in column.to_pylist()}


def test_words_from_outside_cannot_become_markup(service: Service) -> None:
    evil = "<img src=x onerror=alert(1)>${1}{{2}}"
    assert draw.words(evil) == "&lt;img src=x onerror=alert(1)&gt;&#36;&#123;1&#125;&#123;&#123;2&#125;&#125;"
    member = replace(service.member("sst2"), name=evil, task=None, labels=(evil, "b"), method=evil, source=evil)
    answer = service.answer("sst2", FILM)
    prediction = replace(answer.prediction, label=evil, scores={evil: 0.9, "b": 0.1})
    fake = replace(answer, member=member, prediction=prediction)
    for html in (draw.answer(fake, title=evil), draw.answers([fake]), draw.about(member), draw.strata(member)):
        assert "<img" not in html
        assert "${" not in html


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "> 99.9 %"), (0.9972, "99.7 %"), (0.5, "50 %"), (0.004, "0.4 %"), (1e-5, "< 0.1 %")]
)
def test_no_probability_is_rounded_to_certainty(share: float, text: str) -> None:
    assert draw.percent(share) == text


# -- adding -----------------------------------------------------------------------------------------------------------


def test_adding_is_off_unless_allowed(service: Service) -> None:
    with pytest.raises(ValueError, match="switched off"):
        service.add("user/sst2")


def test_an_adapter_is_added_verified_and_removed(open_service: Service) -> None:
    member = open_service.add("user/sst2")
    assert (member.name, member.task, member.added) == ("user/sst2", "sst2", True)
    assert "Its repository says" in draw.about(member)
    assert open_service.answer("sst2", FILM).member.name == "user/sst2"
    with pytest.raises(ValueError, match="here already"):
        open_service.add("user/sst2")
    open_service.add("user/stsb", "v1")
    with pytest.raises(ValueError, match="limit"):
        open_service.add("user/cola")
    open_service.remove("user/sst2")
    assert open_service.tasks == ("stsb",)
    with pytest.raises(ValueError, match="was not added"):
        open_service.remove("user/sst2")


@pytest.mark.parametrize("repo", ["", "sst2", "../../etc", "/etc/passwd", "a/b/c", "user/..", "user/na me", "a/../b"])
def test_only_ids_of_repositories_are_taken(open_service: Service, repo: str) -> None:
    with pytest.raises(ValueError, match="no id of a repository"):
        open_service.add(repo)


def test_what_is_refused_leaves_no_trace(open_service: Service) -> None:
    with pytest.raises(ValueError, match="no repository"):
        open_service.add("user/absent")
    with pytest.raises(ValueError, match="no branch, tag or commit"):
        open_service.add("user/sst2", "a b")
    with pytest.raises(ValueError, match="whole model and no adapter"):
        open_service.add("user/sst2-full")
    assert open_service.members == ()


def test_errors_name_the_repository_and_no_path(
    stand_in_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapters = stand_in_folders
    folders = {name: tmp_path / "snapshots" / name for name in ("sst2", "cola", "odd", "stranger")}
    for name, folder in folders.items():
        shutil.copytree(adapters / (name if name in ("sst2", "cola") else "sst2"), folder)
    (folders["odd"] / "tokenizer_config.json").write_text("[]", encoding="utf-8")
    sidecar = json.loads((folders["stranger"] / "spafit_config.json").read_text(encoding="utf-8"))
    sidecar["base"]["hidden_size"] = 17
    (folders["stranger"] / "spafit_config.json").write_text(json.dumps(sidecar), encoding="utf-8")

    def fetch(repo_id: str, **_: object) -> Pulled:
        return Pulled(folders[repo_id.split("/")[1]], repo_id, "main", "0" * 40, ())

    monkeypatch.setattr(service_module, "fetch_adapter", fetch)
    service = Service.start(Config(base=str(base), folder=None, allow_adding=True))
    with pytest.raises(ValueError, match=re.escape(f"to this base ({base.name})")) as caught:
        service.add("user/stranger")
    assert str(tmp_path) not in str(caught.value)
    assert str(base) not in str(caught.value)
    odd = service.add("user/odd")
    assert "the base's tokenizer here, not the adapter's own: it cannot be read" in draw.about(odd).replace(
        "&#x27;", "'"
    )
    assert str(tmp_path) not in draw.about(odd)
    service.remove("user/odd")
    service.add("user/sst2")
    service.add("user/cola")
    service._predictor._cache._loaded.clear()  # as if others had taken their place
    for folder in (folders["sst2"], folders["cola"]):
        shutil.rmtree(folder)
    asks = (
        lambda: service.answer("user/sst2", FILM),
        lambda: service.answer_all(FILM),
        lambda: service.compare("user/sst2", "user/cola", FILM),
    )
    for ask in asks:
        with pytest.raises(ValueError, match=r"^user/sst2 is not a folder") as caught:
            ask()
        assert str(tmp_path) not in str(caught.value)


def test_a_refused_download_is_deleted_and_a_served_one_is_not(
    stand_in_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapters = stand_in_folders
    repos = {}
    for number, name in enumerate(("sst2", "broken")):
        commit = str(number) * 40
        repos[name] = tmp_path / f"models--user--{name}" / "snapshots" / commit
        shutil.copytree(adapters / "sst2", repos[name])
    (repos["broken"] / "adapter_model.safetensors").write_bytes(b"not safetensors")

    def fetch(repo_id: str, **_: object) -> Pulled:
        folder = repos[repo_id.split("/")[1]]
        return Pulled(folder, repo_id, "main", folder.name, ())

    monkeypatch.setattr(service_module, "fetch_adapter", fetch)
    monkeypatch.setattr(service_module, "scan_cache_dir", lambda: scan_cache_dir(tmp_path))
    service = Service.start(Config(base=str(base), folder=None, allow_adding=True))
    service.add("user/sst2")
    (repos["sst2"] / "adapter_model.safetensors").write_bytes(b"not safetensors any more")
    for name in repos:
        with pytest.raises(ValueError, match="safetensors"):
            service.add(f"user/{name}", "main")
    assert not repos["broken"].exists()
    assert repos["sst2"].exists()


def test_tries_are_counted_by_visitor_and_hour(open_service: Service) -> None:
    now = [0.0]
    tries = Tries(2, lambda: now[0])
    for _ in range(2):
        tries.take("ann")
    with pytest.raises(ValueError, match="tried 2 adapters within an hour; try again in 60 minutes"):
        tries.take("ann")
    tries.take("bob")
    now[0] = 3600.0
    tries.take("ann")
    open_service._tries.limit = 1
    open_service.add("user/sst2", visitor="ann")
    with pytest.raises(ValueError, match="within an hour"):
        open_service.add("user/cola", visitor="ann")
    open_service.add("user/cola", visitor="bob")


@pytest.mark.parametrize("file", ["results.json", "spafit_results.json"])
def test_numbers_that_no_float_holds_are_left_open(tmp_path: Path, file: str) -> None:
    huge = "1" + "0" * 400
    facts = f'{{"trained_parameters": {huge}, "total_parameters": {huge}, "train_rows": {huge}}}'
    (tmp_path / file).write_text(facts, encoding="utf-8")
    try:
        found = read_result(tmp_path)
    except AdapterError:
        return
    assert found is not None
    assert found.trained_parameters is None
    assert found.total_parameters is None
